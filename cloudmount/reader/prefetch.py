"""Bringing what is likely to be read before anybody asks for it.

Decided here and only here: in which requests a guess is asked for, how much is under way at once, and that it
ends by itself when the store falls silent or it would come too late. A guess is asked for only while nobody
waits for the store; what is known (`Plan.eager`) at once, since readers will wait for it soon: as much of it
under way as the line carried in the last second and a half, so that a slow one is not stuffed. Whoever reads
such a frame while it is on its way waits for it as for any other; a failure is nobody's, and met again by
whoever reads there.

Threading: `start` once, on any thread; the threads are daemons.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cloudmount.errors import CloudMountError
from cloudmount.extents import BlockSource
from cloudmount.reader.aside import Via
from cloudmount.reader.fetching import FrameReader

PIECE = 1 << 20
"""Plain bytes of a request: less than 0.1 s of 100 Mbit/s, for which a read that comes meanwhile waits."""
WINDOW = 4 << 20
"""Plain bytes of a guess that are put in the order of the disk before they are asked for: fewer requests."""
AT_ONCE, EAGER_AT_ONCE = 3, 8
"""Requests under way of a guess, and of what is known."""
LEAST, MOST = 1 << 20, 8 << 20
"""Bytes of what is known that are under way, at least and at most, where requests are not larger."""
SECONDS = 1.5
QUIET = 0.1
"""Seconds for which nobody must have waited for the store."""
LONGEST = 120.0
"""Seconds after which what isn't there yet is left to its readers."""

Range = Sequence[tuple[int, int]]
"""Ranges of a source: (offset, length) in bytes."""


class Prefetchable(BlockSource, Protocol):
    """A source that can bring bytes nearer."""

    def fetch_ahead(self, ranges: Range, via: Via | None = None) -> None:
        """Bring what is stored of the ranges and not at hand yet, on this thread, in as few requests as may
        be, planned ones as `via` says. Raises nothing: whoever reads there meets an error again."""


class Request(NamedTuple):
    """What is asked for together: ranges of the source, about so many bytes of the store."""

    ranges: Range
    bytes: int
    via: Via | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to bring, in this order; `eager`: also while readers wait. `requests` may wait for the store."""

    requests: Iterable[Request]
    eager: bool = False


class Prefetch:
    """Brings what `plan` says, which is asked on a thread of its own, so that it may read the source."""

    def __init__(self, reader: FrameReader, source: Prefetchable, plan: Callable[[], Plan]) -> None:
        self._reader, self._source, self._ask = reader, source, plan
        self._eager = False
        self._ends = time.monotonic() + LONGEST
        self._requests: Iterator[Request] = iter(())
        self._began, self._brought = 0.0, 0
        self._under_way: list[int] = []
        self._turn, self._change = threading.Lock(), threading.Condition()

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread(self._begin)

    @staticmethod
    def _thread(run: Callable[[], None]) -> None:
        threading.Thread(target=run, name="cloudmount-prefetch", daemon=True).start()

    def _begin(self) -> None:
        try:
            plan = self._ask()
        except (CloudMountError, ValueError):
            return
        self._eager, self._requests = plan.eager, iter(plan.requests)
        for _ in range((EAGER_AT_ONCE if self._eager else AT_ONCE) - 1):
            self._thread(self._run)
        self._run()

    def _run(self) -> None:
        while self._may():
            with self._turn:  # one after another: what comes first is asked for first
                try:
                    request = next(self._requests, None)
                except (CloudMountError, ValueError):
                    request = None
                if request is None:
                    return
                if self._eager:
                    self._take(request.bytes)
            try:
                self._source.fetch_ahead(request.ranges, request.via)
            finally:
                if self._eager:
                    self._done(request.bytes)

    def _take(self, bytes: int) -> None:
        """Wait until there is room on the line."""
        with self._change:
            while self._under_way and sum(self._under_way) + bytes > self._room():
                self._change.wait()
            if not self._began:
                self._began = time.monotonic()
            self._under_way.append(bytes)

    def _room(self) -> float:
        seconds = time.monotonic() - self._began
        return max(LEAST, min(MOST, self._brought / max(seconds, 0.001) * SECONDS))

    def _done(self, bytes: int) -> None:
        with self._change:
            self._under_way.remove(bytes)
            self._brought += bytes
            self._change.notify_all()

    def _may(self) -> bool:
        """Wait for the moment; False when it is over."""
        reader = self._reader
        while time.monotonic() < self._ends and not reader.outage:
            if self._eager or reader.idle() >= QUIET:
                return not reader.closed.is_set()
            if reader.closed.wait(QUIET / 2):
                return False
        return False


def guessed(source: Prefetchable, ranges: Iterable[tuple[int, int]], limit: int) -> Iterator[Request]:
    """The ranges of the source in requests, at most `limit` plain bytes."""
    left = limit
    window: list[tuple[int, int]] = []
    held = 0
    for offset, length in _stored(source, ranges):
        if left <= 0:
            break
        window.append((offset, length))
        held, left = held + length, left - length
        if held >= WINDOW:
            yield from _pieces(window)
            window, held = [], 0
    yield from _pieces(window)


def _stored(source: Prefetchable, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The ranges in pieces; of long ones what is stored."""
    for offset, length in ranges:
        if length <= PIECE:
            yield offset, length
            continue
        for extent in source.extents(offset, length):
            if extent.data:
                for at in range(extent.offset, extent.end, PIECE):
                    yield at, min(PIECE, extent.end - at)


def _pieces(window: list[tuple[int, int]]) -> Iterator[Request]:
    """A window's ranges in the order of the disk, about `PIECE` bytes at a time."""
    request: list[tuple[int, int]] = []
    held = 0
    for offset, length in sorted(window):
        if held + length > PIECE and request:
            yield Request(request, held)
            request, held = [], 0
        request.append((offset, length))
        held += length
    if request:
        yield Request(request, held)
