"""Where sealed frames lie: births, locations, and the map of one segment.

Decided here and only here: the encoding of a segment's locations (FORMAT.md 6.3)
and its compact form in memory. Values are immutable; safe on any thread.
"""

from __future__ import annotations

import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cloudmount.crypto.keyring import ID_BYTES
from cloudmount.errors import DamagedError
from cloudmount.repo.columns import decode_column, decode_presence, encode_column, encode_presence
from cloudmount.repo.structures import HEADER_BYTES, SPANS, BirthRow, SegmentHeader

_WRAP = 1 << 32
_WHOLE = (0, 0)
MAX_SEGMENT_FRAMES = 1 << 22
"""A bound for hostile counts: 4 KiB frames and 16 GiB segments."""


class Birth(NamedTuple):
    """The key epoch and salt under which frames were sealed."""

    epoch: int
    salt: bytes


class Location(NamedTuple):
    """Where a sealed frame lies and how it was born. `pack` is 16 bytes; `offset` and `length` count
    sealed bytes in the pack object; `number` is the frame's under its birth.

    A frame that spans two is in no pack itself: it is the bytes from `skip` on of two whole frames that
    adjoin in one, sealed one after the other. Then `length` is that of both, `cut` that of the first, and
    offset and number are the first's. Of others `cut` and `skip` are 0.
    """

    pack: bytes
    offset: int
    length: int
    birth: Birth
    number: int
    cut: int = 0
    skip: int = 0

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where the sealed frames begin that it is made of."""
        return (self.offset, self.offset + self.cut) if self.cut else (self.offset,)

    @property
    def counted(self) -> int:
        """Sealed bytes that it counts for in sums: of a frame that spans two those of the first, since the
        next frame of the stream mostly begins in the second."""
        return self.cut or self.length


@dataclass(frozen=True, slots=True)
class Segment:
    """The locations of one segment's frames, as arrays: 20 bytes a frame. `_spans`: `cut` and `skip` of the
    rows whose frames span two."""

    frames: int
    packs: list[bytes]
    births: list[Birth]
    _row: array.array[int]
    """For each frame covered, its row in the columns below, or -1 when absent."""
    _pack: array.array[int]
    _birth: array.array[int]
    _length: array.array[int]
    _offset: array.array[int]
    _number: array.array[int]
    _spans: Mapping[int, tuple[int, int]]

    def locate(self, frame: int) -> Location | None:
        """Where frame `frame` (0 is the segment's first) lies; None when it is absent."""
        row = self._row[frame]
        if row < 0:
            return None
        cut, skip = self._spans.get(row, _WHOLE) if self._spans else _WHOLE
        return Location(
            self.packs[self._pack[row]],
            self._offset[row],
            self._length[row],
            self.births[self._birth[row]],
            self._number[row],
            cut,
            skip,
        )

    def row(self, frame: int) -> int:
        """The frame's row among the stored ones (its place in the segment's ids), -1 when absent."""
        return self._row[frame]

    def runs(self, first: int = 0) -> Iterator[tuple[int, int, bool]]:
        """(first frame, frames, whether they are present) of each run of like frames, from `first` on."""
        begin, present = first, first < self.frames and self._row[first] >= 0
        for i in range(first + 1, self.frames):
            if (self._row[i] >= 0) != present:
                yield begin, i - begin, present
                begin, present = i, not present
        if begin < self.frames:
            yield begin, self.frames - begin, present

    def locations(self) -> Iterator[Location]:
        """Where its present frames lie, in order."""
        for i in range(self.frames):
            at = self.locate(i)
            if at is not None:
                yield at

    @property
    def stored(self) -> int:
        """How many frames are present."""
        return len(self._pack)

    @property
    def memory(self) -> int:
        """Bytes it takes in memory, about."""
        tables = 150 * (len(self.packs) + len(self.births)) + 250 * len(self._spans)
        return 4 * len(self._row) + 20 * len(self._pack) + tables + 500


def encode_segment(locations: Sequence[Location | None]) -> bytes:
    """The locations item of a segment covering `len(locations)` frames."""
    births: dict[Birth, int] = {}
    for at in locations:
        if at is not None:
            births.setdefault(at.birth, len(births))
    packs = {birth.salt[:ID_BYTES]: row for birth, row in births.items()}
    extra: list[bytes] = []
    pack_end: dict[int, int] = {}
    next_number: dict[int, int] = {}
    columns: tuple[list[int], ...] = ([], [], [], [], [])
    for at in locations:
        if at is None:
            continue
        if at.pack not in packs:
            packs[at.pack] = len(births) + len(extra)
            extra.append(at.pack)
        p, b = packs[at.pack], births[at.birth]
        columns[0].append(p)
        columns[1].append(b)
        columns[2].append(at.length)
        columns[3].append((at.offset - pack_end.get(p, HEADER_BYTES)) % _WRAP)
        columns[4].append((at.number - next_number.get(b, 0)) % _WRAP)
        pack_end[p] = at.offset + (at.cut or at.length)
        next_number[b] = at.number + 1
    spans = SPANS if any(at is not None and at.cut for at in locations) else 0
    if spans:
        present = [at for at in locations if at is not None]
        columns += ([at.cut for at in present], [at.skip for at in present])
    header = SegmentHeader(len(locations), len(columns[0]), len(extra) | spans, len(births))
    parts = [header.pack()]
    parts += [BirthRow(birth.epoch, birth.salt).pack() for birth in births]
    parts += extra
    parts.append(encode_presence([at is not None for at in locations]))
    parts += [encode_column(column) for column in columns]
    return b"".join(parts)


def decode_segment(data: bytes) -> Segment:
    """The segment in a locations item; `DamagedError` when it is not one."""
    try:
        header = SegmentHeader.unpack(data)
    except ValueError as error:
        raise DamagedError(str(error)) from None
    at = SegmentHeader.SIZE
    if header.frames > MAX_SEGMENT_FRAMES or header.stored > header.frames:
        raise DamagedError(f"a segment claims {header.stored} of {header.frames} frames")
    others = header.packs & ~SPANS
    if at + 16 * others + BirthRow.SIZE * header.births > len(data):
        raise DamagedError("a segment's tables are cut short")
    births = []
    for _ in range(header.births):
        row = BirthRow.unpack(data, at)
        births.append(Birth(row.epoch, row.salt))
        at += BirthRow.SIZE
    packs = [birth.salt[:ID_BYTES] for birth in births]
    packs += [data[at + 16 * i : at + 16 * (i + 1)] for i in range(others)]
    at += 16 * others
    present, at = decode_presence(data, at, header.frames)
    if len(present) != header.stored:
        raise DamagedError("a segment's presence disagrees with its count")
    columns = []
    for _ in range(7 if header.packs & SPANS else 5):
        column, at = decode_column(data, at, header.stored)
        columns.append(column)
    if at != len(data):
        raise DamagedError("a segment has bytes after its end")
    pack, birth, length, offset, number = columns[:5]
    spans = _spans(length, *columns[5:]) if header.packs & SPANS else {}
    steps = [spans[i][0] if i in spans else n for i, n in enumerate(length)] if spans else length
    if header.stored and (max(pack) >= len(packs) or max(birth) >= header.births):
        raise DamagedError("a segment names a pack or birth that it does not list")
    pack_end = [HEADER_BYTES] * len(packs)
    next_number = [0] * header.births
    for i in range(header.stored):
        p, b = pack[i], birth[i]
        here = (offset[i] + pack_end[p]) % _WRAP
        offset[i] = here
        pack_end[p] = here + steps[i]
        n = (number[i] + next_number[b]) % _WRAP
        number[i] = n
        next_number[b] = n + 1
    row_of = array.array("i", [-1]) * header.frames
    for i, frame in enumerate(present):
        row_of[frame] = i
    return Segment(header.frames, packs, births, row_of, pack, birth, length, offset, number, spans)


def _spans(
    lengths: array.array[int], cuts: array.array[int], skips: array.array[int]
) -> dict[int, tuple[int, int]]:
    """`cut` and `skip` of the rows that have them."""
    found = {i: (cut, skips[i]) for i, cut in enumerate(cuts) if cut}
    if any(not (cut < lengths[i] and skip) for i, (cut, skip) in found.items()):
        raise DamagedError("a segment has a frame that spans two and can't")
    if sum(map(bool, skips)) != len(found) or not found:
        raise DamagedError("a segment's frames that span two are not told alike")
    return found
