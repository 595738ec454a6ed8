"""Several writers, and what earlier ones left: all of it stands, and none of it spoils what comes after."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudmount.backup.run import BackupResult
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.retrying import RetryingStore
from cloudmount.blobs.store import Tier
from cloudmount.repo.names import SNAPSHOTS, folders
from tests.backup.lab import Lab, fill, flip, objects, replace, same


class HookedStore(MemoryStore):
    """A store that does something just before an object whose name begins with `prefix` is created, once."""

    def __init__(self, prefix: str = "", action: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.prefix, self.action = prefix, action
        self.armed = False

    def create(
        self, name: str, data: bytes, *, tier: Tier | None = None, deadline: float | None = None
    ) -> None:
        if self.armed and name.startswith(self.prefix):
            self.armed = False
            self.action()
        super().create(name, data, tier=tier, deadline=deadline)


def test_two_machines_at_once(tmp_path: Path) -> None:
    """Each as if it were alone; what both bring at once may be stored twice."""
    lab = Lab(tmp_path)
    sources = {f"pc{n}": fill(tmp_path / f"pc{n}", n + 1) for n in range(3)}
    failures: list[BaseException] = []

    def work(machine: str) -> None:
        try:
            for n in range(3):
                (sources[machine] / "new").write_bytes(random.Random(f"{machine}{n}").randbytes(9000))
                result = lab.backup(sources[machine], machine=machine, journal=tmp_path / f"{machine}.db")
                same(lab.read(result), sources[machine])
                assert result.summary["sequence"] == n + 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(machine,)) for machine in sources]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures[0]
    result = lab.clean()
    assert (result.snapshots, result.notices) == (9, [])
    assert {m.name for m in lab.reopened().machines()} == set(sources)


def test_one_journal_for_two_at_once(tmp_path: Path) -> None:
    """Two backups of one computer, each of other paths, share its index."""
    lab = Lab(tmp_path)
    sources = [fill(tmp_path / f"s{n}", n) for n in range(2)]
    results = {}
    threads = [
        threading.Thread(target=lambda n=n: results.setdefault(n, lab.backup(sources[n], machine=f"m{n}")))
        for n in range(2)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for n in range(2):
        same(lab.read(results[n]), sources[n])
    lab.clean()


def test_a_fork(tmp_path: Path) -> None:
    """Two backups of one machine at once: both stand, have one number, and check tells it."""
    store = HookedStore(SNAPSHOTS)
    lab = Lab(tmp_path, store)
    one, two = fill(tmp_path / "one", 1), fill(tmp_path / "two", 2)
    first = lab.backup(one)
    inner = []
    store.action = lambda: inner.append(lab.backup(two, journal=False))
    store.armed = True
    outer = lab.backup(one)
    same(lab.read(outer), one)
    same(lab.read(inner[0]), two)
    assert outer.summary["sequence"] == inner[0].summary["sequence"] == 2
    assert outer.summary["previous"] == inner[0].summary["previous"] == first.key.id
    result = lab.clean()
    assert len([n for n in result.notices if "fork" in n]) == 1
    after = lab.backup(two)
    assert after.summary["sequence"] == 3
    assert after.summary["previous"] == max(outer.key, inner[0].key).id
    same(lab.read(after), two)


def test_a_gap_is_told(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    source = fill(tmp_path / "s", 1)
    keys = [lab.backup(source).key for _ in range(5)]
    tag = lab.repository.keys.tag("srv")
    lab.store.delete(keys[2].name(tag))
    lab.store.delete(keys[0].name(tag))
    result = lab.clean()
    assert len(result.notices) == 4
    assert sum("no snapshot with number 1 is" in n for n in result.notices) == 1
    assert sum("no snapshot with number 3 is" in n for n in result.notices) == 1
    assert sum("follows a snapshot that is not here" in n for n in result.notices) == 2
    # The newest gone: only one who saw it knows. Its number is not used again.
    lab.store.delete(keys[4].name(tag))
    assert lab.backup(source, known_sequence=5).summary["sequence"] == 6


@pytest.mark.parametrize("journal", [True, False])
@pytest.mark.parametrize("prefix", ["packs/", "maps/", "index/"])
def test_lost_objects(tmp_path: Path, prefix: str, journal: bool) -> None:
    """Each pack, map and index object lost in turn: the next backup is whole."""
    store = MemoryStore()
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", 1)
    lab.backup(source)
    (source / "new").write_bytes(b"second")
    lab.backup(source)
    names = list(objects(store, prefix))
    for name in names if len(names) < 5 else random.Random(1).sample(names, 5):
        kept = dict(store.objects)
        store.delete(name)
        result = lab.backup(source, journal=lab.journal if journal else False)
        assert not result.incomplete
        same(lab.read(result), source)
        for new in set(store.objects) - set(kept):
            store.delete(new)
        store.create(name, kept[name])


def _damage_of(lab: Lab, result: BackupResult) -> list[str]:
    """What check finds wrong with the snapshot that a backup made."""
    keys = list(lab.repository.listed(lab.repository.keys.tag(result.machine)))
    folder = next(name for name, key in folders(keys).items() if key == result.key)
    return [d.path for d in lab.check().damage if d.snapshot == f"{result.machine}/{folder}"]


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("prefix", ["packs/", "maps/", "index/", "snapshots/"])
def test_damaged_objects(tmp_path: Path, prefix: str, checked: bool) -> None:
    """Damage anywhere never keeps a backup from being made; once a check saw it, the next backup is sound."""
    store = MemoryStore()
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", 1)
    lab.backup(source)
    (source / "new").write_bytes(b"second")
    second = lab.backup(source)
    rng = random.Random(2)
    names = list(objects(store, prefix))
    for name in names if len(names) < 4 else rng.sample(names, 3):
        kept = dict(store.objects)
        size = len(kept[name])
        for place in {rng.randrange(size) for _ in range(4)} | {5, size - 1}:
            flip(store, name, 8 * place + rng.randrange(8))
            if checked:
                assert not lab.check().ok
            result = lab.backup(source)
            assert not result.incomplete
            # Unless asked, a backup reads no frames that are stored, nor the ids of unchanged segments.
            if checked or prefix in ("snapshots/", "index/"):
                same(lab.read(result), source)
                assert not _damage_of(lab, result)
            for new in set(store.objects) - set(kept):
                store.delete(new)
            replace(store, name, kept[name])
    same(lab.read(second), source)


def test_an_index_that_lies_about_a_pack(tmp_path: Path) -> None:
    """A pack cut short is not used again: its length is not the one that the index gives."""
    store = MemoryStore()
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", 1)
    lab.backup(source)
    for name, data in list(objects(store, "packs/").items())[:5]:
        replace(store, name, data[:-9])
    other = lab.backup(source, machine="other", journal=False)
    same(lab.read(other), source)
    assert {d.snapshot.partition("/")[0] for d in lab.check().damage} <= {"", "srv"}


def test_objects_of_somebody_else(tmp_path: Path) -> None:
    """Whoever may create can add names; none of them is taken for what it is not."""
    store = MemoryStore()
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", 1)
    first = lab.backup(source)
    tag = lab.repository.keys.tag("srv")
    real = store.objects[first.key.name(tag)]
    store.create(first.key._replace(sequence=9, id="0" * 32).name(tag), real)
    store.create(first.key._replace(sequence=8, id="1" * 32).name(tag), b"junk")
    store.create(f"snapshots/{tag}/what", b"junk")
    store.create("snapshots/" + "0" * 32 + "/" + first.key.name(tag).split("/")[-1], real)
    store.create("packs/00/" + "0" * 32, b"junk")
    store.create("packs/notes", b"junk")
    store.create("maps/" + "0" * 32, b"junk")
    store.create("maps/zz", b"junk")
    store.create("index/" + "0" * 32, b"junk")
    store.create("damage/" + "0" * 32, b"junk")
    store.create("sessions/x", b"junk")
    second = lab.backup(source)
    assert second.summary["sequence"] == 2
    same(lab.read(second), source)
    assert lab.reopened().latest("srv").key == second.key
    assert {m.name for m in lab.reopened().machines()} == {"srv"}
    found = lab.check()
    assert not found.ok
    assert not any(d.path.startswith("s/") for d in found.damage)
    assert sum(not d.path for d in found.damage) == 3  # snapshots that don't open
    assert {d.path.partition("/")[0] for d in found.damage if not d.snapshot} == {
        "packs", "maps", "index", "damage",
    }  # fmt: skip


def test_write_once(tmp_path: Path) -> None:
    """A credential that may read, create and list is enough for backup and check."""
    store = MemoryStore(write_once=True)
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", 1)
    for _ in range(2):
        same(lab.read(lab.backup(source, store=RetryingStore(store))), source)
    lab.clean()


def test_damage_that_can_not_be_written_down(tmp_path: Path) -> None:
    store = HookedStore("damage/")
    lab = Lab(tmp_path, store)
    source = fill(tmp_path / "s", 1)
    lab.backup(source)
    flip(store, next(iter(objects(store, "packs/"))), 8 * 70)

    def refuse() -> None:
        from cloudmount.errors import StoreRefusedError

        raise StoreRefusedError("you may only read")

    store.action, store.armed = refuse, True
    result = lab.check()
    assert not result.ok
    assert result.recorded is None
    assert any("you may only read" in n for n in result.notices)
    assert lab.check().recorded is not None
    assert lab.check().recorded is None
