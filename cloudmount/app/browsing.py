"""Looking for things in a snapshot's tree.

Decided here and only here: how a PATH finds its node: exactly (inside disks by their file systems' rules for
case); what else may have been meant is said; and how folders are walked that may be damaged. Safe on any
thread.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cloudmount.app.select import Selected
from cloudmount.errors import CloudMountError, DamagedError, NotFoundError, StoreError
from cloudmount.nodes import Dir, Node, is_dir, is_link
from cloudmount.repo.snapshots import Snapshot
from cloudmount.tree.drive import Drive
from cloudmount.tree.snapshotdir import SnapshotDir


@dataclass(frozen=True, slots=True)
class Found:
    """A node and its path from the snapshot's folder (empty for that folder), as on the drive."""

    node: Node
    path: str
    folder: Dir
    """What it lies in; of the snapshot's folder that itself."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]


def top_of(drive: Drive, snapshot: Snapshot) -> SnapshotDir:
    """A snapshot's folder."""
    return SnapshotDir(drive, snapshot.key, lambda: snapshot)


def find_path(drive: Drive, selected: Selected) -> Found:
    """What `selected` names; `NotFoundError` tells what is near."""
    where = f"{selected.snapshot.machine}/{selected.folder}"
    found = look_up(top_of(drive, selected.snapshot), selected.path)
    if isinstance(found, Found):
        return found
    raise NotFoundError(f"{where} has no {selected.path!r}{found.hint()}")


@dataclass(frozen=True, slots=True)
class Missing:
    """Where a path leads nowhere: `part` is not in `node`, whose path is `path`."""

    node: Node
    path: str
    part: str

    def hint(self) -> str:
        """What to say of it, to follow a message."""
        if is_link(self.node):
            return f": {self.path!r} is a link to {self.node.target()!r}, which is not followed"
        if not is_dir(self.node):
            return f": {self.path!r} is not a folder"
        names = [name for name, _ in self.node.list()]
        same = [name for name in names if name.casefold() == self.part.casefold()]
        if same:
            return f"; did you mean {(f'{self.path}/' if self.path else '') + same[0]!r}?"
        disk = [name for name in names if name in (f"{self.part}.vhdx", f"{self.part}.img")]
        near = disk or difflib.get_close_matches(self.part, names, 3, 0.6)
        return f"; there is {' and '.join(near)}" if near else ""


def look_up(top: Dir, path: str) -> Found | Missing:
    """What lies at `path` below `top`. Links are not followed."""
    node: Node = top
    folder, walked = top, ""
    for part in filter(None, path.split("/")):
        if not is_dir(node):
            return Missing(node, walked, part)
        below = node.lookup(part)
        if below is None:
            return Missing(node, walked, part)
        folder, node = node, below
        walked = f"{walked}/{part}" if walked else part
    return Found(node, walked, folder)


def walk(
    folder: Dir,
    path: str,
    failed: Callable[[str, CloudMountError], None],
    enters: Callable[[str], bool] = lambda path: True,
) -> Iterator[tuple[str, Node]]:
    """What lies below `folder`, whose path is `path`, each folder before what is in it.

    A folder that can't be listed is given to `failed`, but for `folder` itself; a store that doesn't answer
    ends it. Folders that `enters` refuses are given, and not looked into. Links are not followed.
    """
    inside = [folder.attr().inode]  # a damaged or hostile file system may go in circles
    opened = [(path, _children(folder))]
    given = False
    while opened:
        path, children = opened[-1]
        try:
            child = next(children, None)
        except CloudMountError as error:
            if isinstance(error, StoreError) or not given:
                raise
            failed(path, error)
            child = None
        if child is None:
            opened.pop()
            inside.pop()
            continue
        given = True
        name, node = child
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            failed(path, DamagedError(f"it lists a thing called {name!r}, which nothing can be"))
            continue
        below = f"{path}/{name}" if path else name
        yield below, node
        if not is_dir(node) or not enters(below):
            continue
        inode = node.attr().inode
        if inode in inside:
            failed(below, DamagedError("this folder lies in itself"))
            continue
        opened.append((below, _children(node)))
        inside.append(inode)


def _children(folder: Dir) -> Iterator[tuple[str, Node]]:
    yield from folder.list()  # fails when it is asked, not when it is made
