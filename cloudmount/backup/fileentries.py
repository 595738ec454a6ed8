"""Ordinary files as entries: what is kept of them beside their content.

Decided here and only here: which attributes are read, and how a hard link is noticed.
Belongs to one thread.
"""

from __future__ import annotations

import functools
import os
import stat
import sys

from cloudmount.backup.sources import Found
from cloudmount.repo.entries import Entry

XATTR_LIMIT = 1 << 20
"""Extended attributes of one file above this many bytes together are left out and told."""

_TYPES = [
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "dir"),
    (stat.S_ISLNK, "link"),
    (stat.S_ISFIFO, "fifo"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "char"),
    (stat.S_ISBLK, "block"),
]


def file_type(mode: int) -> str:
    """The type of an entry with this `st_mode`."""
    return next((name for test, name in _TYPES if test(mode)), "file")


@functools.lru_cache(1024)
def _user(uid: int) -> str | None:
    if sys.platform == "win32":
        return None
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


@functools.lru_cache(1024)
def _group(gid: int) -> str | None:
    if sys.platform == "win32":
        return None
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None


def read_xattrs(path: str) -> tuple[dict[str, bytes] | None, str | None]:
    """A file's extended attributes, and why some are missing."""
    if not hasattr(os, "listxattr"):
        return None, None
    found: dict[str, bytes] = {}
    try:
        for name in os.listxattr(path, follow_symlinks=False):
            found[name] = os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return found or None, None  # a file system without them, or one that changed just now
    if sum(len(v) + len(k) for k, v in found.items()) > XATTR_LIMIT:
        return None, "its extended attributes are larger than 1 MiB and were left out"
    return found or None, None


def make_entry(found: Found) -> tuple[Entry, str | None]:
    """The entry of what was found, without content; and why it is incomplete, if it is."""
    s = found.status
    xattrs, problem = read_xattrs(found.path)
    entry = Entry(
        found.folder,
        found.name,
        file_type(s.st_mode),
        mode=stat.S_IMODE(s.st_mode),
        uid=s.st_uid,
        gid=s.st_gid,
        user=_user(s.st_uid),
        group=_group(s.st_gid),
        mtime_ns=s.st_mtime_ns,
        ctime_ns=s.st_ctime_ns,
        inode=s.st_ino,
        device=s.st_dev,
        xattrs=xattrs,
        original=found.original if found.original != found.name else None,
    )
    if entry.type == "file":
        entry.size, entry.links = s.st_size, s.st_nlink
    elif entry.type == "link":
        entry.target = os.readlink(found.path)
    elif entry.type in ("char", "block"):
        entry.rdev = s.st_rdev
    return entry, problem


class HardLinks:
    """Files met by more than one name: the first is kept, later ones point to it."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], str] = {}

    def earlier(self, entry: Entry, links: int) -> str | None:
        """The path of an earlier entry that is the same file."""
        if links < 2 or entry.type != "file" or entry.inode is None or entry.device is None:
            return None
        at = (entry.device, entry.inode)
        if at in self._first:
            return self._first[at]
        self._first[at] = entry.path
        return None

    def forget(self, entry: Entry) -> None:
        """The entry was not stored after all."""
        if entry.inode is not None and entry.device is not None:
            self._first.pop((entry.device, entry.inode), None)
