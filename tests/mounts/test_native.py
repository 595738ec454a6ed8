"""What only the native driver does: answer from memory and from local copies, and go back when it can't."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudmount.errors import CloudMountError, DamagedError, StoreTimeoutError
from cloudmount.extents import BlockSource
from cloudmount.mounts.driver import DriveOptions
from cloudmount.mounts.native_driver import MEMORY_BYTES, NativeDrive
from cloudmount.nodes import Dir
from tests.mounts.mounting import Mounted, mounted, within
from tests.trees.calls import MIB, Gate, content, fails, opened
from tests.trees.memory_tree import MemoryDir, MemoryFile, Pattern, Watched

pytestmark = pytest.mark.mount
BLOCK = 128 << 10


class Recorded(Watched):
    """A source that remembers what was read of it."""

    def __init__(self, source: BlockSource, before: Callable[[int, int], None] = lambda *_: None) -> None:
        self.reads: list[tuple[int, int]] = []

        def record(offset: int, length: int) -> None:
            self.reads.append((offset, length))
            before(offset, length)

        super().__init__(source, record)

    def again(self) -> Recorded:
        return self

    def close(self) -> None:
        """It is shared by all who open it."""


class Copied(Recorded):
    """The same, with a local copy where `path` says."""

    path: str | None = None

    def local_path(self) -> str | None:
        return self.path


@contextmanager
def direct(path: Path) -> Iterator[Callable[[int, int], bytes]]:
    """Reads past the kernel's page cache."""
    buffer = mmap.mmap(-1, 2 * MIB)
    with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:

        def read(offset: int, length: int) -> bytes:
            n = os.preadv(fd, [memoryview(buffer)[:length]], offset)
            return buffer[:n]

        yield read


@contextmanager
def through_the_cache(at: Path, source: Copied, copy: Path) -> Iterator[None]:
    """The copy is offered, but the kernel can't read it by itself: somebody has the file open without."""
    with opened(at):
        source.path = str(copy)
        yield


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[[Dir], Mounted]]:
    with mounted(NativeDrive, root := MemoryDir(), tmp_path / "drive") as mount:

        def show(tree: Dir) -> Mounted:
            assert isinstance(tree, MemoryDir)
            root.children.update(tree.children)
            return mount

        yield show


def test_what_was_read_is_not_asked_for_again(drive: Callable[[Dir], Mounted]) -> None:
    pattern = Pattern(5 * BLOCK + 777)
    source = Recorded(pattern)
    at = drive(MemoryDir({"f": MemoryFile(source)})).path / "f"
    with direct(at) as read:
        assert read(BLOCK + 4096, 4096) == pattern.read_at(BLOCK + 4096, 4096)
        assert source.reads == [(BLOCK, BLOCK)]
        for offset in range(BLOCK, 2 * BLOCK, 4096):
            assert read(offset, 4096) == pattern.read_at(offset, 4096)
        assert source.reads == [(BLOCK, BLOCK)]
        assert read(2 * BLOCK - 4096, 8192) == pattern.read_at(2 * BLOCK - 4096, 8192)
        assert source.reads[1:] == [(BLOCK, 2 * BLOCK)]
        assert read(5 * BLOCK, 4096) == pattern.read_at(5 * BLOCK, 777)
        assert source.reads[2:] == [(5 * BLOCK, 777)]
    with direct(at) as read:  # opened anew
        assert read(5 * BLOCK, 4096) == pattern.read_at(5 * BLOCK, 777)
        assert len(source.reads) == 3


def test_memory_is_bounded(drive: Callable[[Dir], Mounted]) -> None:
    pattern = Pattern(2 * MEMORY_BYTES)
    mount = drive(MemoryDir({"f": MemoryFile(pattern)}))
    with direct(mount.path / "f") as read:
        for offset in range(0, pattern.size, 8 * BLOCK):
            assert read(offset, 4096) == pattern.read_at(offset, 4096)
            assert read(offset, 8 * BLOCK) == pattern.read_at(offset, 8 * BLOCK)
    assert isinstance(mount.drive, NativeDrive)
    assert MEMORY_BYTES * 0.9 < mount.drive.remembered <= MEMORY_BYTES


def test_a_hit_does_not_wait_for_misses(drive: Callable[[Dir], Mounted]) -> None:
    gate = Gate()
    slow = MemoryFile(Watched(Pattern(64 * MIB, 1), lambda o, n: gate(o, n) if o >= MIB else None))
    at = drive(MemoryDir({"f": slow})).path / "f"
    with direct(at) as read, ThreadPoolExecutor(40) as pool:
        assert read(0, 4096) == Pattern(64 * MIB, 1).read_at(0, 4096)
        misses = [pool.submit(_pread, at, (i + 1) * MIB) for i in range(40)]
        try:
            assert within(10, lambda: gate.waiting == 40)
            began = time.monotonic()
            for offset in range(0, BLOCK, 4096):
                assert read(offset, 4096) == Pattern(64 * MIB, 1).read_at(offset, 4096)
            assert time.monotonic() - began < 20
        finally:
            gate.open.set()
        assert [m.result() for m in misses] == [
            Pattern(64 * MIB, 1).read_at((i + 1) * MIB, 4096) for i in range(40)
        ]


def _pread(path: Path, offset: int) -> bytes:
    with opened(path, os.O_RDONLY) as fd:
        return os.pread(fd, 4096, offset)


