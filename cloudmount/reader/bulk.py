"""A whole stream's frames in order, as fast as store and processors allow: for restore, `check
--read-data` and hydration.

Decided here and only here: that frames are read in large ranges by where they lie, several
requests at once, each opened and its content id verified on worker threads; how much of
that is in memory; and that damage is told frame by frame: when a range can't be read, its
frames are tried one by one.

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
from cloudmount.repo.names import pack_name
from cloudmount.repo.packs import open_frame
from cloudmount.repo.repository import Repository

BATCH = 8 << 20
"""Plain bytes of the frames that one worker brings at a time: about one request in a fresh repository."""
LONGEST = 9 << 20
"""Sealed bytes of one request: a batch that no compression shortens, and its seals."""
MEMORY = 96 << 20
"""Most bytes in memory, about: a batch takes its plain bytes, and as many sealed ones while it is opened."""
STEP = 0.4
WORKERS = max(4, (os.cpu_count() or 2) + 2)

_Result = list[tuple[Frame, "bytes | DamagedError"]]
_NEVER = float("inf")


class Hooks:
    """What a reader in bulk that is not alone does otherwise; called on any thread but for `waited`."""

    def waited(self) -> None:
        """On the iterator's thread, now and then while nothing comes; may raise."""

    def batch_bytes(self) -> int:
        """The most plain bytes of the next batch."""
        return BATCH

    def before(self) -> None:
        """Before a request; may wait."""

    def took(self, seconds: float) -> None:
        """A batch's requests took so long."""

    def at_hand(self, frame: Frame) -> bytes | None:
        """A frame that needs no request."""
        return None

    def verified(self, frames: Sequence[tuple[Frame, bytes]]) -> None:
        """Those of a batch that are sound, in order; called before they are given out. What it raises, the
        iterator raises."""


class _Batch(NamedTuple):
    frames: list[Frame]
    flight: Flight[_Result]
    bytes: int


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
    batch_bytes = min(BATCH, max(frame_map.frame_bytes, memory_bytes // (3 * workers)))
    hooks = hooks or Hooks()
    batches = _batches(frame_map.present(), lambda: min(batch_bytes, hooks.batch_bytes()))
    waiting: deque[_Batch] = deque()
    held = 0
    try:
        more = True
        while more or waiting:
            # A batch takes up to twice its bytes, at least for as long as it is opened.
            while more and (
                not waiting or (held + 2 * batch_bytes <= memory_bytes and len(waiting) < 3 * workers)
            ):
                batch = next(batches, None)
                if batch is None:
                    more = False
                    break
                held += 2 * batch.bytes
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
            held -= 2 * batch.bytes
    finally:
        pool.close()


def _batches(frames: Iterable[Frame], most: Callable[[], int]) -> Iterator[_Batch]:
    """The frames in order, `most()` plain bytes at a time."""
    batch: list[Frame] = []
    size = 0
    for frame in frames:
        if batch and size + frame.length > most():
            yield _Batch(batch, Flight(_NEVER), size)
            batch, size = [], 0
        batch.append(frame)
        size += frame.length
    if batch:
        yield _Batch(batch, Flight(_NEVER), size)


def _bring(repository: Repository, batch: _Batch, hooks: Hooks) -> None:
    """On a worker: land the batch's flight."""
    frames = batch.frames
    try:
        found: list[bytes | DamagedError] = [b""] * len(frames)
        for i, frame in enumerate(frames):
            kept = hooks.at_hand(frame)
            if kept is not None and repository.keys.content_id(kept) == frame.content:
                found[i] = kept
        wanted = [i for i in range(len(frames)) if not found[i]]
        for run in coalesce(wanted, lambda i: frames[i].at, longest=LONGEST):
            hooks.before()
            began = time.monotonic()
            _read(repository, run, frames, found)
            hooks.took(time.monotonic() - began)
        result: _Result = list(zip(frames, found, strict=True))
        hooks.verified([(frame, plain) for frame, plain in result if isinstance(plain, bytes)])
        batch.flight.land(result)
    except BaseException as error:
        batch.flight.crash(error)


def _read(
    repository: Repository, run: Run[int], frames: list[Frame], found: list[bytes | DamagedError]
) -> None:
    """Fill in what was `found` of the frames whose places in `frames` a run has."""
    name = pack_name(run.pack)
    try:
        data = repository.store.read(name, run.offset, run.length)
        if len(data) != run.length:
            raise StoreUnreachableError(f"{len(data)} bytes of {name} came where {run.length} belong")
    except BlobMissingError as error:
        for i in run.members:
            found[i] = _damaged(frames[i], error)
        return
    except DamagedError as error:
        if len(run.members) == 1:
            found[run.members[0]] = _damaged(frames[run.members[0]], error)
            return
        for i in run.members:  # some of them may be sound
            at = frames[i].at
            _read(repository, Run(run.pack, at.offset, at.length, [i]), frames, found)
        return
    whole = memoryview(data)
    keys = repository.keys
    for i in run.members:
        frame = frames[i]
        begin = frame.at.offset - run.offset
        try:
            plain = open_frame(keys, frame.at, whole[begin : begin + frame.at.length], frame.length)
            if keys.content_id(plain) != frame.content:
                raise DamagedError("they open, but not to the content that was backed up")
        except DamagedError as error:
            found[i] = _damaged(frame, error)
        else:
            found[i] = plain


def _damaged(frame: Frame, error: CloudMountError) -> DamagedError:
    at = frame.at
    if isinstance(error, BlobMissingError):
        return DamagedError(f"{error.name} is missing from the store (frame {frame.number})")
    where = f"{pack_name(at.pack)}: the {at.length} bytes at {at.offset}, frame {frame.number},"
    return DamagedError(f"{where} are damaged: {error}")
