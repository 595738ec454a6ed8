"""Packs and the tables that tell what lies in them (FORMAT.md sections 5 and 7).

Decided here and only here: how frames are put into a pack, that a pack is proved
before it is sent, and the content of index objects. A `PackWriter` belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cloudmount.crypto.keyring import ID_BYTES, SEAL_BYTES, Keyring, new_salt
from cloudmount.errors import CloudMountError, DamagedError
from cloudmount.repo.columns import decode_column, encode_column
from cloudmount.repo.locations import Birth, Location
from cloudmount.repo.names import INDEX, pack_name
from cloudmount.repo.objects import (
    id_of,
    make_header,
    open_single,
    read_table,
    seal_single,
    seal_table,
)
from cloudmount.repo.payload import FindDictionary, decode_frame
from cloudmount.repo.structures import HEADER_BYTES, KIND_INDEX, KIND_PACK, BirthRow, IndexHeader, PackRow


@dataclass(frozen=True, slots=True)
class PackTable:
    """What lies in one pack: content ids and sealed lengths of its frames, in order; `size` of the
    whole object in bytes. `moved` holds the birth and number of frames not sealed for this pack."""

    birth: Birth
    size: int
    ids: Sequence[bytes]
    lengths: Sequence[int]
    moved: Mapping[int, tuple[Birth, int]] = field(default_factory=dict)

    @property
    def id(self) -> bytes:
        """The pack's 16-byte id."""
        return self.birth.salt[:ID_BYTES]

    @property
    def entries_end(self) -> int:
        """Where the table begins: behind the last frame."""
        return HEADER_BYTES + sum(self.lengths)

    def entries(self) -> Iterator[tuple[bytes, Location]]:
        """Each frame's content id and location."""
        offset = HEADER_BYTES
        for place, (content, length) in enumerate(zip(self.ids, self.lengths, strict=True)):
            birth, number = self.moved.get(place, (self.birth, place))
            yield content, Location(self.id, offset, length, birth, number)
            offset += length


def encode_tables(tables: Sequence[PackTable]) -> bytes:
    """The content of an index object, or of a pack's own table."""
    rows, births = [], []
    lengths: list[int] = []
    born: list[int] = []
    numbers: list[int] = []
    for t in tables:
        others = {birth: i for i, birth in enumerate(dict.fromkeys(b for b, _ in t.moved.values()), 1)}
        rows.append(PackRow(t.birth.epoch, t.birth.salt, t.size, len(t.ids), len(others)).pack())
        births += [BirthRow(birth.epoch, birth.salt).pack() for birth in others]
        lengths += t.lengths
        for place in range(len(t.ids)):
            birth, number = t.moved.get(place, (t.birth, place))
            born.append(others.get(birth, 0))
            numbers.append((number - place) % (1 << 32))
    ids = b"".join(b"".join(t.ids) for t in tables)
    columns = [encode_column(column) for column in (lengths, born, numbers)]
    return b"".join([IndexHeader(len(tables), len(lengths)).pack(), *rows, *births, ids, *columns])


def decode_tables(data: bytes) -> list[PackTable]:
    """The tables in an index object's content; `DamagedError` when they are none."""
    try:
        header = IndexHeader.unpack(data)
        at = IndexHeader.SIZE
        rows = []
        for _ in range(header.packs):
            rows.append(PackRow.unpack(data, at))
            at += PackRow.SIZE
        births = []
        for row in rows:
            of_pack = [Birth(row.epoch, row.salt)]
            for _ in range(row.births):
                other = BirthRow.unpack(data, at)
                of_pack.append(Birth(other.epoch, other.salt))
                at += BirthRow.SIZE
            births.append(of_pack)
    except ValueError as error:
        raise DamagedError(str(error)) from None
    if sum(row.frames for row in rows) != header.frames or at + ID_BYTES * header.frames > len(data):
        raise DamagedError("an index is cut short")
    ids = [data[at + ID_BYTES * i : at + ID_BYTES * (i + 1)] for i in range(header.frames)]
    lengths, at = decode_column(data, at + ID_BYTES * header.frames, header.frames)
    born, at = decode_column(data, at, header.frames)
    numbers, at = decode_column(data, at, header.frames)
    if at != len(data):
        raise DamagedError("an index has bytes after its end")
    tables, first = [], 0
    for row, of_pack in zip(rows, births, strict=True):
        last = first + row.frames
        moved = {}
        if any(born[first:last]) or any(numbers[first:last]):
            if max(born[first:last]) > row.births:
                raise DamagedError("an index names a birth that it does not list")
            moved = {
                i: (of_pack[born[first + i]], (numbers[first + i] + i) % (1 << 32)) for i in range(row.frames)
            }
        own = PackTable(of_pack[0], row.size, ids[first:last], lengths[first:last].tolist(), moved)
        if HEADER_BYTES + sum(own.lengths) > row.size:
            raise DamagedError("an index tells of frames beyond a pack's end")
        tables.append(own)
        first = last
    return tables


PACK_SLACK = 5 << 20
"""Room a pack needs beyond its target size: its last frame, its table and trailer."""
INDEX_LIMIT = 64 << 20
"""No index object is longer: one holds at most 1,000,000 frames of 28 bytes."""
MAX_PACK_FRAMES = 1 << 16
"""A pack is full with so many frames, so that its table (28 bytes each) fits into the slack."""


