"""Writing the pieces of a copy, gathered so that they go past the page cache (`LargeFile`).

Decided here and only here: that pieces which follow each other are written together, up to `CHUNK`
bytes, and what happens when the disk is full: `room` is told, which waits or gives up, and then the same is
tried again.

Threading: one thread.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from cloudmount.blobs.direct import LargeFile, aligned_memory
from cloudmount.reader.sidecar import PIECES, Entry, digests_of

T = TypeVar("T")
CHUNK = 4 << 20
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def with_room(write: Callable[[], T], room: Callable[[OSError], None]) -> T:
    """What `write` gives, tried again after each time that the disk was full and `room` returned."""
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            room(error)


class PieceWriter:
    """The file at `path`, in pieces of `piece` bytes, made when it is missing."""

    def __init__(self, path: Path, piece: int) -> None:
        self.file = LargeFile(path, mode=0o600)
        self.written = 0
        """Bytes given to it since `take`."""
        self._piece = piece
        self._buffer = aligned_memory(max(CHUNK, piece))
        self._at = self._filled = 0
        self._digests: list[bytes] = []
        self._entries: list[Entry] = []

    def put(
        self, position: int, data: bytes, digests: Sequence[bytes] | None, room: Callable[[OSError], None]
    ) -> None:
        """Write whole pieces, at most `CHUNK` bytes, some time before `take`."""
        assert len(data) <= CHUNK
        if self._filled and (
            position != self._at + self._filled or self._filled + len(data) > len(self._buffer)
        ):
            self._flush(room)
        if not self._filled:
            self._at = position
        self._buffer[self._filled : self._filled + len(data)] = data
        self._filled += len(data)
        self.written += len(data)
        self._digests += digests or digests_of(data, self._piece)

    def _flush(self, room: Callable[[OSError], None]) -> None:
        if self._filled:
            data, at = self._buffer[: self._filled], self._at
            with_room(lambda: self.file.write_at(data, at), room)
            count = len(self._digests)
            self._entries.append(Entry(PIECES, at // self._piece, count, b"".join(self._digests)))
            self._filled, self._digests = 0, []

    def take(self, room: Callable[[OSError], None]) -> list[Entry]:
        """What was written since this was asked last, not yet synced."""
        self._flush(room)
        entries, self._entries, self.written = self._entries, [], 0
        return entries
