"""The C library's memory, set for a program that serves a drive for months.

Decided here and only here: that all threads take memory from two arenas. Else nearly each gets one of its
own, up to 8 for each core, and what one thread frees of another's stays there: 20 MB more after random reads
of a TiB, 80 after reading in sequence. glibc only; elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
import sys

_M_ARENA_MAX = -8  # malloc.h
_ARENAS = 2


def few_arenas() -> None:
    """For the whole process; before it starts threads."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_ARENA_MAX, _ARENAS)
