"""Listings of what a snapshot holds, as on the drive."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from cloudmount.app.select import Selected
from cloudmount.errors import NotFoundError
from cloudmount.nodes import Kind, Node
from cloudmount.repo.repository import Repository
from cloudmount.tree.drive import Drive
from cloudmount.tree.snapshotdir import MadeFile, SnapshotDir, StoredFile, StoredLink


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


def ls(repository: Repository, selected: Selected) -> list[Listed]:
    """What lies in a folder of a snapshot, or the one file named; `NotFoundError` names what is near."""
    snapshot = selected.snapshot
    top = SnapshotDir(Drive(repository, None), snapshot.key, lambda: snapshot)
    node: Node = top
    folder, name = "", ""
    for part in filter(None, selected.path.split("/")):
        if not isinstance(node, SnapshotDir):
            raise NotFoundError(f"{snapshot.machine}/{selected.folder}: {name!r} is not a folder")
        folder = f"{folder}/{name}" if folder else name
        found = node.lookup(part)
        if found is None:
            raise NotFoundError(_nothing(f"{snapshot.machine}/{selected.folder}", selected.path, part, node))
        node, name = found, part
    if isinstance(node, SnapshotDir):
        folder = f"{folder}/{name}" if folder else name
        images = _images(top, folder)
        return [_listed(child, n, images) for child, n in node.list()]
    return [_listed(name, node, _images(top, folder))]


def _images(top: SnapshotDir, folder: str) -> dict[str, str]:
    """The image that each disk file in `folder` came from."""
    disks = [d for d in top.opened.disks if d.folder == folder]
    return {f"{d.name}.{ending}": d.summary["original"] for d in disks for ending in ("vhdx", "img")}


def _nothing(where: str, path: str, part: str, folder: SnapshotDir) -> str:
    names = [name for name, _ in folder.list()]
    disk = [name for name in names if name in (f"{part}.vhdx", f"{part}.img")]
    near = disk or difflib.get_close_matches(part, names, 3, 0.6)
    hint = f"; there is {' and '.join(near)}" if near else ""
    return f"{where} has no {path!r}{hint}"


def _listed(name: str, node: Node, images: dict[str, str]) -> Listed:
    attr = node.attr()
    kind, original, target, note = attr.kind.value, None, None, ""
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
    elif isinstance(node, MadeFile):
        note = node.note
        if images.get(name, name) != name:
            original = images[name]
    if original is not None and not note:
        note = f"(was {original})"
    size = attr.size if attr.kind is not Kind.DIR else 0
    return Listed(name, kind, size, attr.mtime_ns, original, target, note)
