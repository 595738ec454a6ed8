"""The names in a folder of ext2, 3 or 4: lists of entries, whether there is a hash tree over them or not.

Decided here and only here: a hash tree is not used. Its nodes look like empty entries on purpose, and every
leaf is a list. `ValueError` for entries that make no sense. Pure; runs in the child.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_HEAD = struct.Struct("<IHBB")
_WIDEST = 65536


def names(raw: bytes, filetype: bool, inodes: int) -> Iterator[tuple[bytes, int]]:
    """(name, inode) of each entry in one block of a folder, without `.` and `..`; `filetype`: entries say
    what they lead to, and have a length of one byte."""
    at, end = 0, len(raw)
    while at + 8 <= end:
        inode, length, size, high = _HEAD.unpack_from(raw, at)
        if end >= _WIDEST:
            length = _WIDEST if length in (0, _WIDEST - 1) else length & ~3 | (length & 3) << 16
        if not filetype:
            size |= high << 8
        if length < 8 or length % 4 or at + length > end or (inode and size + 8 > length):
            raise ValueError("a folder's entries make no sense")
        if inode:
            if not size or inode > inodes:
                raise ValueError("a folder's entry makes no sense")
            name = raw[at + 8 : at + 8 + size]
            if name not in (b".", b".."):
                yield name, inode
        at += length
    if at != end:
        raise ValueError("a folder's entries end too early")


def inline_names(raw: bytes, filetype: bool, inodes: int) -> Iterator[tuple[bytes, int]]:
    """The same of a folder kept in its inode: its parent's number, entries in the map, then in what is
    beside it."""
    yield from names(raw[4:60], filetype, inodes)
    if len(raw) > 60:
        yield from names(raw[60:], filetype, inodes)
