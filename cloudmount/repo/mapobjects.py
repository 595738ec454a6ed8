"""Map objects: many small sealed items written as one object (FORMAT.md section 5).

Decided here and only here: how items are bound to their kind, and what a map
object's table says. A `MapWriter` belongs to one thread.
"""

from __future__ import annotations

import json

from cloudmount.crypto.keyring import Keyring
from cloudmount.crypto.slots import canonical
from cloudmount.errors import DamagedError
from cloudmount.repo.names import map_name
from cloudmount.repo.objects import PieceWriter, read_table
from cloudmount.repo.pages import ItemRef
from cloudmount.repo.payload import decode_payload, encode_payload
from cloudmount.repo.structures import HEADER_BYTES, KIND_MAP


def _bound(kind: int) -> bytes:
    return bytes([kind])


class MapWriter:
    """One map object being filled."""

    def __init__(self, keys: Keyring) -> None:
        self._pieces = PieceWriter(keys, KIND_MAP, "item")
        self._items: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._pieces.size

    def add(self, kind: int, plain: bytes) -> ItemRef:
        """Seal an item's content; the reference to it."""
        offset, length, number = self._pieces.append(encode_payload(plain), _bound(kind))
        self._items.append((kind, length))
        return ItemRef(self._pieces.birth, offset, length, number)

    def finish(self) -> tuple[str, bytes]:
        """The object's name and bytes, every item opened again from those bytes."""
        name = map_name(self._pieces.id)
        data = self._pieces.sealed_object(name, canonical({"items": self._items}))
        offset = HEADER_BYTES
        for number, (kind, length) in enumerate(self._items):
            ref = ItemRef(self._pieces.birth, offset, length, number)
            open_item(self._pieces.keys, kind, ref, data[offset : offset + length])
            offset += length
        return name, data


def open_item(keys: Keyring, kind: int, ref: ItemRef, sealed: bytes) -> bytes:
    """An item's content from its sealed bytes; `DamagedError` when they are not those of `ref`."""
    try:
        if len(sealed) != ref.length:
            raise DamagedError(f"{len(sealed)} bytes where {ref.length} belong")
        sealer = keys.sealer(ref.birth.epoch, ref.birth.salt, "item")
        return decode_payload(sealer.open(ref.number, sealed, _bound(kind)))
    except DamagedError as error:
        raise DamagedError(f"{map_name(ref.map)}: item {ref.number}: {error}") from None


def map_table(keys: Keyring, name: str, size: int, header: bytes, tail: bytes) -> list[tuple[int, int]]:
    """A map object's own table, authenticated: (kind, sealed length) of its items; for `check`."""
    content, _, length = read_table(keys, KIND_MAP, name, header, tail)
    try:
        items = [(int(kind), int(n)) for kind, n in json.loads(content)["items"]]
    except (ValueError, TypeError, KeyError):
        raise DamagedError(f"{name}: its table makes no sense") from None
    if HEADER_BYTES + sum(n for _, n in items) + length != size:
        raise DamagedError(f"{name} has {size} bytes, not what its table says")
    return items
