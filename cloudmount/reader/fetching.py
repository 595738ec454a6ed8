"""Opened frames for the sources of one repository: from memory, the disk cache, the store.

Decided here and only here: that everything which may wait for the store (frames, and what maps
load) happens on worker threads while readers wait with a deadline, how a request's bytes
become frames, and what damage is called. Sealed frames come from the disk cache and go
there each under its own key; what doesn't open is dropped there and fetched anew.

Give it a repository over a store that itself gives up after `io_timeout`
(`RetryPolicy.reading`): frames are read with a deadline, but loads of maps have no
other; a thread that a store holds longer is replaced, but only a few are.

Threading: any number of threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import cachetools

from cloudmount.errors import (
    BlobMissingError,
    CloudMountError,
    DamagedError,
    StoreTimeoutError,
    StoreUnreachableError,
)
from cloudmount.reader.aside import Aside
from cloudmount.reader.flights import Flight, FrameTable, Key
from cloudmount.reader.outage import Outage
from cloudmount.reader.readahead import Pace, Readahead
from cloudmount.reader.runs import Run, coalesce
from cloudmount.reader.workers import Workers
from cloudmount.repo.dictionaries import NotAtHandError
from cloudmount.repo.frames import FrameMap
from cloudmount.repo.locations import Location
from cloudmount.repo.names import CONFIG, pack_name
from cloudmount.repo.packs import open_frame
from cloudmount.repo.repository import Repository, SealedCache
from cloudmount.repo.streams import StreamMap

T = TypeVar("T")
Places = list[Location | None]
"""Where the frames of a group lie; None for absent ones."""

GROUP = 256
"""Frames whose places are asked of a map together: 0.2 ms, and 50 KiB where all are present."""
PLACES_BYTES = 4 << 20
WINDOW = 16 << 20
"""The most plain bytes that are fetched ahead of one sequential reader."""
PLANNED = 4 << 20
"""The most sealed bytes of a request that a plan asks for."""
PROBE_SECONDS = 5.0
STEP = 1.0
"""Seconds after which who waits looks whether workers were lost."""


class Member(NamedTuple):
    """A frame that a request is to bring; `ahead` when nobody asked for it yet."""

    key: Key
    flight: Flight[bytes]
    at: Location
    length: int
    ahead: bool


@dataclass(slots=True)
class Fetched:
    """What was done so far: requests for frames and their bytes, frames opened from the store and from
    the disk cache, and frames read ahead that memory dropped unused."""

    requests: int = 0
    bytes: int = 0
    frames: int = 0
    cached: int = 0
    wasted: int = 0


def cache_key(at: Location) -> str:
    """What a sealed frame is called in the disk cache."""
    return f"{pack_name(at.pack)}@{at.offset}+{at.length}"


def _cut(data: bytes, at: Location, begin: int) -> bytes:
    """A frame's sealed bytes out of those of an object from `begin` on."""
    return data[at.offset - begin : at.offset - begin + at.length]


def _rows(frame_map: FrameMap, first: int, stop: int) -> Places:
    """Where the frames `first` up to `stop` lie."""
    if not isinstance(frame_map, StreamMap):
        return [frame_map.locate(n) for n in range(first, stop)]
    rows: Places = []
    while first < stop:  # segment by segment: a quarter of the time that asking for each frame takes
        number, place = frame_map.segment_of(first)
        count = min(stop - first, frame_map.segment_frames(number) - place)
        segment = frame_map.segment(number)
        if segment is None:
            rows += [None] * count
        else:
            rows += [segment.locate(i) for i in range(place, place + count)]
        first += count
    return rows


