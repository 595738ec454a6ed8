"""A stored disk of which a part, in the end all, is read from a copy on this machine.

Decided here and only here: which bytes of a read come from the copy and which from the store, and that the
latter tell where hydration should go next. The copy may be of any form in which the disk's bytes lie
unchanged (`Positions`): both files that the drive shows of a disk are served from the same one.

Threading: any number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cloudmount.extents import Extent, Prefetching, check_range
from cloudmount.reader.aside import Via
from cloudmount.reader.localcopy import LocalCopy
from cloudmount.reader.prefetch import Prefetchable, Range


class _Part(NamedTuple):
    """A part of a read: `length` bytes at `offset` of the disk; from the copy at `position`, from nowhere
    (zeros), or from the store."""

    offset: int
    length: int
    kind: str
    position: int


class LocalDisk:
    """One disk's copy, and where its readers are. `copy` is None while there is none to be used."""

    def __init__(self, used: Callable[[LocalDisk], None] = lambda disk: None) -> None:
        self.copy: LocalCopy | None = None
        self._used = used
        self._missed: int | None = None
        self._lock = threading.Lock()

    def opened(self) -> None:
        """Somebody began to read it."""
        self._used(self)

    def missed(self, offset: int) -> None:
        """A read went to the store for what begins at `offset` of the disk."""
        with self._lock:
            self._missed = offset

    def take_missed(self) -> int | None:
        """Where the last read went to the store since this was asked last."""
        with self._lock:
            missed, self._missed = self._missed, None
            return missed

    @property
    def awaited(self) -> bool:
        """Whether a read went to the store since `take_missed`."""
        return self._missed is not None


class HydratingSource:
    """The disk `stored`, from its copy where that has it. Owns `stored`. Its first read makes the disk a used
    one, unless it `starts` nothing."""

    def __init__(self, stored: Prefetchable, local: LocalDisk, *, starts: bool = True) -> None:
        self.size = stored.size
        self._stored, self._local = stored, local
        self._begun, self._closed = not starts, False

    def read_at(self, offset: int, length: int) -> bytes:
        """As of the stored disk, which is asked only for what the copy has not."""
        check_range(self.size, offset, length)
        if self._closed:
            raise ValueError("this source is closed")
        if not self._begun:
            self._begun = True
            self._local.opened()
        copy = self._local.copy
        if copy is None:
            return self._fetch(offset, length)
        found = []
        for part in self._parts(copy, offset, length):
            data: bytes | None = None
            if part.kind == "zeros":
                data = bytes(part.length)
            elif part.kind == "local":
                data = copy.read(part.position, part.length)
            if data is None:
                if copy.doubtful:
                    self._local.opened()  # it is to be verified
                data = self._fetch(part.offset, part.length)
            found.append(data)
        return found[0] if len(found) == 1 else b"".join(found)

    def fetch_ahead(self, ranges: Range, via: Via | None = None) -> None:
        """What the copy has not, into the caches of the stored disk."""
        copy = self._local.copy
        if copy is not None:
            ranges = [
                (part.offset, part.length)
                for offset, length in ranges
                for part in self._parts(copy, offset, length)
                if part.kind == "store"
            ]
        self._stored.fetch_ahead(ranges, via)

    def _fetch(self, offset: int, length: int) -> bytes:
        self._local.missed(offset)
        return self._stored.read_at(offset, length)

    def _parts(self, copy: LocalCopy, offset: int, length: int) -> Iterator[_Part]:
        """The range as few parts: neighbours of one kind that adjoin are one."""
        last: _Part | None = None
        for part in self._pieces(copy, offset, offset + length):
            if (
                last is not None
                and last.kind == part.kind
                and (part.kind != "local" or last.position + last.length == part.position)
            ):
                last = last._replace(length=last.length + part.length)
                continue
            if last is not None:
                yield last
            last = part
        if last is not None:
            yield last

    def _pieces(self, copy: LocalCopy, offset: int, end: int) -> Iterator[_Part]:
        positions, piece = copy.positions, copy.described.piece
        while offset < end:
            n = min(end, (offset // positions.block_size + 1) * positions.block_size) - offset
            position = positions.position(offset)
            if position is None:
                yield _Part(offset, n, "zeros", 0)
            elif copy.has(position, n):
                yield _Part(offset, n, "local", position)
            else:
                at = position
                while at < position + n:
                    stop = min((at // piece + 1) * piece, position + n)
                    kind = "local" if copy.has(at, stop - at) else "store"
                    yield _Part(offset + at - position, stop - at, kind, at)
                    at = stop
            offset += n

    def prefetch(self, offset: int, length: int) -> None:
        """Have the stored disk fetch what the copy has not."""
        check_range(self.size, offset, length)
        if not isinstance(self._stored, Prefetching) or self._closed:
            return
        copy = self._local.copy
        if copy is None:
            self._stored.prefetch(offset, length)
            return
        for part in self._parts(copy, offset, length):
            if part.kind == "store":
                self._stored.prefetch(part.offset, part.length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As of the stored disk."""
        return self._stored.extents(offset, length)

    def close(self) -> None:
        """Close the stored disk; the copy is its owner's."""
        self._closed = True
        self._stored.close()
