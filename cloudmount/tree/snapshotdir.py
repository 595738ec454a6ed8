"""What lies in a snapshot's folder: `machine.json`, disks as containers, ordinary files.

Decided here and only here: which files a disk shows as, and what their attributes are.
Names were given when the backup was made (`backup/naming`). Safe on any thread.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cloudmount.disks.presence import BitmapPresence
from cloudmount.disks.synthesis import LARGE_ABOVE, Identity, synthesise_vhdx, vhdx_size
from cloudmount.errors import UsageError
from cloudmount.extents import BlockSource, Bytes, Zeros
from cloudmount.nodes import Attr, Kind, Node
from cloudmount.reader.prefetch import Prefetchable
from cloudmount.reader.stored import StoredSource
from cloudmount.reader.tracing import TracedSource
from cloudmount.repo.entries import Entry
from cloudmount.repo.listings import Listing
from cloudmount.repo.names import SnapshotKey
from cloudmount.repo.snapshots import Snapshot, StreamRoot
from cloudmount.repo.streams import StreamMap
from cloudmount.repo.structures import BLOCK_BYTES
from cloudmount.tree.bootguess import Watched
from cloudmount.tree.inside import DiskDir, Inside, MadeFile

if TYPE_CHECKING:
    from cloudmount.tree.drive import Drive

MACHINE_JSON = "machine.json"


class StoredDisk:
    """One disk of a snapshot."""

    def __init__(self, opened: OpenedSnapshot, summary: Mapping[str, Any], root: StreamRoot) -> None:
        self.summary, self.root = summary, root
        self._opened = opened
        self.name = str(summary["name"])
        self.folder = str(summary["path"])

    @property
    def path(self) -> str:
        """Its path in the snapshot's folder, without ending."""
        return f"{self.folder}/{self.name}" if self.folder else self.name

    @property
    def identity(self) -> Identity:
        """What a container says of it beside its content."""
        s = self.summary
        disk_id, snapshot = uuid.UUID(s["disk_id"]), bytes.fromhex(self._opened.snapshot.id)
        return Identity(s["size"], s["logical_sector"], s["physical_sector"], disk_id, snapshot, self.path)

    @property
    def blocks(self) -> int:
        """Present blocks of 2 MiB."""
        return sum(p.blocks for p in self.root.pages)

    @cached_property
    def map(self) -> StreamMap:
        """Where its frames lie."""
        opened, s = self._opened, self.summary
        return StreamMap(opened.drive.maps, opened.snapshot, s["size"], self.root, s["content"])

    @cached_property
    def presence(self) -> BitmapPresence:
        """Which of its 2 MiB blocks hold data."""
        return BitmapPresence(self.map.presence(), -(-int(self.summary["size"]) // BLOCK_BYTES))

    def content(self) -> Prefetchable:
        """The raw disk."""
        drive = self._opened.drive
        content: Prefetchable = StoredSource(drive.reader, self.map, self.ident)
        if drive.local is not None:
            content = drive.local.content(self, content)
        return TracedSource(content, lambda: drive.recorder(self))

    def quiet(self) -> BlockSource:
        """The raw disk for who reads what is inside: it fetches what is asked for and nothing beside (but see
        `extents.Prefetching`), and reading it starts no completion."""
        drive = self._opened.drive
        stored = StoredSource(drive.reader, self.map, self.ident, ahead=False)
        if drive.local is None:
            return stored
        drive.local.opening(self)  # a finished copy is used from the start
        return drive.local.content(self, stored, starts=False)

    @cached_property
    def inside(self) -> Inside:
        """Its partitions."""
        return Inside(self, self._opened)

    def node(self) -> DiskDir:
        """The folder of what is inside."""
        return DiskDir(self, self._opened)

    @property
    def ident(self) -> tuple[str, str]:
        """What names its content to readers."""
        return self.snapshot.id, self.path

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot it is in."""
        return self._opened.snapshot

    @property
    def blank(self) -> BlockSource:
        """The synthesised VHDX of a disk of zeros with its presence: right but for the disk's own bytes."""
        return synthesise_vhdx(Zeros(int(self.summary["size"])), self.presence, self.identity)

    def vhdx_bytes(self) -> int | None:
        """Length of the synthesised VHDX; None when a VHDX can't hold the disk."""
        large = self.summary["size"] > LARGE_ABOVE
        present = sum(p.large_blocks if large else p.blocks for p in self.root.pages)
        try:
            return vhdx_size(self.identity, present)
        except UsageError:
            return None

    def vhdx(self) -> BlockSource:
        """The synthesised VHDX: the same bytes on every mount, machine and version."""
        return synthesise_vhdx(self.content(), self.presence, self.identity)

    def shown_vhdx(self) -> BlockSource:
        """The VHDX on the drive."""
        return self._shown(self.vhdx(), "vhdx")

    def shown_raw(self) -> BlockSource:
        """The raw image on the drive."""
        return self._shown(self.content(), "raw")

    def _shown(self, source: BlockSource, format: str) -> BlockSource:
        local = self._opened.drive.local
        source = Watched(source, format, lambda: self._opened.drive.boots(self))
        if local is None:
            return source
        local.opening(self)
        return _Shown(source, lambda: local.path(self, format))


class _Shown:
    """A disk in one form, as the drive shows it: with the path of its finished copy here, if there is one.
    As thread-safe as `source`."""

    def __init__(self, source: BlockSource, local_path: Callable[[], str | None]) -> None:
        self.size, self.local_path = source.size, local_path
        self.read_at, self.extents, self.close = source.read_at, source.extents, source.close


class OpenedSnapshot:
    """An opened snapshot with what its folders need, made once."""

    def __init__(self, drive: Drive, snapshot: Snapshot) -> None:
        self.drive, self.snapshot = drive, snapshot
        self.disks = [
            StoredDisk(self, summary, root)
            for summary, root in zip(snapshot.summary["disks"], snapshot.roots, strict=True)
        ]

    @cached_property
    def listing(self) -> Listing:
        """The ordinary files."""
        return Listing(self.drive.maps, self.snapshot)

    def inode(self, path: str) -> int:
        """A stable number for a path in this snapshot."""
        from cloudmount.tree.drive import inode

        return inode(self.drive.repository.config.repo_id, self.snapshot.id, path)

    def machine_json(self) -> bytes:
        """What `machine.json` holds: the summary, for people and scripts."""
        value = {"id": self.snapshot.id, **self.snapshot.summary}
        return (
            json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        )


class SnapshotDir:
    """A folder of a snapshot; `path` is empty for the snapshot's own."""

    def __init__(
        self,
        drive: Drive,
        key: SnapshotKey,
        load: Callable[[], Snapshot],
        path: str = "",
        entry: Entry | None = None,
        opened: OpenedSnapshot | None = None,
    ) -> None:
        self._drive, self._key, self._load = drive, key, load
        self._path, self._entry = path, entry
        self._made = opened

    @property
    def opened(self) -> OpenedSnapshot:
        """The snapshot; opened when first needed."""
        if self._made is None:
            self._made = self._drive.opened(self._load())
        return self._made

    @property
    def original(self) -> str | None:
        """What the folder was called, where the drive's name differs."""
        return self._entry.original if self._entry is not None else None

    def attr(self) -> Attr:
        if self._entry is not None:
            return _entry_attr(self.opened, self._entry, Kind.DIR)
        from cloudmount.tree.drive import inode

        at = inode(self._drive.repository.config.repo_id, self._key.id)
        return Attr(Kind.DIR, 0, self._key.time * 10**9, 0o555, at, nlink=2)

    def _own(self) -> dict[str, Node]:
        """What is here beside ordinary files."""
        opened = self.opened
        own: dict[str, Node] = {}
        if not self._path:
            own[MACHINE_JSON] = _json_file(opened)
        for disk in opened.disks:
            if disk.folder == self._path:
                own |= dict(_disk_nodes(opened, disk))
        return own

    def lookup(self, name: str) -> Node | None:
        own = self._own()
        if name in own:
            return own[name]
        found = self.opened.listing.lookup(f"{self._path}/{name}" if self._path else name)
        return self._node(*found) if found is not None else None

    def list(self) -> Iterator[tuple[str, Node]]:
        own = self._own()
        names: dict[str, Node] = {
            entry.name: self._node(number, entry)
            for number, entry in self.opened.listing.children(self._path)
        }
        names |= own
        yield from sorted(names.items(), key=lambda item: item[0].encode("utf-8", "surrogateescape"))

    def _node(self, number: int, entry: Entry) -> Node:
        opened = self.opened
        if entry.type == "dir":
            return SnapshotDir(self._drive, self._key, self._load, entry.path, entry, opened)
        if entry.type == "link":
            return StoredLink(opened, entry)
        return StoredFile(opened, number, entry)


def _entry_attr(opened: OpenedSnapshot, entry: Entry, kind: Kind) -> Attr:
    return Attr(
        kind,
        entry.size if kind is Kind.FILE else len(entry.target or ""),
        entry.mtime_ns,
        entry.mode,
        opened.inode(entry.hardlink or entry.path),
        allocated=entry.size if kind is Kind.FILE else 0,
        nlink=2 if kind is Kind.DIR else entry.links,
        uid=entry.uid,
        gid=entry.gid,
    )


class StoredFile:
    """An ordinary file; devices, pipes and sockets show as empty files."""

    def __init__(self, opened: OpenedSnapshot, number: int, entry: Entry) -> None:
        self._opened, self._number, self.entry = opened, number, entry

    def attr(self) -> Attr:
        return _entry_attr(self._opened, self.entry, Kind.FILE)

    def open(self) -> BlockSource:
        if self.entry.type != "file":
            return Bytes(b"")
        content = self._opened.listing.content(self._number, self.entry)
        at = (self._opened.snapshot.id, self.entry.hardlink or self.entry.path)
        return StoredSource(self._opened.drive.reader, content, at)

    def stored_bytes(self) -> int:
        """As `nodes.Stored` demands."""
        if self.entry.type != "file":
            return 0
        content = self._opened.listing.content(self._number, self.entry)
        if isinstance(content, StreamMap):
            return content.root.sealed
        frames = range(-(-content.size // content.frame_bytes))
        return sum(at.counted for n in frames if (at := content.locate(n)) is not None)

    def content(self) -> str | None:
        """As `nodes.Identified` demands."""
        if self.entry.hardlink is None:
            return self.entry.content
        found = self._opened.listing.lookup(self.entry.hardlink)
        return found[1].content if found is not None else None


class StoredLink:
    """A symbolic link."""

    def __init__(self, opened: OpenedSnapshot, entry: Entry) -> None:
        self._opened, self.entry = opened, entry

    def attr(self) -> Attr:
        return _entry_attr(self._opened, self.entry, Kind.LINK)

    def target(self) -> str:
        return self.entry.target or ""


def _json_file(opened: OpenedSnapshot) -> MadeFile:
    content = opened.machine_json()
    mtime = opened.snapshot.key.time * 10**9
    attr = Attr(Kind.FILE, len(content), mtime, 0o444, opened.inode(MACHINE_JSON), allocated=len(content))
    return MadeFile(attr, lambda: Bytes(content))


def _disk_nodes(opened: OpenedSnapshot, disk: StoredDisk) -> Iterator[tuple[str, Node]]:
    def attr(name: str, size: int, allocated: int) -> Attr:
        at = opened.inode(f"{disk.folder}/{name}" if disk.folder else name)
        return Attr(Kind.FILE, size, int(disk.summary["mtime_ns"]), 0o444, at, allocated=allocated)

    note = f"the disk {disk.summary['original']}"
    if not disk.summary["consistent"]:
        note += ", which changed while it was read"
    stored, content = disk.root.sealed, str(disk.summary["content"])
    size = disk.vhdx_bytes()
    if size is not None:
        shown = attr(f"{disk.name}.vhdx", size, size)
        yield f"{disk.name}.vhdx", MadeFile(shown, disk.shown_vhdx, note, stored, content)
    raw = int(disk.summary["size"])
    shown = attr(f"{disk.name}.img", raw, min(raw, disk.blocks * BLOCK_BYTES))
    yield f"{disk.name}.img", MadeFile(shown, disk.shown_raw, note, stored, content)
    yield disk.name, disk.node()
