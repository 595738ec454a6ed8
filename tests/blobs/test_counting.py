"""What counts as a request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudmount.blobs.counting import CountingStore, Counts
from cloudmount.blobs.memory import MemoryStore
from cloudmount.errors import BlobMissingError


def test_each_kind() -> None:
    store = CountingStore(MemoryStore())
    store.create("a/1", b"12345")
    store.put("config", b"12")
    store.read("a/1", 1, 3)
    store.read("a/1", 1, 0)
    [*store.list("")]
    [*store.list("", limit=0)]
    [*store.list_folders("")]
    store.delete("a/1")
    with pytest.raises(BlobMissingError):
        store.read("a/1")
    expected = Counts(create=1, put=1, read=2, list=1, list_folders=1, delete=1, bytes_up=7, bytes_down=3)
    assert store.snapshot() == expected
    assert (expected.requests, expected.reads, expected.writes) == (7, 4, 2)


def test_differences() -> None:
    store = CountingStore(MemoryStore())
    store.create("x", b"123")
    before = store.snapshot()
    store.read("x")
    assert store.snapshot() - before == Counts(read=1, bytes_down=3)
    assert before == Counts(create=1, bytes_up=3)


@pytest.mark.parametrize(("objects", "requests"), [(0, 1), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_listing_counts_its_pages(monkeypatch: pytest.MonkeyPatch, objects: int, requests: int) -> None:
    monkeypatch.setattr("cloudmount.blobs.counting.LIST_PAGE", 4)
    store = CountingStore(MemoryStore())
    for number in range(objects):
        store.inner.create(f"x{number}", b"")
    assert len([*store.list("")]) == objects
    assert store.snapshot() == Counts(list=requests)


def test_a_listing_nobody_reads_asks_nothing() -> None:
    store = CountingStore(MemoryStore())
    store.list("")
    assert store.snapshot() == Counts()


def test_threads_lose_no_count() -> None:
    store = CountingStore(MemoryStore())
    store.inner.create("x", b"12")
    with ThreadPoolExecutor(8) as pool:
        [*pool.map(lambda _: store.read("x"), range(2000))]
    assert store.snapshot() == Counts(read=2000, bytes_down=4000)
