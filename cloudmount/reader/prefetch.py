"""Bringing what is likely to be read before anybody asks for it.

Decided here and only here: in which requests that is asked for, how many are under way at once, and that it
ends by itself when the store falls silent or it would come too late. A guess is asked for only while nobody
waits for the store; what is known (`Plan.eager`) at once, since readers will wait for it soon. Whoever reads
such a frame while it is on its way waits for it as for any other; a failure is nobody's, and met again by
whoever reads there.

Threading: `start` once, on any thread; the threads are daemons.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cloudmount.errors import CloudMountError
from cloudmount.extents import BlockSource
from cloudmount.reader.fetching import FrameReader

PIECE = 1 << 20
"""Plain bytes of a request: less than 0.1 s of 100 Mbit/s, for which a read that comes meanwhile waits."""
WINDOW = 16 << 20
"""Plain bytes that are put in the order of the disk before they are asked for: fewer requests."""
AT_ONCE = 3
QUIET = 0.1
"""Seconds for which nobody must have waited for the store."""
LONGEST = 120.0
"""Seconds after which what isn't there yet is left to its readers."""

Range = Sequence[tuple[int, int]]
"""Ranges of a source: (offset, length) in bytes."""


class Prefetchable(BlockSource, Protocol):
    """A source that can bring bytes nearer."""

    def fetch_ahead(self, ranges: Range) -> None:
        """Bring what is stored of the ranges and not at hand yet, on this thread, in as few requests as may
        be. Raises nothing: whoever reads there meets an error again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to bring, in this order, at most `limit` plain bytes; `eager`: also while readers wait."""

    ranges: Iterable[tuple[int, int]]
    limit: int
    eager: bool = False


class Prefetch:
    """Brings what `plan` says, which is asked on a thread of its own, so that it may read the source."""

    def __init__(self, reader: FrameReader, source: Prefetchable, plan: Callable[[], Plan]) -> None:
        self._reader, self._source, self._ask = reader, source, plan
        self._plan = Plan((), 0)
        self._ends = time.monotonic() + LONGEST
        self._pieces: Iterator[Range] = iter(())
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread(self._begin)

    @staticmethod
    def _thread(run: Callable[[], None]) -> None:
        threading.Thread(target=run, name="cloudmount-prefetch", daemon=True).start()

    def _begin(self) -> None:
        try:
            self._plan = self._ask()
            self._pieces = self._split(list(self._plan.ranges))
        except (CloudMountError, ValueError):
            return
        for _ in range(AT_ONCE - 1):
            self._thread(self._run)
        self._run()

    def _split(self, ranges: Range) -> Iterator[Range]:
        """What each request is for."""
        left = self._plan.limit
        window: list[tuple[int, int]] = []
        held = 0
        for offset, length in self._stored(ranges):
            if left <= 0:
                break
            window.append((offset, length))
            held, left = held + length, left - length
            if held >= WINDOW:
                yield from _requests(window)
                window, held = [], 0
        yield from _requests(window)

    def _stored(self, ranges: Range) -> Iterator[tuple[int, int]]:
        """The ranges in pieces; of long ones what is stored."""
        for offset, length in ranges:
            if length <= PIECE:
                yield offset, length
                continue
            for extent in self._source.extents(offset, length):
                if extent.data:
                    for at in range(extent.offset, extent.end, PIECE):
                        yield at, min(PIECE, extent.end - at)

    def _run(self) -> None:
        while self._may():
            with self._lock:
                try:
                    piece = next(self._pieces, None)
                except (CloudMountError, ValueError):
                    piece = None
            if piece is None:
                return
            self._source.fetch_ahead(piece)

    def _may(self) -> bool:
        """Wait for the moment; False when it is over."""
        reader = self._reader
        while time.monotonic() < self._ends and not reader.outage:
            if self._plan.eager or reader.idle() >= QUIET:
                return not reader.closed.is_set()
            if reader.closed.wait(QUIET / 2):
                return False
        return False


def _requests(window: list[tuple[int, int]]) -> Iterator[Range]:
    """A window's ranges in the order of the disk, about `PIECE` bytes at a time."""
    request: list[tuple[int, int]] = []
    held = 0
    for offset, length in sorted(window):
        if held + length > PIECE and request:
            yield request
            request, held = [], 0
        request.append((offset, length))
        held += length
    if request:
        yield request
