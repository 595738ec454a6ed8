"""What `nodes.py` demands of a tree, asked of any `Dir`; and whether a mount shows that very tree.

`check_tree` runs on a `Dir` itself, without a mount; `check_shown` on a `Dir` and a path where it is
mounted. Both walk everything below, so they are for trees of a few thousand nodes.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from cloudmount.extents import BlockSource
from cloudmount.nodes import Attr, Dir, File, Kind, Link, Node

SAMPLE = 1 << 20
_TYPES = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIR, stat.S_IFLNK: Kind.LINK}


def walk(root: Dir, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every node with its path, the root's being ""; folders before what they hold."""
    yield path, root
    for name, node in root.list():
        below = f"{path}/{name}" if path else name
        if node.attr().kind is Kind.DIR:
            yield from walk(cast(Dir, node), below)
        else:
            yield below, node


def check_tree(root: Dir) -> int:
    """Assert the contract of every node; how many there were."""
    attrs: dict[int, Attr] = {}
    count = 0
    for path, node in walk(root):
        count += 1
        attr = node.attr()
        _check_attr(path, attr)
        if (other := attrs.setdefault(attr.inode, attr)) != attr:
            raise AssertionError(f"{path}: inode {attr.inode} is another node's too: {attr} {other}")
        if attr.kind is Kind.DIR:
            _check_folder(path, cast(Dir, node))
        elif attr.kind is Kind.LINK:
            target = cast(Link, node).target()
            assert target, path
            assert attr.size == len(os.fsencode(target)), path
        else:
            _check_file(path, cast(File, node), attr)
    return count


def _check_attr(path: str, attr: Attr) -> None:
    assert 1 <= attr.inode < 1 << 63, f"{path}: {attr}"
    assert attr.mode & ~0o7777 == 0, f"{path}: {attr}"
    assert attr.size >= 0, f"{path}: {attr}"
    assert attr.allocated >= 0, f"{path}: {attr}"
    assert attr.nlink >= 1, f"{path}: {attr}"
    assert isinstance(attr.mtime_ns, int), f"{path}: {attr}"


def _check_folder(path: str, folder: Dir) -> None:
    children = list(folder.list())
    names = [name for name, _ in children]
    assert names == sorted(names), f"{path}: not sorted"
    assert len(names) == len(set(names)), f"{path}: a name twice"
    for name, child in children:
        assert name not in ("", ".", ".."), f"{path}: {name!r}"
        assert "/" not in name, f"{path}: {name!r}"
        assert "\0" not in name, f"{path}: {name!r}"
        found = folder.lookup(name)
        assert found is not None, f"{path}/{name}: listed, not found"
        assert found.attr() == child.attr(), f"{path}/{name}: differs when looked up"
    for name in (
        "no such name",
        "",
        ".",
        "..",
        "\udcff",
        *(n + "x" for n in names[:3] if n + "x" not in names),
    ):
        if name not in names:
            assert folder.lookup(name) is None, f"{path}: finds {name!r}"


def _check_file(path: str, file: File, attr: Attr) -> None:
    source, again = file.open(), file.open()
    try:
        assert source.size == again.size == attr.size, path
        _check_source(path, source, again)
    finally:
        source.close()
        source.close()  # may be called twice
    again.close()


def _check_source(path: str, source: BlockSource, again: BlockSource) -> None:
    size = source.size
    assert source.read_at(0, 0) == source.read_at(size, 0) == b"", path
    for offset, length in ((-1, 1), (0, size + 1), (size, 1), (size + 1, 0), (0, -1)):
        try:
            source.read_at(offset, length)
        except ValueError:
            continue
        raise AssertionError(f"{path}: {length} bytes at {offset} of {size} can be read")
    position = 0
    for extent in source.extents(0, size):
        assert extent.offset == position, f"{path}: a gap at {position}"
        assert extent.length > 0 or not size, f"{path}: {extent}"
        position = extent.end
        if not extent.data:
            start = extent.offset + random.Random(position).randrange(extent.length)
            sample = source.read_at(start, min(SAMPLE, extent.end - start))
            assert not any(sample), f"{path}: bytes where zeros were promised, near {start}"
    assert position == size, f"{path}: extents end at {position} of {size}"
    whole = source.read_at(0, min(size, SAMPLE))
    rng = random.Random(os.fsencode(path))
    for _ in range(8):
        start = rng.randrange(len(whole) + 1)
        end = rng.randrange(start, len(whole) + 1)
        assert again.read_at(start, end - start) == whole[start:end], f"{path}: differs at {start}"
    if size:
        with ThreadPoolExecutor(8) as pool:
            offsets = [rng.randrange(size) for _ in range(16)]
            lengths = [min(4097, size - offset) for offset in offsets]
            found = list(pool.map(source.read_at, offsets, lengths))
        for offset, length, content in zip(offsets, lengths, found, strict=True):
            assert content == again.read_at(offset, length), f"{path}: differs at {offset} among threads"


def check_shown(root: Dir, at: Path) -> int:
    """Assert that `at` shows exactly `root`; how many nodes. Contents: the start, the end, odd samples."""
    count = 0
    for path, node in walk(root):
        count += 1
        there = at / path if path else at
        attr, shown = node.attr(), os.lstat(there)
        assert _TYPES[stat.S_IFMT(shown.st_mode)] is attr.kind, path
        assert stat.S_IMODE(shown.st_mode) == attr.mode, path
        assert (shown.st_ino, shown.st_nlink) == (attr.inode, attr.nlink), path
        assert (shown.st_size, shown.st_blocks) == (attr.size, -(-attr.allocated // 512)), path
        assert shown.st_mtime_ns == attr.mtime_ns, path
        assert shown.st_uid == (os.getuid() if attr.uid is None else attr.uid), path
        assert shown.st_gid == (os.getgid() if attr.gid is None else attr.gid), path
        if attr.kind is Kind.DIR:
            assert sorted(os.listdir(there)) == [name for name, _ in cast(Dir, node).list()], path
        elif attr.kind is Kind.LINK:
            assert os.readlink(there) == cast(Link, node).target(), path
        else:
            _check_content(path, cast(File, node), there)
    return count


def _check_content(path: str, file: File, there: Path) -> None:
    source = file.open()
    fd = os.open(there, os.O_RDONLY)
    try:
        size = source.size
        rng = random.Random(os.fsencode(path))
        offsets = [0, max(0, size - 4097), *(rng.randrange(size + 1) for _ in range(8))]
        for offset in offsets:
            length = min(rng.choice((1, 4096, 131_073)), size - offset)
            assert os.pread(fd, length, offset) == source.read_at(offset, length), f"{path} at {offset}"
        assert os.pread(fd, 4096, size) == b"", path
    finally:
        os.close(fd)
        source.close()
