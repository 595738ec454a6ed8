"""A disk of any size with little data, as a `BlockSource`, its presence, and as real sparse files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from cloudmount.disks.presence import BLOCK_SIZE, BitmapPresence
from cloudmount.extents import BlockSource, Extent, check_range


class SparseDisk:
    """`size` bytes of zeros but for `runs`: bytes by offset, not overlapping, within the size."""

    def __init__(self, size: int, runs: dict[int, bytes]) -> None:
        self.size = size
        self.runs = sorted(runs.items())
        self.reads: list[tuple[int, int]] = []
        self.closed = 0
        end = 0
        for at, data in self.runs:
            assert end <= at
            assert at + len(data) <= size
            end = at + len(data)

    @property
    def presence(self) -> BitmapPresence:
        """Every 2 MiB block that a run touches."""
        blocks = -(-self.size // BLOCK_SIZE)
        bits = bytearray(-(-blocks // 8))
        for at, data in self.runs:
            for b in range(at // BLOCK_SIZE, -(-(at + len(data)) // BLOCK_SIZE)):
                bits[b >> 3] |= 1 << (b & 7)
        return BitmapPresence(bytes(bits), blocks)

    def read_at(self, offset: int, length: int) -> bytes:
        """Zeros with the runs laid over."""
        check_range(self.size, offset, length)
        self.reads.append((offset, length))
        out = bytearray(length)
        for at, data in self.runs:
            lo, hi = max(at, offset), min(at + len(data), offset + length)
            if lo < hi:
                out[lo - offset : hi - offset] = data[lo - at : hi - at]
        return bytes(out)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """DATA where a run lies."""
        check_range(self.size, offset, length)
        here, end = offset, offset + length
        for at, data in self.runs:
            lo, hi = max(at, here), min(at + len(data), end)
            if lo < hi:
                if here < lo:
                    yield Extent(here, lo - here, False)
                yield Extent(lo, hi - lo, True)
                here = hi
        if here < end:
            yield Extent(here, end - here, False)

    def close(self) -> None:
        """Counted."""
        self.closed += 1


def write_file(source: BlockSource, path: Path) -> Path:
    """`source` as a sparse file: only what its extents call DATA is read and written."""
    with path.open("wb") as f:
        f.truncate(source.size)
        for e in source.extents(0, source.size):
            for at in range(e.offset, e.end, 8 << 20) if e.data else ():
                os.pwrite(f.fileno(), source.read_at(at, min(8 << 20, e.end - at)), at)
    return path


@st.composite
def disks(draw: st.DrawFn, max_size: int, unit: int = 1, runs: int = 6) -> SparseDisk:
    """Disks of 1..`max_size` units of `unit` bytes, data near block borders and anywhere."""
    size = draw(st.integers(1, max_size)) * unit
    found: dict[int, bytes] = {}
    end = 0
    for _ in range(draw(st.integers(0, runs))):
        if end >= size:
            break
        at = draw(st.integers(end, size - 1))
        if draw(st.booleans()):
            at = max(end, min(size - 1, round(at / BLOCK_SIZE) * BLOCK_SIZE + draw(st.integers(-700, 700))))
        n = min(size - at, draw(st.integers(1, 5000) | st.integers(1, 3 * BLOCK_SIZE)))
        seed = draw(st.binary(min_size=1, max_size=9))
        found[at] = (seed * (n // len(seed) + 1))[:n]
        end = at + n
    return SparseDisk(size, found)
