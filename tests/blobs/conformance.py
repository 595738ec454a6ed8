"""What every blob store must do, whatever it is made of: one suite, run on each store and wrapper.

A subclass named `Test...` gives the fixtures `store` (empty, prepared) and `unprepared` (its
folder or container is missing; None where that can't be), and says what its credential may do.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudmount.blobs.store import BlobStore
from cloudmount.errors import (
    BlobExistsError,
    BlobMissingError,
    CloudMountError,
    DamagedError,
    NoRepositoryError,
    StoreRefusedError,
    StoreTimeoutError,
)

# Names whose order differs between a walk of folders and bytes, and between with and without slashes.
NAMES = (
    "AB", "ZZ/z", "a-b", "a-c/c", "a/-", "a/b", "a/b-c", "a/b.c/d", "a/c/d", "a/c/e/f", "a0", "a00/x", "ab/c",
    "b", "config", "config.copy", "packs/00/000", "packs/00/001", "packs/0f/0f0", "packs/f0/f00",
    "packs-old/00/0", "z_/~", "z+", "z=1/2=3",
)  # fmt: skip
PREFIXES = (
    "",
    "a",
    "a/",
    "a/b",
    "a-",
    "a-b/",
    "packs/",
    "packs/0",
    "packs/00/000",
    "packs/00/0000",
    "q",
    "z",
)
AFTERS = ("", "A", "a", "a/", "a/b", "a/zzz", "packs/00/000", "packs/0f", "zzz")
BAD_NAMES = (
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "a/..",
    ".tmp/x",
    "a/.b",
    "a.",
    "ä",
    "a b",
    "a\\b",
    "a\n",
    "a" * 201,
)


class StoreConformance:
    """See the module docstring."""

    tells_existing = True
    """Whether a create of an existing name is told as that (else as refused)."""
    may_replace = True
    may_delete = True
    keeps_md5 = False
    clock_slack = 2.0
    """Seconds that the store's clock may differ."""

    def test_whole_object(self, store: BlobStore) -> None:
        store.create("packs/ab/cdef", b"hello")
        assert store.read("packs/ab/cdef") == b"hello"
        assert store.read("packs/ab/cdef", 0, 5) == b"hello"

    def test_every_byte_value_survives(self, store: BlobStore) -> None:
        data = bytes(range(256)) * 37 + b"\r\n\r\n0\r\n\r\n"
        store.create("bytes", data)
        assert store.read("bytes") == data

    def test_ranges(self, store: BlobStore) -> None:
        data = random.Random(1).randbytes(100_000)
        store.create("x", data)
        for offset, length in [(0, 1), (1, 1), (99_999, 1), (0, 100_000), (4096, 4096), (50_000, 50_000)]:
            assert store.read("x", offset, length) == data[offset : offset + length]
        assert store.read("x", 99_990) == data[99_990:]
        assert store.read("x", 7, 0) == b""

    @pytest.mark.parametrize(("offset", "length"), [(0, 6), (4, 2), (5, 1), (5, None), (6, None), (900, 1)])
    def test_ranges_beyond_the_end(self, store: BlobStore, offset: int, length: int | None) -> None:
        store.create("x", b"12345")
        with pytest.raises(DamagedError, match="x"):
            store.read("x", offset, length)

    def test_empty_object(self, store: BlobStore) -> None:
        store.create("empty", b"")
        assert store.read("empty") == b""
        assert [blob.size for blob in store.list("empty")] == [0]
        with pytest.raises(DamagedError):
            store.read("empty", 0, 1)

    def test_large_object(self, store: BlobStore) -> None:
        data = random.Random(2).randbytes(9 * 1024 * 1024 + 1)
        store.create("large", data, tier="cool")
        assert store.read("large") == data
        assert store.read("large", 1, len(data) - 2) == data[1:-1]

    def test_missing_object(self, store: BlobStore) -> None:
        store.create("a/b", b"1")
        for name in ("nothing", "a", "a/b/c", "a/bb"):
            for offset, length in [(0, None), (0, 1), (5, 5)]:
                with pytest.raises(BlobMissingError) as caught:
                    store.read(name, offset, length)
                assert caught.value.name == name

    def test_create_never_replaces(self, store: BlobStore) -> None:
        store.create("a/b", b"first")
        with pytest.raises(BlobExistsError if self.tells_existing else StoreRefusedError):
            store.create("a/b", b"second")
        assert store.read("a/b") == b"first"

    def test_one_of_many_creators_wins(self, store: BlobStore) -> None:
        start = threading.Barrier(6)

        def create(number: int) -> bool:
            start.wait()
            try:
                store.create("contested", bytes([number]) * 50_000)
            except (BlobExistsError, StoreRefusedError):
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            won = [*pool.map(create, range(6))]
        assert won.count(True) == 1
        assert store.read("contested") == bytes([won.index(True)]) * 50_000

    def test_put_replaces(self, store: BlobStore) -> None:
        if not self.may_replace:
            store.create("config", b"first")
            with pytest.raises(StoreRefusedError):
                store.put("config", b"second")
            assert store.read("config") == b"first"
            return
        store.put("config", b"first, and longer")
        store.put("config", b"second")
        assert store.read("config") == b"second"
        assert [(blob.name, blob.size) for blob in store.list("")] == [("config", 6)]

    def test_delete(self, store: BlobStore) -> None:
        store.create("a/b", b"1")
        if not self.may_delete:
            with pytest.raises(StoreRefusedError):
                store.delete("a/b")
            assert store.read("a/b") == b"1"
            return
        store.delete("a/b")
        store.delete("a/b")
        store.delete("never/was")
        assert [*store.list("")] == []
        assert [*store.list_folders("")] == []
        with pytest.raises(BlobMissingError):
            store.read("a/b")
        store.create("a/b", b"2")
        assert store.read("a/b") == b"2"

    def test_listings_are_those_of_sorted_names(self, store: BlobStore) -> None:
        for name in random.Random(3).sample(NAMES, len(NAMES)):
            store.create(name, name.encode())
        for prefix, after in itertools.product(PREFIXES, AFTERS):
            expected = sorted(n for n in NAMES if n.startswith(prefix) and n > after)
            found = [*store.list(prefix, after=after)]
            assert [blob.name for blob in found] == expected, (prefix, after)
            assert [blob.size for blob in found] == [len(name) for name in expected]
            for limit in (0, 1, 3):
                limited = [blob.name for blob in store.list(prefix, after=after, limit=limit)]
                assert limited == expected[:limit], (prefix, after, limit)

    def test_folders(self, store: BlobStore) -> None:
        for name in NAMES:
            store.create(name, b"")
        for prefix in ("", "a/", "a/c/", "packs/", "packs/00/", "q/"):
            below = [name[len(prefix) :] for name in NAMES if name.startswith(prefix)]
            expected = sorted({name.partition("/")[0] for name in below if "/" in name})
            assert [*store.list_folders(prefix)] == expected, prefix

    def test_what_a_listing_tells(self, store: BlobStore) -> None:
        before = time.time()
        store.create("a", b"some bytes")
        [found] = store.list("")
        assert before - self.clock_slack <= found.modified <= time.time() + self.clock_slack
        digest = hashlib.md5(b"some bytes", usedforsecurity=False).digest()
        assert found.md5 == (digest if self.keeps_md5 else None)

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_bad_names(self, store: BlobStore, name: str) -> None:
        for ask in (
            lambda: store.create(name, b""),
            lambda: store.put(name, b""),
            lambda: store.read(name),
            lambda: store.delete(name),
        ):
            with pytest.raises(ValueError, match="not an object's name"):
                ask()

    def test_a_past_deadline_fails_at_once(self, store: BlobStore) -> None:
        store.create("there", b"1")
        past = time.monotonic() - 1
        asks: list[Callable[[], object]] = [
            lambda: store.create("new", b"1", deadline=past),
            lambda: store.put("new", b"1", deadline=past),
            lambda: store.read("there", deadline=past),
            lambda: [*store.list("", deadline=past)],
            lambda: [*store.list_folders("", deadline=past)],
            lambda: store.delete("there", deadline=past),
            lambda: store.prepare(deadline=past),
        ]
        start = time.monotonic()
        for ask in asks:
            with pytest.raises(StoreTimeoutError):
                ask()
        assert time.monotonic() - start < 15
        assert [blob.name for blob in store.list("")] == ["there"]

    def test_far_deadlines_change_nothing(self, store: BlobStore) -> None:
        deadline = time.monotonic() + 60
        data = bytes(9 * 1024 * 1024)
        store.create("a/b", data, deadline=deadline)
        assert store.read("a/b", deadline=deadline) == data
        assert [blob.name for blob in store.list("", deadline=deadline)] == ["a/b"]
        assert [*store.list_folders("", deadline=deadline)] == ["a"]

    def test_many_threads(self, store: BlobStore) -> None:
        def work(number: int) -> None:
            for step in range(6):
                name, data = f"t{number}/{step}", random.Random(number * 100 + step).randbytes(10_000)
                store.create(name, data)
                assert store.read(name, 100, 1000) == data[100:1100]
                assert name in [blob.name for blob in store.list(f"t{number}/")]

        with ThreadPoolExecutor(8) as pool:
            assert [*pool.map(work, range(8))] == [None] * 8
        assert len([*store.list("")]) == 48

    def test_nothing_below_a_missing_root(self, unprepared: BlobStore | None) -> None:
        if unprepared is None:
            return  # this credential can't tell
        asks: list[Callable[[], object]] = [
            lambda: unprepared.create("a/b", b"1"),
            lambda: unprepared.put("a", b"1"),
            lambda: unprepared.read("a"),
            lambda: [*unprepared.list("a/")],
            lambda: [*unprepared.list_folders("")],
            lambda: unprepared.delete("a"),
        ]
        for ask in asks:
            with pytest.raises(NoRepositoryError):
                ask()
        unprepared.prepare()
        unprepared.prepare()
        unprepared.create("a/b", b"1")
        assert unprepared.read("a/b") == b"1"

    def test_closed_twice(self, store: BlobStore) -> None:
        store.create("a", b"1")
        store.close()
        store.close()

    def test_address_has_no_secret(self, store: BlobStore) -> None:
        assert store.address
        assert "sig=" not in store.address
        assert "?" not in store.address

    def test_errors_are_of_our_tree_and_of_one_line(self, store: BlobStore) -> None:
        with pytest.raises(CloudMountError) as caught:
            store.read("nothing")
        assert "\n" not in str(caught.value)
        assert not str(caught.value).endswith(".")
