"""Backups with a dictionary: trained once, used by all, and never a backup's undoing."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmount.backup import training
from cloudmount.backup.training import Training
from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.store import Data, Tier
from cloudmount.errors import DamagedError, UnreadableInputError
from cloudmount.extents import Extent
from cloudmount.repo.dictionaries import open_dictionary
from cloudmount.repo.names import dictionary_id, dictionary_names
from cloudmount.repo.payload import Dictionary
from tests.backup.lab import FRAME, SMALL, WORTH, Lab, fill, flip, objects, replace, same
from tests.trained import text, trained

WITHOUT = dataclasses.replace(SMALL, dictionary=0)


def made(folder: Path) -> tuple[Lab, MemoryStore, Path]:
    """A lab with one backup, whose disk made a dictionary."""
    source = fill(folder / "source", 1)
    store = MemoryStore()
    lab = Lab(folder, store)
    lab.backup(source)
    assert len(objects(store, "dictionaries/")) == 2
    return lab, store, source


def ids(store: MemoryStore) -> list[int]:
    found = (dictionary_id(name) for name in objects(store, "dictionaries/"))
    return sorted({id for id in found if id is not None})


def test_trained_once_and_used_by_every_machine(tmp_path: Path) -> None:
    lab, store, source = made(tmp_path)
    before = len(store.objects)
    result = lab.backup(source, force_read=True)
    other = fill(tmp_path / "other", 2)
    with_it = lab.backup(other, machine="pc", journal=False)
    assert len(ids(store)) == 1
    assert len(store.objects) > before
    assert lab.snapshot(with_it.key, "pc").dictionaries == ids(store)
    assert lab.snapshot(result.key).dictionaries == ids(store)
    same(lab.read(result), source)
    same(lab.read(with_it), other)
    lab.clean()
    plain = Lab(tmp_path / "plain", geometry=WITHOUT)
    plain.backup(source)
    without = plain.backup(other, machine="pc", journal=False)
    assert with_it.progress.stored_bytes < without.progress.stored_bytes - 3000
    assert with_it.progress.new_frames == without.progress.new_frames


def test_written_before_any_pack(tmp_path: Path) -> None:
    """Both of its objects; under a credential that may not replace or delete."""
    order: list[str] = []

    class Recording(CountingStore):
        def create(
            self, name: str, data: Data, *, tier: Tier | None = None, deadline: float | None = None
        ) -> None:
            order.append(name.partition("/")[0])
            super().create(name, data, tier=tier, deadline=deadline)

        def put(self, name: str, data: Data, *, deadline: float | None = None) -> None:
            raise AssertionError(name)

        def delete(self, name: str, *, deadline: float | None = None) -> None:
            raise AssertionError(name)

    lab = Lab(tmp_path)
    disk = tmp_path / "disk.img"
    disk.write_bytes(fill(tmp_path / "source", 1).joinpath("disk.img").read_bytes())
    lab.backup(disk, store=Recording(lab.store))
    assert order[:2] == ["dictionaries"] * 2
    assert order.count("dictionaries") == 2
    assert "packs" in order
    lab.clean()


def test_a_repository_without_goes_on_without(tmp_path: Path) -> None:
    lab = Lab(tmp_path, geometry=WITHOUT)
    source = fill(tmp_path / "source", 1)
    for _ in range(2):
        result = lab.backup(source, force_read=True)
    assert not list(lab.store.list("dictionaries/"))
    assert lab.snapshot(result.key).dictionaries == []
    same(lab.read(result), source)
    lab.clean()


@pytest.mark.parametrize("geometry", [SMALL, dataclasses.replace(SMALL, frame=512 << 10)])
def test_not_worth_it(tmp_path: Path, geometry: object) -> None:
    """A disk of noise, a small one, one of large frames, and files alone."""
    assert isinstance(geometry, type(SMALL))
    lab = Lab(tmp_path, geometry=geometry)
    disk = tmp_path / "noise.img"
    disk.write_bytes(random.Random(1).randbytes(40 * FRAME))
    lab.backup(disk)
    disk.write_bytes(text(1, WORTH - FRAME))
    lab.backup(disk)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "text").write_bytes(text(2, 4 * WORTH))
    lab.backup(folder)
    if geometry.frame > training.LARGEST_FRAME:
        disk.write_bytes(text(3, 8 << 20))
        lab.backup(disk)
    assert not list(lab.store.list("dictionaries/"))
    lab.clean()


def test_files_are_compressed_with_one_that_is_there(tmp_path: Path) -> None:
    lab, store, _ = made(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    for n in range(20):
        (folder / f"{n}").write_bytes(text(100 + n, 3000))
    plain = Lab(tmp_path / "plain", geometry=WITHOUT)
    sizes = [each.backup(folder, machine="pc").progress.stored_bytes for each in (lab, plain)]
    assert sizes[0] < sizes[1] - 5000
    lab.clean()
    assert len(ids(store)) == 1


@pytest.mark.parametrize("second", [False, True], ids=["first", "copy"])
def test_a_missing_one_is_made_again(tmp_path: Path, second: bool) -> None:
    lab, store, source = made(tmp_path)
    name = dictionary_names(*ids(store))[second]
    other = dictionary_names(*ids(store))[not second]
    store.delete(name)
    result = lab.check()
    assert [d.path for d in result.damage] == [name]
    assert "the next backup writes a missing one again" in result.damage[0].why
    same(lab.read(lab.backup(source, force_read=True)), source)
    keys = lab.repository.keys
    contents = {open_dictionary(keys, n, store.objects[n]).content for n in (name, other)}
    assert len(contents) == 1
    lab.clean()


@pytest.mark.parametrize("second", [False, True], ids=["first", "copy"])
def test_a_damaged_one_is_read_by_its_other_and_used_no_more(tmp_path: Path, second: bool) -> None:
    lab, store, source = made(tmp_path)
    (old,) = ids(store)
    flip(store, dictionary_names(old)[second], 8000)
    other = fill(tmp_path / "other", 2)
    result = lab.backup(other, machine="pc")
    assert any("nothing more is compressed with it" in told for told in lab.told)
    (new,) = set(ids(store)) - {old}
    assert sorted(lab.snapshot(result.key, "pc").dictionaries) == sorted((old, new))
    same(lab.read(result), other)
    same(lab.read(lab.backup(source, force_read=True)), source)
    assert [d.path for d in lab.check().damage] == [dictionary_names(old)[second]]


def test_both_lost(tmp_path: Path) -> None:
    """Told by the cheapest check; what can be read is; what is lost is stored anew once its loss is known."""
    lab, store, source = made(tmp_path)
    (old,) = ids(store)
    kept = {name: store.objects[name] for name in dictionary_names(old)}
    for name in kept:
        store.delete(name)
    result = lab.check(None)
    assert [d.path for d in result.damage] == sorted(kept)
    assert all("lost" in d.why for d in result.damage)
    for _ in range(2):  # however often
        broken = lab.backup(source)
        assert broken.incomplete
        assert old in lab.snapshot(broken.key).dictionaries
        with pytest.raises(DamagedError, match="bring back either"):
            lab.read(broken)
    assert any("the dictionary is lost" in told for told in lab.told)
    lab.check(50)
    assert lab.backup(source).incomplete, "not all frames were met"
    damaged = lab.check().damage
    assert any(d.path.endswith("disk.img") for d in damaged)
    after = lab.backup(source, force_read=True)
    assert not after.incomplete
    assert old not in lab.snapshot(after.key).dictionaries
    same(lab.read(after), source)
    for name, data in kept.items():
        store.create(name, data)
    lab.clean()


def test_machines_that_start_at_once(tmp_path: Path) -> None:
    """Each makes its own, or the second completes the first's: all that is stored can be read."""
    sources = {m: fill(tmp_path / m, n) for n, m in enumerate(["a", "b", "c"])}
    lab = Lab(tmp_path)
    waiting = ["b", "c"]
    results = {}

    class Meanwhile(CountingStore):
        """Before each object of a dictionary another machine's whole backup happens."""

        def create(
            self, name: str, data: Data, *, tier: Tier | None = None, deadline: float | None = None
        ) -> None:
            if name.startswith("dictionaries/") and waiting:
                machine = waiting.pop()
                results[machine] = lab.backup(sources[machine], machine=machine, journal=False)
            super().create(name, data, tier=tier, deadline=deadline)

    results["a"] = lab.backup(sources["a"], machine="a", journal=False, store=Meanwhile(lab.store))
    assert not waiting
    for machine, result in results.items():
        same(lab.read(result), sources[machine])
    lab.clean()
    assert isinstance(lab.store, MemoryStore)
    assert len(ids(lab.store)) == 2
    lab.backup(sources["b"], machine="b", force_read=True)
    assert len(ids(lab.store)) == 2


