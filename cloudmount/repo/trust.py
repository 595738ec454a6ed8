"""What a writer takes as stored (FORMAT.md section 8.3).

Decided here and only here: that a frame or item counts as stored only when its object
is in the listing made at the writer's start, long enough, and no damage object names it.
Safe on any thread: packs are added one by one, nothing is removed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cloudmount.repo.damage import Damage, read_damage
from cloudmount.repo.locations import Location
from cloudmount.repo.names import MAPS, PACKS, pack_id
from cloudmount.repo.pages import ItemRef
from cloudmount.repo.repository import Repository
from cloudmount.repo.structures import HEADER_BYTES


@dataclass(slots=True)
class Trust:
    """Objects that are there: id to length in bytes, of packs and of map objects; and known damage."""

    packs: dict[bytes, int] = field(default_factory=dict)
    maps: dict[bytes, int] = field(default_factory=dict)
    damage: Damage = field(default_factory=Damage)

    def location(self, at: Location) -> bool:
        """Whether the frame stored there may be used again."""
        size = self.packs.get(at.pack)
        return (
            size is not None
            and HEADER_BYTES <= at.offset <= size - at.length
            and not (
                self.damage.frames and any((at.pack, offset) in self.damage.frames for offset in at.offsets)
            )
        )

    def item(self, ref: ItemRef) -> bool:
        """Whether the item may be used again."""
        size = self.maps.get(ref.map)
        return (
            size is not None
            and ref.offset + ref.length <= size
            and (ref.map, ref.number) not in self.damage.items
        )


def look(repository: Repository, damage: Damage | None = None) -> Trust:
    """List what is there now; `damage` is read from the store unless given."""
    trust = Trust(damage=read_damage(repository) if damage is None else damage)
    for info in repository.store.list(PACKS):
        id = pack_id(info.name)
        if id is not None:
            trust.packs[id] = info.size
    for info in repository.store.list(MAPS):
        text = info.name.removeprefix(MAPS)
        if len(text) == 32:
            try:
                trust.maps[bytes.fromhex(text)] = info.size
            except ValueError:
                repository.warn(f"{info.name}: not a map object's name; ignored")
    return trust
