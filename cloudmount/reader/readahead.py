"""How far ahead of its readers a stream is fetched.

Decided here and only here: a read that goes on where one of the last `STREAMS` reads ended is
sequential, and doubles that stream's window up to `longest`; when a quarter of it is used up the
next is fetched (with half, the line was idle for a round trip each time: 8.5 of 12.5 MB/s, now 11).
A read elsewhere is random: it brings only neighbours that the same request can carry, at first
`near` of them, none once such guesses came to nothing, more again when they are used. Readahead that
memory had to drop unused halves the windows.

Random reads are seldom random: a booting server's lie in clusters. Where a share of them comes to
regions that were read in already, the first read of a region has what lies around it fetched beside it,
more behind than before, on a line whose round trip is worth that (`Pace.worth`). In a recorded boot 206
round trips become 140.

And that readahead fills a link but does not stuff it (`Pace`): at 100 Mbit/s and 40 ms, 8 MB
under way made random reads beside them take 500 ms; so it is 120, and the link as busy.

Threading: any number of threads; one lock for a few comparisons.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import NamedTuple

STREAMS = 16
"""Sequential readers of one disk that are told apart."""
BACK = 4
"""Frames that a read may lie behind the last: the kernel's requests overtake each other."""


REGION = 1 << 20
"""Plain bytes in which reads count as near each other: about what 100 Mbit/s carry in 40 ms."""
BESIDE = REGION // 2
"""Plain bytes that are fetched around a random read, at most. 1 MiB brought 5 MB more and no time."""
REGIONS = 1024
"""Regions of one disk that are remembered."""
CLUSTERED = 0.2
"""Share of random reads that go to regions seen before from which their neighbours are fetched."""


class Ahead(NamedTuple):
    """What to fetch beside the frames asked for: up to `near` frames behind them with the same
    request, and the frames from `first` up to `stop` (those asked for may be among them) with requests
    of their own."""

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
    ALONE = 0.5
    """Seconds without any other read after which a sequential reader may have four times that."""
    FAR = 0.01
    """Seconds of round trip from which a store is far away."""

    def __init__(self, most: int, least: int = 512 << 10) -> None:
        self._most, self._least = most, min(least, most)
        self.limit = min(most, 4 * least)
        self._quickest = self._trip = float("inf")
        self._answered = time.monotonic()
        self._lock = threading.Lock()

    @property
    def worth(self) -> int:
        """Plain bytes that may be fetched beside a random read; 0 when the store is near."""
        return min(BESIDE, self.limit) if self.FAR <= self._trip < float("inf") else 0

    def answered(self, seconds: float) -> None:
        """A request that somebody waited for was answered."""
        with self._lock:
            self._trip = min(self._trip * 1.001, seconds)
            self._answered = time.monotonic()

    def took(self, seconds: float) -> None:
        """A request of readahead was answered."""
        with self._lock:
            # Forgotten slowly: a line may become a slower one.
            self._quickest = min(self._quickest * 1.001, seconds)
            late = seconds - self._quickest
            alone = time.monotonic() - self._answered > self.ALONE
            delay = self.DELAY * 4 if alone else self.DELAY
            if late > delay:
                self.limit = max(self._least, self.limit * 3 // 4)
            elif late < delay / 2:
                self.limit = min(self._most, self.limit * 5 // 4)


class _Regions:
    """Where one disk was read, and whether its random reads are clustered."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._seen: OrderedDict[int, int] = OrderedDict()
        self.share = 0.0
        """Of the random reads of frames not read before: those in a region seen before; the latest count
        most."""

    def read(self, frame: int) -> bool:
        """A random read; whether its region is a new one."""
        region, place = divmod(frame, self._frames)
        known = self._seen.get(region, 0)
        if not known >> place & 1:
            self.share += ((known > 0) - self.share) / 16
        self._seen[region] = known | 1 << place
        self._seen.move_to_end(region)
        if len(self._seen) > REGIONS:
            self._seen.popitem(last=False)
        return not known


class Readahead:
    """The windows of one stream of `frames` frames; all numbers are frames."""

    def __init__(self, frames: int, *, near: int, longest: int, region: int = 8) -> None:
        self._frames = frames
        self._regions = _Regions(max(1, region))
        self._most_near, self._longest = near, max(0, longest)
        self._near = near
        self._streams: list[_Stream] = []
        self._lock = threading.Lock()

    @property
    def near(self) -> int:
        """Neighbours that a random read brings now."""
        return self._near

    def read(self, first: int, stop: int, allowed: int | None = None, beside: int = 0) -> Ahead:
        """Frames `first` up to `stop` are being read; what else to fetch, with at most `allowed` frames
        ahead where the link has no room for the longest window, and at most `beside` around a random
        read."""
        longest = self._longest if allowed is None else min(self._longest, allowed)
        with self._lock:
            stream = self._find(first)
            if stream is None:
                return self._random(first, stop, beside)
            if stop <= stream.next:
                return NOTHING
            if not stream.proved:
                stream.proved = True
                self._near = min(self._most_near, max(1, self._near * 2))
            stream.next = stop
            stream.ahead = max(stream.ahead, stop)
            if 4 * (stream.ahead - stop) > 3 * stream.window:
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

    def _random(self, first: int, stop: int, beside: int) -> Ahead:
        if len(self._streams) >= 2 and not any(s.proved for s in self._streams[:2]):
            self._near //= 2
        near = max(0, min(self._near, self._frames - stop))
        begin = end = 0
        if self._regions.read(first) and self._regions.share > CLUSTERED and beside > 1:
            begin = max(0, first - beside // 6)
            near, end = 0, min(self._frames, begin + beside)
        ahead = max(stop + near, end)
        self._streams.insert(0, _Stream(stop, ahead, max(1, ahead - stop)))
        del self._streams[STREAMS:]
        return Ahead(near, begin, end)

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
