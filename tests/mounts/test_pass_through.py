"""Complete copies read by the kernel itself: one way for all who have a file open, and never a wrong byte."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudmount.blobs.limited import LimitedStore
from cloudmount.extents import BlockSource
from cloudmount.mounts.native_driver import NativeDrive
from cloudmount.reader.stored import FrameReader
from cloudmount.repo.repository import Repository
from cloudmount.tree.drive import Drive
from cloudmount.tree.hydrator import Hydrator
from tests import needs
from tests.backup.lab import Lab
from tests.mounts.mounting import Mounted, mounted, outside, within
from tests.tree.drives import raw_disk
from tests.trees.calls import MIB, content, opened
from tests.trees.memory_tree import MemoryDir, MemoryFile, Pattern, Watched

pytestmark = [pytest.mark.mount, needs.root]


class Copied(Watched):
    """A source that counts its reads, with a copy where `path` says."""

    path: str | None = None

    def __init__(self, source: BlockSource) -> None:
        self.reads = 0
        super().__init__(source, self._count)

    def _count(self, offset: int, length: int) -> None:
        self.reads += 1

    def again(self) -> Copied:
        return self

    def close(self) -> None:
        """It is shared by all who open it."""

    def local_path(self) -> str | None:
        return self.path


class Lone:
    """A drive of one file of a few MiB, and its copy, which is not offered yet."""

    def __init__(self, mount: Mounted, root: MemoryDir, copy: Path) -> None:
        self.pattern = Pattern(3 * MIB + 777)
        self.source = Copied(self.pattern)
        self.copy = copy
        copy.write_bytes(self.bytes())
        copy.chmod(0o444)
        root.children["f"] = MemoryFile(self.source)
        self.at = mount.path / "f"
        assert isinstance(mount.drive, NativeDrive)
        self.drive = mount.drive

    def bytes(self) -> bytes:
        return self.pattern.read_at(0, self.pattern.size)

    def offer(self) -> None:
        self.source.path = str(self.copy)

    def open_files(self, *wanted: int) -> bool:
        """So many come to be open, and passed through (a release takes its time)."""
        return within(5, lambda: self.drive.open_files == wanted)


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Lone]:
    with mounted(NativeDrive, root := MemoryDir(), tmp_path / "drive") as mount:
        assert isinstance(mount.drive, NativeDrive)
        assert mount.drive.pass_through == "yes", "tests need Linux 6.9 and root"
        yield Lone(mount, root, tmp_path / "copy")


def test_a_complete_copy_is_read_by_the_kernel(lone: Lone) -> None:
    lone.offer()
    with opened(lone.at) as first, opened(lone.at, os.O_RDONLY | os.O_DIRECT) as second:
        assert lone.open_files(1, 1)
        assert os.pread(first, 4 * MIB, 0) == lone.bytes()
        assert os.preadv(second, [buffer := mmap.mmap(-1, 8192)], 3 * MIB) == 777
        assert buffer[:777] == lone.bytes()[-777:]
    assert lone.open_files(0, 0)
    assert lone.source.reads == 0
    assert (lone.at.stat().st_size, content(lone.at)) == (len(lone.bytes()), lone.bytes())


def test_who_opened_it_before_goes_on_through_the_cache(lone: Lone) -> None:
    with opened(lone.at) as fd:
        assert os.pread(fd, 4096, 0) == lone.bytes()[:4096]
        lone.offer()
        with opened(lone.at) as other:
            assert lone.open_files(1, 0)
            assert os.pread(other, 4 * MIB, 0) == lone.bytes()
        assert os.pread(fd, 4 * MIB, 0) == lone.bytes()
    assert lone.open_files(0, 0)
    with opened(lone.at) as fd:
        assert lone.open_files(1, 1)
        lone.source.path = None  # told no more, but it is the same file still
        with opened(lone.at) as other:
            assert os.pread(other, 4 * MIB, 0) == os.pread(fd, 4 * MIB, 0) == lone.bytes()


def test_a_mapping_outlives_its_handle(lone: Lone) -> None:
    script = (
        "import mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\n"
        "os.close(fd)\n"
        "same = m[:] == open(sys.argv[2], 'rb').read()\n"
        "again = open(sys.argv[1], 'rb').read() == m[:]\n"
        "print(same, again)\n"
    )
    lone.offer()
    assert outside(script, lone.at, lone.copy).split() == ["True", "True"]
    assert lone.source.reads == 0 and lone.open_files(0, 0)


@pytest.mark.parametrize("how", ["written", "removed", "replaced", "longer"])
def test_a_copy_that_somebody_changed_is_given_to_nobody_else(lone: Lone, how: str) -> None:
    lone.offer()
    with opened(lone.at) as fd:
        assert os.pread(fd, 4 * MIB, 0) == lone.bytes()
        if how == "written":
            lone.copy.write_bytes(bytes(len(lone.bytes())))
        elif how == "removed":
            lone.copy.unlink()
        elif how == "replaced":
            (other := lone.copy.with_suffix(".new")).write_bytes(lone.bytes())
            other.replace(lone.copy)
        else:
            with lone.copy.open("ab") as file:
                file.write(b"more")
        if how != "replaced":
            lone.source.path = None  # a `LocalCopy` that looks otherwise is not told
        for _ in range(3):
            assert content(lone.at) == lone.bytes()
        with opened(lone.at) as new:  # under a new number
            assert lone.open_files(2, 2 if how == "replaced" else 1)
            assert os.pread(new, 4 * MIB, 0) == lone.bytes()
            assert lone.at.stat().st_ino == os.fstat(new).st_ino == os.fstat(fd).st_ino
    assert lone.open_files(0, 0)


def test_found_right_again_it_is_shared_again(lone: Lone) -> None:
    lone.offer()
    with opened(lone.at) as fd:
        lone.copy.chmod(0o400)  # only its ctime changes; the tree has looked and tells it again
        with opened(lone.at) as other:
            assert lone.open_files(1, 1)
            assert os.pread(fd, 4 * MIB, 0) == os.pread(other, 4 * MIB, 0) == lone.bytes()


def test_a_copy_taken_away_while_it_is_opened(lone: Lone) -> None:
    """The path is told, but by then what was opened there is another file."""
    told: list[str] = []

    class Swapped(Copied):
        def local_path(self) -> str | None:
            told.append("")
            if len(told) == 2:  # asked again, after the file was opened, and just before it was looked at
                (wrong := lone.copy.with_suffix(".new")).write_bytes(bytes(lone.pattern.size))
                wrong.replace(lone.copy)
            return str(lone.copy) if len(told) <= 2 else None

    lone.source.__class__ = Swapped
    assert content(lone.at) == lone.bytes() and len(told) >= 2 and lone.source.reads > 0


def test_without_the_right_it_is_read_as_before(tmp_path: Path) -> None:
    script = (
        "import ctypes, os, sys\n"
        "from pathlib import Path\n"
        "from cloudmount.mounts.native_driver import NativeDrive\n"
        "from tests.mounts.mounting import mounted\n"
        "from tests.trees.copied_tree import CopiedDir\n"
        "from tests.trees.memory_tree import MemoryDir, MemoryFile, Pattern\n"
        "libc, at = ctypes.CDLL(None, use_errno=True), Path(sys.argv[1])\n"
        "header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
        "assert libc.capget(header, data) == 0\n"
        "data[0] &= ~(1 << 21); data[1] &= ~(1 << 21)\n"  # CAP_SYS_ADMIN
        "assert libc.capset(header, data) == 0\n"
        "tree = CopiedDir(MemoryDir({'f': MemoryFile(Pattern(1 << 20))}), at)\n"
        "with mounted(NativeDrive, tree, at / 'drive') as mount:\n"
        "    fd = os.open(at / 'drive' / 'f', os.O_RDONLY)\n"
        "    same = os.pread(fd, 1 << 20, 0) == Pattern(1 << 20).read_at(0, 1 << 20)\n"
        "    print(same, mount.drive.open_files, mount.drive.pass_through)\n"
        "    os.close(fd)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, timeout=30, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "True (1, 0) no: it needs root (CAP_SYS_ADMIN)\n", done.stderr


@contextmanager
def completing(repository: Repository, to: Path) -> Iterator[tuple[Drive, Hydrator]]:
    """A repository's tree that completes its disks in `to`; nothing is to be told of that."""
    reader = FrameReader(repository, io_timeout=10)
    tree, told = Drive(repository, reader), list[str]()
    hydrator = Hydrator(to, tree, reader, told.append)
    tree.local = hydrator
    try:
        yield tree, hydrator
    finally:
        hydrator.close()
        reader.close()
    assert told == []


