"""A tree whose files have complete copies on this machine, as those of hydrated disks have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from cloudmount.extents import BlockSource, Bytes, Extent
from cloudmount.nodes import Attr, Dir, Kind, Node
from tests.trees.memory_tree import MemoryFile, Pattern

MOST = 8 << 20
_numbers = itertools.count()


class CopiedSource:
    """A source with a copy at `path`."""

    def __init__(self, source: BlockSource, path: Path) -> None:
        self.size, self._source, self._path = source.size, source, path

    def read_at(self, offset: int, length: int) -> bytes:
        """The source's bytes."""
        return self._source.read_at(offset, length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The source's."""
        return self._source.extents(offset, length)

    def local_path(self) -> str:
        """The copy."""
        return str(self._path)

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class Copied:
    """A file with a copy in `folder`, made when it is first opened; what waits, fails or is huge has none."""

    def __init__(self, file: MemoryFile, folder: Path) -> None:
        self.file, self._folder = file, folder
        self._path: Path | None = None

    def attr(self) -> Attr:
        """The file's."""
        return self.file.attr()

    def open(self) -> BlockSource:
        """With the copy."""
        source = self.file.open()
        if not isinstance(source, (Bytes, Pattern)) or source.size > MOST:
            return source
        if self._path is None:
            path = self._folder / f"copy{next(_numbers)}"
            path.write_bytes(source.read_at(0, source.size))
            self._path = path
        return CopiedSource(source, self._path)


class CopiedDir:
    """The folder `inner` with every file `Copied`, in `folder`."""

    def __init__(self, inner: Dir, folder: Path) -> None:
        self._inner, self._folder = inner, folder
        self._shown: dict[int, tuple[Node, Node]] = {}

    def attr(self) -> Attr:
        """The folder's."""
        return self._inner.attr()

    def _show(self, node: Node) -> Node:
        known = self._shown.get(id(node))
        if known is None or known[0] is not node:
            shown: Node = node
            if isinstance(node, MemoryFile):
                shown = Copied(node, self._folder)
            elif node.attr().kind is Kind.DIR:
                shown = CopiedDir(cast(Dir, node), self._folder)
            known = self._shown[id(node)] = (node, shown)
        return known[1]

    def lookup(self, name: str) -> Node | None:
        """The child, with a copy."""
        node = self._inner.lookup(name)
        return None if node is None else self._show(node)

    def list(self) -> Iterator[tuple[str, Node]]:
        """The children."""
        for name, node in self._inner.list():
            yield name, self._show(node)
