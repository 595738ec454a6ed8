"""Where a disk's bytes lie in a copy of it.

Decided here and only here: what every form of a copy must tell. Immutable, safe on any thread.
"""

from __future__ import annotations

from typing import Protocol


class Positions(Protocol):
    """Where a disk's bytes lie in its copy; as `disks.synthesis.VhdxPositions`."""

    head: int
    """Bytes of the file before the disk's first."""
    block_size: int
    """Bytes of the disk that lie together."""

    def position(self, offset: int) -> int | None:
        """Where the byte at `offset` of the disk is; None where the copy has no room for it: it is zero."""


class Unmoved:
    """The positions in a raw image."""

    head, block_size = 0, 1 << 30

    def position(self, offset: int) -> int | None:
        """The same."""
        return offset
