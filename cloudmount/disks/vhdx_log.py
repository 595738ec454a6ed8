"""A VHDX's dirty log found and replayed in memory, the file never written ([MS-VHDX] 2.3).

Decided here and only here: which log entries are valid, which sequence of them
is the active one, and how its writes are laid over the file. Every sector of
the log is looked at once and every entry's checksum computed once, so the work
is linear in the log's length (at most 1 GiB). Replayed content stays in the log
and is read from there: memory is about 300 bytes a descriptor.

Threading: `replayed` is pure; what it returns is immutable.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

from cloudmount.disks import vhdx_records as r
from cloudmount.disks.crc32c import crc32c
from cloudmount.disks.vhdx_header import Region, broken
from cloudmount.extents import BlockSource, Extent, check_range, merged

_SECTOR = r.LOG_SECTOR
_MAX_DESCRIPTORS = 1 << 19  # a log of 1 GiB has room for 2^18 data sectors
_LOGGABLE = r.REGION_TABLE_OFFSETS[0]  # what lies before, headers, is never written through the log


class Patch(NamedTuple):
    """File bytes `start` to `end` as the log has them: zeros, or one data sector of the log."""

    start: int
    end: int
    sector: int = -1  # offset of the data sector in the file, -1 for zeros
    leading: bytes = b""
    trailing: bytes = b""


def replayed(path: Path, file: BlockSource, header: r.Header) -> BlockSource:
    """`file` with the active sequence of its log laid over; `file` itself when the log is empty.

    Owns `file`. `UnreadableInputError` when no sequence is valid, when the file
    was cut shorter than the log says it was, or when an entry writes where it must not.
    """
    if header.log_guid == r.ZERO_GUID:
        return file
    log = _Log(path, file, header)
    entries = log.active_sequence()
    count = sum(entry.header.descriptor_count for entry in entries)
    if count > _MAX_DESCRIPTORS:
        raise broken(path, "log entry descriptor count", f"{count} in all, more than {_MAX_DESCRIPTORS}")
    size = file.size
    for entry in entries:
        if entry.header.flushed_file_offset > file.size:
            raise broken(
                path,
                "log entry flushed file offset",
                f"the file had {entry.header.flushed_file_offset} bytes when the log was written and has "
                f"{file.size} now: it was cut short",
            )
        size = max(size, entry.header.last_file_offset)
    patches = _laid_over([p for entry in entries for p in log.patches(entry)])
    if patches:
        size = max(size, patches[-1].end)
    if size > r.MAX_FILE_SIZE:
        raise broken(path, "log entry last file offset", f"{size} is more than any VHDX has")
    return Replayed(file, patches, size)


@dataclass(frozen=True)
class _Entry:
    """A valid log entry at `position` of the log; `data`: how many data sectors it has."""

    position: int
    header: r.LogEntryHeader
    data: int

    @property
    def descriptors_length(self) -> int:
        """Bytes of its header and descriptors, whole sectors."""
        length = r.LogEntryHeader.SIZE + self.header.descriptor_count * r.LOG_DESCRIPTOR_LENGTH
        return -(-length // _SECTOR) * _SECTOR


class _Log:
    """The log as a ring of sectors."""

    def __init__(self, path: Path, file: BlockSource, header: r.Header) -> None:
        self._path, self._file = path, file
        self._guid = header.log_guid
        self._region = Region("log", header.log_offset, header.log_length)
        self._checksummed = 0

    def _read(self, position: int, length: int) -> bytes:
        """Bytes of the ring, at most once around."""
        first = min(length, self._region.length - position)
        parts = self._file.read_at(self._region.offset + position, first)
        return parts + self._file.read_at(self._region.offset, length - first) if first < length else parts

    def active_sequence(self) -> list[_Entry]:
        """The entries to replay, oldest first (2.3.2, 2.3.3)."""
        best: list[_Entry] = []
        entries = self._valid_entries()
        dead: set[int] = set()  # entries of invalid sequences: what starts there is a part of one
        steps = position = 0
        while position < self._region.length:
            found = [] if position in dead else self._sequence(entries, position)
            steps += len(found)
            if steps > 4 * len(entries):  # a ring that wraps once needs two steps an entry
                raise broken(self._path, "log", "its entries form no order")
            positions = {entry.position for entry in found}
            if found and found[-1].header.tail in positions:
                if not best or found[-1].header.sequence_number > best[-1].header.sequence_number:
                    best = found
                head = (found[-1].position + found[-1].header.entry_length) % self._region.length
                if head <= position:
                    break  # around the ring
                position = head
            else:
                dead |= positions
                position += _SECTOR
        if not best:
            raise broken(
                self._path, "log", "the header says it is in use, but it holds no valid sequence of entries"
            )
        tail = best[-1].header.tail
        return best[next(i for i, entry in enumerate(best) if entry.position == tail) :]

    def _sequence(self, entries: dict[int, _Entry], position: int) -> list[_Entry]:
        """The entries that follow one another from there on, at most once around."""
        found: list[_Entry] = []
        length = 0
        while (entry := entries.get(position)) is not None:
            head = entry.header
            length += head.entry_length
            if length > self._region.length:
                break
            if found and head.sequence_number != found[-1].header.sequence_number + 1:
                break
            found.append(entry)
            position = (position + head.entry_length) % self._region.length
        return found

    def _valid_entries(self) -> dict[int, _Entry]:
        """Every valid entry by its position in the log."""
        found = {}
        step = 1024 * 1024
        for start in range(0, self._region.length, step):
            piece = self._read(start, min(step, self._region.length - start))
            for at in range(0, len(piece), _SECTOR):
                if piece.startswith(r.LOG_ENTRY_SIGNATURE, at):
                    entry = self._entry(start + at, r.LogEntryHeader.unpack(piece, at))
                    if entry is not None:
                        found[start + at] = entry
        return found

    def _entry(self, position: int, head: r.LogEntryHeader) -> _Entry | None:
        """The entry there (2.3.1), None when it is not valid: stale, torn, or another log's."""
        length = head.entry_length
        if (
            head.log_guid != self._guid
            or not head.sequence_number
            or head.reserved
            or length % _SECTOR
            or not 0 < length <= self._region.length
            or head.tail % _SECTOR
            or head.tail >= self._region.length
            or head.descriptor_count * r.LOG_DESCRIPTOR_LENGTH + r.LogEntryHeader.SIZE > length
        ):
            return None
        entry = _Entry(position, head, 0)
        data = 0
        for raw in self._descriptors(entry):
            if raw[:4] not in (r.LOG_DATA_SIGNATURE, r.LOG_ZERO_SIGNATURE):
                return None
            if int.from_bytes(raw[24:32], "little") != head.sequence_number:
                return None
            data += raw[:4] == r.LOG_DATA_SIGNATURE
        if length != entry.descriptors_length + data * _SECTOR:
            return None
        if not self._whole(entry):
            return None
        return _Entry(position, head, data)

    def _whole(self, entry: _Entry) -> bool:
        """Whether its data sectors are its own and its checksum is right."""
        head = entry.header
        self._checksummed += head.entry_length
        if self._checksummed > 2 * self._region.length:  # entries of one log never overlap
            raise broken(self._path, "log", "its entries overlap one another")
        crc, step = 0, 256 * _SECTOR
        for at in range(0, head.entry_length, step):
            piece = self._read((entry.position + at) % self._region.length, min(step, head.entry_length - at))
            for sector in range(max(entry.descriptors_length - at, 0), len(piece), _SECTOR):
                if piece[sector : sector + 4] != r.LOG_DATA_SECTOR_SIGNATURE:
                    return False
                number = piece[sector + _SECTOR - 4 : sector + _SECTOR] + piece[sector + 4 : sector + 8]
                if int.from_bytes(number, "little") != head.sequence_number:
                    return False
            crc = crc32c(piece if at else piece[:4] + bytes(4) + piece[8:], crc)
        return crc == head.checksum

    def _descriptors(self, entry: _Entry) -> Iterator[bytes]:
        """Its descriptors, 32 bytes each."""
        step = 256 * _SECTOR
        end = r.LogEntryHeader.SIZE + entry.header.descriptor_count * r.LOG_DESCRIPTOR_LENGTH
        for at in range(0, end, step):
            piece = self._read((entry.position + at) % self._region.length, min(step, end - at))
            for i in range(0 if at else r.LogEntryHeader.SIZE, len(piece), r.LOG_DESCRIPTOR_LENGTH):
                yield piece[i : i + r.LOG_DESCRIPTOR_LENGTH]

    def patches(self, entry: _Entry) -> Iterator[Patch]:
        """What the entry writes, in its own order."""
        sector = entry.position + entry.descriptors_length
        for raw in self._descriptors(entry):
            if raw[:4] == r.LOG_DATA_SIGNATURE:
                data = r.LogDataDescriptor.unpack(raw)
                self._check_target(data.file_offset, _SECTOR)
                at = self._region.offset + sector % self._region.length
                yield Patch(
                    data.file_offset,
                    data.file_offset + _SECTOR,
                    at,
                    data.leading_bytes,
                    data.trailing_bytes,
                )
                sector += _SECTOR
            else:
                zero = r.LogZeroDescriptor.unpack(raw)
                self._check_target(zero.file_offset, zero.length)
                if zero.length:
                    yield Patch(zero.file_offset, zero.file_offset + zero.length)

    def _check_target(self, offset: int, length: int) -> None:
        end = offset + length
        if offset % _SECTOR or length % _SECTOR:
            raise broken(self._path, "log descriptor", f"{length} bytes at {offset} are not whole 4 KiB")
        if offset < _LOGGABLE:
            raise broken(self._path, "log descriptor file offset", f"{offset} is inside the headers")
        if offset < self._region.end and end > self._region.offset:
            raise broken(self._path, "log descriptor file offset", f"{offset} is inside the log itself")
        if end > r.MAX_FILE_SIZE:
            raise broken(
                self._path, "log descriptor", f"{length} bytes at {offset} are more than any VHDX has"
            )


