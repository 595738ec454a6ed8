"""Large files: the same bytes whichever way they go, and the usual way where the other is refused."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudmount.blobs import direct
from cloudmount.blobs.direct import ALIGNMENT, LargeFile, aligned_memory

MOST = 64 << 10
ROOM = aligned_memory(MOST + ALIGNMENT)
ROOM[:] = random.Random(1).randbytes(len(ROOM))


@pytest.fixture(autouse=True)
def _small_writes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "WORTH", 1)


def near(most: int) -> st.SearchStrategy[int]:
    """Numbers at and beside multiples of `ALIGNMENT`, and others."""
    beside = st.tuples(st.integers(0, most // ALIGNMENT), st.sampled_from([-512, -1, 0, 0, 0, 1, 512]))
    return st.one_of(beside.map(lambda n: min(most, max(0, n[0] * ALIGNMENT + n[1]))), st.integers(0, most))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    writes=st.lists(st.tuples(near(1 << 20), near(ALIGNMENT), near(MOST), st.booleans()), max_size=8),
    size=near(1 << 20),
)
def test_what_is_written_is_there(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int, int, bool]], size: int
) -> None:
    path = tmp_path_factory.mktemp("large") / "file"
    model = bytearray(size)
    file = LargeFile(path, new=True)
    os.ftruncate(file.fd, size)
    for at, begin, length, readonly in writes:
        data = bytes(ROOM[begin : begin + length]) if readonly else ROOM[begin : begin + length]
        file.write_at(data, at)
        if length:
            model.extend(bytes(max(0, at + length - len(model))))
            model[at : at + length] = data
    file.sync()
    file.close()
    assert path.read_bytes() == model


def test_it_goes_past_the_page_cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this file system takes it at all: nothing but the last bytes go the usual way."""
    if not hasattr(os, "O_DIRECT"):
        pytest.fail("these tests run on Linux")
    usual: list[int] = []
    write = direct.pwrite
    monkeypatch.setattr(direct, "pwrite", lambda fd, view, at: usual.append(len(view)) or write(fd, view, at))
    file = LargeFile(tmp_path / "file")
    file.write_at(ROOM[: 5 * ALIGNMENT + 100], 0)
    refused = file._refused
    file.close()
    assert (tmp_path / "file").read_bytes() == ROOM[: 5 * ALIGNMENT + 100]
    assert usual == ([5 * ALIGNMENT + 100] if refused else [100])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_refusal_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    file = LargeFile(tmp_path / "file")
    refused = file._direct = os.open(tmp_path / "file", os.O_WRONLY)
    write = os.pwrite

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        if fd == refused and at >= 2 * ALIGNMENT:
            raise OSError(number, "no")
        return write(fd, data[: 2 * ALIGNMENT] if fd == refused else data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    file.write_at(ROOM[: 6 * ALIGNMENT + 7], 0)
    file.write_at(ROOM[:MOST], MOST)
    assert file._refused
    file.close()
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes()[: 6 * ALIGNMENT + 7] == ROOM[: 6 * ALIGNMENT + 7]
    assert (tmp_path / "file").read_bytes()[MOST:] == ROOM[:MOST]


def test_no_room_and_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LargeFile(tmp_path / "file")
    file._direct = os.open(tmp_path / "file", os.O_WRONLY)
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        file.write_at(ROOM[:MOST], 0)
    before = len(os.listdir("/proc/self/fd"))
    file.close()
    file.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    with pytest.raises(FileExistsError):
        LargeFile(tmp_path / "file", new=True)
    assert len(os.listdir("/proc/self/fd")) == before - 2


def test_a_file_system_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = os.open

    def refuse(path: object, flags: int, *more: int) -> int:
        if flags & direct._DIRECT:
            raise OSError(errno.EINVAL, "no")
        return opened(path, flags, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    file = LargeFile(tmp_path / "file")
    file.write_at(ROOM[:MOST], 0)
    file.close()
    assert (tmp_path / "file").read_bytes() == ROOM[:MOST]
