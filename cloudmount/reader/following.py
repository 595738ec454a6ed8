"""A file inside a disk, fetched ahead along the places where it lies there.

Decided here and only here: that a file's reader has its file fetched ahead and nothing else. Who reads a disk
in order may want what lies next on the disk; who copies a file wants what lies next in the file, and not one
byte of its neighbours. The windows are those of `readahead`, counted in the file.

Threading: any number of threads.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterator, Sequence

from cloudmount.errors import CloudMountError
from cloudmount.extents import BlockSource, Extent
from cloudmount.reader.readahead import Ahead, Readahead

UNIT = 128 << 10
LONGEST = 16 << 20
SMALL = 2 * UNIT
"""Bytes of files for which it isn't worth asking where they lie."""

Place = tuple[int, int, int]
"""`length` bytes from `offset` of the file lie on the disk from `at` on: (offset, at, length)."""


class Following:
    """The file `source`; owns it. `places` tells where it lies (asked once, when first needed), `prefetch`
    begins to fetch (offset, length) of the disk, `allowed` says how many bytes ahead the link has room
    for."""

    def __init__(
        self,
        source: BlockSource,
        places: Callable[[], Sequence[Place]],
        prefetch: Callable[[int, int], None],
        allowed: Callable[[], int],
    ) -> None:
        self.size = source.size
        self._source, self._ask = source, places
        self._prefetch, self._allowed = prefetch, allowed
        self._readahead = Readahead(-(-self.size // UNIT), near=0, longest=LONGEST // UNIT)
        self._places: list[Place] | None = None
        self._lock = threading.Lock()

    def read_at(self, offset: int, length: int) -> bytes:
        """As of the source."""
        if self.size > SMALL and length > 0 and offset >= 0:
            self._expect(offset, length)
        return self._source.read_at(offset, length)

    def _expect(self, offset: int, length: int) -> None:
        first, stop = offset // UNIT, -(-(offset + length) // UNIT)
        ahead: Ahead = self._readahead.read(first, stop, self._allowed() // UNIT)
        if stop - first > 1:
            self._fetch(offset, offset + length)
        if ahead.first < ahead.stop:
            self._fetch(ahead.first * UNIT, ahead.stop * UNIT)

    def _fetch(self, begin: int, end: int) -> None:
        """Have these bytes of the file fetched."""
        places = self._known()
        i = max(0, bisect.bisect_right(places, begin, key=lambda p: p[0]) - 1)
        while i < len(places) and places[i][0] < end:
            offset, at, length = places[i]
            low, high = max(begin, offset), min(end, offset + length)
            if low < high:
                self._prefetch(at + low - offset, high - low)
            i += 1

    def _known(self) -> Sequence[Place]:
        with self._lock:
            if self._places is None:
                try:
                    self._places = sorted(self._ask())
                except CloudMountError:  # reading tells of it
                    self._places = []
            return self._places

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As of the source."""
        return self._source.extents(offset, length)

    def close(self) -> None:
        """Close the source."""
        self._source.close()
