"""Bringing what is likely to be read before anybody asks for it.

Decided here and only here: that it is asked for in the order given, a few requests at once, only while nobody
waits for the store; and that it ends by itself when the store falls silent, or readers keep the line
busy for so long that it would come too late. Whoever reads such a frame while it is on its way waits for
it as for any other; a failure is nobody's, and met again by whoever reads there.

Threading: `start` once, on any thread; the threads are daemons.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from cloudmount.errors import CloudMountError
from cloudmount.extents import BlockSource
from cloudmount.reader.fetching import FrameReader

PIECE = 1 << 20
"""Plain bytes of a request: less than 0.1 s of 100 Mbit/s, for which a read that comes meanwhile waits."""
AT_ONCE = 3
QUIET = 0.1
"""Seconds for which nobody must have waited for the store."""
LONGEST = 120.0
"""Seconds after which what isn't there yet is left to its readers."""


class Prefetchable(BlockSource, Protocol):
    """A source that can bring bytes nearer."""

    def fetch_ahead(self, offset: int, length: int) -> None:
        """Bring what is stored of the range and not at hand yet, on this thread. Raises nothing: whoever
        reads there meets an error again."""


Ranges = Callable[[], Iterable[tuple[int, int]]]


class Prefetch:
    """The `ranges` of a stream, (offset, length) in bytes; asked for on a thread of its own, so they may be
    found by reading the stream. Not more than `limit` plain bytes that are stored."""

    def __init__(self, reader: FrameReader, source: Prefetchable, ranges: Ranges, limit: int) -> None:
        self._reader, self._source, self._ranges = reader, source, ranges
        self._left = limit
        self._ends = time.monotonic() + LONGEST
        self._pieces: Iterator[tuple[int, int]] = iter(())
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread(self._begin)

    def join(self, seconds: float) -> bool:
        """Whether it ended within so many seconds."""
        until = time.monotonic() + seconds
        for thread in self._threads:  # grows while the first one runs
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _thread(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name="cloudmount-prefetch", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _begin(self) -> None:
        try:
            ranges = list(self._ranges())
            self._pieces = self._split(ranges)
        except (CloudMountError, ValueError):
            return
        for _ in range(AT_ONCE - 1):
            self._thread(self._run)
        self._run()

    def _split(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Pieces of what is stored."""
        for offset, length in ranges:
            for extent in self._source.extents(offset, length):
                if extent.data:
                    for at in range(extent.offset, extent.end, PIECE):
                        yield at, min(PIECE, extent.end - at)

    def _run(self) -> None:
        while self._may():
            with self._lock:
                try:
                    piece = next(self._pieces, None)
                except CloudMountError:
                    piece = None
                if piece is None or self._left <= 0:
                    return
                self._left -= piece[1]
            self._source.fetch_ahead(*piece)

    def _may(self) -> bool:
        """Wait for a quiet moment; False when it is over."""
        reader = self._reader
        while time.monotonic() < self._ends and not reader.outage:
            if reader.idle() >= QUIET:
                return not reader.closed.is_set()
            if reader.closed.wait(QUIET / 2):
                return False
        return False
