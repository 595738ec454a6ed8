"""Map objects of one backup: items are batched, full objects are sent.

Decided here and only here: that ids and digests lie in map objects of their own, so
that readers, who need none of them, read the others in large ranges. Belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Callable

from cloudmount.crypto.keyring import Keyring
from cloudmount.repo.mapobjects import MapWriter
from cloudmount.repo.pages import ItemRef
from cloudmount.repo.structures import ITEM_DIGESTS, ITEM_IDS

_WRITERS_ONLY = frozenset({ITEM_IDS, ITEM_DIGESTS})


class MapSet:
    """Collects items; gives each finished object's name and bytes to `send`."""

    def __init__(self, keys: Keyring, send: Callable[[str, bytes], None], limit: int = 32 << 20) -> None:
        self._keys, self._send, self._limit = keys, send, limit
        self._open: dict[bool, MapWriter] = {}

    def add(self, kind: int, plain: bytes) -> ItemRef:
        """Put an item into a map object; the reference to it."""
        group = kind in _WRITERS_ONLY
        writer = self._open.get(group)
        if writer is None:
            writer = self._open[group] = MapWriter(self._keys)
        ref = writer.add(kind, plain)
        if writer.size >= self._limit:
            del self._open[group]
            self._send(*writer.finish())
        return ref

    def close(self) -> None:
        """Send what is not full."""
        for writer in self._open.values():
            self._send(*writer.finish())
        self._open.clear()
