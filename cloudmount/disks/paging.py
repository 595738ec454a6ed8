"""Tables too large to load: read by pages that a byte-bounded LRU keeps.

Decided here and only here: the page size and the memory one container's tables
may take. The BAT of a 64 TiB disk with 1 MiB blocks is 513 MiB, so it is never
held whole. Threading: one lock around the cache; two threads that miss the same
page may both read it.
"""

from __future__ import annotations

import sys
import threading
from array import array
from collections.abc import Iterator
from typing import Literal

from cachetools import LRUCache

from cloudmount.extents import BlockSource

PAGE = 64 * 1024  # bytes: 8,192 VHDX BAT entries, 16 GiB of disk at 2 MiB blocks
BUDGET = 2 * 1024 * 1024  # bytes of pages one container keeps; a chain has one for each file


class Pages:
    """Small reads of `source`, kept by page. Does not own `source`."""

    def __init__(self, source: BlockSource, budget: int = BUDGET) -> None:
        self.source = source
        self._cache: LRUCache[int, bytes] = LRUCache(max(budget, PAGE), getsizeof=len)
        self._lock = threading.Lock()

    def page(self, number: int) -> bytes:
        """Page `number`: PAGE bytes, fewer at the source's end."""
        with self._lock:
            found = self._cache.get(number)
        if found is None:
            start = number * PAGE
            found = self.source.read_at(start, min(PAGE, self.source.size - start))
            with self._lock:
                self._cache[number] = found
        return found

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`, which must lie within the source."""
        number, within = divmod(offset, PAGE)
        first = self.page(number)
        if within + length <= len(first):
            return first[within : within + length]
        parts = [first[within:]]
        got = len(parts[0])
        while got < length:
            number += 1
            parts.append(self.page(number)[: length - got])
            got += len(parts[-1])
        return b"".join(parts)


class Table:
    """`count` unsigned integers of `width` bytes at `offset` of what `pages` reads."""

    def __init__(
        self, pages: Pages, offset: int, count: int, width: int, byteorder: Literal["little", "big"]
    ) -> None:
        self._pages = pages
        self._offset = offset
        self._width = width
        self._byteorder = byteorder
        self.count = count

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(index)
        raw = self._pages.read(self._offset + index * self._width, self._width)
        return int.from_bytes(raw, self._byteorder)

    def repeats(self, index: int, most: int) -> int:
        """How many entries from `index` on equal it, at least: 1 to `most`, one page looked at."""
        at = self._offset + index * self._width
        number, within = divmod(at, PAGE)
        page = self._pages.page(number)
        count = min(most, self.count - index, (len(page) - within) // self._width)
        if count <= 1:
            return 1
        entry = page[within : within + self._width]
        while count > 1 and page[within : within + count * self._width] != entry * count:
            count //= 2  # a guess that costs little and skips long runs in few steps
        return max(count, 1)

    def slices(self) -> Iterator[tuple[int, bytes]]:
        """The whole table as (index of the first entry, bytes), in order, past the cache."""
        step = 1024 * 1024 // self._width
        for index in range(0, self.count, step):
            length = min(step, self.count - index) * self._width
            yield index, self._pages.source.read_at(self._offset + index * self._width, length)

    def values(self, raw: bytes) -> array[int]:
        """The entries that `raw` holds."""
        found = array("I" if self._width == 4 else "Q", raw)
        if self._byteorder != sys.byteorder:
            found.byteswap()
        return found
