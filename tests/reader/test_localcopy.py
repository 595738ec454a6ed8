"""Local copies: never a byte that was not written, whatever happens to the sidecar or to the file."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.errors import NotFoundError, TargetExistsError
from cloudmount.reader import alone, localcopy
from cloudmount.reader.localcopy import CopyInUseError, LocalCopy
from cloudmount.reader.pieces import Pieces
from cloudmount.reader.piecewriter import Put
from cloudmount.reader.sidecar import Seen, sidecar_path
from cloudmount.reader.soundness import verify_file
from tests.reader.copies import PIECE, claim, described, fill, noise, right

SIZE = 40 * PIECE + 100
CONTENT = noise(SIZE)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.lists(st.tuples(st.booleans(), st.integers(0, 200), st.integers(0, 200))))
def test_a_set_of_pieces_is_a_set(count: int, changes: list[tuple[bool, int, int]]) -> None:
    pieces, model = Pieces(count), set()
    for add, a, b in changes:
        low, high = sorted((min(a, count), min(b, count)))
        if add:
            pieces.add(low, high)
            model |= set(range(low, high))
        else:
            pieces.remove(low, high)
            model -= set(range(low, high))
        assert pieces.held == len(model)
        assert pieces.has(low, high) == (set(range(low, high)) <= model)
        for present in (True, False):
            found = [n for run in pieces.runs(low, high, present=present) for n in range(*run)]
            assert found == [n for n in range(low, high) if (n in model) == present]


def test_fills_up_finishes_and_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "srv" / "x.img"
    copy = claim(path, SIZE)
    fill(copy, CONTENT, 0, 10)
    assert right(copy, CONTENT) == 10
    copy.close()
    copy = claim(path, SIZE)
    assert not copy.doubtful and right(copy, CONTENT) == 10
    fill(copy, CONTENT)
    assert copy.finish(1_600_000_000 * 10**9, lambda: False)
    assert copy.finished and right(copy, CONTENT) == 41
    copy.close()
    assert path.read_bytes() == CONTENT
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o444 and status.st_mtime_ns == 1_600_000_000 * 10**9
    found = LocalCopy.finished_at(path, described(SIZE))
    assert found is not None and right(found, CONTENT) == 41
    verdict = verify_file(path, lambda done, total: None)
    assert (verdict.bytes, verdict.done, verdict.damage, verdict.finished) == (SIZE, SIZE, [], True)


def test_zeros_stay_holes_and_are_verified(tmp_path: Path) -> None:
    path, size = tmp_path / "x.img", 4096 * PIECE
    content = CONTENT[:PIECE] + bytes(size - PIECE)
    copy = claim(path, size)
    fill(copy, content, 0, 1)
    copy.zeros([(1, 4096)])
    assert copy.finish(0, lambda: False)
    copy.close()
    assert path.stat().st_blocks * 512 < 1 << 20
    assert sidecar_path(path).stat().st_size < 1000
    os.chmod(path, 0o644)
    with path.open("r+b") as f:
        f.seek(100 * PIECE + 5)
        f.write(b"x")
    verdict = verify_file(path, lambda done, total: None)
    assert [d[:2] for d in verdict.damage] == [(100 * PIECE, PIECE)]
    copy = claim(path, size)
    assert copy.missing == 1
    copy.zeros([(100, 101)])
    assert copy.finish(0, lambda: False)
    copy.close()
    assert path.read_bytes() == content


class Watched:
    """Files that look changed exactly when their content is: no clock is too coarse for it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, status: os.stat_result, *, finished: bool = False) -> Seen:
        return Seen(status.st_size, 0, zlib.crc32(self.path.read_bytes()), 0, int(finished))


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy half of whose pieces are there, in several entries, one of them lost again; what was not
    written holds something else."""
    path = tmp_path_factory.mktemp("half") / "x.img"
    garbage = noise(SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Seen, "of", Watched(path).of)
        copy = claim(path, SIZE)
        for first in (0, 7, 20, 33):
            fill(copy, CONTENT, first, first + 5)
        copy.close()
        with path.open("r+b") as f:
            for n in range(41):
                if not any(first <= n < first + 5 for first in (0, 7, 20, 33)) or n == 21:
                    f.seek(n * PIECE)
                    f.write(garbage[n * PIECE : (n + 1) * PIECE])
        copy = claim(path, SIZE)
        assert right(copy, CONTENT) == 19
        copy.close()
    return path


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_sidecar_costs_progress_and_nothing_else(
    halfway: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere, or with bits flipped anywhere."""
    path = halfway.with_name("y.img")
    path.unlink(missing_ok=True)
    shutil.copyfile(halfway, path)
    raw = bytearray(sidecar_path(halfway).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, 8 * len(raw) - 1))
        raw[at // 8] ^= 1 << at % 8
    raw = raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))]
    sidecar_path(path).write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Seen, "of", Watched(path).of)
        try:
            copy = LocalCopy.claim(path, described(SIZE), lambda line: None)
        except TargetExistsError:
            assert not raw
            return  # nothing tells any more that it is ours
        there = right(copy, CONTENT)
        assert there <= 19
        if raw == sidecar_path(halfway).read_bytes():
            assert there == 19
        if copy.doubtful:
            assert copy.verify(lambda: False)
        assert there <= right(copy, CONTENT) <= 20
        fill(copy, CONTENT)
        assert copy.finish(0, lambda: False)
        copy.close()
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("change", ["content", "times", "shorter", "longer", "replaced", "gone"])
def test_a_file_that_somebody_changed_is_verified(tmp_path: Path, change: str, finished: bool) -> None:
    path = tmp_path / "x.img"
    copy = claim(path, SIZE)
    fill(copy, CONTENT)
    if finished:
        assert copy.finish(5 * 10**9, lambda: False)
    copy.close()
    before = path.stat()
    os.chmod(path, 0o600)
    if change == "content":
        with path.open("r+b") as f:
            f.seek(5 * PIECE + 1)
            f.write(b"\0\0\0")
    elif change == "shorter":
        os.truncate(path, 30 * PIECE)
    elif change == "longer":
        os.truncate(path, SIZE + 1000)
    elif change == "replaced":
        shutil.copyfile(path, tmp_path / "other")
        os.replace(tmp_path / "other", path)
    elif change == "gone":
        path.unlink()
    if path.exists():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.chmod(path, stat.S_IMODE(before.st_mode))
    assert LocalCopy.finished_at(path, described(SIZE)) is None
    copy = LocalCopy.claim(path, described(SIZE), lambda line: None)
    assert right(copy, CONTENT) == 0
    if change != "gone":
        assert copy.doubtful and copy.verify(lambda: False)
        lost = {"content": 1, "shorter": 11, "longer": 0, "replaced": 0, "times": 0}[change]
        assert right(copy, CONTENT) == 41 - lost
        assert copy.finished == (finished and change in ("times", "replaced"))
    if not copy.finished:
        fill(copy, CONTENT)
        assert copy.finish(5 * 10**9, lambda: False)
    copy.close()
    assert path.read_bytes() == CONTENT
    assert LocalCopy.finished_at(path, described(SIZE)) is not None


