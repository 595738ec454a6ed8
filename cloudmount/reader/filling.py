"""Filling a local copy from the store until it is finished.

Decided here and only here: the order in which a copy fills (what its readers just missed, then on from
there, in the order of the disk, which is that of the packs where it was backed up), that what somebody
waits for goes first, that memory and requests under way are bounded (`read_frames`), that damaged pieces
don't keep the others from coming, and that the copy is finished only when everything in it was verified.

Threading: `fill` belongs to one thread, and what it brings is written by others; a `Filling` may be looked
at, and stopped, by any. When `fill` has raised, it has stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from cloudmount.errors import CloudMountError, DamagedError
from cloudmount.extents import BlockSource
from cloudmount.reader import localcopy
from cloudmount.reader.bulk import BATCH, MEMORY, WORKERS, Hooks, read_frames
from cloudmount.reader.hydrating import LocalDisk
from cloudmount.reader.localcopy import LocalCopy
from cloudmount.reader.pieces import Pieces
from cloudmount.reader.piecewriter import CHUNK, Put
from cloudmount.repo.frames import Frame
from cloudmount.repo.repository import Repository
from cloudmount.repo.streams import StreamMap

RUNNING, VERIFYING, COMPLETE = "running", "verifying", "complete"
NO_ROOM, NO_ANSWER, GIVEN_UP = "paused: no room", "paused: no answer", "given up"
STRIDE = 4 << 20
"""Bytes of disk after which is looked whether readers miss something else."""
ZERO_RUNS = 4096
"""Runs of zeros that are entered together."""
QUIET = 0.05
"""Seconds for which nobody may have waited for the store before hydration asks it for more."""
PATIENCE = 2.0
"""Seconds after which a request is made all the same: a busy drive is completed too, slowly."""


FIRST_REQUEST, LEAST_REQUEST = 1 << 20, 256 << 10
LONG, LONG_ALONE = 0.5, 2.0
"""Seconds of a request from which the next are made smaller: a kill loses those under way, and, where it is
not alone, a reader who comes meanwhile shares the line with them."""


class StoppedError(CloudMountError):
    """Filling was stopped."""


class Filling:
    """One copy being filled. `local` has its copy.

    `idle` tells for how many seconds nobody has waited for the store; `at_hand` gives frames that need
    no request; `expected` bytes of the file are more than zeros.
    """

    def __init__(
        self,
        repository: Repository,
        stream: StreamMap,
        local: LocalDisk,
        *,
        expected: int,
        mtime_ns: int,
        tell: Callable[[str], None],
        idle: Callable[[], float] | None = None,
        at_hand: Callable[[Frame], bytes | None] | None = None,
        memory_bytes: int = MEMORY,
        workers: int = WORKERS,
    ) -> None:
        assert local.copy is not None
        self.copy: LocalCopy = local.copy
        self.state = COMPLETE if self.copy.finished else RUNNING
        self.total_bytes = expected
        """Bytes that are to be there before it is finished, but for some zeros."""
        self._repository, self._stream, self._local = repository, stream, local
        self._mtime_ns, self._tell = mtime_ns, tell
        self._memory, self._workers = memory_bytes, workers
        self._stop = threading.Event()
        self._idle, self._at_hand = idle, at_hand
        self._told_full = False
        self.copy.room = self._no_room

    @property
    def done_bytes(self) -> int:
        """Bytes that are there, of `total_bytes`."""
        return self.total_bytes if self.copy.finished else min(self.total_bytes, self.copy.done_bytes)

    def stop(self) -> None:
        """Have `fill` return soon."""
        self._stop.set()

    def fill(self, container: BlockSource) -> bool:
        """Fill it until it is finished; False when stopped before. `container` gives what is no content.

        `DamagedError` when all is there but what is damaged in the store; store errors as they come.
        `OSError` when the file can't be written. What is there then stays.
        """
        copy = self.copy
        try:
            while not copy.finished:
                if copy.doubtful:
                    self.state = VERIFYING
                    copy.verify(self._stop.is_set)
                    self._check_stopped()
                    continue
                self.state = RUNNING
                self._head(container)
                damaged = self._content()
                if damaged:
                    raise DamagedError(
                        f"{copy.path}: {len(damaged)} pieces can't be completed, because what is stored of "
                        f"them is damaged; all others are there ({damaged[0]})"
                    )
                zeros = list(copy.trusted.runs(present=False))
                for at in range(0, len(zeros), ZERO_RUNS):
                    copy.zeros(zeros[at : at + ZERO_RUNS])
                    self._check_stopped()
                self.state = VERIFYING
                copy.finish(self._mtime_ns, self._stop.is_set)
                self._check_stopped()
        except StoppedError:
            with suppress(OSError, StoppedError):
                copy.commit()
            return False
        self.state = COMPLETE
        return True

    def _check_stopped(self) -> None:
        if self._stop.is_set():
            raise StoppedError("stopped")

    def _no_room(self, error: OSError) -> None:
        before, self.state = self.state, NO_ROOM
        if not self._told_full:
            self._told_full = True
            self._tell(f"{self.copy.path}: no room left; it goes on as soon as there is room")
        if self._stop.wait(localcopy.ROOM_SECONDS):
            raise StoppedError("stopped")
        self.state = before if before != NO_ROOM else RUNNING

    def _head(self, container: BlockSource) -> None:
        """What the container has before the disk's own bytes."""
        copy, piece = self.copy, self.copy.described.piece
        for first, stop in list(copy.trusted.runs(0, copy.positions.head // piece, present=False)):
            for at in range(first * piece, stop * piece, CHUNK):
                copy.put([Put(at, container.read_at(at, min(CHUNK, stop * piece - at)))])
        copy.commit()

    def _content(self) -> list[str]:
        """Every stored frame that is missing; what is damaged."""
        copy = self.copy
        damaged: list[str] = []
        batch = FIRST_REQUEST
        again = True
        while again and not damaged:
            again = False
            hooks = _Considerate(self._stop, self._idle, self._at_hand, self._put, batch)
            wanted = _Wanted(self._stream, self._local, copy)
            frames = read_frames(
                self._repository,
                wanted,  # type: ignore[arg-type]  # as much of a `FrameMap` as it needs
                workers=self._workers,
                memory_bytes=self._memory,
                on_damage=lambda frame, error: damaged.append(str(error)),
                hooks=hooks,
            )
            try:
                for _ in frames:
                    again = True  # what could not be synced is missing again
                    self._check_stopped()
            except BaseException:
                self._stop.set()  # who waits for room waits no longer
                raise
            finally:
                frames.close()
                hooks.close()
            batch = hooks.batch_bytes()
            copy.commit()
        return damaged

    def _put(self, frames: Sequence[tuple[Frame, bytes]]) -> None:
        """On a worker: write frames that it brought."""
        positions, d = self.copy.positions, self.copy.described

        def puts() -> Iterator[Put]:
            for frame, plain in frames:
                position = positions.position(frame.number * self._stream.frame_bytes)
                assert position is not None
                short = min(-len(plain) % d.piece, d.size - position - len(plain))
                yield Put(position, plain + bytes(short) if short else plain)

        self.copy.put(puts())


class _Considerate(Hooks):
    """Requests that take a part of a second each, after those that somebody waits for; what they bring is
    given to `put` by the threads that opened it."""

    keeps = False

    def __init__(
        self,
        stop: threading.Event,
        idle: Callable[[], float] | None,
        at_hand: Callable[[Frame], bytes | None] | None,
        put: Callable[[Sequence[tuple[Frame, bytes]]], None],
        batch: int,
    ) -> None:
        self._stop, self._idle, self._give, self._put = stop, idle, at_hand, put
        self._bytes = batch
        self._long = LONG if idle is not None else LONG_ALONE
        self._putting, self._closed = 0, False
        self._change = threading.Condition()

    def waited(self) -> None:
        if self._stop.is_set():
            raise StoppedError("stopped")

    def batch_bytes(self) -> int:
        return self._bytes

    def before(self) -> None:
        until = time.monotonic() + PATIENCE
        while self._idle is not None and self._idle() < QUIET and time.monotonic() < until:
            if self._stop.wait(QUIET / 2):
                return

    def took(self, seconds: float) -> None:
        # Without a lock: one lost change of several at once makes no difference.
        if seconds > self._long:
            self._bytes = max(LEAST_REQUEST, self._bytes // 2)
        elif seconds < self._long / 2:
            self._bytes = min(BATCH, self._bytes * 2)

    def at_hand(self, frame: Frame) -> bytes | None:
        return self._give(frame) if self._give is not None else None

    def verified(self, frames: Sequence[tuple[Frame, bytes]]) -> None:
        with self._change:
            if self._closed or self._stop.is_set():
                raise StoppedError("stopped")
            self._putting += 1
        try:
            self._put(frames)
        finally:
            with self._change:
                self._putting -= 1
                self._change.notify_all()

    def close(self) -> None:
        """Returns when nothing is being put any more, nor will be."""
        with self._change:
            self._closed = True
            while self._putting:
                self._change.wait()


class _Wanted:
    """The frames of a stream that a copy lacks, in the order in which they are to come."""

    def __init__(self, stream: StreamMap, local: LocalDisk, copy: LocalCopy) -> None:
        self._stream, self._local, self._copy = stream, local, copy
        self.size, self.frame_bytes = stream.size, stream.frame_bytes
        self._loaded: tuple[int, list[Frame]] = (-1, [])

    def present(self) -> Iterator[Frame]:
        """Each once; those from a reader's last miss on come next."""
        digests = self._stream.proved()
        asked = Pieces(self._stream.frames)
        left = sorted(digests)
        number = place = 0
        stride = max(1, STRIDE // self.frame_bytes)
        while left:
            missed = self._local.take_missed()
            if missed is not None:
                number, place = self._stream.segment_of(missed // self.frame_bytes)
            if number not in left:
                number, place = next((s for s in left if s > number), left[0]), 0
            count, began = 0, place
            for frame in self._frames(number, digests[number]):
                at = self._stream.segment_of(frame.number)[1]
                if at < place or asked.has(frame.number, frame.number + 1):
                    continue
                asked.add(frame.number, frame.number + 1)
                if not self._there(frame):
                    yield frame
                    count += 1
                    if count >= stride and self._local.awaited:
                        place = at + 1
                        break
            else:
                if not began:
                    left.remove(number)
                number, place = number + 1, 0

    def _there(self, frame: Frame) -> bool:
        position = self._copy.positions.position(frame.number * self.frame_bytes)
        return position is None or self._copy.has(position, frame.length)

    def _frames(self, number: int, digest: bytes) -> list[Frame]:
        if self._loaded[0] != number:
            self._loaded = number, list(self._stream.present_in(number, digest))
        return self._loaded[1]
