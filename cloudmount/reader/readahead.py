"""How far ahead of its readers a stream is fetched.

Decided here and only here: a read that goes on where one of the last `STREAMS` reads ended is
sequential, and doubles that stream's window up to `longest`; when half of it is used up the next
is fetched. A read elsewhere is random: it brings only neighbours that the same request
can carry, at first `near` of them, none once such guesses came to nothing, more again
when they are used. Readahead that memory had to drop unused halves the windows.

And that readahead fills a link but does not stuff it (`Pace`): at 100 Mbit/s and 40 ms, 8 MB
under way made random reads beside them take 500 ms; so it is 120, and the link as busy.

Threading: any number of threads; one lock for a few comparisons.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

STREAMS = 16
"""Sequential readers of one disk that are told apart."""
BACK = 4
"""Frames that a read may lie behind the last: the kernel's requests overtake each other."""


class Ahead(NamedTuple):
    """What to fetch beside the frames asked for: up to `near` frames behind them with the same
    request, and the frames from `first` up to `stop` with requests of their own."""

    near: int
    first: int
    stop: int


NOTHING = Ahead(0, 0, 0)


class _Stream:
    __slots__ = ("ahead", "next", "proved", "window")

    def __init__(self, next: int, ahead: int, window: int) -> None:
        self.next, self.ahead, self.window = next, ahead, window
        self.proved = False


class Pace:
    """How many plain bytes may be fetched ahead of one reader, from `least` to `most`: as many as
    requests bring within about `DELAY` seconds above the quickest there was."""

    DELAY = 0.1

    def __init__(self, most: int, least: int = 512 << 10) -> None:
        self._most, self._least = most, min(least, most)
        self.limit = min(most, 4 * least)
        self._quickest = float("inf")
        self._lock = threading.Lock()

    def took(self, seconds: float) -> None:
        """A request of readahead was answered."""
        with self._lock:
            # Forgotten slowly: a line may become a slower one.
            self._quickest = min(self._quickest * 1.001, seconds)
            late = seconds - self._quickest
            if late > self.DELAY:
                self.limit = max(self._least, self.limit * 3 // 4)
            elif late < self.DELAY / 2:
                self.limit = min(self._most, self.limit * 5 // 4)


class Readahead:
    """The windows of one stream of `frames` frames; all numbers are frames."""

    def __init__(self, frames: int, *, near: int, longest: int) -> None:
        self._frames = frames
        self._most_near, self._longest = near, max(0, longest)
        self._near = near
        self._streams: list[_Stream] = []
        self._lock = threading.Lock()

    @property
    def near(self) -> int:
        """Neighbours that a random read brings now."""
        return self._near

    def read(self, first: int, stop: int, allowed: int | None = None) -> Ahead:
        """Frames `first` up to `stop` are being read; what else to fetch, with at most `allowed` frames
        ahead where the link has no room for the longest window."""
        longest = self._longest if allowed is None else min(self._longest, allowed)
        with self._lock:
            stream = self._find(first)
            if stream is None:
                return self._random(stop)
            if stop <= stream.next:
                return NOTHING
            if not stream.proved:
                stream.proved = True
                self._near = min(self._most_near, max(1, self._near * 2))
            stream.next = stop
            stream.ahead = max(stream.ahead, stop)
            if 2 * (stream.ahead - stop) > stream.window:
                return NOTHING
            stream.window = min(max(1, 2 * stream.window), longest)
            begin, end = stream.ahead, min(self._frames, stop + stream.window)
            if begin >= end:
                return NOTHING
            stream.ahead = end
            return Ahead(0, begin, end)

    def _find(self, first: int) -> _Stream | None:
        for i, stream in enumerate(self._streams):
            if stream.next - BACK <= first <= max(stream.next, stream.ahead):
                if i:
                    self._streams.insert(0, self._streams.pop(i))
                return stream
        return None

    def _random(self, stop: int) -> Ahead:
        if len(self._streams) >= 2 and not any(s.proved for s in self._streams[:2]):
            self._near //= 2
        near = max(0, min(self._near, self._frames - stop))
        self._streams.insert(0, _Stream(stop, stop + near, max(1, near)))
        del self._streams[STREAMS:]
        return Ahead(near, 0, 0)

    def refused(self, ahead: Ahead) -> None:
        """The frames it told to fetch will not be: tell them again."""
        with self._lock:
            for stream in self._streams:
                if stream.ahead == ahead.stop:
                    stream.ahead = max(stream.next, ahead.first)

    def wasted(self) -> None:
        """Frames fetched ahead were dropped before they were read: there is no room for so many."""
        with self._lock:
            for stream in self._streams:
                stream.window = max(1, stream.window // 2)
