"""A child's entries, checked: what the tree may rely on.

Decided here and only here: which names can be shown (without slash or NUL, not `.` or `..`), and what a
link shows: its target stays in the volume, or leads nowhere. Pure.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloudmount.guest.volumes import BESIDE, INSIDE
from cloudmount.guest.wire import MOST_ENTRIES, BrokenFrameError
from cloudmount.nodes import Kind
from cloudmount.system import name_bytes

NAME_MAX = 1024
_MOST = 1 << 62
_KINDS = {"file": Kind.FILE, "dir": Kind.DIR, "link": Kind.LINK}
_MOST_TARGET = 4095

log = logging.getLogger("cloudmount.guest")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a folder in a volume. Sizes in bytes; `number` is the file's own in its volume.

    `target` is what a link shows; `unreadable` why a file's content can't be had.
    """

    name: str
    number: int
    kind: Kind
    size: int
    allocated: int
    mtime_ns: int
    mode: int
    links: int
    uid: int | None
    gid: int | None
    target: str | None
    unreadable: str | None


class Listing:
    """What a child tells, in parts, of a folder `depth` folders below its volume's root."""

    def __init__(self, depth: int, where: str, tell: Callable[[str], None]) -> None:
        self._depth, self._where, self._tell = depth, where, tell
        self._found: dict[str, Entry] = {}
        self._odd: list[str] = []

    def add(self, told: Any) -> None:
        """One part; `BrokenFrameError` when it is no list of entries, or one too many."""
        if not isinstance(told, list):
            raise BrokenFrameError("a listing that is none")
        for one in told:
            entry = _entry(one, self._depth)
            if not _can_be_shown(entry.name) or entry.name in self._found:
                self._odd.append(entry.name[:100])
            else:
                self._found[entry.name] = entry
            if len(self._found) + len(self._odd) > MOST_ENTRIES:
                raise BrokenFrameError("more names than a folder may have")

    def entries(self) -> dict[str, Entry]:
        """Those by name, sorted; names that can't be shown are left out and told."""
        if self._odd:
            count, first = len(self._odd), self._odd[0]
            self._tell(f"{self._where}: {count} names can't be shown, and are left out: {first!a} ...")
        return dict(sorted(self._found.items()))


def entries(told: Any, depth: int, where: str) -> dict[str, Entry]:
    """The same of one told in one part."""
    listing = Listing(depth, where, log.warning)
    listing.add(told)
    return listing.entries()


def _can_be_shown(name: str) -> bool:
    try:
        length = len(name_bytes(name))
    except UnicodeError:
        return False
    return 0 < length <= NAME_MAX and name not in (".", "..") and "/" not in name and "\0" not in name


def _entry(told: Any, depth: int) -> Entry:
    try:
        name, number, kind, size, allocated, mtime_ns, mode, links, uid, gid, target, unreadable = told
        numbers = (number, size, allocated, abs(mtime_ns), mode, links, uid or 0, gid or 0)
        if not isinstance(name, str) or not all(type(n) is int and 0 <= n < _MOST * 4 for n in numbers):
            raise ValueError
        if size >= _MOST or links < 1 or mode & ~0o7777:
            raise ValueError
        if unreadable is not None and not isinstance(unreadable, str):
            raise ValueError
        where, path = (None, "") if target is None else target
        shown = None if where is None else link_target(str(where), str(path), depth)
        if (kind == "link") is (shown is None):
            raise ValueError
        return Entry(
            name,
            number,
            _KINDS[kind],
            size,
            min(allocated, _MOST),
            mtime_ns,
            mode,
            links,
            uid,
            gid,
            shown,
            unreadable,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BrokenFrameError("an entry that is none") from None


def link_target(where: str, path: str, depth: int) -> str:
    """What a link shows that lies in a folder `depth` below the volume's root.

    Absolute ones are told relative, to stay in the partition's folder. One that would leave the volume, or
    might (`..` behind a name that may be a link itself), shows where it leads as one odd name.
    """
    parts = [p for p in path.split("/") if p not in ("", ".")]
    up = next((i for i, p in enumerate(parts) if p != ".."), len(parts))
    if (
        ".." in parts[up:]
        or where not in (INSIDE, BESIDE)
        or (where == BESIDE and up > depth)
        or "\0" in path
    ):
        return _nowhere(path)
    if where == INSIDE:
        parts = [".."] * depth + parts[up:]
    target = "/".join(parts) or "."
    return target if len(_bytes(target)) <= _MOST_TARGET else _nowhere(path)


def _nowhere(path: str) -> str:
    text = "leads out of this volume: " + path.replace("/", "\\").replace("\0", "")
    return os.fsdecode(_bytes(text)[:1000])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape" if _escapable(text) else "replace")


def _escapable(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeError:
        return False
    return True
