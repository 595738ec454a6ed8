"""What a driver tells the kernel of a node, whichever driver it is.

Decided here and only here: how long the kernel may believe names and attributes (of files an hour,
because content never changes; of folders and links a second, so that new snapshots appear), and what a
read-only drive allows. Stateless; safe on any thread.
"""

from __future__ import annotations

import errno
import os

from cloudmount.nodes import Attr, Kind

FILE_SECONDS = 3600.0
FOLDER_SECONDS = 1.0
BLOCK = 4096
"""Bytes of the blocks that `df` and `stat` speak of."""
BACKGROUND = 512
"""Readahead requests in the kernel at once; its own 12 would let a dozen slow reads hold up all."""


def believed(attr: Attr) -> float:
    """For how many seconds the kernel may believe a node's name and attributes."""
    return FILE_SECONDS if attr.kind is Kind.FILE else FOLDER_SECONDS


def refused(attr: Attr, mask: int) -> int:
    """Why a node may not be used so (`os.W_OK` and the like), as an errno; 0 when it may."""
    if mask & os.W_OK:
        return errno.EROFS
    if mask & os.X_OK and attr.kind is Kind.FILE and not attr.mode & 0o111:
        return errno.EACCES
    return 0
