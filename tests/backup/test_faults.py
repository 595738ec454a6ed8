"""Over a bad store: right bytes, or one clear error. Never a wrong snapshot, never a hang."""

from __future__ import annotations

import contextlib
import itertools
import random
from pathlib import Path

import pytest

from cloudmount.app.check import check
from cloudmount.blobs.faulty import HONEST, Fault, FaultyStore, Operation, randomly
from cloudmount.blobs.local import LocalStore
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.retrying import RetryingStore, RetryPolicy
from cloudmount.blobs.store import BlobStore
from cloudmount.errors import CloudMountError, DamagedError, StoreError
from tests.backup.lab import Lab, fill, objects, same

NEVER_GIVE_UP = RetryPolicy(total=None, first=0.001, longest=0.001)


def _bad_line(store: BlobStore, plan: object) -> RetryingStore:
    """A store behind a line that `plan` spoils, and the client that retries; without waits."""
    faulty = FaultyStore(store, plan, stall=0.0, sleep=lambda s: None)  # type: ignore[arg-type]  # a Plan
    return RetryingStore(faulty, NEVER_GIVE_UP, starting=None, sleep=lambda s: None)


@pytest.mark.parametrize("write_once", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_an_honest_store_over_a_bad_line(tmp_path: Path, seed: int, write_once: bool) -> None:
    """Resets, lost answers, 'later', silence at every third operation: as if nothing was."""
    store = MemoryStore(write_once=write_once)
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", seed)
    for n in range(3):
        (source / "new").write_bytes(random.Random(n).randbytes(5000))
        line = _bad_line(store, randomly(10 * seed + n, 0.35, HONEST))
        result = lab.backup(source, store=line)
        repository = lab.reopened(_bad_line(store, randomly(10 * seed + n + 5, 0.3, HONEST)))
        same(lab.read(result, repository), source)
    line = _bad_line(store, randomly(seed, 0.35, HONEST))
    found = check(lab.reopened(line), read_data=100)
    assert (found.ok, found.snapshots) == (True, 3)
    assert len(objects(store, "snapshots/")) == 3


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.STALL_LOST])
def test_every_answer_to_a_create_is_lost(tmp_path: Path, fault: Fault) -> None:
    """Each is looked up and found to stand; nothing is stored twice."""
    for keeps_md5, write_once in itertools.product((True, False), repeat=2):
        store = MemoryStore(keeps_md5=keeps_md5, write_once=write_once)
        lab = Lab(tmp_path / f"{keeps_md5}{write_once}", store)
        source = tmp_path / "s"
        if not source.exists():
            fill(source, 1)

        def plan(operation: Operation) -> Fault | None:
            return fault if operation.kind == "create" and operation.nth == 0 else None

        result = lab.backup(source, store=_bad_line(store, plan))
        same(lab.read(result), source)
        assert result.progress.writes == len(objects(store, "")) - 2  # but for the config and its copy
        assert lab.clean().unreferenced_bytes == 0


@pytest.mark.parametrize("seed", range(6))
def test_stale_lists(tmp_path: Path, seed: int) -> None:
    """Listings that lack what was created last: more is sent than need be, and all of it is right."""
    store = MemoryStore()
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", 1)
    stale = FaultyStore(store, randomly(seed, 0.6, [Fault.STALE], ["list"]))
    for n in range(4):
        (source / "new").write_bytes(random.Random(n).randbytes(9000))
        same(lab.read(lab.backup(source, store=stale)), source)
    lab.clean()


@pytest.mark.parametrize("seed", range(8))
def test_a_store_that_lies(tmp_path: Path, seed: int) -> None:
    """Wrong bits, short reads and refusals: an error, or the right bytes."""
    store = MemoryStore()
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", 1)
    lab.backup(source)
    for n in range(6):
        (source / "new").write_bytes(random.Random(n).randbytes(5000))
        plan = randomly(100 * seed + n, 0.15, [Fault.FLIP, Fault.SHORT, Fault.REFUSED], ["read", "list"])
        try:
            result = lab.backup(source, store=FaultyStore(store, plan))
        except CloudMountError:
            continue
        same(lab.read(result), source)
        reading = FaultyStore(store, randomly(seed + n, 0.02, [Fault.FLIP, Fault.SHORT], ["read"]))
        with contextlib.suppress(DamagedError, StoreError):
            same(lab.read(result, lab.reopened(reading)), source)
    lab.clean()


@pytest.mark.parametrize("seed", range(5))
def test_check_over_a_line_that_flips_bits(tmp_path: Path, seed: int) -> None:
    """What comes wrong once is read again: it is no damage, and is not written down as such."""
    store = MemoryStore()
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", 1)
    lab.backup(source)

    def plan(operation: Operation) -> Fault | None:
        return randomly(seed, 0.7, [Fault.FLIP], ["read"])(operation) if operation.nth == 0 else None

    repository = lab.reopened()
    repository.store = FaultyStore(store, plan)
    found = check(repository, read_data=100)
    assert found.ok, found.damage
    assert any("came wrong" in n for n in found.notices)
    assert not objects(store, "damage/")


def test_a_store_that_is_away(tmp_path: Path) -> None:
    """The whole backup ends with the store's error when it gives up."""
    lab = Lab(tmp_path)
    source = fill(tmp_path / "s", 1)
    for after in (2, 5, 9, 14):
        away = FaultyStore(
            lab.store, lambda operation, n=after: Fault.RESET if operation.index >= n else None
        )
        line = RetryingStore(away, RetryPolicy(total=0.05, first=0.01), starting=None)
        with pytest.raises(StoreError):
            lab.backup(source, store=line)
    same(lab.read(lab.backup(source)), source)
    lab.clean()


def test_a_full_store(tmp_path: Path) -> None:
    from cloudmount.errors import NoRoomError

    store = MemoryStore(capacity=300_000)
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", 1)
    with pytest.raises(NoRoomError):
        lab.backup(source)
    lab.clean()
    store._capacity = None
    same(lab.read(lab.backup(source)), source)


def test_a_folder_as_the_store(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "repository")
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", 1)
    for n in range(2):
        (source / "new").write_bytes(b"x" * n)
        same(lab.read(lab.backup(source)), source)
    found = lab.clean()
    assert (found.snapshots, found.unreferenced_bytes) == (2, 0)
