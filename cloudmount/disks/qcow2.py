"""Overlays: qcow2 files over a disk, as QEMU leaves them, read without QEMU.

Decided here and only here: which of the format's features are read (those that a VM's own overlays have; of
QEMU's docs/interop/qcow2.txt, versions 2 and 3), and that everything else is refused. A file that is written
to meanwhile may read as it never was; every bound is checked all the same. Thread-safe.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cloudmount.errors import DamagedError, UnreadableInputError
from cloudmount.extents import BlockSource, Extent, check_range
from cloudmount.records import Record, record

_MAGIC = b"QFI\xfb"
_DIRTY = 1
_OFFSET = ((1 << 56) - 1) & ~511
_COMPRESSED, _ZERO = 1 << 62, 1
_MOST_L1 = 32 << 20
_MOST_TABLES = 64
"""Tables of the second level kept: 64 KiB each, for 512 MiB of the disk."""


@record(size=72, spec="qcow2.txt, Header", endian=">")
class Qcow2Header(Record):
    """What both versions begin with."""

    magic: Annotated[bytes, "4s"]
    version: Annotated[int, "I"]
    backing_offset: Annotated[int, "Q"]
    backing_length: Annotated[int, "I"]
    cluster_bits: Annotated[int, "I"]
    size: Annotated[int, "Q"]
    crypt_method: Annotated[int, "I"]
    l1_entries: Annotated[int, "I"]
    l1_offset: Annotated[int, "Q"]
    refcount_offset: Annotated[int, "Q"]
    refcount_clusters: Annotated[int, "I"]
    snapshots: Annotated[int, "I"]
    snapshots_offset: Annotated[int, "Q"]


class Overlay:
    """The disk that the overlay at `path` makes of `below`, which it does not own.

    `UnreadableInputError` when the file is no such overlay, `DamagedError` when its tables lead nowhere.
    """

    def __init__(self, path: Path, below: BlockSource) -> None:
        self._path, self._below = path, below
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise UnreadableInputError(f"{path} can't be read: {error.strerror}") from None
        self._tables: dict[int, bytes] = {}
        self._lock = threading.Lock()
        try:
            self._header = self._checked()
            self.size = self._header.size
            self._cluster = 1 << self._header.cluster_bits
            self._l1 = self._bytes(self._header.l1_offset, 8 * self._header.l1_entries)
        except BaseException:
            self.close()
            raise

    def _checked(self) -> Qcow2Header:
        raw = self._bytes(0, 112)
        header = Qcow2Header.unpack(raw)
        if header.magic != _MAGIC or header.version not in (2, 3):
            raise UnreadableInputError(f"{self._path} is no qcow2 file that is known")
        features = int.from_bytes(raw[72:80], "big") if header.version == 3 else 0
        if features & ~_DIRTY or header.crypt_method:
            raise UnreadableInputError(f"{self._path} has features that no overlay of a VM has")
        covered = 1 << (2 * header.cluster_bits - 3)
        if not 9 <= header.cluster_bits <= 21 or 8 * header.l1_entries > _MOST_L1:
            raise DamagedError(f"{self._path}: its header makes no sense")
        if header.l1_entries * covered < header.size:
            raise DamagedError(f"{self._path}: its first table is too short for its size")
        return header

    def _bytes(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._fd, length, offset)
        except (OSError, OverflowError) as error:
            raise DamagedError(f"{self._path} can't be read at {offset}: {error}") from None
        if len(data) != length:
            raise DamagedError(f"{self._path} ends before byte {offset + length}")
        return data

    def _entry(self, cluster: int) -> int:
        """The entry of a cluster of the disk in its second table; 0 where there is none."""
        per_table = self._cluster // 8
        first, second = divmod(cluster, per_table)
        at = int.from_bytes(self._l1[8 * first : 8 * first + 8], "big") & _OFFSET
        if not at:
            return 0
        with self._lock:
            table = self._tables.get(at)
            if table is None:
                table = self._bytes(at, self._cluster)
                if len(self._tables) >= _MOST_TABLES:
                    self._tables.clear()
                self._tables[at] = table
        return int.from_bytes(table[8 * second : 8 * second + 8], "big")

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(offset, length, entry) of the clusters of a range."""
        check_range(self.size, offset, length)
        end = offset + length
        while offset < end:
            cluster, within = divmod(offset, self._cluster)
            n = min(end - offset, self._cluster - within)
            yield offset, n, self._entry(cluster)
            offset += n

    def read_at(self, offset: int, length: int) -> bytes:
        """From the overlay what it holds, else from what lies below."""
        found: list[bytes] = []
        below: tuple[int, int] | None = None  # adjoining clusters of the disk below are one read
        for at, n, entry in self._parts(offset, length):
            holds = entry & (_OFFSET | _ZERO | _COMPRESSED)
            if not holds:
                below = (at, n) if below is None else (below[0], below[1] + n)
                continue
            if below is not None:
                found.append(self._from_below(*below))
                below = None
            found.append(self._from_overlay(at, n, entry))
        if below is not None:
            found.append(self._from_below(*below))
        return found[0] if len(found) == 1 else b"".join(found)

    def _from_below(self, offset: int, length: int) -> bytes:
        there = max(0, min(length, self._below.size - offset))
        data = self._below.read_at(offset, there) if there else b""
        return data + bytes(length - there)

    def _from_overlay(self, offset: int, length: int, entry: int) -> bytes:
        if entry & _COMPRESSED:
            raise UnreadableInputError(f"{self._path} has compressed clusters, which no overlay of a VM has")
        if entry & _ZERO and self._header.version == 3:
            return bytes(length)
        return self._bytes((entry & _OFFSET) + offset % self._cluster, length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """All data: what is sparse below is not asked for."""
        check_range(self.size, offset, length)
        yield Extent(offset, length, True)

    def close(self) -> None:
        """Close the file, not the disk below. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
