"""A disk that is opened as by a machine that boots has its boot partition fetched ahead, no other."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.faulty import Fault, FaultyStore
from cloudmount.disks.synthesis import BAT_OFFSET
from cloudmount.extents import BlockSource, Bytes
from cloudmount.nodes import File
from cloudmount.reader import prefetch
from cloudmount.tree.bootguess import boot_ranges
from cloudmount.tree.drive import Drive
from tests.backup.lab import Lab
from tests.disks.partition_writer import ESP, LINUX, boot_record, write_gpt
from tests.tree.drives import MIB, drive, node, read

SIZE, ESP_AT, ESP_BYTES, ROOT_AT = 64 * MIB, 2 * MIB, 8 * MIB, 16 * MIB
IMG, VHDX = "srv/latest/disk.img", "srv/latest/disk.vhdx"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A disk with noise at both ends of its boot partition, and in its root partition."""
    made = Lab(tmp_path_factory.mktemp("boot"))
    esp = (ESP, ESP_AT // 512, (ESP_AT + 16 * MIB) // 512 - 1, "esp")
    root = (LINUX, (ESP_AT + 16 * MIB) // 512, SIZE // 512 - 40, "root")
    disk = write_gpt(made.folder / "disk.img", SIZE, [esp, root])
    with disk.open("r+b") as f:
        for at in (ESP_AT, ESP_AT + 12 * MIB, 30 * MIB):
            f.seek(at)
            f.write(random.Random(at).randbytes(2 * MIB))
    made.backup(disk)
    return made


@contextmanager
def counted(lab: Lab) -> Iterator[tuple[Drive, CountingStore]]:
    store = CountingStore(lab.store)
    with drive(lab, store) as tree:
        yield tree, store


def opened_file(tree: Drive, path: str) -> BlockSource:
    file: File = node(tree, path)  # type: ignore[assignment]  # a file's path
    return file.open()


def settle() -> None:
    """Until nothing is fetched ahead any more."""
    until = time.monotonic() + 60
    while any(t.name == "cloudmount-prefetch" for t in threading.enumerate()):
        assert time.monotonic() < until, "it doesn't end"
        time.sleep(0.01)


def is_there(lab: Lab, tree: Drive, store: CountingStore, at: int) -> bool:
    """Whether 2 MiB of the disk are right, and read without a request."""
    before = store.snapshot().requests
    found = b"".join(read(tree, IMG, at + i, 65536) for i in range(0, 2 * MIB, 65536))
    assert found == random.Random(at).randbytes(2 * MIB)
    return store.snapshot().requests == before


@pytest.mark.parametrize("way", ["vhdx", "img"])
def test_the_boot_partition_comes_ahead(lab: Lab, way: str) -> None:
    with counted(lab) as (tree, store):
        if way == "vhdx":
            read(tree, VHDX, BAT_OFFSET, MIB)
        else:
            opened = opened_file(tree, IMG)
            opened.read_at(0, 512)
            opened.read_at(SIZE - 512, 512)
        settle()
        assert is_there(lab, tree, store, ESP_AT)
        assert is_there(lab, tree, store, ESP_AT + 12 * MIB)
        assert not is_there(lab, tree, store, 30 * MIB)


def test_who_only_looks_gets_no_more(lab: Lab) -> None:
    with counted(lab) as (tree, store):
        read(tree, VHDX, 0, 256 << 10)
        read(tree, IMG, 0, 4096)
        before = store.snapshot().bytes_down
        settle()
        assert store.snapshot().bytes_down == before


def test_it_is_bounded_and_done_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudmount.tree.bootlearning.LIMIT", MIB)
    with counted(lab) as (tree, store):
        for _ in range(3):
            read(tree, VHDX, BAT_OFFSET, MIB)
        settle()
        assert store.snapshot().bytes_down < 2 * MIB
        assert not is_there(lab, tree, store, ESP_AT + 12 * MIB)


def test_readers_come_first(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as somebody waits for the store now and then, nothing is fetched ahead; and that ends."""
    monkeypatch.setattr(prefetch, "LONGEST", 1.0)
    with counted(lab) as (tree, store):
        monkeypatch.setattr(tree.reader, "idle", lambda: 0.0)
        read(tree, VHDX, BAT_OFFSET, MIB)
        settle()
        assert store.snapshot().bytes_down < MIB


def test_a_silent_store_ends_it(lab: Lab) -> None:
    silent = threading.Event()
    faulty = FaultyStore(lab.store, lambda operation: Fault.STALL if silent.is_set() else None)
    with drive(lab, faulty, io_timeout=0.5) as tree:
        opened = opened_file(tree, VHDX)
        opened.read_at(0, 4096)
        silent.set()
        opened.read_at(BAT_OFFSET, MIB)
        settle()


def test_what_is_booted_from() -> None:
    def ranges(*parts: tuple[int, int, int, int]) -> list[tuple[int, int]]:
        return list(boot_ranges(Bytes(boot_record(*parts).ljust(4 * MIB, b"\0")), 512))

    assert ranges((0x80, 0x07, 2048, 2048), (0, 0x07, 4096, 2048)) == [(MIB, MIB)]
    assert ranges((0, 0xEF, 2048, 2048)) == [(MIB, MIB)]
    assert ranges((0, 0x83, 2048, 2048)) == []
    assert ranges((0x80, 0x83, 2048, 4 << 20)) == []  # a large one holds the whole system
    assert ranges((0x80, 0x07, 2048, 1 << 20)) == [(MIB, 3 * MIB)]  # as much as the disk has of it
    assert ranges((0x80, 0x07, 1 << 20, 2048)) == []
    assert list(boot_ranges(Bytes(bytes(1 << 20)), 512)) == []
    assert list(boot_ranges(Bytes(b""), 512)) == []
