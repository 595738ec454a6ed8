"""A disk's restore that fails anywhere goes on, to the same bytes."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.app import restoredisk
from cloudmount.app.restore import restore
from cloudmount.app.select import select
from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.run import BackupOptions, run_backup
from cloudmount.blobs.direct import LargeFile
from cloudmount.blobs.memory import MemoryStore
from cloudmount.crypto.phrase import new_phrase
from cloudmount.crypto.slots import KdfCost
from cloudmount.disks.synthesis import synthesise_vhdx
from cloudmount.disks.vhd_synthesis import synthesise_vhd
from cloudmount.errors import NoRoomError
from cloudmount.extents import Bytes
from cloudmount.repo.config import Geometry
from cloudmount.repo.repository import Repository
from cloudmount.tree.drive import Drive
from cloudmount.tree.snapshotdir import OpenedSnapshot

SMALL = Geometry(frame=64 << 10, pack=1 << 20, segment=8 << 20, page=32 << 20)
SIZE = (23 << 20) + 512
DATA = ((0, 512), (2 << 20, 6 << 20), (13 << 20, 70000), ((14 << 20) + 4096, 1), (SIZE - 1, 1))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, dict[str, bytes]]:
    """A repository of one disk, with blocks of 2 MiB that are full, hardly used and absent; its forms."""
    repository = Repository.init(
        MemoryStore(prepared=False), "pw", new_phrase(), geometry=SMALL, cost=KdfCost(64, 1, 1)
    )
    disk, content = tmp_path_factory.mktemp("disk") / "disk.raw", bytearray(SIZE)
    for at, length in DATA:
        content[at : at + length] = random.Random(at).randbytes(length)
    disk.write_bytes(content)
    run_backup(repository, [str(disk)], BackupOptions("srv"), BackupProgress())
    found = OpenedSnapshot(Drive(repository, None), select(repository, "srv").snapshot).disks[0]
    raw = Bytes(bytes(content))
    forms = {
        "raw": raw,
        "vhdx": synthesise_vhdx(raw, found.presence, found.identity),
        "vhd": synthesise_vhd(raw, found.presence, found.identity),
    }
    return repository, {form: source.read_at(0, source.size) for form, source in forms.items()}


def room_for(writes: int) -> Callable[[LargeFile, bytes, int], None]:
    """`LargeFile.write_at` on a disk that is full after so many; on any thread."""
    left, write = iter(range(writes)), LargeFile.write_at

    def some(self: LargeFile, data: bytes, at: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data, at)

    return some


@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from(["raw", "vhdx", "vhd"]),
    failures=st.lists(st.integers(0, 40), max_size=3),
    sync=st.sampled_from([1, 1 << 20, 256 << 20]),
    batch=st.sampled_from([64 << 10, 1 << 20, 8 << 20]),
    garbage=st.booleans(),
)
def test_it_goes_on(
    stored: tuple[Repository, dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
    form: str,
    failures: list[int],
    sync: int,
    batch: int,
    garbage: bool,
) -> None:
    """Each time the disk is full after so many writes; garbage is what a power cut may leave unsynced."""
    repository, forms = stored
    out = tmp_path_factory.mktemp("back") / "disk"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restoredisk, "SYNC_BYTES", sync)
        patch.setattr("cloudmount.reader.bulk.BATCH", batch)
        for allowed in failures:
            with patch.context() as inner:
                inner.setattr(LargeFile, "write_at", room_for(allowed))
                try:
                    restore(repository, select(repository, "srv:disk"), out, format=form)
                except NoRoomError:
                    pass
                else:
                    break
            if garbage:
                _spoil(out)
        if not out.exists() or (out.parent / ".cloudmount-restore-disk").exists():
            restore(repository, select(repository, "srv:disk"), out, format=form)
    assert out.read_bytes() == forms[form]
    assert os.listdir(out.parent) == ["disk"]


def _spoil(out: Path) -> None:
    """Change what the journal does not tell of as written and synced."""
    lines = (out.parent / ".cloudmount-restore-disk").read_bytes().splitlines()
    reached = [line for line in lines if b"reached" in line]
    if not reached or b'"reached": 0}' in reached[-1]:
        out.write_bytes(b"garbage" * 1000)
        return
    with open(out, "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"garbage!" * 125)


@pytest.mark.parametrize("form", ["raw", "vhdx", "vhd"])
def test_absent_blocks_are_holes(
    stored: tuple[Repository, dict[str, bytes]], tmp_path: Path, form: str
) -> None:
    repository, forms = stored
    restore(repository, select(repository, "srv:disk"), tmp_path / "disk", format=form)
    assert (tmp_path / "disk").read_bytes() == forms[form]
    assert os.stat(tmp_path / "disk").st_blocks * 512 < (8 << 20)
