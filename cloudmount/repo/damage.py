"""Damage objects: what a check found unusable, so that writers store it anew (FORMAT.md 6.6).

Decided here and only here: the content of damage objects. Places are named, never
content ids: what was stored anew elsewhere is sound. Pure but for the store.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from cloudmount.blobs.store import BlobInfo
from cloudmount.crypto.slots import canonical
from cloudmount.errors import BlobMissingError, DamagedError
from cloudmount.repo.locations import Location
from cloudmount.repo.names import DAMAGE
from cloudmount.repo.objects import open_single, seal_single
from cloudmount.repo.pages import ItemRef
from cloudmount.repo.repository import Repository
from cloudmount.repo.structures import KIND_DAMAGE

OBJECT_LIMIT = 64 << 20


@dataclass(slots=True)
class Damage:
    """Damaged places: frames as (pack id, offset in it), items as (map object id, number); and ids of lost
    dictionaries, all frames that need which are told."""

    frames: set[tuple[bytes, int]] = field(default_factory=set)
    items: set[tuple[bytes, int]] = field(default_factory=set)
    dictionaries: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.frames or self.items or self.dictionaries)

    def add(self, other: Damage) -> None:
        """All that another tells too."""
        self.frames |= other.frames
        self.items |= other.items
        self.dictionaries |= other.dictionaries

    def beyond(self, other: Damage) -> Damage:
        """What another doesn't tell."""
        return Damage(
            self.frames - other.frames, self.items - other.items, self.dictionaries - other.dictionaries
        )

    def add_frame(self, at: Location) -> None:
        """A frame that does not open, or is not what its id says."""
        self.frames.add((at.pack, at.offset))

    def add_item(self, ref: ItemRef) -> None:
        """An item that does not open."""
        self.items.add((ref.map, ref.number))


def read_damage(repository: Repository) -> Damage:
    """All that damage objects tell. One that doesn't open is told and skipped."""
    found = Damage()
    for info in repository.store.list(DAMAGE):
        try:
            one = open_damage(repository, info)
        except (DamagedError, BlobMissingError) as error:
            repository.warn(f"{info.name} is ignored: {error}")
        else:
            found.add(one)
    return found


def open_damage(repository: Repository, info: BlobInfo) -> Damage:
    """What one damage object tells; `DamagedError` when it does not open under its name."""
    if info.size > OBJECT_LIMIT:
        raise DamagedError(f"{info.name} is larger than a damage object is")
    data = repository.store.read(info.name)
    try:
        value = json.loads(open_single(repository.keys, KIND_DAMAGE, info.name, data))
        return Damage(
            {(bytes.fromhex(pack), int(offset)) for pack, offset in value["frames"]},
            {(bytes.fromhex(map), int(number)) for map, number in value["items"]},
            {int(id, 16) for id in value.get("dictionaries", [])},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{info.name} makes no sense: {error!r}") from None


def write_damage(repository: Repository, found: Damage) -> str:
    """Store a damage object; its name."""
    value = {
        "frames": [[pack.hex(), offset] for pack, offset in sorted(found.frames)],
        "items": [[map.hex(), number] for map, number in sorted(found.items)],
        "dictionaries": [f"{id:08x}" for id in sorted(found.dictionaries)],
    }
    name, data = seal_single(repository.keys, KIND_DAMAGE, DAMAGE, canonical(value))
    repository.store.create(name, data)
    return name