class FrameReader:
    """What all open files of a repository share.

    `memory_bytes` bound the opened frames kept, `cache` keeps sealed ones between runs, `io_timeout`
    seconds are the most that one read waits for the store, `workers` the requests at once.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        memory_bytes: int = 64 << 20,
        cache: SealedCache | None = None,
        io_timeout: float = 60.0,
        workers: int = 8,
    ) -> None:
        self.repository = repository
        self.io_timeout = io_timeout
        self.cache = cache
        self.table = FrameTable(memory_bytes)
        self.workers = Workers(workers)
        self.outage = Outage(self._probe)
        self.pace = Pace(WINDOW)
        self.closed = threading.Event()
        self.zeros = bytes(repository.geometry.frame)
        self._places: cachetools.LRUCache[tuple[FrameMap, int], Places] = cachetools.LRUCache(
            PLACES_BYTES, getsizeof=lambda rows: 300 + sum(8 if at is None else 200 for at in rows)
        )
        self._asked: dict[Hashable, Flight[Any]] = {}
        self._expected: dict[Hashable, tuple[frozenset[int], float]] = {}
        self._lock = threading.Lock()
        self._fetched = Fetched()
        self._kept = threading.Condition(self._lock)
        self._keeping = 0
        self._waiting = 0
        self._waited = float("-inf")

    def fetched(self) -> Fetched:
        """What was done so far."""
        with self._lock:
            f = self._fetched
            return Fetched(f.requests, f.bytes, f.frames, f.cached, self.table.wasted)

    def settle(self, seconds: float) -> None:
        """Wait until what arrived is in the disk cache too, at most so long: for who ends soon after."""
        with self._kept:
            self._kept.wait_for(lambda: not self._keeping, seconds)

    def close(self) -> None:
        """End at once: who waits gets an error, threads held by a silent store are left to end when they
        can (they don't keep the process alive). May be called twice."""
        self.closed.set()
        self.workers.close()
        self.outage.close()
        error = CloudMountError("reading has ended: the repository was closed")
        self.table.close(error)
        with self._lock:
            asked, self._asked = self._asked, {}
            self._places.clear()
        for flight in asked.values():
            flight.crash(error)

    def expect(self, ident: Hashable, frames: Collection[int], seconds: float) -> None:
        """These frames of the stream `ident`, and hardly others, will be read for so long: what lies beside
        them is not worth fetching."""
        self._expected[ident] = (frozenset(frames), time.monotonic() + seconds)

    def expects(self, ident: Hashable, frame: int) -> bool:
        """Whether a frame is one of those."""
        if not self._expected:
            return False
        frames, until = self._expected.get(ident, ((), 0.0))
        return frame in frames and time.monotonic() < until

    # Waiting

    def wait(self, flight: Flight[T], deadline: float) -> T:
        """What the flight brings; its error, or `StoreTimeoutError` when it isn't there at `deadline`."""
        if not flight.landed:
            with self._lock:
                self._waiting += 1
            try:
                while not flight.wait(max(0.0, min(STEP, deadline - time.monotonic()))):
                    if time.monotonic() >= deadline:
                        raise StoreTimeoutError("no answer in time")
                    self.workers.relieve()
            finally:
                with self._lock:
                    self._waiting -= 1
                    self._waited = time.monotonic()
        return flight.result()

    def idle(self) -> float:
        """For how many seconds nobody has waited for the store; 0 while somebody does."""
        with self._lock:
            return 0.0 if self._waiting else time.monotonic() - self._waited

    def ask(self, key: Hashable, job: Callable[[], T], deadline: float) -> T:
        """What `job` gives, called on a worker; those who ask under one key share one call."""
        with self._lock:
            flight: Flight[T] | None = self._asked.get(key)
            mine = flight is None or flight.overdue
            if flight is None or mine:
                flight = self._asked[key] = Flight(deadline)
        asked = flight

        def run() -> None:
            try:
                value = job()
            except BaseException as error:
                self._answer(key, asked)
                asked.crash(error)
            else:
                self._answer(key, asked)
                asked.land(value)

        if mine and not self.workers.submit(run, deadline):
            self._answer(key, asked)
            asked.crash(CloudMountError("reading has ended: the repository was closed"))
        return self.wait(asked, deadline)

    def _answer(self, key: Hashable, flight: Flight[Any]) -> None:
        with self._lock:
            if self._asked.get(key) is flight:
                del self._asked[key]

    def _probe(self) -> None:
        until = time.monotonic() + min(PROBE_SECONDS, self.io_timeout)
        self.repository.store.read(CONFIG, 0, 1, deadline=until)

    # Places

    def known_places(self, frame_map: FrameMap, group: int) -> Places | None:
        """Where a group's frames lie, when that is in memory."""
        with self._lock:
            return self._places.get((frame_map, group))

    def places(self, frame_map: FrameMap, group: int, deadline: float) -> Places:
        """Where the frames of a group lie; may wait for the map."""
        known = self.known_places(frame_map, group)
        if known is not None:
            return known
        return self.ask((frame_map, group), lambda: self.load_places(frame_map, group), deadline)

    def load_places(self, frame_map: FrameMap, group: int) -> Places:
        """The same on a worker's own thread, as long as it takes."""
        known = self.known_places(frame_map, group)
        if known is not None:
            return known
        frames = -(-frame_map.size // frame_map.frame_bytes)
        rows = _rows(frame_map, group * GROUP, min(frames, (group + 1) * GROUP))
        with self._lock:
            if not self.closed.is_set():
                self._places[frame_map, group] = rows
        return rows

    # Frames

    def cached(self, at: Location, length: int) -> bytes | None:
        """A frame of `length` plain bytes from the disk cache; None when it isn't there, or is damaged, or
        needs a dictionary that would have to be fetched: this asks no store."""
        if self.cache is None:
            return None
        key = cache_key(at)
        sealed = self.cache.get(key)
        if sealed is None:
            return None
        try:
            plain = open_frame(self.repository.keys, at, sealed, length, self.repository.dictionaries.at_hand)
        except NotAtHandError:
            return None
        except DamagedError:
            self.cache.drop(key)
            return None
        with self._lock:
            self._fetched.cached += 1
        return plain

    def fetch(self, run: Run[Member], ends: float, readahead: Readahead, *, urgent: bool) -> None:
        """Have a worker bring a run's frames until `ends`; their flights land or crash."""

        def job() -> None:
            self.bring(run, ends, readahead)

        if not self.workers.submit(job, ends, urgent=urgent):
            if self.closed.is_set() or urgent:
                self.crash(run, CloudMountError("reading has ended: the repository was closed"))
            else:
                job()  # readahead's own worker does it itself when the queue is full

    def bring(self, run: Run[Member], ends: float, readahead: Readahead) -> None:
        """Bring a run's frames on this thread. Raises nothing: errors are the flights'."""
        try:
            self._bring(run, ends, readahead)
        except BaseException as error:
            self.crash(run, error)

    def bring_planned(
        self, members: list[Member], aside: Aside | None, bridge: int, ends: float, readahead: Readahead
    ) -> None:
        """Bring frames that a plan asks for together, in as few requests as reading through gaps of `bridge`
        bytes allows, on this thread; those that are `aside` from there, and from their packs when that is
        gone or wrong. Raises nothing."""
        if aside is not None and not aside.lost:
            found = [(m, at) for m in members if (at := aside.where(m.at)) is not None]
            self._bring_aside(aside, found, bridge, ends, readahead)
            members = [m for m in members if not m.flight.landed]
        for run in coalesce(members, lambda m: m.at, longest=PLANNED, bridge=bridge):
            self.bring(run, ends, readahead)

    def _bring_aside(
        self,
        aside: Aside,
        found: list[tuple[Member, Location]],
        bridge: int,
        ends: float,
        readahead: Readahead,
    ) -> None:
        """Land what opens of the frames that lie at these places of `aside`; what does not is left."""
        for run in coalesce(found, lambda f: f[1], longest=PLANNED, bridge=bridge):
            members = [m for m, _ in run.members]
            try:
                data = self._read(aside.name, run.offset, run.length, ends)
                sealed = [_cut(data, at, run.offset) for _, at in run.members]
                for error in self._land(members, sealed, ends, readahead, spare=True):
                    aside.lose(error)
            except (BlobMissingError, DamagedError) as error:
                aside.lose(error)
            except BaseException as error:
                self.crash(Run(run.pack, run.offset, run.length, members), error)
            if aside.lost:
                return

    def crash(self, run: Run[Member], error: BaseException) -> None:
        """Give an error to all of a run that hasn't landed."""
        for m in run.members:
            self.table.crash(m.key, m.flight, error)

    def _bring(self, run: Run[Member], ends: float, readahead: Readahead) -> None:
        name = pack_name(run.pack)
        begun = time.monotonic()
        try:
            data = self._read(name, run.offset, run.length, ends)
        except DamagedError as error:
            if len(run.members) == 1:
                raise self._damaged(run.members[0], error) from None
            for m in run.members:  # each alone: a neighbour's damage isn't theirs
                self.bring(Run(run.pack, m.at.offset, m.at.length, [m]), ends, readahead)
            return
        if run.members[0].ahead:
            self.pace.took(time.monotonic() - begun)
        else:
            self.pace.answered(time.monotonic() - begun)
        self._land(run.members, [_cut(data, m.at, run.offset) for m in run.members], ends, readahead)

    def _read(self, name: str, offset: int, length: int, ends: float) -> bytes:
        """Bytes of an object, and whether the store is silent."""
        try:
            data = self.repository.store.read(name, offset, length, deadline=ends)
        except StoreUnreachableError:
            raise
        except CloudMountError:
            self.outage.answered()
            raise
        self.outage.answered()
        if len(data) != length:
            raise StoreUnreachableError(f"{len(data)} bytes of {name} came where {length} belong")
        with self._lock:
            self._fetched.requests += 1
            self._fetched.bytes += len(data)
        return data

    def _land(
        self,
        members: Sequence[Member],
        sealed: Sequence[bytes],
        ends: float,
        readahead: Readahead,
        *,
        spare: bool = False,
    ) -> list[DamagedError]:
        """Give the frames in `sealed` to those who wait, and to the disk cache; a dictionary that they need
        is waited for until `ends`. What does not open is its flight's error, or, of a `spare` copy, told
        only."""
        find = partial(self.repository.dictionaries.get, deadline=ends)
        with self._lock:
            self._keeping += 1
            self._fetched.frames += len(members)
        wrong: list[DamagedError] = []
        try:
            keep = []
            wasted = 0
            for m, piece in zip(members, sealed, strict=True):
                try:
                    plain = open_frame(self.repository.keys, m.at, piece, m.length, find)
                except DamagedError as error:
                    wrong.append(error)
                    if not spare:
                        self.table.crash(m.key, m.flight, self._damaged(m, error))
                    continue
                wasted += self.table.land(m.key, m.flight, plain, ahead=m.ahead)
                keep.append((m.at, piece))
            if wasted:
                readahead.wasted()
            if self.cache is not None:
                for at, piece in keep:  # after those who wait have theirs
                    self.cache.put(cache_key(at), piece)
        finally:
            with self._kept:
                self._keeping -= 1
                self._kept.notify_all()
        return wrong

    @staticmethod
    def _damaged(m: Member, error: DamagedError) -> DamagedError:
        at = m.at
        return DamagedError(
            f"{pack_name(at.pack)}: the {at.length} bytes at {at.offset}, frame {m.key[1]} of what is read, "
            f"are damaged: {error}; run 'cloudmount check --read-data'"
        )
