"""The numbers under which the kernel remembers nodes, and how to get back to the nodes.

Decided here and only here: a node's number is its `Attr.inode` (except where that is 1, the root's
number, and after `renumber`), so pages the kernel keeps belong to one content on every path; and what a
remembered node costs. The kernel remembers as many as memory allows (a `find` over a million files: a
million), so only names are kept for all of them, about 250 bytes each, a quarter of what the kernel
spends; nodes themselves only for the most recent, the others are looked up again from their parent.

Threading: any number of threads at once; the lock is never held while the tree is asked.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

from cloudmount.errors import CloudMountError
from cloudmount.nodes import Attr, Dir, Node

ROOT = 1
_ONE = 1 << 63
"""The number of the inode 1, should a tree have it; no inode is as large. Those above are for `renumber`."""
KEPT_NODES = 4096


@dataclass(slots=True)
class _Name:
    parent: int
    name: bytes
    lookups: int
    shape: int


def _shape(attr: Attr) -> int:
    """Differs when two nodes can't be one: kind, size and time of content."""
    return hash((attr.kind, attr.size, attr.mtime_ns))


class Gone(OSError):
    """The kernel asks for a node that the tree no longer has (ESTALE: it looks the path up again)."""

    def __init__(self, name: bytes) -> None:
        super().__init__(errno.ESTALE, f"{os.fsdecode(name)!r} is no longer in the tree")


class Inodes:
    """What the kernel remembers of one tree."""

    def __init__(self, root: Dir, kept_nodes: int = KEPT_NODES) -> None:
        self._root = root
        self._kept = kept_nodes
        self._lock = threading.Lock()
        self._names: dict[int, _Name] = {}
        self._nodes: OrderedDict[int, Node] = OrderedDict()
        self._numbers = {ROOT: _ONE}
        self._others = itertools.count(_ONE + 1)

    def _number(self, inode: int) -> int:
        return self._numbers.get(inode, inode)

    def renumber(self, number: int) -> bytes:
        """From now on the file is told under a number that the kernel doesn't know yet; its name."""
        with self._lock:
            known = self._names.get(number)
            if known is None:
                raise Gone(b"inode %d" % number)
            inode = next((i for i, n in self._numbers.items() if n == number), number)
            self._numbers[inode] = next(self._others)
            return known.name

    def __len__(self) -> int:
        return len(self._names)

    def remember(self, parent: int, name: bytes, node: Node, attr: Attr) -> int:
        """The number of a node that is about to be told to the kernel; counted until `forget`.

        `CloudMountError` when the tree uses one inode for two different files: their pages would
        be mixed up.
        """
        shape = _shape(attr)
        with self._lock:
            number = self._number(attr.inode)
            known = self._names.get(number)
            if known is None:
                self._names[number] = _Name(parent, name, 1, shape)
            else:
                # A folder's time changes when a snapshot comes; a file under one name may be replaced.
                same = known.shape == shape or (known.parent == parent and known.name == name)
                if not same:
                    raise CloudMountError(
                        f"inode {attr.inode} is used for both {os.fsdecode(known.name)!r} and"
                        f" {os.fsdecode(name)!r}: please report this as a fault of CloudMount"
                    )
                known.parent, known.name, known.shape = parent, name, shape
                known.lookups += 1
            self._keep(number, node)
        return number

    def forget(self, number: int, lookups: int) -> None:
        """The kernel dropped `lookups` of its references."""
        with self._lock:
            known = self._names.get(number)
            if known is None:
                return
            known.lookups -= lookups
            if known.lookups <= 0:
                del self._names[number]
                self._nodes.pop(number, None)

    def parent_inode(self, number: int) -> int:
        """The inode of the folder it was last found in (the root's is the root's own)."""
        with self._lock:
            known = self._names.get(number)
        if known is None or known.parent == ROOT:
            return self._root.attr().inode
        return 1 if known.parent == _ONE else known.parent

    def node(self, number: int) -> Node:
        """The node of a number that was told to the kernel. `Gone` when the tree has it no more."""
        if number == ROOT:
            return self._root
        with self._lock:
            node = self._nodes.get(number)
            if node is not None:
                self._nodes.move_to_end(number)
                return node
            known = self._names.get(number)
            if known is None:
                raise Gone(b"inode %d" % number)
            parent, name = known.parent, known.name
        node = self.folder(parent).lookup(os.fsdecode(name))
        if node is None or self._number(node.attr().inode) != number:
            raise Gone(name)  # or it has another number now
        with self._lock:
            if number in self._names:
                self._keep(number, node)
        return node

    def folder(self, number: int) -> Dir:
        """The same for a number that was told as a folder's."""
        return cast(Dir, self.node(number))

    def _keep(self, number: int, node: Node) -> None:
        self._nodes[number] = node
        self._nodes.move_to_end(number)
        if len(self._nodes) > self._kept:
            self._nodes.popitem(last=False)
