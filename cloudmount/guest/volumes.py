"""In the child: what every parser gives, whatever the file system.

Decided here and only here: an entry's form on the wire (`Found`), which the parent checks (`entries`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

STALE = "what was written last may be missing or old"
"""The end of what is said of volumes that were in use."""
INSIDE, BESIDE, OUTSIDE = "volume", "folder", "outside"
"""Where a link's target begins: at the volume's root, at the link's folder, or elsewhere."""


class Unreadable(Exception):
    """A file whose content can't be read rightly, and why."""


class Found(NamedTuple):
    """One name in a folder. `number` identifies the file in its volume; `target`: (where, path with
    slashes); `unreadable`: why its content can't be read."""

    name: str
    number: int
    kind: str
    size: int
    allocated: int
    mtime_ns: int
    mode: int
    links: int
    uid: int | None = None
    gid: int | None = None
    target: tuple[str, str] | None = None
    unreadable: str | None = None


class Volume(Protocol):
    """An opened file system. Failures of any kind are exceptions."""

    label: str
    root: int
    warning: str
    """What people should know before they trust its files; mostly empty."""

    def folder(self, number: int) -> Iterable[Found]:
        """Every name in a folder, without `.`, `..`, what is deleted, and the file system's own files."""

    def lookup(self, path: list[str], number: int) -> Found | None:
        """The last name of `path`, which lies in the folder `number`; costs less than `folder`.

        `NotImplementedError` where it doesn't."""

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Bytes of a file. `Unreadable` when that is not sure."""

    def extents(self, number: int) -> Iterable[tuple[int, int, int]]:
        """(offset in the file, offset in the volume, length) of what lies there as it is, or compressed."""

    def data(self, number: int) -> Iterable[tuple[int, int]] | None:
        """(offset, length) of all of a file that is no hole, in order; None where that isn't known."""
