"""Recording what a boot reads of its disk.

Decided here and only here: what of it is recorded (which frames, in the order and at the time they were first
asked for, for `SECONDS`), and what is no boot but a copy, which never goes back.

Threading: any number of threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from cloudmount.extents import Extent
from cloudmount.reader.aside import Via
from cloudmount.reader.prefetch import Prefetchable, Range

SECONDS = 180.0
MOST_FRAMES = 1 << 14
"""A boot that reads more (2 GiB) than any that was seen is cut there."""
NEAR = 32
"""Frames that a reader may go back without that counting: the kernel's requests overtake each other."""
LEAST_BACK = 4
"""How often a boot goes back at least: to the partition table, to folders, to metadata."""


class Recorder:
    """The frames of one disk, `frame_bytes` long, from now on; `over` is called once, by the first read after
    the last that is recorded."""

    def __init__(
        self,
        frame_bytes: int,
        over: Callable[[], object] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._frame, self._over, self._now = frame_bytes, over, now
        self._began = now()
        self._seen: set[int] = set()
        self._runs: list[list[int]] = []
        self._next = self._back = 0
        self._lock = threading.Lock()
        self.ended = False

    def note(self, offset: int, length: int) -> None:
        """A read of `length` bytes at `offset`."""
        if self.ended or not length:
            return
        first, stop = offset // self._frame, -(-(offset + length) // self._frame)
        milliseconds = int((self._now() - self._began) * 1000)
        if milliseconds > SECONDS * 1000 or len(self._seen) >= MOST_FRAMES:
            with self._lock:
                ended, self.ended = self.ended, True
            if not ended:
                self._over()
            return
        with self._lock:
            for number in range(first, stop):
                if number in self._seen:
                    continue
                self._seen.add(number)
                if number < self._next - NEAR:
                    self._back += 1
                last = self._runs[-1] if self._runs else None
                if last is not None and last[0] + last[1] == number and milliseconds - last[2] < 1000:
                    last[1] += 1
                else:
                    self._runs.append([number, 1, milliseconds])
                self._next = number + 1

    @property
    def is_boot(self) -> bool:
        """Whether it was a machine that read, not a copy or a glance."""
        return self._back >= LEAST_BACK

    @property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """(first frame, frames, milliseconds since it began), in order."""
        with self._lock:
            return tuple((first, count, ms) for first, count, ms in self._runs)


class TracedSource:
    """The disk `inner`; what is read is told to the recorder that `recorder` gives, if any. Owns `inner`."""

    def __init__(self, inner: Prefetchable, recorder: Callable[[], Recorder | None]) -> None:
        self.size = inner.size
        self._inner, self._recorder = inner, recorder

    def read_at(self, offset: int, length: int) -> bytes:
        """As of the disk."""
        recorder = self._recorder()
        if recorder is not None and not recorder.ended:
            recorder.note(offset, length)
        return self._inner.read_at(offset, length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As of the disk."""
        return self._inner.extents(offset, length)

    def fetch_ahead(self, ranges: Range, via: Via | None = None) -> None:
        """As of the disk; it is nobody's reading."""
        self._inner.fetch_ahead(ranges, via)

    def close(self) -> None:
        """Close the disk."""
        self._inner.close()
