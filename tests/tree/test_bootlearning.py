"""After a boot's trace was fetched the next boot needs the store for nothing; nothing wrong with it hurts."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudmount.app.check import check
from cloudmount.blobs.faulty import Fault, FaultyStore
from cloudmount.blobs.store import BlobStore
from cloudmount.disks.synthesis import BAT_OFFSET
from cloudmount.errors import CloudMountError
from cloudmount.reader import tracing
from cloudmount.repo.names import TRACES, traces_of
from cloudmount.repo.repository import Repository
from cloudmount.repo.traces import Trace, open_trace, read_trace, seal_trace
from cloudmount.tree.bootlearning import BootLearning
from cloudmount.tree.drive import Drive
from tests.backup.lab import Lab
from tests.tree.drives import MIB, drive, read
from tests.tree.test_bootguess import VHDX, opened_file, settle

UNIT = 128 << 10
SIZE = 64 * UNIT
READS = [0, 60, 2, 50, 7, 40, 9, 30, 11, 20]
"""Where the machine reads, in units."""


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "lab").mkdir()
    made = Lab(tmp_path / "lab")
    disk = made.folder / "disk.img"
    disk.write_bytes(random.Random(1).randbytes(SIZE // 64) * 64)
    with disk.open("r+b") as f:
        f.seek(510)
        f.write(b"\x55\xaa")
        for n in range(0, SIZE, 4096):  # no two frames alike
            f.seek(n)
            f.write(n.to_bytes(8, "little"))
    made.backup(disk)
    return made


@contextmanager
def learning(lab: Lab, folder: Path | None, store: BlobStore | None = None) -> Iterator[Drive]:
    with drive(lab, store) as tree:
        tree.learning = made = BootLearning(tree.repository, tree.reader, folder)
        yield tree
        made.close()


def boot(tree: Drive, reads: list[int] = READS) -> bytes:
    """As a hypervisor and its guest do."""
    opened = opened_file(tree, VHDX)
    opened.read_at(BAT_OFFSET, MIB)
    settle()
    head = opened.size - SIZE
    return b"".join(opened.read_at(head + at * UNIT, 4096) for at in reads)


def content(lab: Lab, reads: list[int] = READS) -> bytes:
    disk = (lab.folder / "disk.img").read_bytes()
    return b"".join(disk[at * UNIT : at * UNIT + 4096] for at in reads)


def kept(lab: Lab) -> list[str]:
    return [info.name for info in lab.store.list(TRACES)]


def waits(lab: Lab, folder: Path | None) -> bool:
    """Whether a boot needs the store after what is fetched ahead has come."""
    gone = [False]
    store = FaultyStore(lab.store, lambda operation: Fault.REFUSED if gone[0] else None)
    with learning(lab, folder, store) as tree:
        opened = opened_file(tree, VHDX)
        opened.read_at(BAT_OFFSET, MIB)
        settle()
        gone[0] = True
        try:
            found: bytes | None = boot(tree)
        except CloudMountError:
            found = None
        gone[0] = False
        assert found in (None, content(lab))
        assert boot(tree) == content(lab)
        return found is None


@pytest.mark.parametrize("here", [True, False])
def test_the_second_boot_waits_for_nothing(lab: Lab, tmp_path: Path, here: bool) -> None:
    folder = tmp_path / "traces" if here else None
    assert waits(lab, folder)
    assert len(kept(lab)) == 1
    assert not waits(lab, folder)
    assert len(kept(lab)) == 1, "it read nothing new"


def test_a_newer_snapshot_uses_it_too(lab: Lab) -> None:
    waits(lab, None)
    with (lab.folder / "disk.img").open("r+b") as f:
        f.seek(30 * UNIT)
        f.write(b"changed")
    lab.backup(lab.folder / "disk.img")
    assert not waits(lab, None)


def test_a_boot_of_another_kind_is_kept(lab: Lab) -> None:
    waits(lab, None)
    with learning(lab, None) as tree:
        other = [at + 1 for at in READS]
        assert boot(tree, other) == content(lab, other)
    assert len(kept(lab)) == 2


def test_a_credential_that_may_not_write_keeps_it_here(lab: Lab, tmp_path: Path) -> None:
    def refused(operation: object) -> Fault | None:
        return Fault.REFUSED if getattr(operation, "kind", "") == "create" else None

    with learning(lab, tmp_path / "traces", FaultyStore(lab.store, refused)) as tree:
        assert boot(tree) == content(lab)
    assert kept(lab) == []
    assert not waits(lab, tmp_path / "traces")


def test_it_is_kept_when_the_time_is_over(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with learning(lab, None) as tree:
        boot(tree)
        monkeypatch.setattr(tracing, "SECONDS", 0.0)
        boot(tree)
        until = time.monotonic() + 20
        while not kept(lab):
            assert time.monotonic() < until
            time.sleep(0.01)


def test_copies_leave_no_trace(lab: Lab) -> None:
    with learning(lab, None) as tree:
        read(tree, VHDX)
    assert kept(lab) == []


def test_a_silent_store_loses_the_trace_only(lab: Lab, tmp_path: Path) -> None:
    silent = [False]
    store = FaultyStore(lab.store, lambda operation: Fault.STALL if silent[0] else None)
    with learning(lab, tmp_path / "traces", store) as tree:
        boot(tree)
        silent[0] = True
    assert kept(lab) == []
    assert not waits(lab, tmp_path / "traces")


@pytest.mark.parametrize("harm", ["flip", "cut", "other", "huge"])
def test_a_damaged_trace_is_ignored_and_told(lab: Lab, tmp_path: Path, harm: str) -> None:
    waits(lab, None)
    name = kept(lab)[0]
    data = bytearray(lab.store.read(name))
    if harm == "flip":
        data[len(data) // 2] ^= 1
    elif harm == "cut":
        del data[-1:]
    elif harm == "other":
        data[:] = b"not a trace"
    else:
        data[:] = bytes(2 << 20)
    lab.store.delete(name)
    lab.store.create(name, bytes(data))
    assert waits(lab, None)
    found = check(lab.reopened())
    assert found.ok
    assert any(name in notice for notice in found.notices)


def test_what_makes_no_sense_is_clipped(lab: Lab) -> None:
    repository = lab.reopened()
    tag = repository.keys.tag("srv")
    odd = Trace(
        "disk", "00" * 16, 1_800_000_000, 1 << 60, 1 << 12, ((0, 1, 0), (1 << 50, 1 << 40, 1), (3, 9, -5))
    )
    name, data = seal_trace(repository.keys, tag, odd)
    repository.store.create(name, data)
    assert open_trace(repository.keys, name, data) == odd
    waits(lab, None)
    assert next(iter(repository.store.list(traces_of(tag)))).name == name or len(kept(lab)) > 1


def test_a_trace_is_read_as_it_was_written(lab: Lab) -> None:
    waits(lab, None)
    repository: Repository = lab.reopened()
    trace = read_trace(repository, next(iter(repository.store.list(TRACES))))
    frame = repository.geometry.frame
    first = [run[0] * frame // UNIT for run in trace.runs]
    assert [at for at in first if at in READS] == [at for at in READS if at in first]
    assert (trace.disk, trace.size) == ("disk", SIZE)
