"""Every bit flip and every truncation of any object in a small repository is noticed by a full check."""

from __future__ import annotations

import random
from dataclasses import replace as replace_fields
from pathlib import Path

import pytest

from cloudmount.blobs.memory import MemoryStore
from tests.backup.lab import FRAME, SMALL, Lab, flip, objects, replace
from tests.trained import text, trained

MIB = 1 << 20


def tiny(tmp_path: Path) -> tuple[Lab, MemoryStore]:
    """A repository of every kind of object and item in about 12 KB: two snapshots, a disk of two
    pages, files small and large, a pack that nothing names, a damage object, a dictionary."""
    store = MemoryStore()
    lab = Lab(tmp_path, store, replace_fields(SMALL, dictionary=1 << 10))
    lab.repository.dictionaries.add(trained(1 << 10), {}, store.create)
    rng = random.Random(1)
    source = tmp_path / "s"
    source.mkdir()
    (source / "small").write_bytes(b"s" * 300)
    (source / "noise").write_bytes(rng.randbytes(200))
    with (source / "large").open("wb") as f:
        f.truncate(1100 * FRAME)
        f.write(b"large")
    disk = tmp_path / "disk.img"
    with disk.open("wb") as f:
        f.truncate(33 * MIB)
        f.write(b"disk" + text(1, 1000))
        f.seek(32 * MIB)
        f.write(rng.randbytes(100))
    other = tmp_path / "other.img"
    other.write_bytes(b"o" * 512)
    left = lab.backup(source, other)
    lab.store.delete(left.key.name(lab.repository.keys.tag("srv")))  # its packs and maps stay
    lab.backup(source, disk)
    (source / "small").write_bytes(b"t" * 300)
    lab.backup(source, disk, journal=False)
    name = next(iter(objects(store, "packs/")))
    kept = store.objects[name]
    flip(store, name, 8 * 70)
    lab.check()
    store.objects[name] = kept
    kinds = {n.partition("/")[0] for n in store.objects}
    assert kinds == {"config", "config.copy", "packs", "maps", "index", "snapshots", "damage", "dictionaries"}
    lab.clean()
    return lab, store


def noticed(lab: Lab, what: str) -> None:
    """A full check finds damage."""
    assert not lab.check().ok, what


def restored(store: MemoryStore, kept: dict[str, bytes]) -> None:
    """The objects as they were; what a check wrote down since is removed."""
    for new in set(store.objects) - set(kept):
        store.delete(new)
    for name, data in kept.items():
        if store.objects.get(name) != data or len(data) != store._infos[name].size:
            replace(store, name, data)


def every_byte(lab: Lab, store: MemoryStore, rng: random.Random, step: int) -> int:
    """One flipped bit in every `step`-th byte of each object, and truncations: how many were tried."""
    repository = lab.reopened()
    lab.reopened = lambda: repository  # type: ignore[method-assign,assignment]  # opened before the damage
    kept = dict(store.objects)
    tried = 0
    for name, data in kept.items():
        # Of the config, whose every bit a MAC covers, check compares two copies; a dictionary is one seal.
        stride = step * 16 if name.startswith(("config", "dictionaries/")) else step
        for place in range(rng.randrange(step), len(data), stride):
            bit = 8 * place + rng.randrange(8)
            flip(store, name, bit)
            noticed(lab, f"{name}: bit {bit}")
            restored(store, kept)
            tried += 1
        cuts = {0, 1, 63, 64, 65, len(data) - 1, len(data) - 8, len(data) - 9}
        cuts |= {rng.randrange(len(data)) for _ in range(60 // step)}
        for cut in sorted(c for c in cuts if 0 <= c < len(data)):
            replace(store, name, data[:cut])
            noticed(lab, f"{name}: cut to {cut}")
            restored(store, kept)
            tried += 1
        replace(store, name, data + b"\0")
        noticed(lab, f"{name}: a byte more")
        restored(store, kept)
    lab.clean()
    return tried


def test_every_byte(tmp_path: Path) -> None:
    """Every fifth byte here; all of them in the campaign."""
    lab, store = tiny(tmp_path)
    assert every_byte(lab, store, random.Random(2), 5) > 1500


@pytest.mark.parametrize("kind", ["config", "packs/", "maps/", "index/", "snapshots/", "dictionaries/"])
def test_objects_swapped(tmp_path: Path, kind: str) -> None:
    """No object stands under another's name, nor under one that is new."""
    lab, store = tiny(tmp_path)
    names = list(objects(store, kind))
    kept = dict(store.objects)
    for a in names:
        for b in names:
            if a < b and kept[a] != kept[b]:
                replace(store, a, kept[b])
                replace(store, b, kept[a])
                noticed(lab, f"{a} and {b} swapped")
                restored(store, kept)
    lab.clean()


def test_objects_lost(tmp_path: Path) -> None:
    """Each pack and map object that something names, and the config: named when missing."""
    lab, store = tiny(tmp_path)
    kept = dict(store.objects)
    spare = lab.check().unreferenced_bytes
    assert spare
    for name in kept:
        if name.startswith(("damage/", "index/", "snapshots/")):
            continue
        store.delete(name)
        result = lab.check()
        missing = [d for d in result.damage if "missing" in d.why]
        unnamed = name.startswith("maps/") and result.ok and result.unreferenced_bytes < spare
        assert missing or unnamed, name
        restored(store, kept)
    lab.clean()
