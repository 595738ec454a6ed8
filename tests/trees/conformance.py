"""What every adapter must do with any tree, when all is well: run through a real mount.

A subclass named `Test...` gives the fixture `mount`. Rules for what may be called on a mount of
this process: `tests.mounts.mounting`.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudmount.extents import BlockSource
from cloudmount.nodes import Dir
from tests.mounts.mounting import outside, within
from tests.trees.calls import MIB, TIB, Mount, content, fails, opened
from tests.trees.memory_tree import WHEN, MemoryDir, MemoryFile, MemoryLink, Pattern, Watched

_MMAP = """
import mmap, sys, hashlib
with open(sys.argv[1], "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
    print(len(m), hashlib.sha256(m).hexdigest(), m[-1])
"""


class TreeConformance:
    """Attributes, content, folders, names."""

    @pytest.fixture
    def mount(self) -> Mount:
        raise NotImplementedError

    # Attributes

    def test_attributes(self, mount: Mount) -> None:
        inode = (1 << 62) + 12345
        at = mount(
            MemoryDir({
                "file": MemoryFile(b"x" * 5000, mode=0o4751, uid=1234, gid=2345, inode=inode, allocated=1536),
                "old": MemoryFile(b"", mtime_ns=-(10**9) * 86400 * 365 + 7),
                "new": MemoryFile(b"", mtime_ns=(1 << 33) * 10**9 + 999_999_999),
                "folder": MemoryDir(mode=0o700),
                "link": MemoryLink("nowhere"),
            })
        ).path  # fmt: skip
        s = os.stat(at / "file")
        assert s.st_mode == stat.S_IFREG | 0o4751
        assert (s.st_size, s.st_blocks, s.st_ino, s.st_nlink) == (5000, 3, inode, 1)
        assert (s.st_uid, s.st_gid) == (1234, 2345)
        assert s.st_mtime_ns == s.st_ctime_ns == WHEN
        assert os.stat(at / "old").st_mtime_ns == -(10**9) * 86400 * 365 + 7
        assert os.stat(at / "new").st_mtime_ns == (1 << 33) * 10**9 + 999_999_999
        s = os.stat(at / "folder")
        assert s.st_mode == stat.S_IFDIR | 0o700
        assert (s.st_uid, s.st_gid) == (os.getuid(), os.getgid()), "no owner known: whoever mounts"
        s = os.lstat(at / "link")
        assert stat.S_ISLNK(s.st_mode)
        assert s.st_size == len("nowhere")
        assert stat.S_ISDIR(os.stat(at).st_mode)
        fails(errno.ENOENT, lambda: os.stat(at / "missing"))
        fails(errno.ENOTDIR, lambda: os.stat(at / "file" / "below"))

    def test_listed_inodes_are_those_of_stat(self, mount: Mount) -> None:
        at = mount(MemoryDir({"a": MemoryFile(b""), "d": MemoryDir({"e": MemoryFile(b"")})})).path
        for folder in (at, at / "d"):
            for entry in os.scandir(folder):  # inode() and name only: see `mounting`
                assert entry.inode() == os.lstat(entry.path).st_ino

    def test_the_same_attributes_on_every_mount(self, mount: Mount) -> None:
        root = MemoryDir({"a": MemoryFile(b"1"), "d": MemoryDir({"b": MemoryFile(b"2")})})

        def look(at: Path) -> list[tuple[int, ...]]:
            return [
                (s.st_ino, s.st_mtime_ns, s.st_size)
                for s in (os.stat(at / p) for p in ("a", "d", "d/b", "."))
            ]

        assert look(mount(root).path) == look(mount(root).path)

    # Reading

    def test_odd_offsets_and_lengths(self, mount: Mount) -> None:
        pattern = Pattern(3 * MIB + 777)
        at = mount(MemoryDir({"f": MemoryFile(pattern)})).path / "f"
        rng = random.Random(1)
        with opened(at) as fd:
            for _ in range(300):
                offset = rng.choice((0, 1, 4095, 4096, 131071, pattern.size - 1, rng.randrange(pattern.size)))
                length = rng.choice((1, 2, 511, 4096, 4097, 131073, 700_001))
                length = min(length, pattern.size - offset)
                assert os.pread(fd, length, offset) == pattern.read_at(offset, length)
        assert content(at) == pattern.read_at(0, pattern.size)

    def test_past_the_end(self, mount: Mount) -> None:
        at = mount(MemoryDir({"f": MemoryFile(b"hello"), "empty": MemoryFile(b"")})).path
        with opened(at / "f") as fd:
            assert os.pread(fd, 100, 3) == b"lo"
            assert os.pread(fd, 1, 5) == b""
            assert os.pread(fd, 100, 4096) == b""
            assert os.pread(fd, 10, 1 << 60) == b""
            assert os.lseek(fd, 0, os.SEEK_END) == 5
        assert content(at / "empty") == b""
        with opened(at / "f", os.O_RDONLY | os.O_DIRECT) as fd:
            buffer = mmap.mmap(-1, 8192)  # aligned
            assert os.preadv(fd, [buffer], 0) == 5
            assert buffer[:5] == b"hello"

    def test_direct_reads(self, mount: Mount) -> None:
        """Past the page cache: the adapter gets them as they are, up to a MiB and over the end."""
        pattern = Pattern(3 * MIB + 777)
        at = mount(MemoryDir({"f": MemoryFile(pattern)})).path / "f"
        rng = random.Random(2)
        buffer = mmap.mmap(-1, 2 * MIB)
        with opened(at, os.O_RDONLY | os.O_DIRECT) as fd:
            for _ in range(100):
                offset = rng.randrange(pattern.size // 4096 + 1) * 4096
                length = rng.choice((4096, 8192, 131072, 135168, MIB, 2 * MIB))
                there = min(length, pattern.size - offset)
                assert os.preadv(fd, [memoryview(buffer)[:length]], offset) == there
                assert buffer[:there] == pattern.read_at(offset, there)

    def test_64_threads(self, mount: Mount) -> None:
        files = {f"f{i}": Pattern(2 * MIB + i, seed=i) for i in range(4)}
        at = mount(MemoryDir({name: MemoryFile(p) for name, p in files.items()})).path

        def reader(number: int) -> None:
            rng = random.Random(number)
            name = f"f{number % 4}"
            pattern = files[name]
            with opened(at / name, os.O_RDONLY | (os.O_DIRECT if number % 8 == 0 else 0)) as fd:
                for _ in range(20):
                    if number % 8:
                        offset = rng.randrange(pattern.size)
                        length = min(rng.choice((1, 4096, 65537)), pattern.size - offset)
                        assert os.pread(fd, length, offset) == pattern.read_at(offset, length)
                    else:
                        offset = rng.randrange(pattern.size // 4096) * 4096
                        assert os.preadv(fd, [buffer := mmap.mmap(-1, 4096)], offset) == 4096
                        assert buffer[:] == pattern.read_at(offset, 4096)

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(reader, range(64)))

    def test_mmap(self, mount: Mount) -> None:
        pattern = Pattern(1 * MIB + 123)
        at = mount(MemoryDir({"f": MemoryFile(pattern)})).path / "f"
        whole = pattern.read_at(0, pattern.size)
        digest = hashlib.sha256(whole).hexdigest()
        assert outside(_MMAP, at).split() == [str(len(whole)), digest, str(whole[-1])]

    def test_64_tib(self, mount: Mount) -> None:
        pattern = Pattern(64 * TIB)
        at = mount(MemoryDir({"f": MemoryFile(pattern, allocated=1 << 30)})).path / "f"
        s = os.stat(at)
        assert (s.st_size, s.st_blocks) == (64 * TIB, (1 << 30) // 512)
        with opened(at) as fd:
            for offset in (0, 1 << 31, 1 << 32, (1 << 44) - 1, 64 * TIB - 4096):
                assert os.pread(fd, 4096, offset) == pattern.read_at(offset, 4096)
            assert os.pread(fd, 4096, 64 * TIB - 1) == pattern.read_at(64 * TIB - 1, 1)
            assert os.pread(fd, 1, 64 * TIB) == b""

    def test_a_file_is_open_once_for_each_open(self, mount: Mount) -> None:
        sources: list[Watched] = []

        class Counted(MemoryFile):
            def open(self) -> BlockSource:
                sources.append(Watched(self.source, lambda *_: None))
                return sources[-1]

        mounted = mount(MemoryDir({"f": Counted(b"content")}))
        for _ in range(3):
            assert content(mounted.path / "f") == b"content"
        assert within(3, lambda: [s.closed for s in sources] == [1, 1, 1])

    # Folders and names

    @pytest.mark.timeout(60)
    def test_50000_names(self, mount: Mount) -> None:
        names = [f"file {i:06d}" for i in range(50_000)]
        one = MemoryFile(b"x", inode=77)
        at = mount(MemoryDir({"many": MemoryDir(dict.fromkeys(names, one))})).path / "many"
        assert sorted(os.listdir(at)) == names
        assert content(at / names[-1]) == b"x"
        with opened(at) as fd:  # twice through one handle
            assert len(os.listdir(fd)) == len(os.listdir(fd)) == 50_000

    def test_a_listing_goes_on_where_it_was(self, mount: Mount) -> None:
        names = [f"{i:05d}" for i in range(3000)]
        folder = MemoryDir({name: MemoryFile(b"") for name in names})
        at = mount(MemoryDir({"d": folder})).path / "d"
        with os.scandir(at) as entries:
            seen = [next(entries).name for _ in range(10)]
            folder.children["00000.5"] = MemoryFile(b"")  # while it is being listed
            seen += [e.name for e in entries]
        assert [n for n in seen if n in set(names)] == names

    def test_deep_paths(self, mount: Mount) -> None:
        tree: Dir = MemoryDir({"end": MemoryFile(b"deep")})
        for _ in range(400):
            tree = MemoryDir({"n": tree})
        at = mount(tree).path
        path = "/".join(["n"] * 400) + "/end"
        assert content(at / path) == b"deep"
        assert os.listdir(at / os.path.dirname(path)) == ["end"]

    def test_odd_names(self, mount: Mount) -> None:
        names = [
            "a\nnewline", "tab\t", " lead", "trail ", "ä ö", "日本語", "\udcff\udc80 raw", "x" * 255,
            "é" * 127, "日" * 255, "-rf", "a\\b", "*?", "\x01\x7f", "...", "C:", "\U0001f600",
        ]  # fmt: skip
        at = mount(MemoryDir({name: MemoryFile(os.fsencode(name)) for name in names})).path
        assert sorted(os.listdir(at)) == sorted(names)
        for name in names:
            assert content(at / name) == os.fsencode(name)
        fails(errno.ENOENT, lambda: os.stat(at / ("y" * 256)))

    def test_names_that_nothing_can_show_are_left_out(
        self, mount: Mount, caplog: pytest.LogCaptureFixture
    ) -> None:
        at = mount(
            MemoryDir({n: MemoryFile(b"") for n in ("a", "a/b", "..", "", "nul\0", "z", "l" * 1025)})
        ).path
        assert sorted(os.listdir(at)) == ["a", "z"]
        assert "no file system can show" in caplog.text

    def test_links(self, mount: Mount) -> None:
        target = "d/" + "t" * 255
        long = "/".join(["x" * 100] * 40)
        at = mount(
            MemoryDir({
                "d": MemoryDir({"t" * 255: MemoryFile(b"there")}),
                "link": MemoryLink(target), "long": MemoryLink(long), "odd": MemoryLink("\udcff\n"),
                "loop": MemoryLink("loop"),
            })
        ).path  # fmt: skip
        assert os.readlink(at / "link") == target
        assert os.readlink(at / "long") == long
        assert os.readlink(at / "odd") == "\udcff\n"
        assert content(at / "link") == b"there"
        fails(errno.ELOOP, lambda: os.stat(at / "loop"))
        fails(errno.ENOENT, lambda: os.stat(at / "odd"))
