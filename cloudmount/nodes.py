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
from typing import Protocol, TypeGuard, runtime_checkable

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


@runtime_checkable
class Unreadable(Protocol):
    """What a node that can't be read may say beside."""

    @property
    def unreadable(self) -> str | None:
        """Why its content can't be read, None when it can; cheap."""


@runtime_checkable
class Stored(Protocol):
    """What a file may tell beside: what it takes in the store."""

    def stored_bytes(self) -> int:
        """Bytes that reading all of it fetches at most, about; from maps alone, no content is read."""


@runtime_checkable
class Identified(Protocol):
    """What a file may tell beside: what its content is known by."""

    def content(self) -> str | None:
        """Equal for equal contents only, from maps and metadata alone; None when only reading can tell.

        Those of 32 hex digits are different for different contents too.
        """


def is_dir(node: Node) -> TypeGuard[Dir]:
    """Whether it is a folder."""
    return node.attr().kind is Kind.DIR


def is_file(node: Node) -> TypeGuard[File]:
    """Whether it is a regular file."""
    return node.attr().kind is Kind.FILE


def is_link(node: Node) -> TypeGuard[Link]:
    """Whether it is a symbolic link."""
    return node.attr().kind is Kind.LINK
