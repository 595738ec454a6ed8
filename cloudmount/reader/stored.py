"""A stored stream, disk or file, as a `BlockSource`.

Decided here and only here: how a read is put together from frames; that it waits at most
`io_timeout` for the store and tries again until then; which neighbours it brings; and that a
missing pack is damage only after the map was looked up anew (FORMAT.md section 6.5).

Threading: any number of threads.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from cloudmount.errors import BlobMissingError, DamagedError, StoreTimeoutError, StoreUnreachableError
from cloudmount.extents import Extent, check_range, merged
from cloudmount.reader.aside import Via
from cloudmount.reader.fetching import GROUP, WINDOW, Fetched, FrameReader, Member
from cloudmount.reader.flights import Flight, Key
from cloudmount.reader.prefetch import Range
from cloudmount.reader.readahead import NOTHING, REGION, Ahead, Readahead
from cloudmount.reader.runs import coalesce
from cloudmount.repo.frames import FrameMap
from cloudmount.repo.locations import Location
from cloudmount.repo.streams import StreamMap
from cloudmount.repo.structures import BLOCK_BYTES

__all__ = ["Fetched", "FrameReader", "StoredSource"]

T = TypeVar("T")

SLICE = 4 << 20
"""Bytes of a large read that are gathered at once; also the most that one request of readahead asks for."""
NEAR = 256 << 10
"""Bytes of neighbours that a random read brings with the same request, while that is of use. Opening must
stay under 1 MiB (FORMAT.md section 10): up to 384 KiB of snapshot object are before it."""
FIRST_PAUSE, LONGEST_PAUSE, LAST_PAUSE = 0.1, 2.0, 0.02


class StoredSource:
    """The stream that `frame_map` tells of, through `reader`.

    `ident` names its content: sources of equal `ident` share memory, so it must never stand for two
    contents. `renew` gives a newer map when the store has one (called once for a read that found an
    object missing, on a worker), else None. Without `ahead` only frames that hold what is asked for are
    fetched, beforehand what `prefetch` is told. `size` in bytes.
    """

    def __init__(
        self,
        reader: FrameReader,
        frame_map: FrameMap,
        ident: Hashable,
        *,
        renew: Callable[[], FrameMap | None] | None = None,
        ahead: bool = True,
    ) -> None:
        self.size = frame_map.size
        self._reader, self._table = reader, reader.table
        self._map, self._ident, self._renew = frame_map, ident, renew
        self._frame = frame_map.frame_bytes
        self._frames = -(-self.size // self._frame)
        self._slice = max(1, SLICE // self._frame)
        longest = min(WINDOW, reader.table.limit // 4) // self._frame
        self._readahead = Readahead(
            self._frames,
            near=min(NEAR // self._frame, 64),
            longest=longest,
            region=REGION // self._frame,
        )
        self._alone = not ahead
        self._last = -1
        self._closed = False

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`.

        `ValueError` outside 0..`size` or when closed; `DamagedError` naming what is damaged;
        `StoreTimeoutError` when the store did not answer for `io_timeout` seconds (for reads of more
        than 4 MiB: each 4 MiB), or at once for what timed out before, until the store answers again.
        """
        check_range(self.size, offset, length)
        if self._closed:
            raise ValueError("this source is closed")
        first, start = divmod(offset, self._frame)
        if start + length <= self._frame:
            plain = self._table.get((self._ident, first))
            if plain is not None:
                if first != self._last:
                    self._note(first, first + 1)
                return plain[start : start + length]
        parts: list[bytes | memoryview] = []
        end = offset + length
        while offset < end:
            first = offset // self._frame
            stop = min(-(-end // self._frame), first + self._slice)
            for number, plain in enumerate(self._gather(first, stop), first):
                base = number * self._frame
                low, high = max(offset, base) - base, min(end - base, self._frame)
                source = self._reader.zeros if plain is None else plain
                whole = high - low == len(source)
                parts.append(source if whole else memoryview(source)[low:high])
            offset = stop * self._frame
        return b"".join(parts)

    def fetch_ahead(self, ranges: Range, via: Via | None = None) -> None:
        """As `prefetch.Prefetchable` says."""
        numbers: set[int] = set()
        for offset, length in ranges:
            check_range(self.size, offset, length)
            numbers.update(range(offset // self._frame, -(-(offset + length) // self._frame)))
        self._fetch_ahead(sorted(numbers), time.monotonic() + self._reader.io_timeout, alone=True, via=via)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The range by the map alone: blocks of 2 MiB (files of few frames: frames), ZERO where nothing
        of one is stored."""
        check_range(self.size, offset, length)
        if not length:
            return iter(())
        if isinstance(self._map, StreamMap):
            return merged(self._blocks(offset, offset + length))
        return merged(self._single_frames(offset, offset + length))

    def prefetch(self, offset: int, length: int) -> None:
        """Begin to fetch the frames that hold these bytes; who reads them meets what fails."""
        check_range(self.size, offset, length)
        if length and not self._closed:
            self._schedule(Ahead(0, offset // self._frame, -(-(offset + length) // self._frame)))

    def close(self) -> None:
        """Reads begun later are refused. What is in memory stays: other sources may share it."""
        self._closed = True

    # Extents

    def _blocks(self, offset: int, end: int) -> Iterator[Extent]:
        def bitmap(deadline: float, _first: bool) -> bytes:
            found = self._map
            assert isinstance(found, StreamMap)
            return self._reader.ask(("presence", found), found.presence, deadline)

        first = offset // BLOCK_BYTES
        bits = self._patiently(bitmap, lambda: (), offset, end)[first // 8 : -(-end // BLOCK_BYTES) // 8 + 1]
        base = first // 8 * 8

        def extent(block: int, stop: int, data: bool) -> Extent:
            low, high = max(offset, block * BLOCK_BYTES), min(end, stop * BLOCK_BYTES)
            return Extent(low, max(0, high - low), data)

        # Whole bytes at once: a 64 TiB disk has 33 million blocks.
        for found in re.finditer(rb"\x00+|\xff+|[^\x00\xff]", bits):
            start, stop = base + 8 * found.start(), base + 8 * found.end()
            byte = bits[found.start()]
            if byte in (0x00, 0xFF):
                yield extent(start, stop, byte == 0xFF)
            else:
                for i in range(8):
                    yield extent(start + i, start + i + 1, bool(byte >> i & 1))

    def _single_frames(self, offset: int, end: int) -> Iterator[Extent]:
        def rows(deadline: float, _first: bool) -> dict[int, Location | None]:
            return self._places(range(offset // self._frame, -(-end // self._frame)), deadline)

        for number, at in self._patiently(rows, lambda: (), offset, end).items():
            low = max(offset, number * self._frame)
            high = min(end, (number + 1) * self._frame)
            yield Extent(low, high - low, at is not None)

    # Frames

    def _gather(self, first: int, stop: int) -> list[bytes | None]:
        """The frames' plain bytes, None for absent ones."""

        def missing() -> list[Key]:
            keys = [(self._ident, n) for n in range(first, stop) if not self._is_absent(n)]
            return [key for key in keys if not self._table.has(key)]

        return self._patiently(
            lambda deadline, once: self._attempt(first, stop, deadline, once),
            missing,
            first * self._frame,
            min(self.size, stop * self._frame),
        )

    def _is_absent(self, number: int) -> bool:
        """Whether a frame is known to be all zeros."""
        rows = self._reader.known_places(self._map, number // GROUP)
        return rows is not None and rows[number % GROUP] is None

    def _patiently(
        self,
        attempt: Callable[[float, bool], T],
        missing: Callable[[], Iterable[Key]],
        offset: int,
        end: int,
    ) -> T:
        """What `attempt(deadline, whether it is the first)` gives, tried until `io_timeout` is over;
        then what is `missing` is remembered, and it is a `StoreTimeoutError`."""
        reader = self._reader
        deadline = time.monotonic() + reader.io_timeout
        pause = FIRST_PAUSE
        renewed, first = False, True
        while True:
            try:
                return attempt(deadline, first)
            except _Remembered as error:
                raise StoreTimeoutError(str(error)) from None
            except StoreUnreachableError as error:
                left = deadline - time.monotonic()
                if left <= LAST_PAUSE:
                    reader.outage.timed_out(missing())
                    raise StoreTimeoutError(
                        f"{reader.repository.store.address} did not give bytes {offset} to {end} within "
                        f"{reader.io_timeout:g} s: {error}"
                    ) from error
                reader.closed.wait(min(pause, left / 2))
                pause = min(2 * pause, LONGEST_PAUSE)
            except (BlobMissingError, DamagedError) as error:
                if renewed or not self._look_again(deadline):
                    if isinstance(error, DamagedError):
                        raise
                    raise DamagedError(f"{error.name} is missing from the store") from None
                renewed = True
            first = False

    def _look_again(self, deadline: float) -> bool:
        """Take a newer map, if there is one."""
        if self._renew is None:
            return False
        newer = self._reader.ask(("renew", self), self._renew, deadline)
        if newer is None or newer is self._map:
            return False
        if newer.size != self.size or newer.frame_bytes != self._frame:
            raise DamagedError("a newer layout of a snapshot has a stream of another size")
        self._map = newer
        return True

    def _places(self, numbers: Iterable[int], deadline: float) -> dict[int, Location | None]:
        found: dict[int, Location | None] = {}
        rows: list[Location | None] = []
        group, frame_map = -1, self._map
        for n in numbers:
            if n // GROUP != group:
                group = n // GROUP
                rows = self._reader.places(frame_map, group, deadline)
            found[n] = rows[n % GROUP]
        return found

    def _attempt(self, first: int, stop: int, deadline: float, once: bool) -> list[bytes | None]:
        ident, outage = self._ident, self._reader.outage
        found: dict[int, bytes | None] = {}
        absent: list[int] = []
        for n in range(first, stop):
            plain = self._table.get((ident, n))
            if plain is None:
                absent.append(n)
            found[n] = plain
        if not absent:
            if once:
                self._note(first, stop)
            return list(found.values())
        if once and outage and outage.covers((ident, n) for n in absent):
            raise _Remembered(
                f"{self._reader.repository.store.address} did not answer for these bytes before and hasn't "
                "answered since; they can be read again once it does"
            )
        places = self._places(absent, deadline)
        wanted = {n: at for n, at in places.items() if at is not None}
        ahead = self._ahead_of(first, stop, self._reader.pace.worth) if once else NOTHING
        if wanted:
            flights = self._demand(wanted, found, ahead.near, stop, deadline)
            self._schedule(ahead)
            for n, flight in flights.items():
                found[n] = self._reader.wait(flight, deadline)
        else:
            self._schedule(ahead)
        self._last = stop - 1
        return list(found.values())

    def _demand(
        self,
        wanted: dict[int, Location],
        found: dict[int, bytes | None],
        near: int,
        stop: int,
        deadline: float,
    ) -> dict[int, Flight[bytes]]:
        """Claim the frames `wanted`: those at hand go into `found`, the others' flights come back."""
        reader, table, ident = self._reader, self._table, self._ident
        claims = table.claim(((ident, n) for n in wanted), deadline)
        mine = dict(claims.mine)
        flights = {key[1]: flight for key, flight in claims.others.items()}
        for key, plain in claims.kept.items():
            found[key[1]] = plain
        try:
            need, held = [], set()
            for key, flight in claims.mine.items():
                n = key[1]
                at, length = wanted[n], self._length(n)
                cached = reader.cached(at, length)
                if cached is not None:
                    table.land(key, flight, cached)
                    found[n] = cached
                    held.add((at.pack, at.offset))
                else:
                    flights[n] = flight
                    need.append(Member(key, flight, at, length, False))
            if need:
                need += self._neighbours(need[-1].at, stop, near, deadline, mine)
            held |= {(at.pack, at.offset) for n, at in wanted.items() if n not in flights}
            for run in coalesce(need, lambda m: m.at, longest=SLICE + NEAR, held=held):
                reader.fetch(run, deadline, self._readahead, urgent=True)
        except BaseException as error:
            for key, flight in mine.items():
                table.crash(key, flight, error)
            raise
        return flights

    def _length(self, number: int) -> int:
        return min(self._frame, self.size - number * self._frame)

    def _neighbours(
        self, last: Location, stop: int, near: int, deadline: float, mine: dict[Key, Flight[bytes]]
    ) -> Iterator[Member]:
        """Frames from `stop` on that adjoin `last` in its pack and are nowhere yet; at most `near`."""
        reader = self._reader
        ends = {last.offset + last.length, last.offset + last.counted}
        for n in range(stop, min(stop + near, self._frames)):
            rows = reader.known_places(self._map, n // GROUP)
            if rows is None:
                return
            at = rows[n % GROUP]
            if at is None:
                continue
            if at.pack != last.pack or at.offset not in ends:
                return
            claimed = self._table.claim_new([(self._ident, n)], deadline)
            if not claimed:
                return
            mine |= claimed
            ((key, flight),) = claimed.items()
            cached = reader.cached(at, self._length(n))
            if cached is not None:
                self._table.land(key, flight, cached, ahead=True)
                return
            yield Member(key, flight, at, self._length(n), True)
            ends = {at.offset + at.length, at.offset + at.counted}

    # Readahead

    def _note(self, first: int, stop: int) -> None:
        """Frames that were in memory are being read."""
        self._last = stop - 1
        self._schedule(self._ahead_of(first, stop))

    def _ahead_of(self, first: int, stop: int, beside: int = 0) -> Ahead:
        if self._alone or self._reader.expects(self._ident, first):
            return NOTHING
        allowed = self._reader.pace.limit // self._frame
        return self._readahead.read(first, stop, allowed, beside // self._frame)

    def _schedule(self, ahead: Ahead) -> None:
        """Have workers fetch ahead, unless the store is silent or they have enough to do."""
        if ahead.first >= ahead.stop or self._reader.outage:
            return
        ends = time.monotonic() + self._reader.io_timeout
        # Four requests to a window: the first frames of a slow link's come soon.
        chunk = max(1, min(SLICE, self._reader.pace.limit // 4, self._table.limit // 16) // self._frame)
        for first in range(ahead.first, ahead.stop, chunk):
            stop = min(first + chunk, ahead.stop)
            if all(self._table.there((self._ident, n)) or self._is_absent(n) for n in range(first, stop)):
                continue
            job = functools.partial(self._fetch_ahead, range(first, stop), ends)
            if not self._reader.workers.submit(job, ends, urgent=False):
                self._readahead.refused(Ahead(0, first, ahead.stop))
                return

    def _fetch_ahead(
        self, numbers: Sequence[int], ends: float, *, alone: bool = False, via: Via | None = None
    ) -> None:
        """Bring those of these frames that are nowhere yet, on this thread; where they take several requests,
        other workers help, unless `alone`."""
        reader, table, ident = self._reader, self._table, self._ident
        mine: dict[Key, Flight[bytes]] = {}
        try:
            rows: dict[int, Location] = {}
            for n in numbers:
                at = reader.load_places(self._map, n // GROUP)[n % GROUP]
                if at is not None:
                    rows[n] = at
            mine = table.claim_new(((ident, n) for n in rows), ends)
            need, held = [], {(at.pack, at.offset) for n, at in rows.items() if (ident, n) not in mine}
            for key, flight in mine.items():
                at, length = rows[key[1]], self._length(key[1])
                cached = reader.cached(at, length)
                if cached is None:
                    need.append(Member(key, flight, at, length, True))
                    continue
                held.add((at.pack, at.offset))
                if table.land(key, flight, cached, ahead=True):
                    self._readahead.wasted()
            if via is not None:
                reader.bring_planned(need, via.aside, via.bridge, ends, self._readahead)
                return
            runs = coalesce(need, lambda m: m.at, longest=SLICE, held=held)
            own = len(runs) if alone else 1
            for run in runs[own:]:
                reader.fetch(run, ends, self._readahead, urgent=False)
            for run in runs[:own]:
                reader.bring(run, ends, self._readahead)
        except BaseException as error:  # nobody asked: who reads these frames meets it again
            for key, flight in mine.items():
                table.crash(key, flight, error)


class _Remembered(Exception):
    """The range timed out before, and the store hasn't answered since."""