def test_a_finished_copy_that_changes_while_it_is_read_is_read_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    copy = claim(path, SIZE)
    fill(copy, CONTENT)
    copy.finish(0, lambda: False)
    copy.close()
    found = LocalCopy.finished_at(path, described(SIZE))
    assert found is not None and right(found, CONTENT) == 41
    os.chmod(path, 0o644)
    with path.open("r+b") as f:
        f.write(b"other")
    assert found.read(20 * PIECE, 10) is None and right(found, CONTENT) == 0


def test_what_is_not_ours_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(b"mine")
    for _ in range(2):
        with pytest.raises(TargetExistsError, match="not a copy"):
            claim(path, SIZE)
        assert path.read_bytes() == b"mine" and not sidecar_path(path).exists()
    path.unlink()
    path.symlink_to("elsewhere")
    with pytest.raises(TargetExistsError, match="no file"):
        claim(path, SIZE)
    path.unlink()
    claim(path, SIZE).close()
    with pytest.raises(TargetExistsError, match="another disk"):
        claim(path, SIZE, disk="other")
    with pytest.raises(TargetExistsError, match="can't be written"):
        claim(tmp_path / "x.img" / "y", SIZE)
    with pytest.raises(NotFoundError, match="no digests"):
        verify_file(tmp_path / "z", lambda done, total: None)


