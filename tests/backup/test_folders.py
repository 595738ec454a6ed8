"""Folders and files come back as they were: content, names, attributes, links, holes."""

from __future__ import annotations

import os
import random
import resource
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from cloudmount.errors import UnreadableInputError, UsageError
from cloudmount.repo.listings import Listing
from cloudmount.repo.streams import MapCache, StreamMap
from tests.backup.lab import FRAME, Lab, compare_entry, compare_folder
from tests.strategies import FileTree, file_trees


def _grow(tree: FileTree, folder: Path) -> None:
    for name, what in tree.items():
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))
        if isinstance(what, dict):
            path.mkdir()
            _grow(what, path)
        else:
            path.write_bytes(what)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=file_trees)
def test_any_tree(tmp_path_factory: pytest.TempPathFactory, tree: FileTree) -> None:
    folder = tmp_path_factory.mktemp("tree")
    source = folder / "source"
    source.mkdir()
    _grow(tree, source)
    lab = Lab(folder)
    result = lab.backup(source)
    assert not result.incomplete
    compare_folder(lab.read(result), source, "source")
    again = lab.backup(source)
    assert again.progress.read_bytes == 0
    compare_folder(lab.read(again), source, "source")
    lab.clean()


def test_names_that_are_no_text(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    names = [
        b"\xff\xfe",
        b"caf\xe9",
        "caf\u00e9".encode(),
        "cafe\u0301".encode(),
        b"a\nb",
        b"-rf",
        b" ",
        b"~",
        b"\\",
    ]
    for n, name in enumerate(names):
        (source / os.fsdecode(name)).write_bytes(bytes([n + 1]) * (n + 1))
    deep = source
    for _ in range(30):
        deep = deep / "d"
        deep.mkdir()
    (deep / "end").write_bytes(b"here")
    (source / ("n" * 255)).write_bytes(b"long")
    lab = Lab(tmp_path)
    compare_folder(lab.read(lab.backup(source)), source, "s")


def test_order_is_by_folder_then_name(tmp_path: Path) -> None:
    """`a.b` sorts before `a/x` as a path, but a folder's children come after all of its siblings."""
    source = tmp_path / "s"
    (source / "a").mkdir(parents=True)
    for name in ("a/x", "a.b", "a-b", "a0", "b"):
        (source / name).write_bytes(b"1")
    (source / "a" / "sub").mkdir()
    (source / "a" / "sub" / "z").write_bytes(b"2")
    lab = Lab(tmp_path)
    stored = lab.read(lab.backup(source))
    assert list(stored.entries) == [
        "s", "s/a", "s/a-b", "s/a.b", "s/a0", "s/b", "s/a/sub", "s/a/x", "s/a/sub/z",
    ]  # fmt: skip


def test_links_and_special_files(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "one").write_bytes(b"the same file" * 500)
    (source / "sub").mkdir()
    os.link(source / "one", source / "sub" / "two")
    os.link(source / "one", source / "three")
    (source / "link").symlink_to("sub/two")
    (source / "broken").symlink_to("/nowhere")
    (source / "loop").symlink_to("loop")
    (source / "folder").symlink_to("sub")
    os.mkfifo(source / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as s:
        here = Path.cwd()
        os.chdir(source)  # a socket's path has little room
        try:
            s.bind("sock")
        finally:
            os.chdir(here)
    (source / "empty").write_bytes(b"")
    (source / "emptydir").mkdir(mode=0o711)
    (source / "one").chmod(0o4751)
    lab = Lab(tmp_path)
    result = lab.backup(source)
    stored = lab.read(result)
    compare_folder(stored, source, "s")
    assert stored.entries["s/three"].hardlink == "s/one"
    assert stored.entries["s/sub/two"].hardlink == "s/one"
    assert stored.entries["s/one"].hardlink is None
    assert result.summary["files"]["bytes"] == 6500  # counted once
    assert lab.backup(source).progress.read_bytes == 0


def test_a_hard_link_whose_first_name_goes(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "a").write_bytes(b"x" * 10_000)
    os.link(source / "a", source / "b")
    lab = Lab(tmp_path)
    lab.backup(source)
    (source / "a").unlink()
    compare_folder(lab.read(lab.backup(source)), source, "s")


def test_extended_attributes(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "f").write_bytes(b"x")
    try:
        os.setxattr(source / "f", "user.note", b"\0\xff bytes")
        os.setxattr(source, "user.folder", b"")
    except OSError:
        os.setxattr  # noqa: B018 - this file system keeps none: the comparison below still holds
    lab = Lab(tmp_path)
    compare_folder(lab.read(lab.backup(source)), source, "s")


def test_sparse_files_read_no_holes(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    with (source / "holes").open("wb") as f:
        f.truncate(80 << 20)
        f.seek(20 << 20)
        f.write(b"island" * 1000)
    lab = Lab(tmp_path)
    result = lab.backup(source)
    compare_folder(lab.read(result), source, "s")
    assert result.progress.read_bytes <= 64 << 10
    assert result.progress.new_frames == 2
    assert result.progress.done_bytes == result.progress.source_bytes == 80 << 20


def test_zeros_are_not_stored(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "zeros").write_bytes(bytes(1 << 20))
    (source / "almost").write_bytes(bytes((1 << 20) - 1) + b"\1")
    lab = Lab(tmp_path)
    result = lab.backup(source)
    assert result.progress.new_frames == 1
    compare_folder(lab.read(result), source, "s")


@pytest.mark.parametrize("frames", [1023, 1024, 1025, 3000])
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_large_files(tmp_path: Path, frames: int, over: int) -> None:
    """Around the size from which a file has a map of its own, and well above it."""
    path = tmp_path / "large.bin"
    seed = random.Random(frames).randbytes(FRAME * 7)
    path.write_bytes((seed * (frames // 7 + 1))[: frames * FRAME + over])
    lab = Lab(tmp_path)
    result = lab.backup(path)
    stored = lab.read(result)
    compare_entry(stored, "large.bin", path)
    listing = Listing(MapCache(lab.repository), stored.snapshot)
    found = listing.lookup("large.bin")
    assert found is not None
    assert isinstance(listing.content(*found), StreamMap) == (frames * FRAME + over > 1024 * FRAME)
    assert lab.backup(path).progress.read_bytes == 0
    lab.clean()


def test_a_large_file_changes_a_little(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    content = bytearray(random.Random(1).randbytes(1500 * FRAME))
    path.write_bytes(content)
    lab = Lab(tmp_path)
    lab.backup(path)
    content[700 * FRAME + 5] ^= 1
    path.write_bytes(content)
    result = lab.backup(path, journal=tmp_path / "another.sqlite")
    assert result.progress.new_frames == 1
    compare_entry(lab.read(result), "large.bin", path)


def test_many_small_files_share_parts(tmp_path: Path) -> None:
    """After one change among many files most parts are those of the snapshot before."""
    source = tmp_path / "s"
    source.mkdir()
    rng = random.Random(5)
    for n in range(6000):
        (source / f"f{n:04}").write_bytes(rng.randbytes(20))
    lab = Lab(tmp_path)
    first = lab.backup(source)
    (source / "f3000").write_bytes(b"changed")
    second = lab.backup(source)
    assert second.progress.new_frames == 1
    one, two = lab.read(first), lab.read(second)
    compare_folder(two, source, "s")
    parts = [Listing(MapCache(lab.repository), s.snapshot).parts for s in (one, two)]
    assert len(parts[0]) > 4
    assert len({p.entries for p in parts[0]} & {p.entries for p in parts[1]}) >= len(parts[0]) - 2
    lab.clean()


def test_files_that_are_the_same(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    content = random.Random(2).randbytes(3 * FRAME)
    for n in range(10):
        (source / f"copy{n}").write_bytes(content)
    lab = Lab(tmp_path)
    assert lab.backup(source).progress.new_frames == 3


def test_excluding(tmp_path: Path) -> None:
    source = tmp_path / "s"
    for folder in ("keep", "cache", "keep/cache"):
        (source / folder).mkdir(parents=True, exist_ok=True)
        (source / folder / "f.txt").write_bytes(b"1")
        (source / folder / "f.tmp").write_bytes(b"1")
    lab = Lab(tmp_path)
    stored = lab.read(lab.backup(source, exclude=["*.tmp", f"{source}/cache"]))
    assert set(stored.contents) == {"s/keep/f.txt", "s/keep/cache/f.txt"}


def test_what_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "s"
    (source / "repository").mkdir(parents=True)
    (source / "repository" / "packs").write_bytes(b"x")
    status = (source / "repository").stat()
    lab = Lab(tmp_path)
    stored = lab.read(lab.backup(source, leave_out=frozenset({(status.st_dev, status.st_ino)})))
    assert set(stored.entries) == {"s"}


def test_nothing_to_back_up(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    with pytest.raises(UsageError, match="nothing"):
        lab.backup()
    with pytest.raises(UnreadableInputError, match="No such file"):
        lab.backup(tmp_path / "missing")
    assert not [n for n in lab.store.list("snapshots/")]


def test_an_empty_folder(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    lab = Lab(tmp_path)
    result = lab.backup(source)
    assert set(lab.read(result).entries) == {"s"}
    assert not [*lab.store.list("packs/")]
    lab.clean()


def test_one_file_named(tmp_path: Path) -> None:
    """A link named on the command line is followed; one met in a folder is kept as a link."""
    (tmp_path / "real").write_bytes(b"content")
    (tmp_path / "link").symlink_to("real")
    lab = Lab(tmp_path)
    stored = lab.read(lab.backup(tmp_path / "link"))
    assert stored.contents == {"link": b"content"}


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    """Those that hold nothing to read, too; and a backup that fails leaves none open."""
    source = tmp_path / "s"
    source.mkdir()
    for i in range(1000):
        with open(source / f"f{i:04}", "wb") as file:
            file.truncate(i * FRAME if i % 2 else 0)
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 400, hard))
    try:
        lab = Lab(tmp_path)
        result = lab.backup(source)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not result.incomplete
    compare_folder(lab.read(result), source, "s")
    lab.clean()
