"""The C library's memory, set for a program that takes and frees megabytes all the time.

Decided here and only here: that freed memory is kept for the next batch instead of given
back to the system: for 2.7 GB backed up that saves 600,000 page faults, 2 of 16 CPU
seconds, at the cost of about 20 MB. glibc only; elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 64 << 20
_LARGE = 8 << 20


def keep_freed_memory() -> None:
    """Keep up to 64 MiB of freed memory, and take blocks below 8 MiB from it. For the whole process."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
