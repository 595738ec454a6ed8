"""In the child: NTFS.

Decided here and only here: what of an NTFS volume is shown (content by libfsntfs, the rest by
`ntfs_record`; no system files, no short names of DOS, no alternate streams), and which files are refused
because what libfsntfs gives for them is not sure to be their content: encrypted ones, and those whose
content lies elsewhere (deduplicated, in a cloud, archived). One thread.
"""

from __future__ import annotations

import bisect
import struct
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pyfsntfs

from cloudmount.guest.blocks import FileLike, ParentBlocks
from cloudmount.guest.ntfs_record import (
    COMPRESSED,
    ENCRYPTED,
    RECORD_MASK,
    Geometry,
    Name,
    Record,
    journal_in_use,
)
from cloudmount.guest.volumes import BESIDE, INSIDE, OUTSIDE, STALE, Found, Unreadable
from cloudmount.guest.wire import MOST_ENTRIES

ROOT = 5
_LOG_FILE, _VOLUME = 2, 3
_OWN_FILES = 16
_EPOCH = 116_444_736_000_000_000  # 1970 in units of 100 ns since 1601
_OPENED = 16
_WOF_CHUNK = 32768
"""Bytes of the largest chunk of WOF, a multiple of the others: libfsntfs fails on reads that begin within
one."""
_FOLDERS, _MOST_KEPT = 64, 250_000
_AT_ONCE = 4096
"""File records read in the order in which they lie."""

_MOUNT_POINT, _SYMLINK, _LX_SYMLINK, _WOF = 0xA0000003, 0xA000000C, 0xA000001D, 0x80000017
_HARMLESS = {0x8000001B}
"""Aliases of apps: they have no content."""
_SPECIAL = {0x80000023, 0x80000024, 0x80000025, 0x80000026}
_TAGS = {
    0x80000013: "deduplicated by Windows Server",
    0x80000021: "a OneDrive placeholder",
    0x80000006: "archived by a storage manager",
    0xC0000004: "archived by a storage manager",
    0x80000007: "in Windows' single instance store",
    0x80000008: "a WIM mount's",
}
_CLOUD, _CLOUD_MASK = 0x9000001A, 0xFFFF0FFF