def test_one_at_a_time(tmp_path: Path) -> None:
    copy = claim(tmp_path / "x.img", SIZE)
    with pytest.raises(CopyInUseError, match="another process"):
        claim(tmp_path / "x.img", SIZE)
    copy.close()
    claim(tmp_path / "x.img", SIZE).close()


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the file, its sync or the sidecar meet it; nothing is entered that is not on the disk."""
    path = tmp_path / "x.img"
    copy = claim(path, SIZE)
    waited: list[int | None] = []
    copy.room = lambda error: waited.append(error.errno)
    for name, module in (("pwrite", os), ("fsync", os), ("_sync", localcopy_sync())):
        full = getattr(module, name)
        left = [2 if name != "fsync" else 1]

        def failing(*given: object, full=full, left=left) -> object:  # type: ignore[no-untyped-def]
            if left[0]:
                left[0] -= 1
                raise OSError(errno.ENOSPC, "no space")
            return full(*given)

        monkeypatch.setattr(module, name, failing)
        start = len(waited)
        fill(copy, CONTENT, 0, 10 if name == "pwrite" else 30 if name == "fsync" else 41)
        monkeypatch.undo()
        assert len(waited) > start
        right(copy, CONTENT)
    fill(copy, CONTENT)
    assert copy.finish(0, lambda: False)
    copy.close()
    assert path.read_bytes() == CONTENT and set(waited) == {errno.ENOSPC}


def localcopy_sync() -> object:
    from cloudmount.reader import sidecar

    return sidecar


def test_a_full_disk_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = claim(tmp_path / "x.img", SIZE)

    def full(*given: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    copy.put([Put(0, CONTENT[:PIECE])])
    monkeypatch.setattr(localcopy, "ROOM_SECONDS", 1000)
    copy.close()
    monkeypatch.undo()
    assert claim(tmp_path / "x.img", SIZE).missing == 41


def opened(path: Path, mode: str) -> None:
    path.open(mode).close()


def cut(path: Path, mode: str) -> None:
    os.truncate(path, 3 * PIECE)
    os.truncate(path, SIZE)


def rewritten(path: Path, mode: str) -> None:
    with path.open(mode) as f:
        f.seek(20 * PIECE)
        f.write(bytes(PIECE))


@pytest.mark.parametrize("mode", ["rb", "r+b"])
@pytest.mark.parametrize("other", [opened, cut, rewritten])
def test_what_nobody_else_had_open_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, other: Callable[[Path, str], None]
) -> None:
    compared: list[Path] = []
    verify = LocalCopy.verify

    def counted(self: LocalCopy, stopped: Callable[[], bool]) -> bool:
        compared.append(self.path)
        return verify(self, stopped)

    monkeypatch.setattr(LocalCopy, "verify", counted)
    path, path2 = tmp_path / "x.img", tmp_path / "y.img"
    copy = claim(path, SIZE)
    fill(copy, CONTENT)
    assert copy.finish(0, lambda: False) and compared == []
    copy.close()
    assert path.read_bytes() == CONTENT
    copy = claim(path2, SIZE)
    fill(copy, CONTENT, 0, 30)
    if mode == "rb" and other is rewritten:
        copy.close()  # gone on with: what was there before is compared too
        copy = claim(path2, SIZE)
    else:
        other(path2, mode)
    fill(copy, CONTENT)
    while not copy.finish(0, lambda: False):
        fill(copy, CONTENT)
    assert path2 in compared
    copy.close()
    assert path2.read_bytes() == CONTENT


def test_where_it_cannot_be_watched_it_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "LOCAL", ())
    copy = claim(tmp_path / "x.img", SIZE)
    fill(copy, CONTENT)
    assert not copy._is_alone()
    assert copy.finish(0, lambda: False)
    copy.close()


@pytest.mark.parametrize("times", [1, 2])
def test_what_somebody_changes_while_it_is_filled_is_not_trusted_later(tmp_path: Path, times: int) -> None:
    """Although more was written, and entered, afterwards; also when it was gone on with meanwhile."""
    path = tmp_path / "x.img"
    for n in range(times):
        copy = claim(path, SIZE)
        fill(copy, CONTENT, 10 * n, 10 * n + 10)
        if n:
            rewritten(path, "r+b")
        with path.open("r+b") as f:
            f.seek(5 * PIECE)
            f.write(b"?" * PIECE)
        fill(copy, CONTENT, 30, 31 + n)
        copy.close()
    copy = LocalCopy.claim(path, described(SIZE), lambda line: None)
    assert copy.doubtful and right(copy, CONTENT) == 0
    assert copy.verify(lambda: False)
    assert right(copy, CONTENT) == 10 * times + times - 1
    fill(copy, CONTENT, 20, 41)
    copy.close()
    copy = LocalCopy.claim(path, described(SIZE), lambda line: None)
    assert not copy.doubtful, "nobody else opened it since"
    fill(copy, CONTENT)
    assert copy.finish(0, lambda: False)
    copy.close()
    assert path.read_bytes() == CONTENT