def _laid_over(patches: list[Patch]) -> list[Patch]:
    """The patches, later ones over earlier ones, as ranges in order that don't overlap."""
    by_start = sorted(range(len(patches)), key=lambda i: patches[i].start)
    out: list[Patch] = []
    active: list[int] = []  # a heap of negated indices: those that began, newest first
    at = k = 0
    while k < len(by_start) or active:
        while active and patches[-active[0]].end <= at:
            heappop(active)
        if not active:
            if k == len(by_start):
                break
            at = patches[by_start[k]].start
        while k < len(by_start) and patches[by_start[k]].start <= at:
            heappush(active, -by_start[k])
            k += 1
        newest = patches[-active[0]]
        end = min(newest.end, patches[by_start[k]].start) if k < len(by_start) else newest.end
        if end > at:
            out.append(newest._replace(start=at, end=end))
        at = max(at, end)
    return out


class Replayed:
    """A file of `size` bytes with patches laid over; past the end of `file` it is zeros. Owns `file`."""

    def __init__(self, file: BlockSource, patches: list[Patch], size: int) -> None:
        self._file = file
        self._patches = patches
        self._starts = [p.start for p in patches]
        self.size = size

    def _parts(self, offset: int, length: int) -> Iterator[tuple[Patch | None, int, int]]:
        """(patch or the file itself, offset, length), in order."""
        check_range(self.size, offset, length)
        end = offset + length
        i = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            while i < len(self._patches) and self._patches[i].end <= offset:
                i += 1
            patch = self._patches[i] if i < len(self._patches) else None
            if patch is not None and patch.start <= offset:
                n = min(end, patch.end) - offset
                yield patch, offset, n
            else:
                n = min(end, patch.start if patch is not None else end) - offset
                yield None, offset, n
            offset += n

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes as they will be once the log is written back."""
        return b"".join(self._part(*part) for part in self._parts(offset, length))

    def _part(self, patch: Patch | None, offset: int, length: int) -> bytes:
        if patch is None:
            stored = max(min(length, self._file.size - offset), 0)
            content = self._file.read_at(offset, stored) if stored else b""
            return content + bytes(length - stored)
        if patch.sector < 0:
            return bytes(length)
        raw = self._file.read_at(patch.sector, _SECTOR)
        content = patch.leading + raw[8:-4] + patch.trailing
        within = offset - patch.start
        return content[within : within + length]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The file's own, zeroed ranges as ZERO and logged sectors as DATA."""

        def found() -> Iterator[Extent]:
            for patch, at, n in self._parts(offset, length):
                if patch is not None:
                    yield Extent(at, n, patch.sector >= 0)
                    continue
                stored = max(min(n, self._file.size - at), 0)
                if stored:
                    yield from self._file.extents(at, stored)
                yield Extent(at + stored, n - stored, False)

        return merged(found())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
