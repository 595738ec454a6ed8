"""What is held in memory of opened frames, and what is on its way there.

Decided here and only here: the byte bound of memory (what a kept frame costs is its
bytes and `ENTRY_BYTES`), that a frame is fetched once however many wait for it, that a
flight which is long overdue no longer counts (its thread may be lost in a silent
store), and how often readahead was for nothing.

Threading: any number of threads; one lock, held for dictionary operations only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

import cachetools

Key = tuple[Hashable, int]
"""A stream's identity and a frame's number in it. Equal identities promise equal content."""
V = TypeVar("V")

ENTRY_BYTES = 512
"""What an entry takes beside the frame's own bytes, about: key, order and size."""
OVERDUE = 2.0


class Flight(Generic[V]):
    """Something on its way. Lands once, with a value or an error; `ends` is when it gives up."""

    __slots__ = ("_landed", "_value", "ends", "error", "joined")

    def __init__(self, ends: float) -> None:
        self.ends = ends
        self.error: BaseException | None = None
        self.joined = False
        """Whether somebody waits for it who didn't begin it."""
        self._value: V | None = None
        self._landed = threading.Event()

    @property
    def landed(self) -> bool:
        """Whether it has a value or an error."""
        return self._landed.is_set()

    @property
    def overdue(self) -> bool:
        """Whether it should have landed long ago: nobody should join it any more."""
        return time.monotonic() > self.ends + OVERDUE

    def land(self, value: V) -> None:
        """Give everyone the value."""
        self._value = value
        self._landed.set()

    def crash(self, error: BaseException) -> None:
        """Give everyone the error."""
        self.error = error
        self._landed.set()

    def wait(self, seconds: float) -> bool:
        """Wait until it landed; False when it did not in time."""
        return self._landed.wait(seconds)

    def result(self) -> V:
        """What a landed flight brought; raises its error."""
        if self.error is not None:
            raise self.error
        return self._value  # type: ignore[return-value] # landed without an error, so with a value


class Claims(NamedTuple):
    """What became of the frames asked for: kept already, fetched by others, or the caller's to fetch."""

    kept: dict[Key, bytes]
    others: dict[Key, Flight[bytes]]
    mine: dict[Key, Flight[bytes]]


class _Kept(cachetools.LRUCache[Key, bytes]):
    """Opened frames; `unused` are those that nobody asked for yet, `wasted` counts those lost unused."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit, getsizeof=lambda plain: len(plain) + ENTRY_BYTES)
        self.unused: set[Key] = set()
        self.wasted = 0

    def popitem(self) -> tuple[Key, bytes]:
        key, plain = super().popitem()
        if key in self.unused:
            self.unused.discard(key)
            self.wasted += 1
        return key, plain


class FrameTable:
    """Opened frames in at most `limit` bytes of memory, and flights."""

    def __init__(self, limit: int) -> None:
        self._kept = _Kept(limit)
        self._flights: dict[Key, Flight[bytes]] = {}
        self._lock = threading.Lock()
        self._closed: BaseException | None = None

    @property
    def limit(self) -> int:
        """Most bytes that are kept."""
        return int(self._kept.maxsize)

    @property
    def used(self) -> int:
        """Bytes kept now."""
        with self._lock:
            return int(self._kept.currsize)

    @property
    def wasted(self) -> int:
        """Frames read ahead that were pushed out before anybody asked for them."""
        with self._lock:
            return self._kept.wasted

    def get(self, key: Key) -> bytes | None:
        """A kept frame, now the most recently used."""
        kept = self._kept
        with self._lock:
            plain = kept.get(key)
            if plain is not None and kept.unused:
                kept.unused.discard(key)
            return plain

    def has(self, key: Key) -> bool:
        """Whether a frame is kept; doesn't count as a use of it."""
        with self._lock:
            return key in self._kept

    def there(self, key: Key) -> bool:
        """Whether a frame is kept or under way."""
        with self._lock:
            if key in self._kept:
                return True
            flight = self._flights.get(key)
            return flight is not None and not flight.overdue

    def claim(self, keys: Iterable[Key], ends: float) -> Claims:
        """Everything about these frames in one step. The caller must land or crash what is its own."""
        claims = Claims({}, {}, {})
        with self._lock:
            if self._closed is not None:
                raise self._closed
            for key in keys:
                plain = self._kept.get(key)
                if plain is not None:
                    self._kept.unused.discard(key)
                    claims.kept[key] = plain
                    continue
                flight = self._flights.get(key)
                if flight is not None and not flight.overdue:
                    flight.joined = True
                    claims.others[key] = flight
                else:
                    claims.mine[key] = self._flights[key] = Flight(ends)
        return claims

    def claim_new(self, keys: Iterable[Key], ends: float) -> dict[Key, Flight[bytes]]:
        """Flights for those of the frames that are neither kept nor under way: for readahead."""
        mine = {}
        with self._lock:
            if self._closed is not None:
                raise self._closed
            for key in keys:
                flight = self._flights.get(key)
                if key not in self._kept and (flight is None or flight.overdue):
                    mine[key] = self._flights[key] = Flight(ends)
        return mine

    def land(self, key: Key, flight: Flight[bytes], plain: bytes, *, ahead: bool = False) -> int:
        """Keep a frame and give it to all who wait; how many unused frames it pushed out."""
        with self._lock:
            before = self._kept.wasted
            if self._closed is None and len(plain) + ENTRY_BYTES <= self._kept.maxsize:
                if ahead and not flight.joined and key not in self._kept:
                    self._kept.unused.add(key)
                self._kept[key] = plain
            self._leave(key, flight)
            wasted = self._kept.wasted - before
        flight.land(plain)
        return wasted

    def crash(self, key: Key, flight: Flight[bytes], error: BaseException) -> None:
        """Give an error to all who wait, unless the flight landed. It isn't kept: the next who asks
        starts a new flight."""
        with self._lock:
            self._leave(key, flight)
        if not flight.landed:
            flight.crash(error)

    def _leave(self, key: Key, flight: Flight[bytes]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def close(self, error: BaseException) -> None:
        """Forget everything; who waits, and who asks later, gets `error`."""
        with self._lock:
            self._closed = error
            self._kept.clear()
            self._kept.unused.clear()
            flights, self._flights = self._flights, {}
        for flight in flights.values():
            flight.crash(error)