def test_neighbours_damage_is_not_its_own(drive: Callable[[Dir], Mounted]) -> None:
    def before(offset: int, length: int) -> None:
        if offset <= 8192 < offset + length:
            raise DamagedError("one page is bad")

    source = Recorded(Pattern(MIB), before)
    at = drive(MemoryDir({"f": MemoryFile(source)})).path / "f"
    with direct(at) as read:
        assert read(0, 4096) == Pattern(MIB).read_at(0, 4096)
        fails(5, lambda: read(8192, 4096))
        assert read(BLOCK, 4096) == Pattern(MIB).read_at(BLOCK, 4096)


def test_who_waited_for_the_store_is_not_made_to_wait_twice(drive: Callable[[Dir], Mounted]) -> None:
    def before(offset: int, length: int) -> None:
        raise StoreTimeoutError("silent")

    source = Recorded(Pattern(MIB), before)
    at = drive(MemoryDir({"f": MemoryFile(source)})).path / "f"
    with direct(at) as read:
        fails(5, lambda: read(4096, 4096))
    assert source.reads == [(0, BLOCK)]


def test_a_local_copy(drive: Callable[[Dir], Mounted], tmp_path: Path) -> None:
    pattern = Pattern(3 * MIB + 777)
    copy = tmp_path / "copy"
    source = Copied(pattern)
    at = drive(MemoryDir({"f": MemoryFile(source)})).path / "f"
    with direct(at) as read:
        assert read(0, 4096) == pattern.read_at(0, 4096)
        copy.write_bytes(pattern.read_at(0, pattern.size))
        source.path = str(copy)
        assert read(MIB, 4096) == pattern.read_at(MIB, 4096)
        asked = len(source.reads)  # that read told of the copy, to a file that was open already
        for offset in range(0, pattern.size, MIB):
            assert read(offset, MIB) == pattern.read_at(offset, min(MIB, pattern.size - offset))
        assert len(source.reads) == asked
        with copy.open("r+b") as f:  # somebody writes to it
            f.seek(2 * MIB)
            f.write(b"wrong" * 1000)
        for offset in range(0, pattern.size, MIB):
            assert read(offset, MIB) == pattern.read_at(offset, min(MIB, pattern.size - offset))
        assert len(source.reads) > asked, "the tree was asked again"


def test_a_local_copy_from_the_start_and_gone(drive: Callable[[Dir], Mounted], tmp_path: Path) -> None:
    pattern = Pattern(MIB)
    copy = tmp_path / "copy"
    copy.write_bytes(pattern.read_at(0, pattern.size))
    os.posix_fadvise(fd := os.open(copy, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)  # cold, if it can be
    os.close(fd)
    source = Copied(pattern)
    at = drive(MemoryDir({"f": MemoryFile(source)})).path / "f"
    with through_the_cache(at, source, copy), direct(at) as read:
        copy.unlink()  # what is open stays readable, but is no longer the same (ctime)
        assert read(0, MIB) == pattern.read_at(0, MIB)
    assert content(at) == pattern.read_at(0, MIB)
    source.reads.clear()


@pytest.mark.parametrize("what", ["short", "folder", "pipe", "missing"])
def test_no_copy_at_all(drive: Callable[[Dir], Mounted], tmp_path: Path, what: str) -> None:
    pattern = Pattern(MIB)
    copy = tmp_path / "copy"
    if what == "short":
        copy.write_bytes(b"short")
    elif what == "folder":
        copy.mkdir()
    elif what == "pipe":
        os.mkfifo(copy)
    source = Copied(pattern)
    source.path = str(copy)
    at = drive(MemoryDir({"f": MemoryFile(source)})).path / "f"
    assert content(at) == pattern.read_at(0, MIB)


def test_a_copy_not_in_memory_is_read_by_others(drive: Callable[[Dir], Mounted], tmp_path: Path) -> None:
    """64 readers of a copy whose pages were dropped."""
    pattern = Pattern(8 * MIB)
    copy = tmp_path / "copy"
    copy.write_bytes(pattern.read_at(0, pattern.size))
    with copy.open("rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    source = Copied(pattern)
    at = drive(MemoryDir({"f": MemoryFile(source)})).path / "f"

    def reader(number: int) -> bool:
        with direct(at) as read:
            return all(
                read(o, 4096) == pattern.read_at(o, 4096)
                for o in range(number * 4096, pattern.size, 64 * 4096)
            )

    with through_the_cache(at, source, copy), ThreadPoolExecutor(64) as pool:
        assert all(pool.map(reader, range(64)))
    assert source.reads == []


def test_where_it_can_not_be_mounted(tmp_path: Path) -> None:
    with pytest.raises(CloudMountError, match=r"can't be mounted: .*No such file"):
        NativeDrive(MemoryDir(), str(tmp_path / "missing"), DriveOptions())


def test_what_is_no_device_is_refused() -> None:
    """In a process of its own: a descriptor that is none must harm nothing."""
    script = (
        "import cloudmount_native as n, os\n"
        "for fd in (-1, 99999, os.open(os.devnull, os.O_RDONLY)):\n"
        "    try:\n"
        "        n.Session(fd, allow_other=False, memory_bytes=1, missing_seconds=1, background=1)\n"
        "    except OSError as e:\n"
        "        print(type(e).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout == "OSError\n" * 3