class PackWriter:
    """One pack being filled, in `room`: its target size and `PACK_SLACK` bytes of memory, the caller's."""

    def __init__(self, keys: Keyring, room: memoryview) -> None:
        self._keys = keys
        self._room = room
        self._birth = Birth(keys.epoch, new_salt())
        self._id = id_of(self._birth.salt)
        self._sealer = keys.sealer(self._birth.epoch, self._birth.salt, "frame")
        self._header = make_header(KIND_PACK, self._birth)
        room[:HEADER_BYTES] = self._header
        self.size = HEADER_BYTES
        """Bytes so far."""
        self._ids: list[bytes] = []
        self._lengths: list[int] = []

    @property
    def full(self) -> bool:
        """Whether another frame might not fit."""
        return self.size > len(self._room) - PACK_SLACK or len(self._ids) >= MAX_PACK_FRAMES

    def add(self, content: bytes, payload: bytes | memoryview) -> Location:
        """Seal a frame's encoded payload; where it will lie."""
        number, offset, length = len(self._ids), self.size, len(payload) + SEAL_BYTES
        self._sealer.seal_into(number, payload, self._room[offset : offset + length])
        self._ids.append(content)
        self._lengths.append(length)
        self.size += length
        return Location(self._id, offset, length, self._birth, number)

    def finish(self) -> FinishedPack:
        """The object's name, bytes (in the room) and table."""
        name = pack_name(id_of(self._birth.salt))
        # The row in the pack's own table gives the bytes before the table: the rest isn't known yet.
        inner = PackTable(self._birth, self.size, self._ids, self._lengths)
        tail = seal_table(self._keys, self._birth, self._header, name, encode_tables([inner]))
        end = self.size + len(tail)
        self._room[self.size : end] = tail
        table = PackTable(self._birth, end, self._ids, self._lengths)
        return FinishedPack(name, self._room[:end], table)


@dataclass(frozen=True, slots=True)
class FinishedPack:
    """A pack ready to be sent."""

    name: str
    data: memoryview
    table: PackTable

    def prove(self, keys: Keyring) -> None:
        """Open every frame's seal, and the table, from the bytes to be sent, with the reader's code."""
        try:
            for _, at in self.table.entries():
                open_seal(keys, at, self.data[at.offset : at.offset + at.length])
            header, tail = bytes(self.data[:HEADER_BYTES]), bytes(self.data[self.table.entries_end :])
            if pack_table(keys, self.name, len(self.data), header, tail) != self.table:
                raise DamagedError("its table is not the one it was made with")
        except DamagedError as error:
            raise CloudMountError(
                f"{self.name}: what was just sealed does not open ({error}): this machine's memory or "
                "processor may be faulty; it was not stored"
            ) from None


def open_seal(keys: Keyring, at: Location, sealed: bytes | memoryview) -> bytes:
    """A frame's payload from its sealed bytes; `DamagedError` when they are not those at `at`."""
    if len(sealed) != at.length:
        raise DamagedError(f"a frame has {len(sealed)} sealed bytes where {at.length} belong")
    return keys.sealer(at.birth.epoch, at.birth.salt, "frame").open(at.number, sealed)


def open_frame(
    keys: Keyring, at: Location, sealed: bytes | memoryview, plain_length: int, find: FindDictionary
) -> bytes:
    """The plain bytes of a frame from its sealed ones, also of one that spans two; `DamagedError` when they
    are not those. What `find` raises comes as it is."""
    if not at.cut:
        return decode_frame(open_seal(keys, at, sealed), plain_length, find)
    if len(sealed) != at.length or at.skip >= plain_length:
        raise DamagedError(f"a frame from byte {at.skip} of another can't be in {len(sealed)} sealed bytes")
    view = memoryview(sealed)
    first, second = (
        open_frame(keys, part, view[part.offset - at.offset :][: part.length], plain_length, find)
        for part in spanned(at)
    )
    return b"".join((memoryview(first)[at.skip :], memoryview(second)[: at.skip]))


def spanned(at: Location) -> tuple[Location, Location]:
    """The two whole frames that the one at `at` spans, each as long as itself (FORMAT.md 6.3)."""
    first = at._replace(length=at.cut, cut=0, skip=0)
    return first, first._replace(offset=at.offset + at.cut, length=at.length - at.cut, number=at.number + 1)


def spanning(first: Location, second: Location, skip: int) -> Location | None:
    """Where a frame lies that begins at byte `skip` of the frame at `first` and goes on in that at `second`;
    None unless those adjoin in one pack, so that one range holds both."""
    end = first.offset + first.length
    adjoin = (first.pack, first.birth, end, first.number + 1) == (
        second.pack,
        second.birth,
        second.offset,
        second.number,
    )
    if not adjoin or first.cut or second.cut or skip <= 0:
        return None
    return first._replace(length=first.length + second.length, cut=first.length, skip=skip)


def seal_index(keys: Keyring, tables: Sequence[PackTable]) -> tuple[str, bytes]:
    """An index object: its name and bytes."""
    return seal_single(keys, KIND_INDEX, INDEX, encode_tables(tables))


def open_index(keys: Keyring, name: str, data: bytes) -> list[PackTable]:
    """The tables in an index object; `DamagedError` when it does not open under its name."""
    return decode_tables(open_single(keys, KIND_INDEX, name, data))


def pack_table(keys: Keyring, name: str, size: int, header: bytes, tail: bytes) -> PackTable:
    """A pack's own table, authenticated, from its header and last bytes; for salvage and `check`."""
    content, birth, length = read_table(keys, KIND_PACK, name, header, tail)
    tables = decode_tables(content)
    if len(tables) != 1 or pack_name(tables[0].id) != name or tables[0].birth != birth:
        raise DamagedError(f"{name}: its table is another pack's")
    t = tables[0]
    if t.size + length != size or HEADER_BYTES + sum(t.lengths) != t.size:
        raise DamagedError(f"{name} has {size} bytes where {t.size + length} belong")
    return PackTable(t.birth, size, t.ids, t.lengths, t.moved)
