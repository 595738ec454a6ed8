"""How quick the line to the repository is, by reading a little of what is stored there.

Decided here and only here: what is read (ranges of the repository's own objects, thrown away), and that it
stays small: three reads one after another for the round trip, then four at once for about `SECONDS`, at most
`MOST` bytes. A slow line is asked for smaller pieces; a dead one ends it after `LONGEST`.

Threading: `measure` on any thread; its threads end with it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from cloudmount.blobs.store import BlobStore
from cloudmount.errors import CloudMountError

SECONDS = 2.0
LONGEST = 10.0
MOST = 24 << 20
AT_ONCE = 4
PROBE = 64 << 10
_TINY = 1 << 10
_LOOKED_AT = 8
"""Ranges whose longest is taken for the probe: a disk's first frames are small ones."""
_PROBES = (_TINY, _TINY, _TINY)
_PIECES = ((0.5, PROBE), (0.1, 256 << 10), (0.0, 1 << 20))
"""How large a piece is, by the seconds that the probe took at least."""


class Range(NamedTuple):
    """`length` bytes at `offset` of an object."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Link:
    """A line: bytes that come in a second with several requests at once, seconds of a round trip; what was
    read to know it."""

    bytes_per_second: float
    round_trip: float
    fetched_bytes: int
    requests: int

    def seconds(self, size: int, waits: float = 0) -> float:
        """How long `size` bytes take, and so many round trips that somebody waits for."""
        return size / self.bytes_per_second + waits * self.round_trip


def measure(
    store: BlobStore, ranges: Iterable[Range], clock: Callable[[], float] = time.monotonic
) -> Link | None:
    """The line to `store`; None when `ranges` has nothing to read. Store errors when nothing came."""
    began = clock()
    deadline = began + LONGEST
    parts = iter(ranges)
    head = list(itertools.islice(parts, _LOOKED_AT))
    if not head:
        return None
    first = max(head, key=lambda part: part.length)
    head.remove(first)
    parts = itertools.chain(head, parts)
    trips = []
    for length in _PROBES:
        at = clock()
        store.read(first.name, first.offset, min(length, first.length), deadline=deadline)
        trips.append(clock() - at)
    fetched, requests = min(_TINY, first.length) * len(_PROBES), len(_PROBES)
    trip = min(trips)  # the first one may have made the connection
    at = clock()
    probe = min(PROBE, first.length)
    store.read(first.name, first.offset, probe, deadline=deadline)
    took = clock() - at
    piece = next(size for least, size in _PIECES if took >= least or probe < PROBE)
    came = _Several(store, _pieces(first, probe, parts, piece), deadline, clock)
    came.run()
    alone = probe / max(took - trip, took / 2, 1e-6)
    rate = came.bytes / max(came.seconds, 1e-6) if came.bytes else alone
    return Link(rate, trip, fetched + probe + came.bytes, requests + 1 + came.requests)


def _pieces(first: Range, read: int, more: Iterator[Range], piece: int) -> Iterator[Range]:
    """What is left of the ranges, in pieces; at most `MOST` bytes."""
    left = MOST
    name, offset, length = first.name, first.offset + read, first.length - read
    while True:
        while length > 0:
            size = min(piece, length, left)
            if not size:
                return
            yield Range(name, offset, size)
            offset, length, left = offset + size, length - size, left - size
        following = next(more, None)
        if following is None:
            return
        name, offset, length = following


class _Several:
    """Pieces read by several threads, until it is known how quick that goes."""

    def __init__(
        self, store: BlobStore, pieces: Iterator[Range], deadline: float, clock: Callable[[], float]
    ) -> None:
        self._store, self._pieces, self._deadline, self._clock = store, pieces, deadline, clock
        self._lock = threading.Lock()
        self.bytes = self.requests = 0
        self.seconds = 0.0

    def run(self) -> None:
        """Read. A store that stops answering ends it."""
        self._began = self._clock()
        with ThreadPoolExecutor(AT_ONCE, "cloudmount-link") as threads:
            for _ in range(AT_ONCE):
                threads.submit(self._work)

    def _work(self) -> None:
        while self._clock() - self._began < SECONDS:
            with self._lock:
                try:
                    piece = next(self._pieces, None)
                except CloudMountError:  # where more lies can't be told: damaged, or not reachable
                    piece = None
            if piece is None:
                return
            try:
                data = self._store.read(*piece, deadline=self._deadline)
            except CloudMountError:
                return
            with self._lock:
                self.requests += 1
                self.bytes += len(data)
                self.seconds = self._clock() - self._began
