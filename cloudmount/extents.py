"""Every disk is a `BlockSource`; what it holds is told in `Extent`s; `Layout` composes them.

Decided here and only here: what a readable disk is (a size and ranged reads),
how "nothing is stored here" is said (a ZERO extent), and how a container is
composed of zeros, bytes and ranges of other sources.

Threading: `read_at` and `extents` of every implementation may be called from
any number of threads at once. Standard library only.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes at `offset`. Not `data`: they are known to read as zeros, without reading."""

    offset: int
    length: int
    data: bool

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.offset + self.length


@runtime_checkable
class BlockSource(Protocol):
    """A disk's, file's or container's bytes, read at any offset.

    Demanded of implementers: content never changes while open; reads are
    thread-safe; a failure is a `CloudMountError`, never wrong bytes.
    """

    @property
    def size(self) -> int:
        """Length in bytes; any number, zero too."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`.

        `ValueError` when the range does not lie within 0..`size` (see `check_range`).
        """

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The range as adjoining extents in order, covering it exactly, neighbours merged or not.

        ZERO extents are a promise that the bytes read as zeros; DATA is none.
        Costs no more than the source's own map: it reads no content.
        """

    def close(self) -> None:
        """Release files and handles. May be called twice."""


@runtime_checkable
class LocalCopy(Protocol):
    """What a `BlockSource` may offer beside: a file on this machine that holds all of its bytes."""

    def local_path(self) -> str | None:
        """Path of a complete copy, None as long as there is none. Cheap: asked when the source is opened
        and with reads, and answered from memory.

        Demanded of implementers: whenever the path is given, the file there holds the source's bytes, all
        of them and durable, and is as it was when that was made sure of (inode, size, mtime, ctime). Who
        reads it must make sure that it stays the file it opened, and else go back to `read_at`.
        """


@runtime_checkable
class Prefetching(Protocol):
    """What a `BlockSource` may offer beside: to fetch what will be read soon."""

    def prefetch(self, offset: int, length: int) -> None:
        """Begin to fetch exactly these bytes, where they are far away. Returns at once and raises nothing
        but `ValueError` (see `check_range`): who reads them meets the failure."""


def check_range(size: int, offset: int, length: int) -> None:
    """`ValueError` unless `length` bytes at `offset` lie within a source of `size` bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"{length} bytes at {offset} are outside a source of {size} bytes")


def merged(extents: Iterator[Extent]) -> Iterator[Extent]:
    """The same extents with equal neighbours merged and empty ones dropped."""
    last: Extent | None = None
    for e in extents:
        if not e.length:
            continue
        if last is not None and last.data == e.data and last.end == e.offset:
            last = Extent(last.offset, last.length + e.length, e.data)
            continue
        if last is not None:
            yield last
        last = e
    if last is not None:
        yield last


class Zeros:
    """A source of `size` zero bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read_at(self, offset: int, length: int) -> bytes:
        """Zeros."""
        check_range(self.size, offset, length)
        return bytes(length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """One ZERO extent."""
        check_range(self.size, offset, length)
        yield Extent(offset, length, False)

    def close(self) -> None:
        """Nothing to release."""


class Bytes:
    """A source over bytes held in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read_at(self, offset: int, length: int) -> bytes:
        """A slice of the content."""
        check_range(self.size, offset, length)
        return self._content[offset : offset + length]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """One DATA extent."""
        check_range(self.size, offset, length)
        yield Extent(offset, length, True)

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes of a `Layout`, taken from `source` at `start`."""

    length: int
    source: BlockSource
    start: int = 0


class Layout:
    """Pieces one after another, as one `BlockSource`.

    Owns its sources: `close` closes each once. A piece must lie within its
    source (`ValueError`).
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = [p for p in pieces if p.length]
        self._starts: list[int] = []
        position = 0
        for p in self._pieces:
            check_range(p.source.size, p.start, p.length)
            self._starts.append(position)
            position += p.length
        self.size = position

    def _parts(self, offset: int, length: int) -> Iterator[tuple[Piece, int, int, int]]:
        """(piece, offset in its source, length, offset in the layout) for each piece touched."""
        check_range(self.size, offset, length)
        i = bisect.bisect_right(self._starts, offset) - 1
        end = offset + length
        while offset < end:
            piece, start = self._pieces[i], self._starts[i]
            n = min(end, start + piece.length) - offset
            yield piece, piece.start + offset - start, n, offset
            offset += n
            i += 1

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes, gathered from the pieces."""
        parts = [p.source.read_at(at, n) for p, at, n, _ in self._parts(offset, length)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The pieces' own extents, shifted and merged."""

        def shifted() -> Iterator[Extent]:
            for p, at, n, here in self._parts(offset, length):
                for e in p.source.extents(at, n):
                    yield Extent(e.offset - at + here, e.length, e.data)

        return merged(shifted())

    def close(self) -> None:
        """Close every source once."""
        for source in {id(p.source): p.source for p in self._pieces}.values():
            source.close()
