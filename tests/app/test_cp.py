"""Copying out of a tree that fails, goes in circles, or has names and contents that are hard to keep."""

from __future__ import annotations

import os
import random
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmount import system
from cloudmount.app.browsing import Found, look_up
from cloudmount.app.copyplan import CopyPlan, plan_copy
from cloudmount.app.cp import CopyProgress, carry_out
from cloudmount.app.newfile import NewFile
from cloudmount.errors import CloudMountError, DamagedError, StoreTimeoutError, UnreadableInputError
from cloudmount.extents import BlockSource, Extent, Layout, Piece, Zeros
from cloudmount.nodes import Node
from tests.trees.memory_tree import WHEN, MemoryDir, MemoryFile, MemoryLink, Pattern, Watched


class Broken(MemoryDir):
    """A folder whose listing fails after what it has."""

    def list(self) -> Iterator[tuple[str, Node]]:
        """Its children, then an error."""
        yield from super().list()
        raise UnreadableInputError("its index is broken")


class Unopened(MemoryFile):
    """A file that can't be opened."""

    def open(self) -> BlockSource:
        """Fails."""
        raise UnreadableInputError("it is encrypted (EFS)")


def failing(at: int, error: CloudMountError) -> Watched:
    """A source of 5 MiB whose bytes from `at` on can't be read."""

    def before(offset: int, length: int) -> None:
        if offset + length > at:
            raise error

    return Watched(Pattern(5 << 20), before)


def plan(tree: MemoryDir, path: str, target: Path) -> CopyPlan:
    """What copying a path of a tree takes."""
    found = look_up(tree, path)
    assert isinstance(found, Found)
    return plan_copy([], found, target)


def copy(tree: MemoryDir, path: str, target: Path) -> tuple[CopyProgress, list[tuple[str, str]]]:
    """Copy; the counters, and what was skipped."""
    progress = CopyProgress()
    planned = plan(tree, path, target)
    progress.total_bytes = planned.bytes
    return progress, carry_out(planned, progress, lambda: None)


