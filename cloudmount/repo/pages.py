"""Pages: which blocks of a stream are present, and where its segments' maps lie.

Decided here and only here: the encoding of a page (FORMAT.md 6.3), and what a
reference to an item of a map object is. Values are immutable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cloudmount.crypto.keyring import ID_BYTES
from cloudmount.errors import DamagedError
from cloudmount.repo.columns import decode_column, encode_column
from cloudmount.repo.locations import Birth
from cloudmount.repo.structures import MapRow, PageHeader

MAX_PAGE_BLOCKS = 1 << 26
LARGE_BLOCKS = 16
"""2 MiB blocks in a 32 MiB block; a bit each, so two bytes."""


class ItemRef(NamedTuple):
    """An item of a map object: the object's birth, then where in it and its number."""

    birth: Birth
    offset: int
    length: int
    number: int

    @property
    def map(self) -> bytes:
        """The map object's 16-byte id."""
        return self.birth.salt[:ID_BYTES]


class SegmentRef(NamedTuple):
    """A stored segment: its count of present frames, and its two items."""

    stored: int
    locations: ItemRef
    ids: ItemRef


@dataclass(frozen=True, slots=True)
class Page:
    """A run of a stream's segments. `presence` is the bitmap of its 2 MiB blocks; `segments` maps a
    segment's number in the stream to its reference, stored ones only; `sealed` counts bytes."""

    first_segment: int
    count: int
    blocks: int
    presence: bytes
    sealed: int
    segments: Mapping[int, SegmentRef]


def large_blocks(presence: bytes) -> int:
    """How many blocks of 32 MiB, `LARGE_BLOCKS` of 2 MiB each, hold a present one."""
    pairs = memoryview(presence + bytes(len(presence) % 2)).cast("H").tolist()
    return len(pairs) - pairs.count(0)


def encode_page(page: Page) -> bytes:
    """The page's bytes. `segments` must be in ascending order."""
    maps: dict[Birth, int] = {}
    columns: list[list[int]] = [[] for _ in range(9)]
    for ref in page.segments.values():
        columns[0].append(ref.stored)
        for base, item in ((1, ref.locations), (5, ref.ids)):
            columns[base].append(maps.setdefault(item.birth, len(maps)))
            columns[base + 1].append(item.offset)
            columns[base + 2].append(item.length)
            columns[base + 3].append(item.number)
    header = PageHeader(
        page.first_segment, page.count, len(page.segments), len(maps), page.blocks, page.sealed
    )
    parts = [header.pack()]
    parts += [MapRow(birth.epoch, birth.salt).pack() for birth in maps]
    parts.append(page.presence)
    parts += [encode_column(column) for column in columns]
    return b"".join(parts)


def decode_page(data: bytes, blocks_per_segment: int) -> Page:
    """The page; `DamagedError` when it is not one."""
    try:
        header = PageHeader.unpack(data)
        at = PageHeader.SIZE
        if header.blocks > MAX_PAGE_BLOCKS or header.stored > header.segments:
            raise DamagedError("a page claims more than a page holds")
        if -(-header.blocks // blocks_per_segment) != header.segments:
            raise DamagedError("a page's blocks and segments disagree")
        maps = []
        if at + MapRow.SIZE * header.maps > len(data):
            raise DamagedError("a page's table is cut short")
        for _ in range(header.maps):
            row = MapRow.unpack(data, at)
            maps.append(Birth(row.epoch, row.salt))
            at += MapRow.SIZE
    except ValueError as error:
        raise DamagedError(str(error)) from None
    presence = data[at : at + (header.blocks + 7) // 8]
    at += (header.blocks + 7) // 8
    columns = []
    for _ in range(9):
        column, at = decode_column(data, at, header.stored)
        columns.append(column)
    if at != len(data):
        raise DamagedError("a page has bytes after its end")
    numbers = stored_segments(presence, header.blocks, blocks_per_segment)
    if len(numbers) != header.stored:
        raise DamagedError("a page's presence disagrees with its count")
    segments = {}
    for i, n in enumerate(numbers):
        items = []
        for base in (1, 5):
            if columns[base][i] >= len(maps):
                raise DamagedError("a page names a map object that it does not list")
            items.append(ItemRef(maps[columns[base][i]], *(columns[base + k][i] for k in (1, 2, 3))))
        segments[header.first_segment + n] = SegmentRef(columns[0][i], *items)
    return Page(header.first_segment, header.segments, header.blocks, presence, header.sealed, segments)


def stored_segments(presence: bytes, blocks: int, blocks_per_segment: int) -> Sequence[int]:
    """Which segments (0 is the page's first) have a present block; `DamagedError` for stray bits."""
    bits = int.from_bytes(presence, "little")
    if bits >> blocks:
        raise DamagedError("a page's presence has bits beyond its end")
    count = -(-blocks // blocks_per_segment)
    if blocks_per_segment % 8 == 0:
        step = blocks_per_segment // 8
        return [i for i in range(count) if any(presence[i * step : (i + 1) * step])]
    mask = (1 << blocks_per_segment) - 1
    return [i for i in range(count) if (bits >> (i * blocks_per_segment)) & mask]
