"""The suite's own trees keep the contract, and the contract notices each way to break it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudmount.extents import Extent, Layout, Piece, Zeros
from cloudmount.nodes import Node
from tests.mounts.drivers import DRIVERS, each_driver
from tests.mounts.mounting import mounted
from tests.trees.contract import check_shown, check_tree
from tests.trees.memory_tree import MemoryDir, MemoryFile, MemoryLink, Pattern, Watched


def sample() -> MemoryDir:
    """A bit of everything."""
    shared = MemoryFile(b"twice", inode=5)
    holes = Layout(
        [Piece(5000, Zeros(5000)), Piece(70_000, Pattern(100_000), 7), Piece(3 << 40, Zeros(3 << 40))]
    )
    return MemoryDir({
        "empty": MemoryFile(b""), "file": MemoryFile(b"hello", mode=0o4751, uid=7, gid=8),
        "pattern": MemoryFile(Pattern(1_234_567)), "huge": MemoryFile(Pattern(64 << 40), allocated=4096),
        "holes": MemoryFile(holes, allocated=70_144), "one": shared, "two": shared,
        "old": MemoryFile(b"", mtime_ns=-12345678901), "\udcff\n": MemoryFile(b"odd"),
        "link": MemoryLink("file"), "\x01": MemoryLink("\udcfe nowhere"),
        "d": MemoryDir({"e": MemoryDir({"f": MemoryFile(b"deep")}), "é" * 100: MemoryDir()}, mode=0o700),
    })  # fmt: skip


def test_directly() -> None:
    assert check_tree(sample()) == 16


@pytest.mark.mount
@each_driver
def test_mounted(tmp_path: Path, driver: str) -> None:
    root = sample()
    with mounted(DRIVERS[driver], root, tmp_path / "drive") as drive:
        assert check_shown(root, drive.path) == 16


class _Unsorted(MemoryDir):
    def list(self) -> Iterator[tuple[str, Node]]:
        yield from reversed(list(super().list()))


class _Blind(MemoryDir):
    def lookup(self, name: str) -> Node | None:
        return None


class _Eager(MemoryDir):
    def lookup(self, name: str) -> Node | None:
        return self.children.get(name) or next(iter(self.children.values()))


class _Unsized(MemoryFile):
    def size(self) -> int:
        return 1


class _Promising(Pattern):
    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, False)


class _Gap(Pattern):
    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length - 1, True)


class _Lax(Pattern):
    def read_at(self, offset: int, length: int) -> bytes:
        return super().read_at(max(0, min(offset, self.size)), max(0, min(length, self.size - offset)))


def _fickle() -> MemoryFile:
    reads = iter(range(1 << 30))

    class Fickle(Pattern):
        def read_at(self, offset: int, length: int) -> bytes:
            return Pattern(self.size, next(reads)).read_at(offset, length)

    return MemoryFile(Fickle(10_000))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda: _Unsorted({"a": MemoryFile(b""), "b": MemoryFile(b"")}), "not sorted"),
        (lambda: _Blind({"a": MemoryFile(b"")}), "listed, not found"),
        (lambda: _Eager({"a": MemoryFile(b"")}), "finds"),
        (lambda: MemoryDir({"a/b": MemoryFile(b"")}), "a/b"),
        (lambda: MemoryDir({"..": MemoryFile(b"")}), r"\.\."),
        (
            lambda: MemoryDir({"a": MemoryFile(b"1", inode=9), "b": MemoryFile(b"22", inode=9)}),
            "another node",
        ),
        (lambda: MemoryDir({"a": MemoryFile(b"", inode=0)}), "inode=0"),
        (lambda: MemoryDir({"a": MemoryFile(b"", mode=0o100644)}), "a: "),
        (lambda: MemoryDir({"a": _Unsized(b"")}), "a"),
        (lambda: MemoryDir({"a": MemoryFile(_Promising(9000))}), "zeros were promised"),
        (lambda: MemoryDir({"a": MemoryFile(_Gap(9000))}), "extents end"),
        (lambda: MemoryDir({"a": MemoryFile(_Lax(9000))}), "can be read"),
        (lambda: MemoryDir({"a": _fickle()}), "differs"),
    ],
)
def test_each_breach_is_noticed(broken: Callable[[], MemoryDir], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_tree(broken())


@pytest.mark.mount
@each_driver
def test_a_mount_of_something_else_is_noticed(tmp_path: Path, driver: str) -> None:
    shown = MemoryFile(b"shown", inode=3)
    with mounted(DRIVERS[driver], MemoryDir({"f": shown}, inode=2), tmp_path / "drive") as drive:
        check_shown(MemoryDir({"f": shown}, inode=2), drive.path)
        for other in (
            MemoryDir({"f": MemoryFile(b"other", inode=3)}, inode=2),
            MemoryDir({"f": MemoryFile(b"shown", inode=3, mtime_ns=1)}, inode=2),
            MemoryDir({"f": shown, "g": shown}, inode=2),
            MemoryDir({}, inode=2),
        ):
            with pytest.raises((AssertionError, FileNotFoundError)):
                check_shown(other, drive.path)


def test_watched_is_one_for_each_open() -> None:
    file = MemoryFile(Watched(Pattern(100), lambda *_: None))
    assert file.open() is not file.open()
