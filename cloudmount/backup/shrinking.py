"""A source whose file shrinks while it is read.

Decided here and only here: what is stored of it: what is still there, and zeros behind. The
backup sees by size and times that it changed, marks it inconsistent and tells
(`cli.md`). As thread-safe as the source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from cloudmount.disks.raw import RawDisk, ShrankError
from cloudmount.extents import Extent


class ShrinkingSource:
    """`source`, which reads as zeros where its file has ended meanwhile."""

    def __init__(self, source: RawDisk) -> None:
        self._source = source
        self.size = source.size

    def read_at(self, offset: int, length: int) -> bytes:
        """What is there of the range, then zeros."""
        try:
            return self._source.read_at(offset, length)
        except ShrankError:
            pass
        try:
            there = max(0, min(length, os.stat(self._source.path).st_size - offset))
            data = self._source.read_at(offset, there)
        except (OSError, ShrankError):  # gone, or shorter still
            data = b""
        return data + bytes(length - len(data))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As the file tells; what it doesn't tell any more is read."""
        at = offset
        try:
            for extent in self._source.extents(offset, length):
                yield extent
                at = extent.end
        except ShrankError:
            yield Extent(at, offset + length - at, True)

    def close(self) -> None:
        """Close the file."""
        self._source.close()
