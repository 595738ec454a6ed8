"""Which frames one request brings.

Decided here and only here: frames that adjoin or overlap in a pack (those that span two sealed
ones do) are read together, small gaps
that hold nothing we have are read through (a request costs a round trip and, in
Azure, money; 64 KiB at 100 Mbit/s cost 5 ms), and a run has a longest length. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cloudmount.repo.locations import Location

M = TypeVar("M")
BRIDGE = 64 << 10


@dataclass(slots=True)
class Run(Generic[M]):
    """`length` sealed bytes at `offset` of a pack, and whose frames lie in them, in that order."""

    pack: bytes
    offset: int
    length: int
    members: list[M]

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.offset + self.length


def coalesce(
    members: Iterable[M],
    where: Callable[[M], Location],
    *,
    longest: int,
    held: Collection[tuple[bytes, int]] = (),
    bridge: int = BRIDGE,
) -> list[Run[M]]:
    """The fewest runs of at most `longest` bytes that hold all `members`, in the order of their first.

    A gap of up to `bridge` bytes is read through, unless a frame at one of the places `held` (pack,
    offset) lies in it: what is cached already is not fetched again. A single frame may be longer.
    """
    members = list(members)
    order = {id(m): i for i, m in enumerate(members)}
    runs: list[Run[M]] = []
    last: Run[M] | None = None
    for member in sorted(members, key=lambda m: _order(where(m))):
        at = where(member)
        end = at.offset + at.length
        if (
            last is not None
            and last.pack == at.pack
            and at.offset - last.end <= bridge
            and (end <= last.end or end - last.offset <= longest)
            and not (
                at.offset > last.end
                and any(pack == at.pack and last.end <= o < at.offset for pack, o in held)
            )
        ):
            last.members.append(member)
            last.length = max(last.end, end) - last.offset
            continue
        last = Run(at.pack, at.offset, at.length, [member])
        runs.append(last)
    runs.sort(key=lambda r: min(order[id(m)] for m in r.members))
    return runs


def _order(at: Location) -> tuple[bytes, int, int]:
    """By place; what spans two before the first of them alone, which lies in it."""
    return at.pack, at.offset, -at.length