@pytest.fixture(params=["nameless", "part"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How new files are written: without a name, or, as on vfat, beside."""
    if request.param == "part":
        monkeypatch.delattr(os, "O_TMPFILE")
    return str(request.param)


def test_what_fails_is_told_and_the_rest_comes(tmp_path: Path, way: str) -> None:
    tree = MemoryDir(
        {
            "d": MemoryDir(
                {
                    "broken": Broken({"inside": MemoryFile(b"inside")}),
                    "efs": Unopened(b"secret"),
                    "half": MemoryFile(failing(3 << 20, DamagedError("a frame is damaged"))),
                    "sound": MemoryFile(Pattern(3 << 20)),
                    "zz": MemoryFile(b""),
                }
            )
        }
    )
    progress, skipped = copy(tree, "d", tmp_path)
    assert {path for path, _ in skipped} == {"d/broken", "d/efs", "d/half"}
    assert dict(skipped)["d/efs"] == "it is encrypted (EFS)"
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert names == ["d", "d/broken", "d/broken/inside", "d/sound", "d/zz"]  # and nothing half
    assert (tmp_path / "d/sound").read_bytes() == Pattern(3 << 20).read_at(0, 3 << 20)
    assert progress.files == 3 and progress.done_bytes == progress.total_bytes == (3 << 20) + 6


def test_one_file_that_can_not_be_read_is_its_own_error(tmp_path: Path, way: str) -> None:
    tree = MemoryDir({"efs": Unopened(b"secret"), "half": MemoryFile(failing(1 << 20, DamagedError("bad")))})
    for name, kind in (("efs", UnreadableInputError), ("half", DamagedError)):
        with pytest.raises(kind):
            copy(tree, name, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_store_that_is_away_ends_it(tmp_path: Path, way: str) -> None:
    away = failing(2 << 20, StoreTimeoutError("no answer"))
    tree = MemoryDir({"d": MemoryDir({"a": MemoryFile(away), "b": MemoryFile(b"b")})})
    with pytest.raises(StoreTimeoutError):
        copy(tree, "d", tmp_path)
    assert set(os.listdir(tmp_path / "d")) <= {"b"}


def test_a_folder_that_lies_in_itself_ends(tmp_path: Path) -> None:
    inner = MemoryDir({"x": MemoryFile(b"x")})
    circle = MemoryDir({"in": inner})
    inner.children["again"] = circle
    _, skipped = copy(MemoryDir({"d": circle}), "d", tmp_path)
    assert skipped == [("d/in/again", "this folder lies in itself")]
    assert (tmp_path / "d/in/x").read_text() == "x"


def test_hostile_names_lead_nowhere_else(tmp_path: Path) -> None:
    evil = {
        "../../out": MemoryFile(b"evil"),
        "..": MemoryDir({"y": MemoryFile(b"y")}),
        "ok": MemoryFile(b"ok"),
    }
    _, skipped = copy(MemoryDir({"d": MemoryDir({**evil})}), "d", tmp_path)
    assert len(skipped) == 2 and [p.name for p in tmp_path.rglob("*")] == ["d", "ok"]


def test_names_that_windows_can_not_hold_are_those_of_the_drive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "WINDOWS", True)
    below: dict[str, Node] = {
        "a\\..\\b": MemoryFile(b"1"),
        "plain": MemoryFile(b"2"),
        "x" * 256: MemoryFile(b"3"),
    }
    tree = MemoryDir({"d": MemoryDir({"nul": MemoryDir(below)}), "e:f": MemoryFile(b"4")})
    planned = plan(tree, "d", tmp_path)
    skipped = carry_out(planned, CopyProgress(), lambda: None)
    assert (tmp_path / "d/\uf06eul/a\uf05c..\uf05cb").read_bytes() == b"1"
    assert (tmp_path / "d/\uf06eul/plain").read_bytes() == b"2"
    assert [path for path, _ in skipped] == ["d/nul/" + "x" * 256]
    assert len(planned.notes) == 2 and all("as on the drive" in note for note in planned.notes)
    planned = plan(tree, "e:f", tmp_path)
    assert planned.files[0].target == tmp_path / "e\uf03af" and len(planned.notes) == 1
    assert plan(tree, "e:f", tmp_path / "given").notes == []


def test_two_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    class Twice(MemoryDir):
        def list(self) -> Iterator[tuple[str, Node]]:
            yield "a", MemoryLink("/etc")
            yield "a", MemoryDir({"passwd": MemoryFile(b"evil")})
            yield "b", MemoryFile(b"one")
            yield "b", MemoryFile(b"two")

    _, skipped = copy(MemoryDir({"d": Twice()}), "d", tmp_path)
    assert len(skipped) == 2
    assert (tmp_path / "d/a").is_dir() and not (tmp_path / "d/a").is_symlink()
    assert (tmp_path / "d/b").read_text() in ("one", "two")


def test_holes_times_modes_and_links(tmp_path: Path, way: str) -> None:
    rng = random.Random(7)
    pieces = []
    for n in range(60):
        length = rng.choice([1, 4096, 65_535, 65_536, 300_000])
        source: BlockSource = Pattern(length, n) if n % 3 else Zeros(length)
        pieces.append(Piece(length, source))
    odd = Layout(pieces)
    whole = odd.read_at(0, odd.size)
    ours = {"uid": os.geteuid(), "gid": os.getegid()}
    tree = MemoryDir(
        {
            "d": MemoryDir(
                {
                    "odd": MemoryFile(Layout(pieces), mode=0o640, **ours),
                    "hole": MemoryFile(Zeros(1 << 40), mode=0o400, mtime_ns=-1, **ours),
                    "told": MemoryFile(_NoZeros(64 << 20), mode=0o444),
                    "link": MemoryLink("nowhere"),
                    "suid": MemoryFile(b"x", mode=0o4755, **ours),
                },
                mode=0o551,
                **ours,
            )
        }
    )
    before = os.umask(0o026)
    try:
        copy(tree, "d", tmp_path)
    finally:
        os.umask(before)
    d = tmp_path / "d"
    assert (d / "odd").read_bytes() == whole
    assert (d / "hole").stat().st_size == 1 << 40 and (d / "hole").stat().st_blocks == 0
    assert (d / "told").stat().st_size == 64 << 20 and (d / "told").stat().st_blocks == 0
    assert os.readlink(d / "link") == "nowhere" and (d / "link").lstat().st_mtime_ns == WHEN
    modes = {p.name: stat.S_IMODE(p.lstat().st_mode) for p in [d, *d.iterdir()]}
    suid = 0o4755 if os.geteuid() == 0 else 0o755
    assert modes == {"d": 0o551, "odd": 0o640, "hole": 0o400, "told": 0o640, "link": 0o777, "suid": suid}
    assert d.stat().st_mtime_ns == (d / "odd").stat().st_mtime_ns == WHEN
    assert (d / "hole").stat().st_mtime_ns == -1


class _NoZeros(Zeros):
    """Zeros that no extent tells of."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """All data."""
        yield Extent(offset, length, True)


def test_many_small_files_are_read_at_once(tmp_path: Path) -> None:
    """Each waits for the others: 16 at a time, or it would not end."""
    together = threading.Barrier(16, timeout=20)
    files = {f"{n}": MemoryFile(Watched(Pattern(10), lambda *_: together.wait() and None)) for n in range(32)}
    progress, skipped = copy(MemoryDir({"d": MemoryDir({**files})}), "d", tmp_path)
    assert progress.files == 32 and not skipped


def test_a_new_file_leaves_somebody_elses_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE")
    (tmp_path / "x.part").write_text("mine")
    for name in ("x", "n" * 255, "\N{EURO SIGN}" * 85):
        with NewFile(tmp_path / name) as new:
            os.write(new.fd, b"new")
            assert not (tmp_path / name).exists()
            new.name()
        assert (tmp_path / name).read_text() == "new"
    with pytest.raises(FileExistsError):
        with NewFile(tmp_path / "x") as new:
            new.name()
    assert (tmp_path / "x").read_text() == "new" and (tmp_path / "x.part").read_text() == "mine"
    assert len(os.listdir(tmp_path)) == 4