def test_junk_under_their_names(tmp_path: Path) -> None:
    """Whoever may create may add any: told, and nothing comes of it."""
    lab, store, source = made(tmp_path)
    real = ids(store)
    keys, name = lab.repository.keys, dictionary_names(*real)[0]
    store.create("dictionaries/00000000", b"")
    store.create("dictionaries/00000001.copy", bytes(SMALL.dictionary))
    store.create("dictionaries/00000002", store.objects[name])
    store.create("dictionaries/zzz", b"x")
    result = lab.backup(source, force_read=True)
    assert lab.snapshot(result.key).dictionaries == real
    assert ids(store)[3:] == real
    assert open_dictionary(keys, name, store.objects[name]).id == real[0]
    same(lab.read(result), source)
    assert not any(name in d.path for d in lab.check().damage)


def test_one_that_differs_from_its_copy(tmp_path: Path) -> None:
    lab, store, source = made(tmp_path)
    (old,) = ids(store)
    copy = dictionary_names(old)[1]
    content = trained(seed=5)
    content = content[:4] + old.to_bytes(4, "little") + content[8:]
    lab.repository.dictionaries._create(copy, content, lambda name, data: replace(store, name, data))
    assert any("differ" in d.why for d in lab.check().damage)
    same(lab.read(lab.backup(source, force_read=True)), source)
    assert len(ids(store)) == 2


