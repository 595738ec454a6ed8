"""Whether something else is using a disk image right now.

Decided here and only here: how a writer is noticed before a disk is read. Linux
tells by leases and by locks; elsewhere, and where it can't tell, nobody is found.
Pure but for the file; safe on any thread.
"""

from __future__ import annotations

import os
import signal
import struct
import sys

_QEMU_WRITE_BYTE = 101
"""QEMU holds a shared lock on byte 100 + n for each permission n it uses; 1 is writing
(block/file-posix.c, RAW_LOCK_PERM_BASE)."""
_FLOCK = "hhqqi4x"
_F_SETSIG, _F_OFD_GETLK = 10, 36  # linux/fcntl.h; not every build of the fcntl module names them


def open_for_writing(path: str) -> bool:
    """Whether some process has the file open for writing, as far as this one may know."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Should someone open it for writing in between, the kernel sends a signal: one that is ignored
        # by default, not SIGIO, which would end us.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        # A read lease is granted only while nobody has the file open for writing (fcntl(2)).
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False  # not ours to lease, or no such thing on this file system
    finally:
        os.close(fd)
    return False


def locked(path: str) -> bool:
    """Whether another process holds an exclusive lock on the file, or QEMU's for writing."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        exclusive = _conflict(fd, fcntl.F_RDLCK, 0, 0)
        qemu = _conflict(fd, fcntl.F_WRLCK, _QEMU_WRITE_BYTE, 1)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return exclusive or qemu
    except OSError:
        return False
    finally:
        os.close(fd)


def _conflict(fd: int, kind: int, start: int, length: int) -> bool:
    import fcntl

    asked = struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
    answer = fcntl.fcntl(fd, _F_OFD_GETLK, asked)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
