"""In the child: a volume's bytes for The Sleuth Kit.

Decided here and only here: what it may take for read. libtsk (20260715) has no channel for exceptions, and
where a read of a length that is no multiple of 512 failed it goes on with zeros, as if it had not; so what a
read raised is kept, and `asked` raises it, whatever the library gave. One thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytsk3

from cloudmount.guest.blocks import BLOCK

SECTOR, CACHED = 512, 64 << 10
"""libtsk keeps what lies behind a read of up to `CACHED` bytes, counted from the sector it begins in."""

T = TypeVar("T")


class Image(pytsk3.Img_Info):  # type: ignore[misc]  # pytsk3 has no types
    """A volume of `size` bytes. `within`: what libtsk would keep is cut at the end of the block of `BLOCK`
    bytes in which it begins, so that no neighbour is fetched; then no read of `CACHED` bytes or less may go
    beyond."""

    def __init__(self, read_at: Callable[[int, int], bytes], size: int, *, within: bool = False) -> None:
        self._read_at, self._size, self._within = read_at, size, within
        self._failures: list[Exception] = []
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def asked(self, call: Callable[[], T]) -> T:
        """What the library gives. What a read of the volume raised meanwhile is raised; else `OSError`."""
        self._failures.clear()
        try:
            value = call()
        except MemoryError:
            raise
        except Exception as error:
            raise (*self._failures, OSError(str(error)))[0] from None
        if self._failures:
            raise self._failures[0]
        return value

    def read(self, offset: int, length: int) -> bytes:
        """For libtsk."""
        if self._within and length <= CACHED and offset % SECTOR == 0:
            length = min(length, BLOCK - offset % BLOCK)
        try:
            return self._read_at(offset, length)
        except Exception as error:
            self._failures.append(error)
            raise

    def get_size(self) -> int:
        """For libtsk."""
        return self._size

    def close(self) -> None:
        """Nothing to release."""
