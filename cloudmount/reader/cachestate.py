"""The disk cache's own account: how many bytes it holds, and its clock.

Decided here and only here: the `state` file of a cache folder, and when it is believed. It is
changed under the folder's lock only. Who changes the folder says so first (`dirty`): the
next who finds that left behind by a crash, or a state of before the machine last
started (files and account reach a disk in any order), counts the folder anew. So an
account can be too high for a moment, never too low.

Threading: callers hold the folder's lock; `clock_now` on any thread.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from dataclasses import dataclass

from cloudmount.system import OPEN, pread

_FORM = struct.Struct("<8s16sQQQI")
_MAGIC = b"CMCACHE1"


def boot_id() -> bytes:
    """16 bytes that differ after each start of the machine; random where it doesn't tell, so that
    every process counts anew."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return bytes.fromhex(file.read().decode("ascii").replace("-", "").strip())[:16].ljust(16, b"\0")
    except (OSError, ValueError):
        return os.urandom(16)


@dataclass(slots=True)
class Account:
    """`used` bytes in `pieces` files (and in files being written), `clock` counts puts, `dirty` while
    the folder is being changed."""

    used: int = 0
    pieces: int = 0
    clock: int = 0
    dirty: bool = True


class StateFile:
    """The file at `path`, made when it is missing; `OSError` when that can't be."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | OPEN
        self._fd = os.open(path, flags, 0o600)
        self._boot = boot_id()

    def read(self) -> Account:
        """The account; a `dirty` one when it can't be believed."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        return self._parse(os.read(self._fd, _FORM.size))

    def _parse(self, data: bytes) -> Account:
        if len(data) != _FORM.size:
            return Account()
        magic, boot, used, pieces, clock, dirty = _FORM.unpack(data)
        if magic != _MAGIC or boot != self._boot:
            return Account()
        return Account(used, pieces, clock, bool(dirty))

    def write(self, account: Account) -> None:
        """Replace it."""
        data = _FORM.pack(
            _MAGIC, self._boot, account.used, account.pieces, account.clock, 1 if account.dirty else 0
        )
        os.lseek(self._fd, 0, os.SEEK_SET)
        if os.write(self._fd, data) != len(data):
            raise OSError("the state of the cache could not be written")

    def clock_now(self) -> Account:
        """A look without the lock: good enough to tell how old a piece is."""
        with suppress(OSError):
            return self._parse(pread(self._fd, _FORM.size, 0))
        return Account()

    def close(self) -> None:
        """Give up the file, under the lock."""
        os.close(self._fd)
        self._fd = -1
