"""Listings of what a snapshot holds, as on the drive."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from cloudmount.app.opening import looking_inside
from cloudmount.app.select import Selected
from cloudmount.backup.naming import disk_names
from cloudmount.errors import NotFoundError
from cloudmount.nodes import Dir, Kind, Node
from cloudmount.repo.repository import Repository
from cloudmount.tree.inside import DiskDir, GuestDir, GuestFile, GuestLink, MadeDir, MadeFile
from cloudmount.tree.snapshotdir import SnapshotDir, StoredFile, StoredLink


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of a listing. `size` in bytes (0 for folders), `mtime_ns` since 1970 UTC; `note` for people.

    `original` is what it was called where it was backed up from, when that differs; of a disk the
    name of its image. `target` is what a link points to.
    """

    name: str
    type: str
    size: int
    mtime_ns: int
    original: str | None = None
    target: str | None = None
    note: str = ""
    unreadable: str | None = None
    """Why the content of a file inside a disk can't be read."""


def ls(repository: Repository, selected: Selected, environ: Mapping[str, str] = os.environ) -> list[Listed]:
    """What lies in a folder of a snapshot or inside one of its disks, or the one file named;
    `NotFoundError` names what is near."""
    snapshot = selected.snapshot
    with looking_inside(repository, environ) as drive:
        return _ls(SnapshotDir(drive, snapshot.key, lambda: snapshot), selected)


def _ls(top: SnapshotDir, selected: Selected) -> list[Listed]:
    snapshot = selected.snapshot
    node: Node = top
    folder, name = "", ""
    for part in filter(None, selected.path.split("/")):
        if node.attr().kind is not Kind.DIR:
            raise NotFoundError(f"{snapshot.machine}/{selected.folder}: {name!r} is not a folder")
        folder = f"{folder}/{name}" if folder else name
        found = cast(Dir, node).lookup(part)
        if found is None:
            where = f"{snapshot.machine}/{selected.folder}"
            raise NotFoundError(_nothing(where, selected.path, part, cast(Dir, node)))
        node, name = found, part
    if node.attr().kind is Kind.DIR:
        folder = f"{folder}/{name}" if folder else name
        images = _images(top, folder)
        return [_listed(child, n, images) for child, n in cast(Dir, node).list()]
    return [_listed(name, node, _images(top, folder))]


def _images(top: SnapshotDir, folder: str) -> dict[str, str]:
    """The image that what shows a disk in `folder` came from."""
    disks = [d for d in top.opened.disks if d.folder == folder]
    return {n: d.summary["original"] for d in disks for n in disk_names(d.name)}


def _nothing(where: str, path: str, part: str, folder: Dir) -> str:
    names = [name for name, _ in folder.list()]
    disk = [name for name in names if name in (f"{part}.vhdx", f"{part}.img")]
    near = disk or difflib.get_close_matches(part, names, 3, 0.6)
    hint = f"; there is {' and '.join(near)}" if near else ""
    return f"{where} has no {path!r}{hint}"


def _listed(name: str, node: Node, images: dict[str, str]) -> Listed:
    attr = node.attr()
    kind, original, target, note = attr.kind.value, None, None, ""
    unreadable: str | None = None
    if isinstance(node, StoredLink):
        target = node.target()
        note = f"-> {target}"
    elif isinstance(node, StoredFile):
        original = node.entry.original
        if not node.entry.consistent:
            note = "changed while it was read"
        elif node.entry.type != "file":
            note = f"a {node.entry.type}"
    elif isinstance(node, SnapshotDir):
        original = node.original
    elif isinstance(node, GuestLink):
        target = node.target()
        note = f"-> {target}"
    elif isinstance(node, GuestFile):
        unreadable = node.unreadable
        note = f"can't be read: {unreadable}" if unreadable is not None else ""
    elif isinstance(node, DiskDir):
        note, original = node.note, images.get(name)
    elif isinstance(node, MadeDir | GuestDir):
        note = node.note
    elif isinstance(node, MadeFile):
        note = node.note
        if images.get(name, name) != name:
            original = images[name]
    if original is not None and not note:
        note = f"(was {original})"
    size = attr.size if attr.kind is not Kind.DIR else 0
    return Listed(name, kind, size, attr.mtime_ns, original, target, note, unreadable)