class _Content:
    """A file's content, read in whole chunks."""

    def __init__(self, entry: Any, size: int, chunk: int) -> None:
        self._entry, self._size, self._chunk = entry, size, chunk

    def read(self, offset: int, length: int) -> bytes:
        start = offset // self._chunk * self._chunk
        end = min(self._size, -(-(offset + length) // self._chunk) * self._chunk)
        data: bytes = self._entry.read_buffer_at_offset(end - start, start)
        if len(data) != end - start:
            raise ValueError(f"{len(data)} bytes came where {end - start} belong")
        return data[offset - start : offset - start + length]


class NtfsVolume:
    """A `volumes.Volume`."""

    root = ROOT

    def __init__(self, blocks: ParentBlocks) -> None:
        self._blocks = blocks
        self._volume: Any = pyfsntfs.volume()
        self._volume.open_file_object(FileLike(blocks))
        self.label = _name(self._volume.name or "")
        self._mft: Any = self._volume.get_file_entry(0)
        self._record_size = int(self._volume.mft_entry_size)
        self._geometry = Geometry(
            int(self._volume.cluster_block_size),
            int(self._volume.index_entry_size),
            self._raw,
            blocks.read_at,
        )
        self.warning = self._warning()
        self._pieces: list[tuple[int, int, int]] | None = None
        self._opened: OrderedDict[int, _Content] = OrderedDict()
        self._folders: OrderedDict[int, list[Name]] = OrderedDict()

    def folder(self, number: int) -> Iterator[Found]:
        names = self._names(number)
        for at in range(0, len(names), _AT_ONCE):
            some = names[at : at + _AT_ONCE]
            self._expect([n.reference & RECORD_MASK for n in some])
            order = sorted(range(len(some)), key=lambda i: some[i].reference & RECORD_MASK)
            found = {i: self._found(some[i]) for i in order}
            yield from (found[i] for i in range(len(some)))

    def lookup(self, path: list[str], number: int) -> Found | None:
        names = self._names(number)
        wanted = path[-1]
        found = next((n for n in names if _name(n.name) == wanted), None)
        if found is None:
            wanted = _upper(wanted)
            found = next((n for n in names if _upper(_name(n.name)) == wanted), None)
        return None if found is None else self._found(found)

    def read(self, number: int, offset: int, length: int) -> bytes:
        found = self._opened.get(number)
        if found is None:
            record = self._record(number)
            target, why = _described(record)
            if record.folder or target is not None:
                why = "no file"
            if why is not None:
                raise Unreadable(why)
            entry = self._volume.get_file_entry(number & RECORD_MASK)
            if record.data is None or entry.size != record.data.size:
                raise Unreadable("its size is not certain")
            wof = record.reparse is not None
            found = self._opened[number] = _Content(entry, record.data.size, _WOF_CHUNK if wof else 1)
            if len(self._opened) > _OPENED:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end(number)
        return found.read(offset, length)

    def extents(self, number: int) -> Iterator[tuple[int, int, int]]:
        yield from _extents(self._volume.get_file_entry(number & RECORD_MASK))

    def data(self, number: int) -> Iterator[tuple[int, int]] | None:
        record = self._record(number)
        data = record.data
        if data is None or data.value is not None or data.flags & COMPRESSED or record.reparse is not None:
            return None
        return ((offset, length) for offset, _, length in self.extents(number))

    def _warning(self) -> str:
        if journal_in_use(self._volume.get_file_entry(_LOG_FILE).read_buffer_at_offset(512, 0)):
            return f"its journal was not empty, and is not applied: {STALE}"
        try:
            dirty = Record(_VOLUME, self._geometry).dirty
        except (ValueError, struct.error):
            return ""
        return f"Windows marked it as to be checked (chkdsk): {STALE}" if dirty else ""

    def _names(self, number: int) -> list[Name]:
        found = self._folders.get(number)
        if found is None:
            record = self._record(number)
            if not record.folder:
                raise ValueError("no folder")
            found = []
            for name in record.names():
                if name.reference & RECORD_MASK >= _OWN_FILES:
                    found.append(name)
                    if len(found) > MOST_ENTRIES:
                        raise Unreadable(f"a folder of more than {MOST_ENTRIES:,} names")
            self._folders[number] = found
            while len(self._folders) > 1 and (
                len(self._folders) > _FOLDERS or sum(map(len, self._folders.values())) > _MOST_KEPT
            ):
                self._folders.popitem(last=False)
        else:
            self._folders.move_to_end(number)
        return found

    def _record(self, reference: int) -> Record:
        record = Record(reference & RECORD_MASK, self._geometry)
        if record.reference != reference and reference != ROOT:
            raise ValueError("the record is another file's")
        return record

    def _raw(self, record: int) -> bytes:
        data: bytes = self._mft.read_buffer_at_offset(self._record_size, record * self._record_size)
        return data

    def _expect(self, records: list[int]) -> None:
        """Tell the parent where these records lie: they are read next."""
        if self._pieces is None:
            self._pieces = list(_extents(self._mft))
        size = self._record_size
        begins = [offset for offset, _, _ in self._pieces]
        ranges = []
        for n in sorted(records):
            i = bisect.bisect_right(begins, n * size) - 1
            if i >= 0 and n * size < self._pieces[i][0] + self._pieces[i][2]:
                ranges.append((self._pieces[i][1] + n * size - self._pieces[i][0], size))
        self._blocks.expect(ranges)

    def _found(self, name: Name) -> Found:
        try:
            record = self._record(name.reference)
            time = record.modified
        except (ValueError, struct.error, OSError) as error:
            damaged = f"its file record is damaged ({error})"
            return Found(_name(name.name), name.reference, "file", 0, 0, 0, 0o444, 1, unreadable=damaged)
        target, why = _described(record)
        data = None if record.folder or target is not None else record.data
        kind = "link" if target is not None else "dir" if record.folder else "file"
        return Found(
            _name(name.name),
            name.reference,
            kind,
            0 if data is None else data.size,
            0 if data is None else data.allocated,
            (time - _EPOCH) * 100,
            0o555 if kind == "dir" else 0o444,
            1 if kind == "dir" else record.links,
            target=target,
            unreadable=why if kind == "file" else None,
        )


def _described(record: Record) -> tuple[tuple[str, str] | None, str | None]:
    """Where a file points to if it is a link, and why it can't be read if so."""
    if record.data is not None and record.data.flags & ENCRYPTED:
        return None, "encrypted by Windows (EFS)"
    try:
        data = record.reparse
        return (None, None) if data is None else _reparse(data)
    except (ValueError, struct.error, IndexError):
        return None, "its reparse data is damaged"


def _extents(entry: Any) -> Iterator[tuple[int, int, int]]:
    at = 0
    for i in range(entry.number_of_extents):
        offset, length, flags = entry.get_extent(i)
        if not flags & 1:  # else sparse
            yield at, offset, length
        at += length


def _upper(name: str) -> str:
    """As NTFS compares names: character by character."""
    return "".join(u if len(u := c.upper()) == 1 else c for c in name)


def _name(name: str) -> str:
    """As UTF-8 whatever it holds: NTFS names may hold half of a pair."""
    return name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def _reparse(data: bytes) -> tuple[tuple[str, str] | None, str | None]:
    """Where reparse data points to, or why content behind it can't be read."""
    tag, length = struct.unpack_from("<IH", data)
    value = data[8 : 8 + length]
    if tag in (_MOUNT_POINT, _SYMLINK):
        offset, size = struct.unpack_from("<HH", value)
        names = value[12 if tag == _SYMLINK else 8 :]
        relative = tag == _SYMLINK and bool(struct.unpack_from("<I", value, 8)[0] & 1)
        if offset + size > len(names) or size % 2:
            raise ValueError
        return _windows_target(
            names[offset : offset + size].decode("utf-16-le", "surrogatepass"), relative
        ), None
    if tag == _LX_SYMLINK:
        path = value[4:].decode("utf-8", "surrogateescape")
        return (OUTSIDE if path.startswith("/") else BESIDE, path), None
    if tag == _WOF:
        return None, _wof(value)
    if tag in _HARMLESS:
        return None, None
    if tag in _SPECIAL:
        return None, "a socket, pipe or device of a Linux program: it has no content"
    if tag & _CLOUD_MASK == _CLOUD:
        return None, "a placeholder: its content is in a cloud"
    return None, f"{_TAGS.get(tag, 'of a kind that is not known')} (reparse tag 0x{tag:08x})"


def _windows_target(path: str, relative: bool) -> tuple[str, str]:
    slashed = _name(path).replace("\\", "/")
    if relative:
        return (INSIDE if slashed.startswith("/") else BESIDE), slashed
    for prefix in ("/??/", "//?/"):
        slashed = slashed.removeprefix(prefix)
    if len(slashed) >= 2 and slashed[0].isascii() and slashed[0].isalpha() and slashed[1] == ":":
        return INSIDE, "/" + slashed[2:].strip("/")
    return OUTSIDE, slashed


def _wof(value: bytes) -> str | None:
    """Why a file compressed by Windows can't be read; None when libfsntfs can."""
    version, provider = struct.unpack_from("<II", value)
    if provider != 2:
        return "its content lies in a WIM archive"
    algorithm = struct.unpack_from("<I", value, 12)[0]
    if version != 1 or algorithm not in (0, 1, 2, 3):
        return f"compressed by Windows in a way that is not known ({algorithm})"
    return None
