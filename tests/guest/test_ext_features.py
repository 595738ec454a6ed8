"""What ext may be made of: every map, every table of groups, content in inodes; as mke2fs writes it."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloudmount.errors import UnreadableInputError
from cloudmount.guest import entries
from cloudmount.guest.children import Children
from cloudmount.guest.wire import PART_ENTRIES
from tests.disks.oracles import run
from tests.guest.ext_writer import debugfs, folder_of
from tests.guest.images import MIB, comb, make_ext, sparse
from tests.guest.seen import opened, ours, theirs


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.close()


def filled(folder: Path) -> Path:
    """A folder of a little of everything."""
    rng, source = random.Random(9), folder / "source"
    source.mkdir()
    for length in (0, 1, 59, 60, 61, 100, 150, 156, 157, 300, 5000, 300_000):
        (source / f"of {length}").write_bytes(rng.randbytes(length))
    for count in (1, 2, 5, 300):
        below = source / f"folder of {count}"
        below.mkdir()
        for n in range(count):
            (below / f"{n} {'x' * rng.randrange(40)}").write_bytes(rng.randbytes(n % 7))
    for length in (10, 59, 60, 61, 200, 1000):
        os.symlink("n" * length, source / f"link of {length}")
    sparse(source / "sparse", 29 * MIB + 3, (7 * MIB + 3, b"here" * 3000), (29 * MIB, b"end"))
    comb(source / "comb", 4096, 700)
    os.truncate(source / "comb", 1399 * 4096)  # mke2fs loses holes at the end where inodes hold content
    return source


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ext4", ("-b", "1024", "-O", "inline_data")),
        ("ext4", ("-b", "4096", "-O", "inline_data", "-I", "1024")),
        ("ext4", ("-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode")),
        ("ext4", ("-b", "4096", "-O", "bigalloc,large_dir", "-C", "16384")),
        ("ext4", ("-b", "1024", "-O", "sparse_super2,^metadata_csum,meta_bg,^resize_inode", "-g", "512")),
        ("ext4", ("-b", "2048", "-I", "128", "-O", "^dir_index,^filetype,^flex_bg")),
        ("ext2", ("-b", "1024", "-r", "0")),
        ("ext2", ("-b", "4096", "-O", "meta_bg,^resize_inode")),
    ],
)
def test_every_feature(tmp_path: Path, children: Children, kind: str, options: tuple[str, ...]) -> None:
    image = make_ext(tmp_path / "image", 48 * MIB, filled(tmp_path), kind, *options)
    volume = opened(children, image)
    found = ours(volume)
    assert volume.warning == ""
    volume.close()
    assert found.pop("lost+found").kind == "dir"
    expected = theirs(tmp_path / "source")
    assert found.keys() == expected.keys()
    for path, seen in found.items():
        assert replace(seen, mtime_ns=0) == replace(expected[path], mtime_ns=0), path


def test_what_has_no_content_is_no_empty_file(tmp_path: Path, children: Children) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"here")
    image = make_ext(tmp_path / "image", 4 * MIB, source)
    debugfs(image, ["mknod pipe p", "mknod disk b 8 1", "mknod terminal c 4 1"])
    volume = opened(children, image)
    for name, what in (("pipe", "a named pipe"), ("disk", "a device"), ("terminal", "a device")):
        entry = volume.lookup((), volume.root, name)
        assert entry is not None and entry.unreadable == f"{what}: it has no content"
        with pytest.raises(UnreadableInputError, match=what):
            volume.open(entry)
        with pytest.raises(UnreadableInputError, match=what):
            volume.read(entry.number, 0, 0)
    volume.close()


def test_holes_cost_nothing(tmp_path: Path, children: Children) -> None:
    """Of 4 TiB that aren't there nothing is read, whichever way the file is mapped."""
    source = tmp_path / "source"
    source.mkdir()
    for kind, size in (("ext4", 4 << 40), ("ext2", 1 << 40)):
        sparse(source / "file", size, (5 * 4096, b"x" * 4096), (size // 2, b"y"))
        image = make_ext(tmp_path / kind, 4 * MIB, source, kind, "-b", "4096")
        volume = opened(children, image)
        entry = volume.folder((), volume.root)["file"]
        assert entry.size == size
        opening = volume.open(entry)
        extents = list(opening.extents(0, size))
        assert [(e.offset, e.length) for e in extents if e.data] == [(5 * 4096, 4096), (size // 2, 4096)]
        assert opening.read_at(size - 4096, 4096) == bytes(4096)
        assert opening.read_at(size // 2 - 1, 3) == b"\0y\0"
        volume.close()


def test_a_folder_that_is_told_in_parts(
    tmp_path: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More names than one answer holds; and too many."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"here")
    image = make_ext(tmp_path / "image", 16 * MIB, source)
    (found,) = re.findall(r"Inode: (\d+)", run("debugfs", "-R", "stat file", image))
    names = [f"one of many names {n:06d}" for n in range(2 * PART_ENTRIES + 5)]
    (tmp_path / "folder").write_bytes(folder_of(names, int(found), 1024))
    debugfs(image, [f"write {tmp_path / 'folder'} many", "sif many mode 040755"])
    volume = opened(children, image)
    many = volume.lookup((), volume.root, "many")
    assert many is not None
    one = volume.lookup(("many",), many.number, names[-1])
    assert one is not None and (one.name, one.size) == (names[-1], 4)
    assert list(volume.folder(("many",), many.number)) == names
    volume.close()
    monkeypatch.setattr(entries, "MOST_ENTRIES", 2 * PART_ENTRIES)
    volume = opened(children, image)
    with pytest.raises(UnreadableInputError, match="more names than a folder may have"):
        volume.folder(("many",), many.number)
    volume.close()
