"""Trees held in memory, with content of any size computed on the fly, delays and faults."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator

from cloudmount.extents import BlockSource, Bytes, Extent, check_range
from cloudmount.nodes import Attr, Kind, Node

WHEN = 1_700_000_000_123_456_789
"""The time of every node that isn't given one; nanoseconds that a float would lose."""

_inodes = itertools.count(1000)


class Pattern:
    """A source of `size` bytes, each 4 KiB page told by its number: any range is checked cheaply."""

    PAGE = 4096

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self._seed = seed

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes, computed."""
        check_range(self.size, offset, length)
        first = offset // self.PAGE
        last = -(-(offset + length) // self.PAGE)
        pages = b"".join(self._page(n) for n in range(first, last))
        return pages[offset - first * self.PAGE :][:length]

    def _page(self, number: int) -> bytes:
        digest = hashlib.blake2b(b"%d %d" % (self._seed, number), digest_size=64).digest()
        return digest * (self.PAGE // 64)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """All data."""
        check_range(self.size, offset, length)
        yield Extent(offset, length, True)

    def close(self) -> None:
        """Nothing to release."""


class Watched:
    """A source whose reads first call `before(offset, length)`, which may wait or raise."""

    def __init__(self, source: BlockSource, before: Callable[[int, int], None]) -> None:
        self._source, self._before = source, before
        self.size = source.size
        self.closed = 0

    def read_at(self, offset: int, length: int) -> bytes:
        """After `before`."""
        self._before(offset, length)
        if self.closed:
            raise AssertionError("read after close")
        return self._source.read_at(offset, length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The source's."""
        return self._source.extents(offset, length)

    def close(self) -> None:
        """Counted."""
        self.closed += 1

    def again(self) -> Watched:
        """Another one on the same source."""
        return Watched(self._source, self._before)


class MemoryNode:
    """Attributes that may be changed while mounted."""

    kind: Kind

    def __init__(self, *, mode: int = 0o644, mtime_ns: int = WHEN, uid: int | None = None,
                 gid: int | None = None, inode: int | None = None) -> None:  # fmt: skip
        self.mode, self.mtime_ns, self.uid, self.gid = mode, mtime_ns, uid, gid
        self.inode = next(_inodes) if inode is None else inode

    def size(self) -> int:
        """Bytes."""
        return 0

    def allocated(self) -> int:
        """Bytes in use."""
        return self.size()

    def attr(self) -> Attr:
        """As they are now."""
        return Attr(self.kind, self.size(), self.mtime_ns, self.mode, self.inode,
                    allocated=self.allocated(), uid=self.uid, gid=self.gid)  # fmt: skip


class MemoryFile(MemoryNode):
    """A file over bytes, or over a source shared by every open (a `Watched` one's inner source)."""

    kind = Kind.FILE

    def __init__(self, content: bytes | BlockSource, *, allocated: int | None = None,
                 mode: int = 0o644, **attributes: int | None) -> None:  # fmt: skip
        super().__init__(mode=mode, **attributes)  # type: ignore[arg-type]  # the tests' own keywords
        self.source: BlockSource = Bytes(content) if isinstance(content, bytes) else content
        self._allocated = allocated
        self.opens = 0

    def size(self) -> int:
        """The source's."""
        return self.source.size

    def allocated(self) -> int:
        """As given, else the size."""
        return self.size() if self._allocated is None else self._allocated

    def open(self) -> BlockSource:
        """The source."""
        self.opens += 1
        return self.source.again() if isinstance(self.source, Watched) else self.source


class MemoryLink(MemoryNode):
    """A symbolic link; `to` may be changed while mounted."""

    kind = Kind.LINK

    def __init__(self, to: str) -> None:
        super().__init__(mode=0o777)
        self.to = to

    def size(self) -> int:
        """Bytes of the target."""
        return len(self.to.encode(errors="surrogateescape"))

    def target(self) -> str:
        """As it is now."""
        return self.to


class MemoryDir(MemoryNode):
    """A folder; children may come and go while mounted."""

    kind = Kind.DIR

    def __init__(self, children: dict[str, Node] | None = None, *, mode: int = 0o755,
                 **attributes: int | None) -> None:  # fmt: skip
        super().__init__(mode=mode, **attributes)  # type: ignore[arg-type]  # the tests' own keywords
        self.children: dict[str, Node] = dict(children or {})
        self.lock = threading.Lock()

    def lookup(self, name: str) -> Node | None:
        """The child, if there is one now."""
        return self.children.get(name)

    def list(self) -> Iterator[tuple[str, Node]]:
        """As they are when the listing begins."""
        with self.lock:
            children = sorted(self.children.items())
        yield from children
