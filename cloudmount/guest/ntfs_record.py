"""NTFS file records and folders' indexes: what libfsntfs doesn't pass on, or gets wrong.

Decided here and only here: what is read of a file's metadata without a library. libfsntfs (20260827) shows
folders of volumes with clusters above 4 KiB as empty, reads a folder's whole index to open it, and tells
neither reparse tags nor link counts; so names, attributes and reparse data are read here, and content there.
Layouts are those of the Linux-NTFS project's documentation. Anything that makes no sense is a `ValueError`
(or a `struct.error`): what is not sure must not be shown. Pure; runs in the child.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

STANDARD, ATTRIBUTE_LIST, FILE_NAME, VOLUME_INFORMATION, DATA = 0x10, 0x20, 0x30, 0x70, 0x80
INDEX_ROOT, INDEX_ALLOCATION, BITMAP, REPARSE_POINT = 0x90, 0xA0, 0xB0, 0xC0
COMPRESSED, ENCRYPTED, SPARSE = 0x0001, 0x4000, 0x8000
RECORD_MASK = (1 << 48) - 1
_STRIDE = 512
_END = 0xFFFFFFFF
_IN_USE, _FOLDER = 1, 2
_NO_CLIENT, _CLEAN = 0xFFFF, 2
_INDEX = "$I30"
_MOST_CONTENT, _MOST_INDEX = 16 << 20, 512 << 20
"""Bytes of an attribute that is read whole, and of an index: a million names of 150 letters."""
_PIECE = 1 << 20
_MOST_RECORDS = 4096

Read = Callable[[int, int], bytes]
"""(offset, length) -> bytes of the volume."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute. `value` is a resident one's content; of others `runs` is where it lies, undecoded."""

    type: int
    name: str
    flags: int
    first_cluster: int
    size: int
    allocated: int
    value: bytes | None
    runs: bytes


@dataclass(frozen=True, slots=True)
class Geometry:
    """Of a volume: bytes of a cluster and of an index record, and what reads file records and bytes."""

    cluster: int
    index: int
    record: Callable[[int], bytes]
    read: Read


@dataclass(frozen=True, slots=True)
class Name:
    """One name in a folder, and the file's reference (record and sequence number)."""

    name: str
    reference: int


