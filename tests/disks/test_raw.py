"""Raw disks: exact reads, holes, files that shrink, and what is not a file at all."""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.disks.raw import RawDisk
from cloudmount.errors import UnreadableInputError
from cloudmount.extents import Extent
from tests.disks.disk_model import Model, check_extents, check_reads
from tests.disks.sparse_disk import SparseDisk, disks, write_file

MIB = 1 << 20


@settings(max_examples=40, deadline=None)
@given(disk=disks(6 * MIB), data=st.data())
def test_any_file(tmp_path_factory: pytest.TempPathFactory, disk: SparseDisk, data: st.DataObject) -> None:
    raw = RawDisk(write_file(disk, tmp_path_factory.mktemp("raw") / "disk.raw"))
    assert raw.size == disk.size
    for _ in range(10):
        at = data.draw(st.integers(0, disk.size))
        n = data.draw(st.integers(0, disk.size - at))
        assert raw.read_at(at, n) == disk.read_at(at, n)
        check_extents(raw, at, n, None)
    raw.close()
    raw.close()


def sparse(path: Path, size: int, *offsets: int) -> Path:
    """A file of holes but for 4 KiB at each offset."""
    with path.open("wb") as f:
        f.truncate(size)
        for at in offsets:
            f.seek(at)
            f.write(b"x" * 4096)
    return path


def test_holes_are_found(tmp_path: Path) -> None:
    raw = RawDisk(sparse(tmp_path / "a.raw", 64 * MIB, 0, 8 * MIB, 64 * MIB - 4096))
    found = list(raw.extents(0, raw.size))
    assert sum(e.length for e in found if e.data) <= 3 * 64 * 1024
    assert [e.data for e in found] == [True, False, True, False, True]
    assert list(raw.extents(9 * MIB, MIB)) == [Extent(9 * MIB, MIB, False)]
    assert list(raw.extents(100, 50)) == [Extent(100, 50, True)]
    assert list(raw.extents(raw.size, 0)) == []
    raw.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_holes_not_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """All of it is DATA then."""
    raw = RawDisk(sparse(tmp_path / "a.raw", 4 * MIB, 0))

    def no(_fd: int, _offset: int, _whence: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("cloudmount.disks.raw.os.lseek", no)
    assert list(raw.extents(512, 2 * MIB)) == [Extent(512, 2 * MIB, True)]
    monkeypatch.undo()
    raw.close()


def test_a_hole_that_moves_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that answers nonsense makes no endless loop and no lie."""
    path = tmp_path / "a.raw"
    path.write_bytes(b"x" * 100)
    raw = RawDisk(path)
    monkeypatch.setattr("cloudmount.disks.raw.os.lseek", lambda _fd, _offset, _whence: 0)
    found = list(raw.extents(10, 90))
    assert all(e.data for e in found)
    assert sum(e.length for e in found) == 90
    monkeypatch.undo()
    raw.close()


def test_shrinking(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.raw", 4 * MIB, 0, 4096)
    raw = RawDisk(path)
    os.truncate(path, MIB)
    assert raw.read_at(0, 4096) == b"x" * 4096
    with pytest.raises(UnreadableInputError, match=r"a\.raw: ends at offset 1048576: it shrank from 4194304"):
        raw.read_at(MIB - 10, 20)
    with pytest.raises(UnreadableInputError, match="shrank from 4194304"):
        list(raw.extents(0, raw.size))
    raw.close()


def test_growing(tmp_path: Path) -> None:
    """What comes after the size at opening does not exist."""
    path = sparse(tmp_path / "a.raw", MIB, 0)
    raw = RawDisk(path)
    os.truncate(path, 2 * MIB)
    assert raw.size == MIB
    with pytest.raises(ValueError, match="outside"):
        raw.read_at(MIB, 1)
    assert list(raw.extents(8192, MIB - 8192)) == [Extent(8192, MIB - 8192, False)]
    raw.close()


def test_a_bad_sector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = RawDisk(sparse(tmp_path / "a.raw", MIB, 0))

    def bad(_fd: int, _length: int, _offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("cloudmount.disks.raw.os.pread", bad)
    with pytest.raises(UnreadableInputError, match=r"512 bytes at offset 1024: Input/output error"):
        raw.read_at(1024, 512)
    monkeypatch.undo()
    raw.close()


def test_short_reads_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(range(256)) * 40)
    raw = RawDisk(path)
    whole = os.pread
    monkeypatch.setattr("cloudmount.disks.raw.os.pread", lambda fd, n, at: whole(fd, min(n, 7), at))
    assert raw.read_at(3, 5000) == (bytes(range(256)) * 40)[3:5003]
    monkeypatch.undo()
    raw.close()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UnreadableInputError, match="neither a regular file nor a block device"):
            RawDisk(path)
    for path in (tmp_path / "gone", Path("a\0b"), tmp_path / ("x" * 300)):
        with pytest.raises(UnreadableInputError, match="can't open it"):
            RawDisk(path)


def test_a_block_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is where its end is; one that tells no sector sizes has 512."""
    path = sparse(tmp_path / "device", MIB, 0)
    monkeypatch.setattr("cloudmount.disks.raw.stat.S_ISBLK", stat.S_ISREG)
    raw = RawDisk(path)
    assert raw.is_block_device
    assert raw.size == MIB
    assert raw.sector_sizes() == (512, 512)
    raw.close()
    monkeypatch.setattr(
        "fcntl.ioctl", lambda _fd, request, _arg: (512 if request == 0x1268 else 4096).to_bytes(4, "little")
    )
    raw = RawDisk(path)
    assert raw.sector_sizes() == (512, 4096)
    raw.close()


def test_nothing_is_written(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.raw", MIB, 0)
    path.chmod(0o444)
    os.utime(path, (1000, 2000))
    raw = RawDisk(path)
    raw.read_at(0, MIB)
    raw.close()
    assert path.stat().st_mtime == 2000
    assert path.stat().st_atime == 1000, "the owner's files keep their access time"


def test_the_access_time_of_others_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_NOATIME is refused to whoever doesn't own the file."""
    path = sparse(tmp_path / "a.raw", MIB, 0)
    whole = os.open

    def refusing(name: Path, flags: int) -> int:
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return whole(name, flags)

    monkeypatch.setattr("cloudmount.disks.raw.os.open", refusing)
    raw = RawDisk(path)
    assert raw.read_at(0, 1) == b"x"
    raw.close()


def test_many_threads(tmp_path: Path) -> None:
    rng = random.Random(1)
    model = Model(8 * MIB)
    model.scribble(rng, 0, model.size, 40)
    path = tmp_path / "a.raw"
    path.write_bytes(model.read(0, model.size))
    raw = RawDisk(path)
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            check_reads(raw, model, random.Random(seed), reads=20)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    raw.close()
    assert not failed
