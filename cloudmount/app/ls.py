"""Listings of what a snapshot holds, as on the drive."""

from __future__ import annotations

from dataclasses import dataclass

from cloudmount.app.select import Selected
from cloudmount.errors import NotFoundError
from cloudmount.nodes import Kind, Node
from cloudmount.repo.repository import Repository
from cloudmount.tree.drive import Drive
from cloudmount.tree.snapshotdir import MadeFile, SnapshotDir, StoredFile, StoredLink


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of a listing. `size` in bytes, `mtime_ns` since 1970 UTC; `note` for people."""

    name: str
    type: str
    size: int
    mtime_ns: int
    note: str = ""


def ls(repository: Repository, selected: Selected) -> list[Listed]:
    """What lies in a folder of a snapshot, or the one file named."""
    snapshot = selected.snapshot
    node: Node = SnapshotDir(Drive(repository, None), snapshot.key, lambda: snapshot)
    name = ""
    for name in selected.path.split("/") if selected.path else ():
        found = node.lookup(name) if isinstance(node, SnapshotDir) else None
        if found is None:
            raise NotFoundError(f"{snapshot.machine}/{selected.folder} has no {selected.path!r}")
        node = found
    if isinstance(node, SnapshotDir):
        return [_listed(child, n) for child, n in node.list()]
    return [_listed(name, node)]


def _listed(name: str, node: Node) -> Listed:
    attr = node.attr()
    note = ""
    if isinstance(node, StoredLink):
        note = f"-> {node.target()}"
    elif isinstance(node, StoredFile):
        if node.entry.original is not None:
            note = f"(was {node.entry.original})"
        if not node.entry.consistent:
            note += " changed while it was read"
    elif isinstance(node, SnapshotDir) and node.original is not None:
        note = f"(was {node.original})"
    elif isinstance(node, MadeFile):
        note = node.note
    return Listed(
        name, attr.kind.value, attr.size if attr.kind is not Kind.DIR else 0, attr.mtime_ns, note.strip()
    )