class Record:
    """A file: its base record, and those that its attribute list names."""

    def __init__(self, number: int, geometry: Geometry) -> None:
        self._geometry = geometry
        base = _fixed(geometry.record(number), b"FILE")
        sequence, links, _, flags = struct.unpack_from("<HHHH", base, 16)
        if not flags & _IN_USE:
            raise ValueError("the file is deleted")
        self.reference = sequence << 48 | number
        self.folder = bool(flags & _FOLDER)
        own = list(_attributes(base))
        self._attributes = own + [
            other
            for a in own
            if a.type == ATTRIBUTE_LIST
            for other in _elsewhere(number, self._content([a]), geometry.record)
        ]
        dos = sum(1 for a in self._of(FILE_NAME) if (a.value or b"")[65:66] == b"\2")
        self.links = max(1, links - dos)

    def _of(self, kind: int, name: str = "") -> list[Attribute]:
        found = [a for a in self._attributes if a.type == kind and a.name == name]
        return sorted(found, key=lambda a: a.first_cluster)

    @property
    def data(self) -> Attribute | None:
        """The first part of its unnamed data; None when it has none."""
        return next(iter(self._of(DATA)), None)

    @property
    def modified(self) -> int:
        """In units of 100 ns since 1601."""
        found = self._of(STANDARD)
        if not found or found[0].value is None:
            raise ValueError("a file without its standard information")
        time: int = struct.unpack_from("<q", found[0].value, 8)[0]
        return time

    @property
    def dirty(self) -> bool:
        """Of the volume's own file: whether it was marked to be checked."""
        found = self._of(VOLUME_INFORMATION)
        value = (found[0].value or b"") if found else b""
        return len(value) > 10 and bool(value[10] & 1)

    @property
    def reparse(self) -> bytes | None:
        """Its reparse data; None when it is no reparse point."""
        found = self._of(REPARSE_POINT)
        return self._content(found) if found else None

    def names(self) -> Iterator[Name]:
        """What its index holds, for a folder; without the short names of DOS."""
        root = self._of(INDEX_ROOT, _INDEX)
        if not root or root[0].value is None:
            raise ValueError("a folder without its index")
        yield from _index_entries(root[0].value, 16)
        blocks = self._of(INDEX_ALLOCATION, _INDEX)
        if not blocks:
            return
        used = self._content(self._of(BITMAP, _INDEX))
        left, n, size = b"", 0, self._geometry.index
        for piece in self._pieces(blocks, _MOST_INDEX):
            left += piece
            for at in range(0, len(left) - size + 1, size):
                if n // 8 < len(used) and used[n // 8] >> n % 8 & 1:
                    yield from _index_entries(_fixed(left[at : at + size], b"INDX"), 24)
                n += 1
            left = left[len(left) // size * size :]

    def _content(self, parts: list[Attribute]) -> bytes:
        """All of an attribute that lies in these parts, in order."""
        return b"".join(self._pieces(parts, _MOST_CONTENT))

    def _pieces(self, parts: list[Attribute], most: int) -> Iterator[bytes]:
        """The same, piece by piece, if it has at most `most` bytes."""
        if not parts:
            raise ValueError("an attribute is missing")
        if parts[0].value is not None:
            yield parts[0].value
            return
        size, cluster = parts[0].size, self._geometry.cluster
        if parts[0].first_cluster or size > most:
            raise ValueError("an attribute's begin is missing, or it is too large")
        there = 0
        for part in parts:
            if part.value is not None or part.first_cluster * cluster != there:
                raise ValueError("an attribute's parts don't adjoin")
            for first, count in _runs(part.runs):
                whole = count * cluster
                for begin in range(0, min(whole, size - there), _PIECE):
                    wanted = min(_PIECE, whole - begin, size - there - begin)
                    at = None if first is None else first * cluster + begin
                    found = bytes(wanted) if at is None else self._geometry.read(at, wanted)
                    if len(found) != wanted:
                        raise ValueError("an attribute lies outside of the volume")
                    yield found
                there += whole
        if there < size:
            raise ValueError("an attribute has less content than it says")


def journal_in_use(page: bytes) -> bool:
    """Whether $LogFile, which begins with these 512 bytes, may hold what was not yet put in its place."""
    if page[:4] != b"RSTR":
        return False  # filled with 0xFF: emptied
    area = struct.unpack_from("<H", page, 24)[0]
    if area + 16 > _STRIDE - 2:
        return True
    clients, flags = struct.unpack_from("<HH", page, area + 12)
    return clients != _NO_CLIENT and not flags & _CLEAN


def _fixed(raw: bytes, mark: bytes) -> bytes:
    """A record with its sectors' last bytes put back."""
    if len(raw) < 48 or raw[:4] != mark:
        raise ValueError(f"no {mark.decode()} record")
    at, count = struct.unpack_from("<HH", raw, 4)
    if count != len(raw) // _STRIDE + 1 or at + 2 * count > len(raw):
        raise ValueError("update sequence wrong")
    fixed = bytearray(raw)
    for i in range(1, count):
        end = i * _STRIDE
        if raw[end - 2 : end] != raw[at : at + 2]:
            raise ValueError("a record was written in part")
        fixed[end - 2 : end] = raw[at + 2 * i : at + 2 * i + 2]
    return bytes(fixed)


def _attributes(record: bytes) -> Iterator[Attribute]:
    at: int = struct.unpack_from("<H", record, 20)[0]
    while at + 4 <= len(record):
        kind: int = struct.unpack_from("<I", record, at)[0]
        if kind == _END:
            return
        length, elsewhere, name_length, name_at, flags = struct.unpack_from("<IBBHH", record, at + 4)
        whole = record[at : at + length]
        if length < 24 or len(whole) != length or name_at + 2 * name_length > length:
            break
        name = whole[name_at : name_at + 2 * name_length].decode("utf-16-le", "replace")
        if elsewhere:
            first = struct.unpack_from("<Q", whole, 16)[0]
            runs, _, _, allocated, size = struct.unpack_from("<HHIQQ", whole, 32)
            if flags & (COMPRESSED | SPARSE) and first == 0:
                allocated = struct.unpack_from("<Q", whole, 64)[0]
            yield Attribute(kind, name, flags, first, size, allocated, None, whole[runs:])
        else:
            size, value = struct.unpack_from("<IH", whole, 16)
            if value + size > length:
                break
            yield Attribute(kind, name, flags, 0, size, 0, whole[value : value + size], b"")
        at += length
    raise ValueError("a file record's attributes have no end")


def _runs(packed: bytes) -> Iterator[tuple[int | None, int]]:
    """(first cluster, clusters) of each run; None for holes."""
    at = cluster = 0
    while at < len(packed) and packed[at]:
        lengths, offsets = packed[at] & 15, packed[at] >> 4
        if not 0 < lengths <= 8 or offsets > 8 or at + 1 + lengths + offsets > len(packed):
            raise ValueError("a run list makes no sense")
        count = int.from_bytes(packed[at + 1 : at + 1 + lengths], "little")
        if offsets:
            place = packed[at + 1 + lengths : at + 1 + lengths + offsets]
            cluster += int.from_bytes(place, "little", signed=True)
            if cluster < 0:
                raise ValueError("a run lies before the volume")
        if count > 1 << 40:
            raise ValueError("a run is too long")
        yield (cluster if offsets else None), count
        at += 1 + lengths + offsets


def _elsewhere(number: int, listed: bytes, record: Callable[[int], bytes]) -> Iterator[Attribute]:
    """The attributes that an attribute list names in other records."""
    others: dict[int, None] = {}
    at = 0
    while at + 26 <= len(listed):
        length = struct.unpack_from("<H", listed, at + 4)[0]
        if length < 26:
            raise ValueError("an attribute list makes no sense")
        others[struct.unpack_from("<Q", listed, at + 16)[0] & RECORD_MASK] = None
        at += length
    others.pop(number, None)
    if len(others) > _MOST_RECORDS:
        raise ValueError("a file has too many records")
    for other in others:
        raw = _fixed(record(other), b"FILE")
        if struct.unpack_from("<Q", raw, 32)[0] & RECORD_MASK != number:
            raise ValueError("a record of a file is another file's")
        yield from _attributes(raw)


def _index_entries(node: bytes, header: int) -> Iterator[Name]:
    """The names in an index node whose header is at `header`."""
    first, used = struct.unpack_from("<II", node, header)
    at, end = header + first, header + used
    if end > len(node):
        raise ValueError("an index node is cut short")
    while at + 16 <= end:
        reference, length, key, flags = struct.unpack_from("<QHHH", node, at)
        if flags & 2:
            return
        if length < 16 or at + length > end or key < 66 or 16 + key > length:
            raise ValueError("an index entry makes no sense")
        characters, space = node[at + 16 + 64], node[at + 16 + 65]
        if 66 + 2 * characters > key:
            raise ValueError("an index entry's name is cut short")
        if space != 2:
            name = node[at + 82 : at + 82 + 2 * characters].decode("utf-16-le", "surrogatepass")
            yield Name(name, reference)
        at += length
    raise ValueError("an index node has no end")
