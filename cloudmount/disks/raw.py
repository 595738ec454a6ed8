"""A regular file or block device as a `BlockSource`: a raw disk, and the bytes of every container.

Decided here and only here: how a source file is opened (read-only, its access
time left alone where the system allows, nothing but files and block devices),
what its size is, how its holes are found, and that a file which changes under
us is an `UnreadableInputError`, never a short answer.

Threading: reads are positioned (`pread`) and need no lock; `close` must not race
a read, as with any file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from cloudmount.errors import UnreadableInputError
from cloudmount.extents import Extent, check_range
from cloudmount.system import pread

_MAX_READ = 1 << 30  # Linux reads at most 2^31 - 4096 bytes a call
_BLKSSZGET, _BLKPBSZGET = 0x1268, 0x127B  # linux/fs.h: logical and physical sector size


class ShrankError(UnreadableInputError):
    """The file is shorter than it was when it was opened."""


def _opened(path: Path) -> int:
    """A descriptor on `path`, read-only."""
    flags = os.O_RDONLY
    for name in (
        "O_CLOEXEC",
        "O_BINARY",
        "O_NOCTTY",
        "O_NONBLOCK",
    ):  # the last: never wait for a pipe's writer
        flags |= getattr(os, name, 0)
    quiet = getattr(os, "O_NOATIME", 0)
    try:
        try:
            return os.open(path, flags | quiet)
        except PermissionError:  # O_NOATIME is for the owner and root only
            return os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableInputError(f"{path}: can't open it: {why}") from None


class RawDisk:
    """The bytes of `path`: a regular file or a block device.

    `size` is that at opening. `identity` names the file itself, whatever its
    path. `UnreadableInputError` when it is neither, or can't be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd = _opened(self.path)
        try:
            status = os.fstat(self._fd)
            self.is_block_device = stat.S_ISBLK(status.st_mode)
            if not (self.is_block_device or stat.S_ISREG(status.st_mode)):
                raise UnreadableInputError(f"{path}: neither a regular file nor a block device")
            self.size = os.lseek(self._fd, 0, os.SEEK_END) if self.is_block_device else status.st_size
            self.identity = (status.st_dev, status.st_ino)
            self.modified = status.st_mtime  # Unix time
        except OSError as error:
            self.close()
            raise UnreadableInputError(f"{path}: can't find its size: {error.strerror}") from None
        except UnreadableInputError:
            self.close()
            raise

    def hides_content(self) -> bool:
        """Whether a file that says it is empty is not: those of /proc, and of some network file systems."""
        try:
            return self.size == 0 and not self.is_block_device and bool(pread(self._fd, 1, 0))
        except OSError:
            return False

    def sector_sizes(self) -> tuple[int, int]:
        """Logical and physical sector size in bytes: a device's own, else 512 and 512."""
        if sys.platform == "linux" and self.is_block_device:
            import fcntl

            try:
                logical, physical = (
                    struct.unpack("I", fcntl.ioctl(self._fd, request, bytes(4)))[0]
                    for request in (_BLKSSZGET, _BLKPBSZGET)
                )
            except OSError:
                return 512, 512  # some virtual devices don't tell
            return int(logical), int(physical)
        return 512, 512

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly these bytes; `UnreadableInputError` when the file shrank or can't be read."""
        check_range(self.size, offset, length)
        parts = []
        while length:
            try:
                part = pread(self._fd, min(length, _MAX_READ), offset)
            except OSError as error:
                raise UnreadableInputError(
                    f"{self.path}: can't read {length} bytes at offset {offset}: {error.strerror}"
                ) from None
            if not part:
                raise ShrankError(
                    f"{self.path}: ends at offset {offset}: it shrank from {self.size} bytes while read"
                )
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Holes by SEEK_DATA and SEEK_HOLE; where those don't work, one DATA extent.

        `UnreadableInputError` when the file shrank into the range.
        """
        check_range(self.size, offset, length)
        end = offset + length
        while offset < end:
            data = self._seek(offset, end, "SEEK_DATA")
            if data > offset:
                yield Extent(offset, data - offset, False)
            if data < end:
                hole = max(self._seek(data, end, "SEEK_HOLE"), data + 1)  # + 1: always forward
                yield Extent(data, hole - data, True)
                data = hole
            offset = data

    def _seek(self, offset: int, end: int, whence: str) -> int:
        """Where the next data or hole starts at or after `offset`, at most `end`."""
        if not hasattr(os, whence):
            return offset if whence == "SEEK_DATA" else end
        try:
            found = os.lseek(self._fd, offset, getattr(os, whence))
        except OSError as error:
            if error.errno != errno.ENXIO:
                return offset if whence == "SEEK_DATA" else end  # this file system can't tell
            found = end  # no data up to the end of the file
            if not self.is_block_device and os.fstat(self._fd).st_size < self.size:
                raise ShrankError(f"{self.path}: shrank from {self.size} bytes while it was read") from None
        return min(max(found, offset), end)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        """A backup that failed leaves its sources as they are: their descriptors go with them."""
        with contextlib.suppress(AttributeError, OSError):  # never opened; or the interpreter is ending
            self.close()
