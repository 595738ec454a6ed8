"""In the child: content of ordinary files of ext2, 3 and 4, by pytsk3.

Decided here and only here: which files those are. libtsk (20260715) reads the whole map of a file to open it,
holes included, follows a damaged one wherever it leads, gives zeros for what it does not find, and knows no
groups that are described elsewhere (`meta_bg`). So it gets files without holes, with a map of few nodes,
which our own reader (`ext_map`) went through and found sound; and it reads them only where it has found the
same places. One thread.
"""

from __future__ import annotations

import bisect
import contextlib
import struct
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytsk3

from cloudmount.guest import ext_inode
from cloudmount.guest.blocks import BLOCK
from cloudmount.guest.ext_inode import Inode, Inodes
from cloudmount.guest.ext_journal import Journalled
from cloudmount.guest.ext_map import Run, runs
from cloudmount.guest.sleuth_image import CACHED, SECTOR, Image

_TYPES = {
    "ext2": pytsk3.TSK_FS_TYPE_EXT2,
    "ext3": pytsk3.TSK_FS_TYPE_EXT3,
    "ext4": pytsk3.TSK_FS_TYPE_EXT4,
}
_SPARSE, _FILLER = 1, 2  # TSK_FS_ATTR_RUN_FLAG_*
_DEEPEST = 1
"""Levels of a tree of extents below its root: four nodes, 1,360 extents in blocks of 4 KiB."""
_MOST_LISTS = 16
"""Blocks full of numbers: 64 MiB in blocks of 4 KiB."""
_LONGEST_LIST = 4096
"""Bytes of a list; libtsk takes the square of its length in steps."""
_BLOCKS = 1 << 32
"""Of a file that lies in extents, at most."""
_OPENED = 64


class SleuthFiles:
    """The files of a volume that pytsk3 reads."""

    def __init__(self, blocks: Journalled, table: Inodes) -> None:
        self._blocks, self._about, self._table = blocks, blocks.about, table
        self._image = Image(blocks.read_at, blocks.size, within=True)
        self._fs: Any = None
        if not self._about.incompatible & ext_inode.META:
            kind = _TYPES[self._about.type]
            with contextlib.suppress(OSError, ValueError):  # it won't have bigalloc
                self._fs = self._image.asked(partial(pytsk3.FS_Info, self._image, offset=0, type=kind))
        self._opened: OrderedDict[int, SleuthFile | None] = OrderedDict()

    def get(self, number: int, found: Inode, offset: int) -> SleuthFile | None:
        """A file, to be read from `offset` on; None for those that are none of these."""
        if number in self._opened:
            self._opened.move_to_end(number)
            return self._opened[number]
        try:
            made = self._open(number, found, offset)
        except (OSError, ValueError):
            made = None
        self._opened[number] = made
        if len(self._opened) > _OPENED:
            self._opened.popitem(last=False)
        return made

    def _open(self, number: int, found: Inode, offset: int) -> SleuthFile | None:
        if self._fs is None or not self._ordinary(found):
            return None
        block = self._about.block
        count = -(-found.size // block)
        end = _BLOCKS if found.flags & ext_inode.EXTENTS else count  # all that libtsk goes through
        there = list(runs(found, self._about, self._blocks.read_at, self._blocks.expect, 0, end))
        whole = [run._replace(length=min(run.length, count - run.first)) for run in there]
        whole = [run for run in whole if run.length > 0]
        if sum(run.length for run in whole) != count:
            return None
        begin = bisect.bisect_right(whole, offset // block, key=lambda run: run.first) - 1
        self._blocks.expect([(self._table.bitmap_at(number), block), (whole[begin].at * block, block)])
        file = self._image.asked(partial(self._fs.open_meta, inode=number))
        told = self._image.asked(partial(_told, file, found.size, count))
        return SleuthFile(self._image, file, found.size, block, whole) if told == whole else None

    def _ordinary(self, found: Inode) -> bool:
        if found.kind != ext_inode.FILE or not found.size or found.flags & ext_inode.INLINE:
            return False
        if found.flags & ext_inode.EXTENTS:
            return bool(struct.unpack_from("<H", found.map, 6)[0] <= _DEEPEST)
        block = self._about.block
        return block <= _LONGEST_LIST and found.size <= (12 + _MOST_LISTS * (block // 4)) * block


def _told(file: Any, size: int, count: int) -> list[Run]:
    """Where libtsk has found the first `count` blocks of a file of `size` bytes; not all of them when it has
    found something else."""
    told: list[Run] = []
    if int(file.info.meta.size) != size or file.info.meta.type != pytsk3.TSK_FS_META_TYPE_REG:
        return told
    for attribute in file:
        if attribute.info.type != pytsk3.TSK_FS_ATTR_TYPE_DEFAULT:
            continue
        for run in attribute:
            first, at, length = int(run.offset), int(run.addr), int(run.len)
            if first >= count:
                break
            if int(run.flags) & (_SPARSE | _FILLER):
                return []
            length = min(length, count - first)
            if told and told[-1].first + told[-1].length == first and told[-1].at + told[-1].length == at:
                told[-1] = Run(told[-1].first, told[-1].at, told[-1].length + length)
            else:
                told.append(Run(first, at, length))
        break
    return told


class SleuthFile:
    """One of `size` bytes that lies in `whole`, without holes."""

    def __init__(self, image: Image, file: Any, size: int, block: int, whole: list[Run]) -> None:
        self._image, self._file, self._size, self._block, self._runs = image, file, size, block, whole
        self._firsts = [run.first for run in whole]

    def read(self, offset: int, length: int) -> bytes:
        """Bytes within its size; `OSError` or `ValueError` when they can't be had."""
        if offset + length > self._size:
            raise ValueError("a file ends before its size")
        parts: list[bytes] = []
        for n in self._steps(offset, length):
            parts.append(self._image.asked(partial(self._file.read_random, offset, n)))
            if len(parts[-1]) != n:
                raise ValueError("a file is shorter than its map")
            offset += n
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _steps(self, offset: int, length: int) -> Iterator[int]:
        """Lengths of reads, none of which goes into another block of `BLOCK` bytes if libtsk keeps it."""
        i = bisect.bisect_right(self._firsts, offset // self._block) - 1
        while length:
            run = self._runs[i]
            left = (run.first + run.length) * self._block - offset
            at, n = (run.at + run.length) * self._block - left, min(length, left)
            if n + at % SECTOR <= CACHED:
                n = min(n, BLOCK - at % BLOCK)
            yield n
            offset, length = offset + n, length - n
            i += n == left
