"""Whether nobody else can have changed a file while we wrote it.

Decided here and only here: how that is known. On Linux, of a file on a local file system, the kernel tells of
everybody who opens it (inotify); who does not open it can only shorten it, and what was cut off takes no room
any more. Whoever only reads it counts too: that can't be told apart for sure. Not known is who had it open
before.

Threading: any one thread at a time.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

LOCAL = ("btrfs", "ext2", "ext3", "ext4", "f2fs", "tmpfs", "xfs")
"""File systems that no other machine writes to."""
_IN_OPEN = 0x20
_BLOCK = 512


class Alone:
    """Watches the file at `path`, which this process has opened as often as it will."""

    def __init__(self, path: Path) -> None:
        self._fd = -1
        self.watching = False
        """Whether that can be done at all; where it can't `holds` is False."""
        if _file_system(path) not in LOCAL:
            return
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None, use_errno=True)
            self._fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
            if self._fd >= 0 and libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_OPEN) < 0:
                self.close()
            self.watching = self._fd >= 0

    def holds(self, status: os.stat_result, written: int) -> bool:
        """Whether nobody else opened the file so far, nor shortened it: by its `status`, its `written` bytes
        take their room. Once it is False it stays so."""
        if self._fd < 0:
            return False
        try:
            os.read(self._fd, 4096)
        except BlockingIOError:
            if status.st_blocks * _BLOCK >= written:
                return True
        self.close()
        return False

    def close(self) -> None:
        """Watch no longer."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _file_system(path: Path) -> str:
    """The kind of file system that holds a file; empty when that can't be told."""
    with suppress(OSError, ValueError, IndexError, AttributeError):  # the last: Windows
        device = os.stat(path).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                here, _, rest = line.partition(" - ")
                if here.split(" ")[2] == wanted:
                    return rest.split(" ")[0]
    return ""
