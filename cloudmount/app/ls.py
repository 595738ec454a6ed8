"""Listings of what a snapshot holds, as on the drive.

Decided here and only here: what a listing says of a node beside its name, size and time.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloudmount.app.browsing import find_path, top_of
from cloudmount.app.select import Selected
from cloudmount.backup.naming import disk_names
from cloudmount.nodes import Kind, Node, Unreadable, is_dir, is_link
from cloudmount.tree.drive import Drive
from cloudmount.tree.inside import DiskDir, GuestDir, MadeDir, MadeFile
from cloudmount.tree.snapshotdir import SnapshotDir, StoredFile


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of a listing. `size` in bytes (0 for folders), `mtime_ns` since 1970 UTC; `note` for people.

    `original` is what it was called where it was backed up from, when that differs; of a disk the
    name of its image. `target` is what a link points to, `unreadable` why its content can't be read.
    """

    name: str
    type: str
    size: int
    mtime_ns: int
    original: str | None = None
    target: str | None = None
    unreadable: str | None = None
    note: str = ""


def ls(drive: Drive, selected: Selected) -> list[Listed]:
    """What lies in a folder of a snapshot, or the one file named; `NotFoundError` names what is near."""
    found = find_path(drive, selected)
    top = top_of(drive, selected.snapshot)
    if is_dir(found.node):
        images = _images(top, found.path)
        return [_listed(name, node, images) for name, node in found.node.list()]
    return [_listed(found.name, found.node, _images(top, found.path.rpartition("/")[0]))]


def _images(top: SnapshotDir, folder: str) -> dict[str, str]:
    """The image that what shows a disk in `folder` came from."""
    disks = [d for d in top.opened.disks if d.folder == folder]
    return {n: d.summary["original"] for d in disks for n in disk_names(d.name)}


def _listed(name: str, node: Node, images: dict[str, str]) -> Listed:
    attr = node.attr()
    original, target, note = None, None, ""
    unreadable = node.unreadable if isinstance(node, Unreadable) else None
    if is_link(node):
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
    elif isinstance(node, DiskDir):
        note, original = node.note, images.get(name)
    elif isinstance(node, MadeDir | GuestDir):
        note = node.note
    elif isinstance(node, MadeFile):
        note = node.note
        if images.get(name, name) != name:
            original = images[name]
    if unreadable is not None:
        note = f"can't be read: {unreadable}"
    elif original is not None and not note:
        note = f"(was {original})"
    size = attr.size if attr.kind is not Kind.DIR else 0
    return Listed(name, attr.kind.value, size, attr.mtime_ns, original, target, unreadable, note)
