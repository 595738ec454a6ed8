r"""What a tree's names are on a Windows drive, and what a path there names.

Decided here and only here:

* names are escaped (`winnames`), and looked up without regard to case. Of names in one folder that Windows
  takes for equal, and of those too long for it, the first in sorted order keeps its name and each further
  one gets `-2`, `-3` before its ending: nothing is hidden, and WinFsp, which has one cache for a path
  whatever its case, never mixes two files' bytes;
* Windows has no links here. One to a folder beside it (`latest`) is that folder, and one to a file within
  the drive is that file. Every other one is a small file that holds what it points to: folders elsewhere
  could lead a program that walks the drive round in circles.

A folder's names are asked for as a whole, and when a name is not among them that is believed for a second,
or for 20 times as long as asking took, but no longer than 15 s. Threading: any number of threads; no lock
is held while the tree is asked.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from cloudmount.extents import BlockSource, Bytes
from cloudmount.mounts.listing import showable
from cloudmount.nodes import Attr, Dir, Kind, Link, Node, is_dir
from cloudmount.winnames import UNITS, escape, fold, units

HOPS = 40
"""Links that may lead to one another, as in Linux."""
KEPT_NAMES = 200_000
"""Names of folders kept, some 250 bytes each; the last folder's always."""
FRESH_SECONDS = 1.0
FRESH_TIMES = 20
FRESH_AT_MOST = 15.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a path names."""

    node: Node
    attr: Attr
    folders: tuple[Dir, ...]
    """Those on the way, the root first; a folder is its own last."""
    path: str = ""
    r"""As the drive shows it, in its own case: `\a\b`, the root's is empty."""

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder on the drive."""
        return self.attr.kind is Kind.DIR


class LinkText:
    """A link that can't be followed, as a file."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def attr(self) -> Attr:
        """The link's, as a file's."""
        of = self._link.attr()
        size = len(self._content())
        return Attr(Kind.FILE, size, of.mtime_ns, of.mode & 0o666, of.inode, size, of.nlink, of.uid, of.gid)

    def open(self) -> BlockSource:
        """What it points to."""
        return Bytes(self._content())

    def _content(self) -> bytes:
        return os.fsencode(self._link.target())


def shown_names(names: Iterable[str]) -> dict[str, str]:
    """What each of a folder's names is called on the drive: no two of them equal, none too long."""
    escaped = sorted((name, escape(name)) for name in names)
    shown: dict[str, str] = {}
    taken: set[str] = set()
    for name, as_it_is in escaped:  # these first, so that what needs another name finds them taken
        if units(as_it_is) <= UNITS and (key := fold(as_it_is)) not in taken:
            taken.add(key)
            shown[name] = as_it_is
    for name, as_it_is in escaped:
        if name in shown:
            continue
        stem, ending = os.path.splitext(as_it_is)
        if units(ending) > 20:
            stem, ending = as_it_is, ""
        number = 2
        while fold(other := _fitting(stem, f"-{number}{ending}", name)) in taken:
            number += 1
        taken.add(fold(other))
        shown[name] = other
    return shown


def _fitting(stem: str, ending: str, name: str) -> str:
    """Both, the stem cut where it must be; then with a hash of the whole, so that it keeps what it is called
    when others come."""
    if units(stem + ending) > UNITS:
        ending = "~" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8] + ending
        while units(stem + ending) > UNITS:
            stem = stem[:-1]
    return stem + ending


class _Index:
    """The names of one folder."""

    def __init__(self, names: Iterable[str], seconds: float) -> None:
        """`seconds`: what asking for them took."""
        self.shown = shown_names(names)
        self.names = {fold(shown): name for name, shown in self.shown.items()}
        belief = min(max(FRESH_SECONDS, FRESH_TIMES * seconds), FRESH_AT_MOST)
        self._until = time.monotonic() + belief

    @property
    def fresh(self) -> bool:
        """Whether what it lacks is believed not to be there."""
        return time.monotonic() < self._until