def _states(hydrator: Hydrator) -> list[str]:
    return [copy.state for copy in hydrator.states()]


def _readers(count: int, work: Callable[[random.Random], None]) -> Callable[[], None]:
    """Start threads that each work until they are ended; ending tells of the first failure."""
    stop, failures = threading.Event(), list[BaseException]()

    def run(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                work(rng)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()

    def end() -> None:
        stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        if failures:
            raise failures[0]

    return end


def test_opens_and_closes_while_a_copy_comes_and_goes(lone: Lone) -> None:
    whole = lone.bytes()
    ways: set[tuple[int, int]] = set()

    def work(rng: random.Random) -> None:
        fds = []
        try:
            for _ in range(rng.randrange(1, 4)):
                fds.append(os.open(lone.at, os.O_RDONLY | rng.choice((0, os.O_DIRECT))))
                ways.add(lone.drive.open_files)
            for fd in fds * 2:
                at = rng.randrange(len(whole) // 4096) * 4096
                read = os.preadv(fd, [buffer := mmap.mmap(-1, 8192)], at)
                assert read and buffer[:read] == whole[at : at + 8192]
        finally:
            for fd in fds:
                os.close(fd)
        time.sleep(rng.random() / 50)  # now and then nobody has it open

    end = _readers(4, work)
    try:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < 2.5 or (passed < 20 and len(ways) < 2):
            lone.source.path = None if lone.source.path else str(lone.copy)
            time.sleep(0.002)
    finally:
        end()
    assert {(1, 0), (1, 1)} <= ways, "it was read in both ways"
    assert lone.open_files(0, 0)


def test_opens_and_closes_while_a_disk_completes(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.backup(raw_disk(tmp_path / "disk.img"))
    whole = (tmp_path / "disk.img").read_bytes()
    repository = lab.reopened(LimitedStore(lab.store, down=400_000))
    with completing(repository, tmp_path / "to") as (tree, hydrator):
        with mounted(NativeDrive, tree, tmp_path / "drive") as mount:
            drive, folder = mount.drive, mount.path / "srv" / "latest"
            assert isinstance(drive, NativeDrive)
            vhdx = content(folder / "disk.vhdx")

            def work(rng: random.Random) -> None:
                name, right = rng.choice((("disk.img", whole), ("disk.vhdx", vhdx)))
                with opened(folder / name, os.O_RDONLY | rng.choice((0, os.O_DIRECT))) as fd:
                    for _ in range(rng.randrange(8)):
                        at = rng.randrange(len(right) // 4096) * 4096
                        read = os.preadv(fd, [buffer := mmap.mmap(-1, 8192)], at)
                        assert read and buffer[:read] == right[at : at + 8192]

            with opened(folder / "disk.vhdx") as kept:
                end = _readers(6, work)
                try:
                    assert within(20, lambda: _states(hydrator) == ["complete"])
                    assert os.pread(kept, 4096, 0) == vhdx[:4096]
                    assert drive.open_files[1] == 0, "it is open through the cache still"
                    os.close(os.dup(kept))
                finally:
                    time.sleep(0.5)
                    end()
            assert within(5, lambda: drive.open_files == (0, 0))
            with opened(folder / "disk.vhdx") as fd:
                assert drive.open_files == (1, 1)
                assert os.pread(fd, len(vhdx), 0) == vhdx
            assert within(5, lambda: drive.open_files == (0, 0))
            end = _readers(6, work)
            try:
                assert within(5, lambda: drive.open_files[1] == 1)
                time.sleep(1)
            finally:
                end()


def test_a_finished_copy_is_passed_through_from_the_first_open(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.backup(raw_disk(tmp_path / "disk.img"))
    for passed in range(2):
        with (
            completing(lab.reopened(), tmp_path / "to") as (tree, hydrator),
            mounted(NativeDrive, tree, tmp_path / f"drive{passed}") as mount,
            opened(mount.path / "srv" / "latest" / "disk.vhdx") as fd,
        ):
            assert isinstance(mount.drive, NativeDrive)
            assert mount.drive.open_files == (1, passed)
            assert len(os.pread(fd, 32 * MIB, 0)) == os.fstat(fd).st_size
            assert within(10, lambda h=hydrator: _states(h) == ["complete"])
