"""Where a file of ext2, 3 or 4 lies: trees of extents, and lists of blocks.

Decided here and only here: what a map may look like (`ValueError` for one that makes no sense: places
outside the volume, extents out of order, a tree that loops), and that holes and extents which were never
written are told by leaving them out. Costs the nodes that lead to the asked range. Pure; runs in the child.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cloudmount.guest.ext_inode import EXTENTS, Inode, Superblock

_MAGIC, _DEEPEST = 0xF30A, 5
_LONGEST = 32768
"""Blocks of an extent; above it, it was allocated and never written."""
_DIRECT = 12
MOST_NODES = 1 << 17
"""Nodes read for one range: 170 GB in lists of blocks of 1 KiB take more, and are read in pieces."""
Read = Callable[[int, int], bytes]
Expect = Callable[[list[tuple[int, int]]], None]


class Run(NamedTuple):
    """`length` blocks of a file from its block `first` on lie in the volume from the block `at` on."""

    first: int
    at: int
    length: int


def runs(found: Inode, about: Superblock, read: Read, expect: Expect, begin: int, end: int) -> Iterator[Run]:
    """Where the file's blocks from `begin` to `end` lie, in order, neighbours merged; `expect` is told of
    several nodes that are read next."""
    walk = _Walk(about, read, expect, begin, end)
    pieces = walk.tree(found.map) if found.flags & EXTENTS else walk.lists(found.map)
    last: Run | None = None
    for run in pieces:
        if not 0 < run.at <= run.at + run.length <= about.blocks:
            raise ValueError("a file lies outside its volume")
        if last is not None:
            if last.first + last.length == run.first and last.at + last.length == run.at:
                last = Run(last.first, last.at, last.length + run.length)
                continue
            yield last
        last = run
    if last is not None:
        yield last


class _Walk:
    def __init__(self, about: Superblock, read: Read, expect: Expect, begin: int, end: int) -> None:
        self._about, self._read_at, self._expect = about, read, expect
        self._begin, self._end = begin, end
        self._nodes = 0

    def _node(self, block: int) -> bytes:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise ValueError("a file's map is too large")
        size = self._about.block
        raw = self._read_at(block * size, size) if 0 < block < self._about.blocks else b""
        if len(raw) != size:
            raise ValueError("a file's map lies outside its volume")
        return raw

    def _ahead(self, blocks: list[int]) -> None:
        if len(blocks) > 1:
            self._expect([(b * self._about.block, self._about.block) for b in blocks])

    # Extents

    def tree(self, root: bytes) -> Iterator[Run]:
        """Those of the tree whose root is in the inode."""
        depth = struct.unpack_from("<H", root, 6)[0]
        if depth > _DEEPEST:
            raise ValueError("a tree of extents that is too deep")
        yield from self._branch(root, depth, 0, 1 << 32)

    def _branch(self, raw: bytes, depth: int, low: int, high: int) -> Iterator[Run]:
        """Of a node whose extents must lie in `low` .. `high`."""
        magic, count, _, told = struct.unpack_from("<4H", raw)
        if magic != _MAGIC or told != depth or 12 + count * 12 > len(raw):
            raise ValueError("a tree of extents that is damaged")
        if not depth:
            yield from self._leaf(raw, count, low, high)
            return
        firsts: list[int] = []
        places: list[int] = []
        for at in range(12, 12 + count * 12, 12):
            first, leaf, leaf_high = struct.unpack_from("<IIH", raw, at)
            if not low <= first < high or (firsts and first <= firsts[-1]):
                raise ValueError("a tree of extents that is out of order")
            firsts.append(first)
            places.append(leaf | leaf_high << 32)
        bounds = [*firsts[1:], high]
        wanted = [i for i in range(count) if firsts[i] < self._end and bounds[i] > self._begin]
        self._ahead([places[i] for i in wanted])
        for i in wanted:
            yield from self._branch(self._node(places[i]), depth - 1, firsts[i], bounds[i])

    def _leaf(self, raw: bytes, count: int, low: int, high: int) -> Iterator[Run]:
        for first, length, at_high, at in struct.iter_unpack("<IHHI", raw[12 : 12 + count * 12]):
            written = length <= _LONGEST
            length -= 0 if written else _LONGEST
            if first < low or not length or first + length > high:
                raise ValueError("extents that are out of order")
            low = first + length
            begin, end = max(first, self._begin), min(low, self._end)
            if written and begin < end:
                yield Run(begin, (at | at_high << 32) + begin - first, end - begin)

    # Lists

    def lists(self, root: bytes) -> Iterator[Run]:
        """Those of the twelve blocks named in the inode, and of the lists of one, two and three levels."""
        numbers = struct.unpack("<15I", root)
        yield from self._named(numbers[:_DIRECT], 0)
        first, covers = _DIRECT, self._about.block // 4
        for level, number in enumerate(numbers[_DIRECT:]):
            yield from self._list(number, level, first)
            first += covers ** (level + 1)

    def _list(self, block: int, level: int, first: int) -> Iterator[Run]:
        """Of a list that holds numbers of blocks (`level` 0) or of lists; the first is the file's `first`."""
        each = self._about.block // 4
        covers = each**level
        if not block or first >= self._end or first + each * covers <= self._begin:
            return
        numbers = struct.unpack(f"<{each}I", self._node(block))
        if not level:
            yield from self._named(numbers, first)
            return
        low = max(0, (self._begin - first) // covers)
        high = min(each, -(-(self._end - first) // covers))
        self._ahead([n for n in numbers[low:high] if n])
        for i in range(low, high):
            yield from self._list(numbers[i], level - 1, first + i * covers)

    def _named(self, numbers: tuple[int, ...], first: int) -> Iterator[Run]:
        low, high = max(0, self._begin - first), min(len(numbers), self._end - first)
        while low < high:
            number, stop = numbers[low], low + 1
            if number:
                while stop < high and numbers[stop] == number + stop - low:
                    stop += 1
                yield Run(first + low, number, stop - low)
            low = stop
