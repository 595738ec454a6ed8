"""A backup killed at every store operation leaves a repository that checks clean and goes on.

Here the process "dies" by an exception at the k-th operation, before or after it took effect;
`campaign_kills` does it with real processes and SIGKILL.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from pathlib import Path

import pytest

from cloudmount.blobs.faulty import Fault, FaultyStore, Killed, at
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.store import BlobStore, Tier
from cloudmount.crypto.phrase import new_phrase
from cloudmount.errors import CloudMountError, TargetExistsError
from cloudmount.repo.config import create_config, open_config
from cloudmount.repo.names import CONFIG, CONFIG_COPY
from cloudmount.repo.packs import open_index, pack_table
from cloudmount.repo.structures import HEADER_BYTES
from tests.backup.lab import CHEAP, Lab, fill, objects, same


class DyingStore(FaultyStore):
    """Dies at the operation numbered `k`. `acknowledged` are the creates whose caller got its answer."""

    def __init__(self, inner: BlobStore, k: int, fault: Fault) -> None:
        super().__init__(inner, at({k: fault}))
        self.acknowledged: list[str] = []

    def create(
        self, name: str, data: bytes, *, tier: Tier | None = None, deadline: float | None = None
    ) -> None:
        super().create(name, data, tier=tier, deadline=deadline)
        self.acknowledged.append(name)


def _settle() -> None:
    """Wait for the threads of a backup that died: a killed process has none."""
    end = time.monotonic() + 20
    while any(t.name.startswith(("upload", "frames")) for t in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.001)


def _contents(lab: Lab, packs: list[str]) -> set[bytes]:
    """The content ids in these packs."""
    found: set[bytes] = set()
    for name in packs:
        data = lab.store.read(name)
        found |= set(pack_table(lab.repository.keys, name, len(data), data[:HEADER_BYTES], data).ids)
    return found


def _indexed(lab: Lab) -> set[bytes]:
    """The content ids that index objects tell of."""
    names = [info.name for info in lab.store.list("index/")]
    tables = [t for n in names for t in open_index(lab.repository.keys, n, lab.store.read(n))]
    return {id for t in tables for id in t.ids}


@pytest.mark.parametrize("fault", [Fault.KILLED, Fault.KILLED_AFTER], ids=["before", "after"])
@pytest.mark.parametrize("journal", [True, False], ids=["journal-kept", "journal-lost"])
def test_every_operation(tmp_path: Path, fault: Fault, journal: bool) -> None:
    source = fill(tmp_path / "source", 1)
    whole = Lab(tmp_path)
    counting = FaultyStore(whole.store, lambda operation: None)
    frames = whole.backup(source, store=counting, journal=False).progress.new_frames
    _settle()
    assert counting.operations > 15
    for k in range(counting.operations):
        store = MemoryStore()
        lab = Lab(tmp_path / f"{k}", store)
        dying = DyingStore(store, k, fault)
        with contextlib.suppress(Killed):
            lab.backup(source, store=dying)
        _settle()
        snapshots = len(objects(store, "snapshots/"))
        assert snapshots == (fault is Fault.KILLED_AFTER and k == counting.operations - 1)
        left = lab.clean()
        assert left.snapshots == snapshots
        known = _indexed(lab)
        if journal:
            known |= _contents(lab, [n for n in dying.acknowledged if n.startswith("packs/")])
        else:
            lab.journal = tmp_path / f"{k}" / "another.sqlite"
        result = lab.backup(source)
        same(lab.read(result), source)
        assert not result.incomplete
        assert result.progress.new_frames == frames - len(known)  # only what was in flight
        after = lab.clean()
        assert after.snapshots == snapshots + 1
        if journal and fault is Fault.KILLED:  # what the dead one sent is told by the next one's index
            assert after.unindexed_bytes == 0


def test_killed_again_and_again(tmp_path: Path) -> None:
    """Each run gets a few operations further than the one before; all that was acknowledged counts."""
    source = fill(tmp_path / "source", 1)
    store = MemoryStore()
    lab = Lab(tmp_path, store)
    rng = random.Random(3)
    runs = 0
    while not objects(store, "snapshots/"):
        runs += 1
        assert runs < 60
        before = len(objects(store, "packs/"))
        fault = rng.choice([Fault.KILLED, Fault.KILLED_AFTER])
        with contextlib.suppress(Killed):
            lab.backup(source, store=FaultyStore(store, at({8 + runs: fault})))
        _settle()
        assert len(objects(store, "packs/")) >= before
    assert runs > 3
    same(lab.read(lab.backup(source)), source)
    lab.clean()


def test_interrupted_by_an_error_of_the_store(tmp_path: Path) -> None:
    """REFUSED at any operation: one clear error, nothing half done, and the next run goes on."""
    source = fill(tmp_path / "source", 1)
    whole = Lab(tmp_path)
    counting = FaultyStore(whole.store, lambda operation: None)
    whole.backup(source, store=counting, journal=False)
    for k in range(counting.operations):
        lab = Lab(tmp_path / f"{k}")
        with pytest.raises(CloudMountError):
            lab.backup(source, store=FaultyStore(lab.store, at({k: Fault.REFUSED})))
        _settle()
        lab.clean()
    same(lab.read(lab.backup(source)), source)


@pytest.mark.parametrize("fault", [Fault.KILLED, Fault.KILLED_AFTER], ids=["before", "after"])
def test_init(fault: Fault) -> None:
    """Killed at every operation: nothing, or a copy that opens and a second `init` that says so."""
    phrase = new_phrase()
    whole = FaultyStore(MemoryStore(prepared=False), lambda operation: None)
    create_config(whole, "p", phrase, cost=CHEAP)
    for k in range(whole.operations):
        store = MemoryStore(prepared=False)
        with contextlib.suppress(Killed):
            create_config(FaultyStore(store, at({k: fault})), "p", phrase, cost=CHEAP)
        if not store.objects:
            create_config(store, "p", phrase, cost=CHEAP)
        else:
            with pytest.raises(TargetExistsError, match="repository is already"):
                create_config(store, "p", phrase, cost=CHEAP)
        told: list[str] = []
        assert open_config(store, "p", told.append).keys
        assert bool(told) == (CONFIG not in store.objects)
        assert CONFIG_COPY in store.objects
