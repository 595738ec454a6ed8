"""Writing the pieces of a copy by the threads that bring them, past the page cache (`LargeFile`).

Decided here and only here: that pieces which follow each other are written together; when what was written
is handed to `enter`, which brings it to the disk on a thread of its own while others write on: so soon that
nothing older than `COMMIT_SECONDS`, and never more than `COMMIT_BYTES`, is not there yet (who would write
more waits); and what happens when the disk is full: `room` is told, which waits or gives up, and then the
same is tried again.

Threading: `put` may be called by any number of threads; `enter` is called on the writer's own, never two at a
time, and not at all between a `drain` and the next `put`; the rest belongs to one thread. What `enter` raises
is raised once by the next `put` or `drain`; what it was to enter is then as if it had never been put.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from cloudmount.blobs.direct import LargeFile, aligned_memory
from cloudmount.errors import CloudMountError
from cloudmount.reader.sidecar import PIECES, Entry, digests_of
from cloudmount.system import DISK_FULL

T = TypeVar("T")
COMMIT_BYTES, COMMIT_SECONDS = 32 << 20, 1.0
"""What a kill or a power cut loses at most; whichever is less."""
CHUNK = 4 << 20
"""The most bytes that are written at once."""
SHARES = 4
"""A part of `COMMIT_BYTES` after which is synced: meanwhile the others are written."""
IDLE = 2.0
"""Seconds after which a writer without work ends its thread."""
FULL = DISK_FULL


def with_room(write: Callable[[], T], room: Callable[[OSError], None]) -> T:
    """What `write` gives, tried again after each time that the disk was full and `room` returned."""
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            room(error)


class Put(NamedTuple):
    """Whole pieces at `position` of the file, of which only its last may be shorter; their digests, if
    somebody made them already."""

    position: int
    data: bytes
    digests: Sequence[bytes] | None = None


class PieceWriter:
    """The file at `path`, in pieces of `piece` bytes, made when it is missing."""

    def __init__(
        self,
        path: Path,
        piece: int,
        enter: Callable[[list[Entry]], None],
        room: Callable[[OSError], None],
    ) -> None:
        self.file = LargeFile(path, mode=0o600)
        self.file.open_direct()
        self._piece, self._enter, self._room = piece, enter, room
        self._own = threading.local()
        self._pending = 0
        """Bytes that are written, or just being, and not entered."""
        self._written: list[Entry] = []
        self._written_bytes, self._since = 0, 0.0
        self._writing = self._waiting = 0
        self._entering = self._draining = self._closed = False
        self._failed: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._change = threading.Condition()

    def put(self, pieces: Iterable[Put]) -> None:
        """Write pieces, each at most `CHUNK` bytes, so that they are entered soon. `CloudMountError` when the
        writer was closed."""
        most = max(self._piece, min(CHUNK, COMMIT_BYTES // (2 * SHARES)))
        together: list[Put] = []
        size = 0
        for each in pieces:
            if together and (each.position != together[0].position + size or size + len(each.data) > most):
                self._write(together, size)
                together, size = [], 0
            together.append(each)
            size += len(each.data)
        if together:
            self._write(together, size)

    def drain(self) -> None:
        """Have everything that was put entered when this returns."""
        with self._change:
            self._draining = True
            self._change.notify_all()
            try:
                while self._failed is None and (self._writing or self._written or self._entering):
                    self._change.wait()
            finally:
                self._draining = False
            self._raise()

    def close(self) -> None:
        """End, when nobody writes any more; what is not entered by then never is."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            while self._writing or self._entering:
                self._change.wait()
            thread = self._thread
        if thread is not None:
            thread.join()
        self.file.close()

    def _raise(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _write(self, together: list[Put], size: int) -> None:
        with self._change:
            self._waiting += 1
            self._change.notify_all()
            try:
                while self._pending and self._pending + size > COMMIT_BYTES and not self._closed:
                    if self._failed is not None:
                        break
                    self._change.wait()
            finally:
                self._waiting -= 1
            self._raise()
            if self._closed:
                raise CloudMountError("the copy is closed")
            self._pending += size
            self._writing += 1
        entry: Entry | None = None
        try:
            entry = self._written_together(together, size)
        finally:
            with self._change:
                self._writing -= 1
                if entry is None:
                    self._pending -= size
                else:
                    self._wrote(entry, size)
                self._change.notify_all()

    def _written_together(self, together: list[Put], size: int) -> Entry:
        if not hasattr(self._own, "memory") or len(self._own.memory) < size:
            self._own.memory = aligned_memory(max(size, CHUNK))
        memory: memoryview = self._own.memory
        at = together[0].position
        filled = 0
        digests: list[bytes] = []
        for each in together:
            memory[filled : filled + len(each.data)] = each.data
            filled += len(each.data)
            digests += each.digests or digests_of(each.data, self._piece)
        with_room(lambda: self.file.write_at(memory[:size], at), self._room)
        return Entry(PIECES, at // self._piece, len(digests), b"".join(digests))

    def _wrote(self, entry: Entry, size: int) -> None:
        if not self._written:
            self._since = time.monotonic()
        self._written.append(entry)
        self._written_bytes += size
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cloudmount-writer", daemon=True)
            self._thread.start()

    # On the writer's thread

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._due():
                    wait = self._since + COMMIT_SECONDS / 2 - time.monotonic() if self._written else IDLE
                    came = not self._closed and self._change.wait(max(0.0, wait))
                    if self._closed or not (came or self._written):
                        self._thread = None
                        return
                entries, size = self._written, self._written_bytes
                self._written, self._written_bytes, self._entering = [], 0, True
            failed: BaseException | None = None
            try:
                self._enter(entries)
            except BaseException as error:
                failed = error
            with self._change:
                self._pending -= size
                self._failed = failed or self._failed
                self._entering = False
                self._change.notify_all()

    def _due(self) -> bool:
        """Whether what was written is to be entered now."""
        if not self._written or self._closed:
            return False
        late = time.monotonic() - self._since >= COMMIT_SECONDS / 2
        asked = self._draining or (self._waiting and not self._writing)
        return bool(late or asked or self._written_bytes >= COMMIT_BYTES // SHARES)