class Spotty:
    """A disk that can't be read in places."""

    def __init__(self, content: bytes, bad: range) -> None:
        self.content, self.bad = content, bad
        self.size = len(content)
        self.reads = 0

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads += 1
        if offset // FRAME in self.bad:
            raise UnreadableInputError("a bad sector")
        return self.content[offset : offset + length]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, True)

    def close(self) -> None:
        pass


def _trained_of(lab: Lab, disk: Spotty) -> Dictionary | None:
    repository = lab.reopened()
    return Training(repository, lab.store.create, WORTH).before(disk)


def test_places_that_cannot_be_read(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    assert _trained_of(lab, Spotty(text(1, 100 * FRAME + 7), range(20, 60))) is not None
    lab = Lab(tmp_path)
    assert _trained_of(lab, Spotty(text(1, 100 * FRAME), range(100))) is None


def test_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at for a second, in places that are scattered all the same."""
    monkeypatch.setattr(training, "SECONDS", 0.0)
    lab = Lab(tmp_path)
    disk = Spotty(text(1, 5000 * FRAME), range(0))
    assert _trained_of(lab, disk) is not None
    assert disk.reads == training.FEWEST
    lab = Lab(tmp_path)
    assert _trained_of(lab, Spotty(text(1, 2500 * FRAME) + bytes(2500 * FRAME), range(0))) is not None
