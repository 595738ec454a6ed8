"""A whole stream's frames in order, as fast as store and processors allow: for restore, `check
--read-data` and hydration.

Decided here and only here: that frames are read in large ranges by where they lie, several
requests at once, each opened and its content id verified on worker threads, and given on a few MiB at a
time while they are still in the processor's cache; how much of that is in memory; and that damage is told
frame by frame: when a range can't be read, its frames are tried one by one.

Threading: an iterator belongs to one thread; its workers are daemon threads, so Ctrl-C ends
a restore from a silent store too.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

from cloudmount.errors import BlobMissingError, CloudMountError, DamagedError, StoreUnreachableError
from cloudmount.reader.flights import Flight
from cloudmount.reader.runs import Run, coalesce
from cloudmount.reader.workers import Workers
from cloudmount.repo.frames import Frame, FrameMap
from cloudmount.repo.locations import Location
from cloudmount.repo.names import pack_name
from cloudmount.repo.packs import open_frame
from cloudmount.repo.repository import Repository

BATCH = (8 << 20) + (256 << 10)
"""Sealed bytes of the frames that one worker brings at a time: one request in a fresh repository, and four of
them are a pack."""
INFLATED = 2
"""How many times its sealed bytes a batch may be inflated; what compresses better makes smaller batches."""
LONGEST = BATCH + (1 << 20)
"""Sealed bytes of one request: a batch, and small gaps in it."""
MEMORY = 99 << 20
"""Most bytes in memory, about: a batch takes its sealed bytes, and its plain ones until they are given on."""
GROUP = 4 << 20
"""Plain bytes that are given to `Hooks.verified` together, at least, but for a batch's last."""
AHEAD = 2
"""Batches that wait inflated for who takes them, beyond those that workers are busy with."""
STEP = 0.4
WORKERS = max(4, (os.cpu_count() or 2) + 2)

_Result = list[tuple[Frame, "bytes | DamagedError"]]
_NEVER = float("inf")


class Hooks:
    """What a reader in bulk that is not alone does otherwise; called on any thread but for `waited`."""

    keeps = True
    """Whether what was given to `verified` is wanted of the iterator too; else it gives empty bytes."""

    def waited(self) -> None:
        """On the iterator's thread, now and then while nothing comes; may raise."""

    def batch_bytes(self) -> int:
        """The most sealed bytes of the next batch."""
        return BATCH

    def before(self) -> None:
        """Before a request; may wait."""

    def took(self, seconds: float) -> None:
        """A batch's requests took so long."""

    def at_hand(self, frame: Frame) -> bytes | None:
        """A frame that needs no request."""
        return None

    def verified(self, frames: Sequence[tuple[Frame, bytes]]) -> None:
        """Some of a batch that are sound, in order, each once; called before they are given out. What it
        raises, the iterator raises."""


_ALONE = Hooks()


class _Batch(NamedTuple):
    frames: list[Frame]
    flight: Flight[_Result]
    cost: int
    """Bytes of memory, about."""


