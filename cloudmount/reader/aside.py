"""A boot pack as a source of sealed frames beside the store's packs.

Decided here and only here: which frames a snapshot's reader may take from a boot pack: those that its map
gives the same birth, number and length, so that they open as the pack's own would, or not at all; and that a
boot pack of which something is wrong is told once and not asked again.

Threading: any number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from cloudmount.repo.bootpacks import BootPack
from cloudmount.repo.locations import Birth, Location


class Aside:
    """The frames of `pack`; `tell` gets a line when it is no longer used."""

    def __init__(self, pack: BootPack, tell: Callable[[str], None]) -> None:
        self.name = pack.name
        self.lost = False
        self._id, self._tell = pack.id, tell
        self._places: dict[tuple[Birth, int, int], int] = {
            (copy.birth, copy.number, copy.length): copy.offset for copy in pack.copies
        }
        self._lock = threading.Lock()

    def where(self, at: Location) -> Location | None:
        """Where in the boot pack the frame lies that the map says is at `at`; None when it has none that is
        surely the same."""
        offset = self._places.get((at.birth, at.number, at.length))
        return at._replace(pack=self._id, offset=offset) if offset is not None else None

    def lose(self, why: Exception) -> None:
        """It is not to be used any more."""
        with self._lock:
            lost, self.lost = self.lost, True
        if not lost:
            self._tell(f"{self.name}: {why}; the boot goes on without it, and may take longer")


class Via(NamedTuple):
    """How frames that are planned together are fetched: from `aside` where they are there, reading through
    gaps of at most `bridge` bytes."""

    aside: Aside | None
    bridge: int
