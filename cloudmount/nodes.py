"""Everything mountable is a `Dir` of `File`s, `Link`s and `Dir`s.

Decided here and only here: what an adapter (FUSE, WinFsp, NBD) may ask of a
tree. Adapters only translate; the tree is decided in `tree/`. Names are `str`
with undecodable bytes as surrogate escapes (`os.fsdecode`). Every method may
be called from any number of threads at once. Standard library only.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from cloudmount.extents import BlockSource


class Kind(enum.Enum):
    """What a node is."""

    FILE = "file"
    DIR = "dir"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Attr:
    """What `stat` shows. Times are nanoseconds since 1970 UTC; `allocated` is bytes in use."""

    kind: Kind
    size: int
    mtime_ns: int
    mode: int
    """Permission bits only, write bits included as backed up; adapters refuse writing."""
    inode: int
    """Stable across mounts, unique within a tree, 1..2**63-1."""
    allocated: int = 0
    nlink: int = 1
    uid: int | None = None
    """Owner as backed up; None: whoever mounts."""
    gid: int | None = None


class Node(Protocol):
    """Anything with attributes."""

    def attr(self) -> Attr:
        """Its attributes; cheap: never reads content."""


class File(Node, Protocol):
    """A regular file."""

    def open(self) -> BlockSource:
        """Its content. The caller closes it. Sources opened twice may share state."""


class Dir(Node, Protocol):
    """A folder."""

    def lookup(self, name: str) -> Node | None:
        """The child called `name`, or None."""

    def list(self) -> Iterator[tuple[str, Node]]:
        """Every child once, sorted by name; without `.` and `..`."""


class Link(Node, Protocol):
    """A symbolic link."""

    def target(self) -> str:
        """What it points to, as stored."""
