"""What a machine reads first of its disk, guessed from the partition table.

Decided here and only here: when a disk is taken for one that is being booted (its table of blocks is read, as
hypervisors do when they open a VHDX; of a raw image both ends, as firmware does), and what is fetched then
while the firmware is still busy with itself: the boot partition, with loader and kernel. On the server
of the benchmarks that is half of what its boot reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from cloudmount.disks.partitions import ESP, LINUX_BOOT, read_partitions
from cloudmount.disks.synthesis import BAT_OFFSET
from cloudmount.extents import BlockSource, Extent

LIMIT = 96 << 20
"""Plain bytes fetched of a disk unasked, at most."""
SMALL = 1 << 30
"""Bytes of an active partition that is only to boot from: Windows' "System Reserved" has up to 550 MB."""
END = 64 << 10
"""Bytes at either end of a raw disk: both copies of a GPT."""
_BOOT_TYPES = frozenset({ESP, LINUX_BOOT, "0xef"})


def boot_ranges(disk: BlockSource, logical_sector: int) -> Iterator[tuple[int, int]]:
    """(offset, length) in bytes of what a machine boots from; reads the partition table."""
    table = read_partitions(disk, logical_sector)
    for p in table.partitions:
        boots = p.type in _BOOT_TYPES or (table.kind == "mbr" and p.active and p.length <= SMALL)
        length = min(p.length, disk.size - p.start)
        if boots and length > 0:
            yield p.start, length


class Watched:
    """The `source` of a disk in one form; calls `booted` once, when it is read as by a machine that boots."""

    def __init__(self, source: BlockSource, format: str, booted: Callable[[], None]) -> None:
        self.size = source.size
        self._source, self._vhdx, self._booted = source, format == "vhdx", booted
        self._ends: set[str] = set()
        self._lock = threading.Lock()

    def read_at(self, offset: int, length: int) -> bytes:
        """As of the source."""
        data = self._source.read_at(offset, length)
        if len(self._ends) < 2 and length:
            self._look(offset, offset + length)
        return data

    def _look(self, offset: int, end: int) -> None:
        seen = set()
        if self._vhdx:
            if offset < BAT_OFFSET + END and end > BAT_OFFSET:
                seen = {"first", "last"}
        else:
            if offset < END:
                seen.add("first")
            if end > self.size - END:
                seen.add("last")
        with self._lock:
            before = len(self._ends)
            self._ends |= seen
            both = before < 2 and len(self._ends) == 2
        if both:
            self._booted()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As of the source."""
        return self._source.extents(offset, length)

    def close(self) -> None:
        """Close the source."""
        self._source.close()