class Names:
    """Those of one tree."""

    def __init__(self, root: Dir) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, _Index] = OrderedDict()
        self._kept = 0

    def find(self, path: str) -> Found | None:
        r"""What `path` (`\a\b`, as on the drive) names; None when there is nothing."""
        found = Found(self._root, self._root.attr(), (self._root,))
        for part in path.split("\\"):
            if part:
                below = self.child(found, part) if found.is_dir else None
                if below is None:
                    return None
                found = below[1]
        return found

    def child(self, folder: Found, shown: str) -> tuple[str, Found] | None:
        """What a folder has under a name in any case: its name on the drive, and what it is."""
        here = folder.folders[-1]
        index = self._index(here)
        name = index.names.get(fold(shown))
        node = here.lookup(name) if name is not None else None
        if (name is None and not index.fresh) or (name is not None and node is None):
            index = self._index(here, anew=True)  # others came, or it went and another is called so now
            name = index.names.get(fold(shown))
            node = here.lookup(name) if name is not None else None
        if node is None or name is None:
            return None
        attr = node.attr()
        if attr.kind is Kind.LINK:
            node = self._followed(folder, cast(Link, node))
            attr = node.attr()
        way = (*folder.folders, node) if is_dir(node) else folder.folders
        called = index.shown[name]
        return called, Found(node, attr, way, f"{folder.path}\\{called}")

    def listing(self, folder: Found) -> list[tuple[str, Attr]]:
        """A folder as the drive shows it, in Windows' order."""
        children, index = self._asked(folder.folders[-1])
        entries = []
        for name, node in children:
            attr = node.attr()
            if attr.kind is Kind.LINK:
                attr = self._followed(folder, cast(Link, node)).attr()
            entries.append((index.shown[name], attr))
        entries.sort(key=lambda entry: (fold(entry[0]), entry[0]))
        return entries

    def _followed(self, folder: Found, link: Link) -> Node:
        """What a link in the folder is on the drive."""
        found = self._follow(list(folder.folders), link, HOPS)
        return LinkText(link) if found is None else found

    def _follow(self, at: list[Dir], link: Link, hops: int) -> Node | None:
        target = link.target()
        parts = target.split("/")
        beside = "/" not in target
        if not hops or not target or target.startswith("/") or "\0" in target:
            return None
        for depth, part in enumerate(parts):
            if part in ("", "."):
                return None  # only folders are written so
            if part == "..":
                if len(at) == 1 or depth == len(parts) - 1:
                    return None
                at.pop()
                continue
            node = at[-1].lookup(part)
            if node is not None and node.attr().kind is Kind.LINK:
                node = self._follow(list(at), cast(Link, node), hops - 1)
            if node is None or depth == len(parts) - 1:
                return node if node is None or beside or not is_dir(node) else None
            if not is_dir(node):
                return None
            at.append(node)
        return None

    def _index(self, folder: Dir, anew: bool = False) -> _Index:
        number = folder.attr().inode
        with self._lock:
            index = self._indexes.get(number)
            if index is not None and not anew:
                self._indexes.move_to_end(number)
                return index
        return self._asked(folder)[1]

    def _asked(self, folder: Dir) -> tuple[list[tuple[str, Node]], _Index]:
        """Ask a folder for its children, and keep their names."""
        began = time.monotonic()
        number = folder.attr().inode
        children = [(name, node) for name, node in folder.list() if showable(name)]
        index = _Index((name for name, _ in children), time.monotonic() - began)
        with self._lock:
            before = self._indexes.pop(number, None)
            self._kept += len(index.shown) - (0 if before is None else len(before.shown))
            self._indexes[number] = index
            while self._kept > KEPT_NAMES and len(self._indexes) > 1:
                self._kept -= len(self._indexes.popitem(last=False)[1].shown)
        return children, index