def read_frames(
    repository: Repository,
    frame_map: FrameMap,
    *,
    workers: int = WORKERS,
    memory_bytes: int = MEMORY,
    on_damage: Callable[[Frame, DamagedError], None] | None = None,
    hooks: Hooks | None = None,
) -> Generator[tuple[Frame, bytes], None, None]:
    """Every present frame of a stream with its plain bytes, in its order, verified by its content id.

    A damaged frame raises its `DamagedError`, or is given to `on_damage` and left out. Damage of the map
    itself is raised always: what follows is unknown then. Store errors come as they are (the
    store has tried again already). Close the iterator when it isn't used up.

    `hooks` are for those who are not alone.
    """
    pool = Workers(workers, spare=0, name="bulk")
    hooks = hooks or _ALONE
    batch_bytes = min(BATCH, max(frame_map.frame_bytes, memory_bytes // (3 * workers)))
    batches = _batches(frame_map.present(), lambda: min(batch_bytes, hooks.batch_bytes()), hooks.keeps)
    waiting: deque[_Batch] = deque()
    held = 0
    most = (1 + INFLATED) * batch_bytes if hooks.keeps else batch_bytes + 2 * GROUP
    ahead = AHEAD if hooks.keeps else workers
    try:
        more = True
        while more or waiting:
            while more and (not waiting or (held + most <= memory_bytes and len(waiting) < workers + ahead)):
                batch = next(batches, None)
                if batch is None:
                    more = False
                    break
                held += batch.cost
                waiting.append(batch)
                pool.submit(lambda batch=batch: _bring(repository, batch, hooks), _NEVER)  # type: ignore[misc]
            if not waiting:
                break
            batch = waiting.popleft()
            while not batch.flight.wait(STEP):
                hooks.waited()  # in steps, so that Ctrl-C is noticed
            for frame, plain in batch.flight.result():
                if not isinstance(plain, DamagedError):
                    yield frame, plain
                elif on_damage is None:
                    raise plain
                else:
                    on_damage(frame, plain)
            held -= batch.cost
    finally:
        pool.close()


def _batches(frames: Iterable[Frame], most: Callable[[], int], keeps: bool) -> Iterator[_Batch]:
    """The frames in order, `most()` sealed bytes at a time."""

    def made() -> _Batch:
        return _Batch(batch, Flight(_NEVER), sealed + (plain if keeps else min(plain, 2 * GROUP)))

    batch: list[Frame] = []
    sealed = plain = 0
    for frame in frames:
        limit = most()
        takes = frame.at.counted if batch and _goes_on(batch[-1].at, frame.at) else frame.at.length
        full = sealed + takes > limit or plain + frame.length > INFLATED * limit
        # Of another pack: another request in any case, so it needn't be of this batch.
        if batch and (full or (4 * sealed >= 3 * limit and frame.at.pack != batch[-1].at.pack)):
            yield made()
            batch, sealed, plain, takes = [], 0, 0, frame.at.length
        batch.append(frame)
        sealed += takes
        plain += frame.length
    if batch:
        yield made()


def _goes_on(last: Location, at: Location) -> bool:
    """Whether both span two sealed frames, the second of the one being the first of the other."""
    return bool(at.cut and last.cut) and (at.pack, at.offset) == (last.pack, last.offset + last.cut)


def _bring(repository: Repository, batch: _Batch, hooks: Hooks) -> None:
    """On a worker: land the batch's flight."""
    try:
        found = _Found(batch.frames, hooks)
        for i, frame in enumerate(batch.frames):
            kept = hooks.at_hand(frame)
            if kept is not None and repository.keys.content_id(kept) == frame.content:
                found.add(i, kept)
        wanted = [i for i in range(len(batch.frames)) if not found.has(i)]
        for run in coalesce(wanted, lambda i: batch.frames[i].at, longest=LONGEST):
            hooks.before()
            began = time.monotonic()
            data = _request(repository, run, batch.frames, found)
            hooks.took(time.monotonic() - began)
            if data is not None:
                _open(repository, run, data, found)
        found.end()
        batch.flight.land(found.result)
    except BaseException as error:
        batch.flight.crash(error)


class _Found:
    """What came of a batch's frames; given to `verified` as soon as `GROUP` bytes in a row are there."""

    def __init__(self, frames: list[Frame], hooks: Hooks) -> None:
        self.frames = frames
        self._hooks = hooks
        self._found: list[bytes | DamagedError | None] = [None] * len(frames)
        self._given = self._next = self._bytes = 0

    def has(self, i: int) -> bool:
        """Whether anything came of frame `i`."""
        return self._found[i] is not None

    def add(self, i: int, what: bytes | DamagedError) -> None:
        """Frame `i`, or why there is none. Raises what `verified` does."""
        self._found[i] = what
        while self._next < len(self._found) and (there := self._found[self._next]) is not None:
            self._next += 1
            self._bytes += len(there) if isinstance(there, bytes) else 0
        if self._bytes >= GROUP:
            self.end()

    def end(self) -> None:
        """Give what was not given yet, up to the first that did not come."""
        span = range(self._given, self._next)
        sound = [(self.frames[i], each) for i in span if isinstance(each := self._found[i], bytes)]
        self._given, self._bytes = self._next, 0
        if sound:
            self._hooks.verified(sound)
            if not self._hooks.keeps:
                self._found[span.start : span.stop] = [
                    b"" if isinstance(each, bytes) else each for each in self._found[span.start : span.stop]
                ]

    @property
    def result(self) -> _Result:
        """Every frame with what came of it."""
        return [
            (frame, each) for frame, each in zip(self.frames, self._found, strict=True) if each is not None
        ]


def _request(repository: Repository, run: Run[int], frames: list[Frame], found: _Found) -> bytes | None:
    """The bytes of a run; None when they don't come, and `found` knows what there is of its frames."""
    name = pack_name(run.pack)
    try:
        data = repository.store.read(name, run.offset, run.length)
        if len(data) != run.length:
            raise StoreUnreachableError(f"{len(data)} bytes of {name} came where {run.length} belong")
        return data
    except BlobMissingError as error:
        for i in run.members:
            found.add(i, _damaged(frames[i], error))
    except DamagedError as error:
        if len(run.members) == 1:
            found.add(run.members[0], _damaged(frames[run.members[0]], error))
            return None
        for i in run.members:  # some of them may be sound
            at = frames[i].at
            one = Run(run.pack, at.offset, at.length, [i])
            data_of_one = _request(repository, one, frames, found)
            if data_of_one is not None:
                _open(repository, one, data_of_one, found)
    return None


def _open(repository: Repository, run: Run[int], data: bytes, found: _Found) -> None:
    """Have `found` the frames of a run whose bytes came."""
    whole = memoryview(data)
    keys, find = repository.keys, repository.dictionaries.get
    for i in run.members:
        frame = found.frames[i]
        begin = frame.at.offset - run.offset
        try:
            sealed = whole[begin : begin + frame.at.length]
            plain = open_frame(keys, frame.at, sealed, frame.length, find)
            if keys.content_id(plain) != frame.content:
                raise DamagedError("they open, but not to the content that was backed up")
        except DamagedError as error:
            found.add(i, _damaged(frame, error))
        else:
            found.add(i, plain)


def _damaged(frame: Frame, error: CloudMountError) -> DamagedError:
    at = frame.at
    if isinstance(error, BlobMissingError):
        return DamagedError(f"{error.name} is missing from the store (frame {frame.number})")
    where = f"{pack_name(at.pack)}: the {at.length} bytes at {at.offset}, frame {frame.number},"
    return DamagedError(f"{where} are damaged: {error}")
