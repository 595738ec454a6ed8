"""Whether a file still holds what its sidecar says.

Decided here and only here: how pieces are compared with their digests, and zeros found without reading
holes; and what a copy on this machine is told to be when it is looked at without store or passphrase.

Threading: any number of threads, each with its own call.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from cloudmount.blobs.direct import LargeReader, aligned_memory
from cloudmount.errors import NotFoundError
from cloudmount.reader.pieces import Pieces
from cloudmount.reader.sidecar import (
    DIGEST_BYTES,
    LOST,
    PIECES,
    SEEN,
    ZEROS,
    Described,
    Entry,
    Seen,
    Sidecar,
    digest,
    sidecar_path,
)
from cloudmount.system import OPEN, pread

AT_ONCE = 4 << 20
"""Bytes that are read at once."""
THREADS = max(2, min(4, os.cpu_count() or 2))
_FLAGS = os.O_RDONLY | OPEN


def replay(entry: Entry, pieces: Pieces) -> Seen | None:
    """Do what an entry says to the set of pieces."""
    if entry.kind in (PIECES, ZEROS):
        pieces.add(entry.first, entry.first + entry.pieces)
    elif entry.kind == LOST:
        pieces.remove(entry.first, entry.first + entry.pieces)
    elif entry.kind == SEEN:
        return Seen.unpack(entry.data)
    return None


class _Comparing:
    """One file compared with what its sidecar says of it, by several threads."""

    def __init__(self, fd: int, described: Described) -> None:
        self._fd, self._described = fd, described
        self._reader = LargeReader(fd)
        self._own = threading.local()

    def _read(self, length: int, at: int) -> memoryview:
        """What is there, in memory of this thread that is used again."""
        room: memoryview | None = getattr(self._own, "room", None)
        if room is None or len(room) < length:
            room = self._own.room = aligned_memory(length)
        return room[: self._reader.read_into(room[:length], at)]

    def close(self) -> None:
        """End it, when no thread uses it any more."""
        self._reader.close()

    def sound(self, entry: Entry) -> list[tuple[int, int]]:
        """Runs (first, stop) of an entry's pieces that are in the file as it says."""
        return list(self._sound(entry))

    def _sound(self, entry: Entry) -> Iterator[tuple[int, int]]:
        fd = self._fd
        piece, size = self._described.piece, self._described.size
        if entry.kind == PIECES:
            at_once = max(1, AT_ONCE // piece)
            for first in range(0, entry.pieces, at_once):
                start = (entry.first + first) * piece
                there = self._read(min(at_once, entry.pieces - first) * piece, start)
                for n in range(first, min(first + at_once, entry.pieces)):
                    at = (entry.first + n) * piece
                    data = there[at - start : at - start + min(piece, size - at)]
                    wanted = entry.data[n * DIGEST_BYTES : (n + 1) * DIGEST_BYTES]
                    if len(data) == min(piece, size - at) and digest(data) == wanted:
                        yield entry.first + n, entry.first + n + 1
        elif entry.kind == ZEROS:
            good = entry.first
            stop = entry.first + entry.pieces
            for low, high in data_ranges(fd, entry.first * piece, min(size, stop * piece)):
                for n in range(low // piece, -(-high // piece)):
                    length = min(piece, size - n * piece)
                    if pread(fd, length, n * piece) != bytes(length):
                        if good < n:
                            yield good, n
                        good = n + 1
            if good < stop:
                yield good, stop


def data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges of a file that are no holes."""
    while start < end:
        try:
            low = os.lseek(fd, start, os.SEEK_DATA)
            high = os.lseek(fd, low, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            low, high = start, end  # a file system that doesn't tell
        except AttributeError:  # Windows
            low, high = start, end
        if low >= end:
            return
        yield max(low, start), min(high, end)
        start = max(high, start + 1)


def all_sound(
    fd: int, described: Described, entries: Iterable[Entry]
) -> Iterator[tuple[Entry, list[tuple[int, int]]]]:
    """Each entry with its sound runs, in order; on a few threads, which read and hash at the same time."""
    waiting: deque[tuple[Entry, Future[list[tuple[int, int]]]]] = deque()
    comparing = _Comparing(fd, described)
    with closing(comparing), ThreadPoolExecutor(THREADS, "verify") as pool:
        try:
            for entry in entries:
                waiting.append((entry, pool.submit(comparing.sound, entry)))
                if len(waiting) > 2 * THREADS:
                    first, found = waiting.popleft()
                    yield first, found.result()
            for first, found in waiting:
                yield first, found.result()
        finally:
            for _, found in waiting:
                found.cancel()


@dataclass(slots=True)
class Verdict:
    """What was found of a copy of `bytes` bytes: `done` of them are there and sound; `damage` are
    (offset, length, why)."""

    bytes: int
    done: int = 0
    damage: list[tuple[int, int, str]] = field(default_factory=list)
    finished: bool = False
    """Whether it was finished once: then all of it should be there."""

    @property
    def ok(self) -> bool:
        """Whether it is whole and sound."""
        return self.done == self.bytes and not self.damage


def verify_file(path: Path, progress: Callable[[int, int], None]) -> Verdict:
    """Compare the copy at `path` with its sidecar; `progress(done, total)` bytes. Changes nothing.

    `NotFoundError` when there is no such copy.
    """
    try:
        beside = os.open(sidecar_path(path), _FLAGS)
    except OSError:
        raise NotFoundError(f"{path} has no digests beside it ({sidecar_path(path).name})") from None
    try:
        sidecar = Sidecar.open(beside)
        with open(path, "rb", buffering=0) as file:
            return _verify(file.fileno(), sidecar, progress)
    except OSError as error:
        raise NotFoundError(f"{path} can't be read: {error.strerror}") from None
    finally:
        os.close(beside)


def _verify(fd: int, sidecar: Sidecar | None, progress: Callable[[int, int], None]) -> Verdict:
    there = os.fstat(fd).st_size
    if sidecar is None:
        return Verdict(there, 0, [(0, there, "its digests are damaged: nothing tells what it should hold")])
    d = sidecar.described
    verdict = Verdict(d.size)
    told, found = Pieces(d.pieces), Pieces(d.pieces)
    for entry, runs in all_sound(fd, d, sidecar.entries()):
        seen = replay(entry, told)
        if seen is not None:
            verdict.finished = verdict.finished or bool(seen.finished)
        for first, stop in runs:
            found.add(first, stop)
        progress(min(d.size, found.held * d.piece), d.size)
    whole = not os.fstat(fd).st_mode & 0o222
    verdict.finished = verdict.finished or whole

    def tell(first: int, stop: int, why: str) -> None:
        at = first * d.piece
        verdict.damage.append((at, min(d.size, stop * d.piece) - at, why))

    for low, high in told.runs(present=True):
        for first, stop in found.runs(low, high, present=False):
            tell(first, stop, "not what was written")
        verdict.done += sum(
            min(d.size, stop * d.piece) - first * d.piece
            for first, stop in found.runs(low, high, present=True)
        )
    if verdict.finished:
        for first, stop in told.runs(present=False):
            tell(first, stop, "its digest is missing")
    if there > d.size:
        verdict.damage.append((d.size, there - d.size, "nothing belongs here"))
    verdict.damage.sort()
    return verdict
