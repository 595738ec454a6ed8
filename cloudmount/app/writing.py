"""Writing a file's content, out of a snapshot or a disk in it.

Decided here and only here: that holes stay holes, and zeros become some. Safe on any thread.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

from cloudmount.app.restoredisk import write_all
from cloudmount.extents import BlockSource

CHUNK = 1 << 20
"""Bytes read and written at once."""
HOLE = 64 << 10
"""Zeros of this length at a multiple of it are not written."""
_ZEROS = bytes(HOLE)


def write_content(fd: int, source: BlockSource, wrote: Callable[[int], None]) -> None:
    """All of `source` to an empty file; `wrote` is told bytes done, holes too, and may end it by raising."""
    os.ftruncate(fd, source.size)
    for extent in source.extents(0, source.size):
        if not extent.data:
            wrote(extent.length)
            continue
        for at in range(extent.offset, extent.end, CHUNK):
            wrote(0)
            data = source.read_at(at, min(CHUNK, extent.end - at))
            write_sparse(fd, data, at)
            wrote(len(data))


def write_sparse(fd: int, data: bytes, at: int) -> None:
    """Write `data`, but for stretches of zeros, which stay holes."""
    view = memoryview(data)
    begin = 0
    edges = itertools.chain(range(-at % HOLE, len(data), HOLE), (len(data),))
    low = 0
    for high in edges:
        if high - low == HOLE and view[low:high] == _ZEROS:
            if begin < low:
                write_all(fd, data[begin:low], at + begin)
            begin = high
        low = high
    if begin < len(data):
        write_all(fd, data[begin:], at + begin)
