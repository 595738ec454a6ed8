"""Entries of ordinary files and folders, and their order (FORMAT.md section 6.4).

Decided here and only here: what is kept of a file beside its content, how it is
written as JSON, and how entries sort. Names are `str` with surrogate escapes; they sort as bytes. Pure.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, fields
from typing import Any

from cloudmount.system import name_bytes

SortKey = tuple[tuple[bytes, ...], bytes]


def sort_key(folder: str, name: str) -> SortKey:
    """Entries' order: folders as tuples of their parts, then names, as bytes."""
    return tuple(name_bytes(folder).split(b"/")) if folder else (), name_bytes(name)


@dataclass(slots=True)
class Entry:
    """One entry. `folder` is its path from the snapshot's root, empty at the top, `/`-separated.

    `type` is file, dir, link, fifo, socket, char or block. Sizes are bytes, times nanoseconds since 1970
    UTC. `first` is the number of a small file's first frame in its part's segment.
    """

    folder: str
    name: str
    type: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    user: str | None = None
    group: str | None = None
    mtime_ns: int = 0
    size: int = 0
    content: str | None = None
    first: int | None = None
    ctime_ns: int | None = None
    inode: int | None = None
    device: int | None = None
    target: str | None = None
    hardlink: str | None = None
    links: int = 1
    """How many names the file had, inside and outside of what was backed up."""
    rdev: int | None = None
    xattrs: dict[str, bytes] | None = None
    original: str | None = None
    """What it was called, where the drive's name differs."""
    consistent: bool = True

    @property
    def path(self) -> str:
        """The path from the snapshot's root."""
        return f"{self.folder}/{self.name}" if self.folder else self.name

    @property
    def key(self) -> SortKey:
        """Its place in the order."""
        return sort_key(self.folder, self.name)

    def to_json(self) -> dict[str, Any]:
        """As in the entries item: without the folder, and without what is as default."""
        value = {}
        for f in _STORED:
            v = getattr(self, f.name)
            if v != f.default:
                value[f.name] = v
        if self.xattrs:
            value["xattrs"] = {k: base64.b64encode(v).decode("ascii") for k, v in self.xattrs.items()}
        return value


_STORED = [f for f in fields(Entry) if f.name not in ("folder", "xattrs")]
_NAMES = frozenset(f.name for f in _STORED)


def entry_from_json(folder: str, value: dict[str, Any]) -> Entry:
    """The entry; `ValueError`, `TypeError` or `KeyError` when it makes no sense. Unknown keys are ignored."""
    known = {k: v for k, v in value.items() if k in _NAMES}
    entry = Entry(folder, **known)
    for text in (entry.name, entry.type):
        if not isinstance(text, str):
            raise ValueError("a name that is none")
    if entry.name in ("", ".", "..") or "/" in entry.name or "\0" in entry.name:
        raise ValueError(f"the name {entry.name!r}")
    if min(entry.size, entry.first or 0, entry.mode) < 0:
        raise ValueError("a negative number")
    if "xattrs" in value:
        entry.xattrs = {str(k): base64.b64decode(v) for k, v in value["xattrs"].items()}
    return entry
