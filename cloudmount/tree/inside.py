"""What lies inside a disk: a folder with one for each partition, and in those the guest's own files.

Decided here and only here: what partitions are called (`cli.md`, "What is a disk"), what is shown of those
whose file system is not read, and that a disk is looked at when its folder is opened, not before. Safe on
any thread.
"""

from __future__ import annotations

import logging
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cloudmount.disks.partitions import Partition, read_partitions
from cloudmount.errors import UnreadableInputError
from cloudmount.extents import BlockSource, Bytes, Extent, Prefetching, check_range
from cloudmount.guest.entries import Entry
from cloudmount.guest.recognise import Recognised, recognise
from cloudmount.guest.volume import Path, Volume
from cloudmount.nodes import Attr, Kind, Node
from cloudmount.reader.following import Following, Place
from cloudmount.tree.placed import PlacedFiles

if TYPE_CHECKING:
    from cloudmount.tree.snapshotdir import OpenedSnapshot, StoredDisk

UNSUPPORTED, PROBLEMS = "UNSUPPORTED.txt", "PROBLEMS.txt"
MOST_PARTITIONS = 128
"""A disk of people has fewer; a GPT may tell of thousands."""
_MOST_LABEL = 100
_LOOKING = 4
"""Partitions looked at together."""
_EXTENDED = ("0x05", "0x0f", "0x85")

log = logging.getLogger("cloudmount.tree")


class MadeFile:
    """A file that is made from something else: a container, `machine.json`, an explanation."""

    def __init__(
        self,
        attr: Attr,
        source: Callable[[], BlockSource],
        note: str = "",
        stored: int = 0,
        content: str | None = None,
    ) -> None:
        self._attr, self._source, self.note = attr, source, note
        self._stored, self._content = stored, content

    def attr(self) -> Attr:
        return self._attr

    def open(self) -> BlockSource:
        return self._source()

    def stored_bytes(self) -> int:
        """As `nodes.Stored` demands."""
        return self._stored

    def content(self) -> str | None:
        """As `nodes.Identified` demands; of a disk's container that of the disk."""
        return self._content


class MadeDir:
    """A folder of a few nodes."""

    def __init__(self, attr: Attr, children: Mapping[str, Node], note: str = "") -> None:
        self._attr, self._children, self.note = attr, children, note

    def attr(self) -> Attr:
        return self._attr

    def lookup(self, name: str) -> Node | None:
        return self._children.get(name)

    def list(self) -> Iterator[tuple[str, Node]]:
        yield from sorted(self._children.items())


class DiskDir:
    """The folder beside a disk's files. Its content is found when it is first asked for."""

    def __init__(self, disk: StoredDisk, opened: OpenedSnapshot) -> None:
        self._disk, self._opened = disk, opened
        self.note = f"inside the disk {disk.summary['original']}"

    def attr(self) -> Attr:
        return _folder(self._opened.inode(self._disk.path), int(self._disk.summary["mtime_ns"]))

    def lookup(self, name: str) -> Node | None:
        return self._disk.inside.children().get(name)

    def list(self) -> Iterator[tuple[str, Node]]:
        yield from sorted(self._disk.inside.children().items())


class Inside:
    """A disk's partitions, found once."""

    def __init__(self, disk: StoredDisk, opened: OpenedSnapshot) -> None:
        self._disk, self._opened = disk, opened
        self._mtime = int(disk.summary["mtime_ns"])
        self._found: Mapping[str, Node] | None = None
        self._lock = threading.Lock()

    def children(self) -> Mapping[str, Node]:
        """What the disk's folder holds. Failures of the store are raised, and it is looked again."""
        with self._lock:
            if self._found is None:
                self._found = self._look()
            return self._found

    def _look(self) -> dict[str, Node]:
        disk = self._disk
        source = disk.quiet()
        table = read_partitions(source, int(disk.summary["logical_sector"]))
        problems = [] if table.problem is None else [table.problem]
        partitions = [p for p in table.partitions if p.type not in _EXTENDED]
        if table.kind == "none":
            whole = Partition(1, 0, source.size, "")
            found = recognise(source)
            if found.name is None:
                text = f"The disk {disk.path}: no partition table and no file system that is known."
                return {UNSUPPORTED: self._text(UNSUPPORTED, text + self._instead())}
            return dict([self._partition(source, whole, found)])
        if len(partitions) > MOST_PARTITIONS:
            problems.append(f"of {len(partitions)} partitions the first {MOST_PARTITIONS} are shown")
        with ThreadPoolExecutor(_LOOKING, thread_name_prefix="cloudmount-look") as threads:
            children = dict(
                threads.map(lambda p: self._partition(source, p, None), partitions[:MOST_PARTITIONS])
            )
        if problems:
            text = "".join(f"{p}\n" for p in problems)
            self._opened.drive.tell(f"{disk.path}: partition table: {'; '.join(problems)}")
            children[PROBLEMS] = self._text(PROBLEMS, f"The partition table of this disk:\n{text}")
        return children

    def _partition(
        self, disk: BlockSource, partition: Partition, found: Recognised | None
    ) -> tuple[str, Node]:
        """A partition's name and folder."""
        where = f"{self._disk.path}, partition {partition.number}"
        source = _Part(disk, partition)
        found = found or recognise(source, partition)
        label, volume, warning = "", None, ""
        drive = self._opened.drive
        if found.parser is not None:
            volume = Volume(drive.parsers, source, found.parser, where, drive.folders, drive.tell)
            try:
                label, warning = volume.label, volume.warning
            except UnreadableInputError as error:
                log.warning("%s", error)  # its folder tells it to who opens it
        name = partition_name(partition, label, found)
        note = found.what + (f"; {warning}" if warning else "")
        if volume is not None:
            number = partition.number

            def entered(text: str = f"{where}: {warning}" if warning else "") -> None:
                if text:
                    drive.tell(text)

            guest = Guest(
                volume,
                lambda n: self._inode(number, f"#{n}"),
                self._mtime,
                source.prefetch,
                self._allowed,
                lambda: PlacedFiles(self._opened.drive.repository.keys, self._disk.map, source.start),
                entered,
            )
            return name, GuestDir(guest, (), None, note)
        text = f"Partition {partition.number}: {found.what}. The files in it can't be shown.{self._instead()}"
        attr = _folder(self._inode(partition.number, "folder"), self._mtime)
        return name, MadeDir(attr, {UNSUPPORTED: self._text(UNSUPPORTED, text, partition.number)}, note)

    def _instead(self) -> str:
        disk = self._disk
        return (
            "\n\nThey are in the backup all the same, with the whole disk:\n"
            f"- restore it:  cloudmount restore {disk.snapshot.id}:{disk.path} FOLDER\n"
            f"- or boot it, or attach {disk.name}.vhdx of this drive to a machine that can read it.\n"
        )

    def _text(self, name: str, text: str, number: int = 0) -> MadeFile:
        content = text.encode("utf-8", "replace")
        at = self._inode(number, name)
        attr = Attr(Kind.FILE, len(content), self._mtime, 0o444, at, allocated=len(content))
        return MadeFile(attr, lambda: Bytes(content))

    def _inode(self, number: int, what: str) -> int:
        return self._opened.inode(f"{self._disk.path}\0{number}\0{what}")

    def _allowed(self) -> int:
        return self._opened.drive.reader.pace.limit


def partition_name(partition: Partition, label: str, found: Recognised) -> str:
    """`N-LABEL`: the file system's label, else the partition's own name, else its type."""
    kind = found.name or (partition.type_name if partition.type else "")
    for text in (label, partition.name, kind):
        name = _cleaned(text)
        if name:
            return f"{partition.number}-{name}"
    return f"{partition.number}-unknown"


def _cleaned(text: str) -> str:
    """As a name: what Windows or Linux can't hold becomes `_`."""
    odd = '/\\:*?"<>|'
    clean = "".join(
        "_" if c in odd or unicodedata.category(c) in ("Cc", "Cs", "Cn") else c for c in text.strip()
    )
    clean = clean[:_MOST_LABEL].rstrip()
    return clean[:-1] + "_" if clean.endswith(".") else clean


def _folder(inode: int, mtime_ns: int) -> Attr:
    return Attr(Kind.DIR, 0, mtime_ns, 0o555, inode, nlink=2)


class _Part:
    """A partition's bytes, as far as they lie on the disk."""

    def __init__(self, disk: BlockSource, partition: Partition) -> None:
        self._disk, self.start = disk, min(partition.start, disk.size)
        self.size = min(partition.length, disk.size - self.start)

    def read_at(self, offset: int, length: int) -> bytes:
        """As of the disk."""
        check_range(self.size, offset, length)
        return self._disk.read_at(self.start + offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        """As of the disk."""
        check_range(self.size, offset, length)
        if isinstance(self._disk, Prefetching):
            self._disk.prefetch(self.start + offset, length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As of the disk."""
        check_range(self.size, offset, length)
        for e in self._disk.extents(self.start + offset, length):
            yield Extent(e.offset - self.start, e.length, e.data)

    def close(self) -> None:
        """Nothing: the disk is the others' too."""


class Guest:
    """A volume, and what its nodes need beside: `inode` gives a stable number for a file's own, `mtime_ns` is
    the time of its root, `prefetch` and `allowed` are those of `Following`, `placed` tells what maps know."""

    def __init__(
        self,
        volume: Volume,
        inode: Callable[[int], int],
        mtime_ns: int,
        prefetch: Callable[[int, int], None],
        allowed: Callable[[], int],
        placed: Callable[[], PlacedFiles],
        entered: Callable[[], None] = lambda: None,
    ) -> None:
        """`entered` is called when somebody looks into it."""
        self.entered = entered
        self.volume, self.inode, self.mtime_ns = volume, inode, mtime_ns
        self._prefetch, self._allowed, self._placed = prefetch, allowed, placed

    def attr(self, entry: Entry) -> Attr:
        """Of an entry."""
        return Attr(
            entry.kind,
            _target_length(entry) if entry.kind is Kind.LINK else entry.size,
            entry.mtime_ns,
            entry.mode,
            self.inode(entry.number),
            allocated=entry.allocated,
            nlink=2 if entry.kind is Kind.DIR else entry.links,
            uid=entry.uid,
            gid=entry.gid,
        )

    def node(self, path: Path, entry: Entry) -> Node:
        """An entry at `path`."""
        if entry.kind is Kind.DIR:
            return GuestDir(self, path, entry)
        if entry.kind is Kind.LINK:
            return GuestLink(self, entry)
        return GuestFile(self, entry)

    def stored_bytes(self, entry: Entry) -> int:
        """Sealed bytes of the frames that a file touches."""
        return self._placed().stored_bytes(self._places(entry))

    def content(self, entry: Entry) -> str | None:
        """What a file's content is known by, if by anything."""
        if entry.unreadable is not None:
            return None
        return self._placed().content(entry.size, entry.mtime_ns, self._places(entry))

    @property
    def start(self) -> int:
        """The byte of the disk at which the volume begins."""
        return self._placed().start

    def on_disk(self, entry: Entry) -> list[tuple[int, int]]:
        """(offset, length) in bytes of the disk of where a file lies, in its order."""
        return [(at, length) for _, at, length in self._placed().on_disk(sorted(self._places(entry)))]

    def _places(self, entry: Entry) -> list[Place]:
        return [(p.offset, p.at, p.length) for p in self.volume.places(entry)]

    def open(self, entry: Entry) -> BlockSource:
        """A file's content."""
        source = self.volume.open(entry)
        return Following(source, lambda: self._places(entry), self._prefetch, self._allowed)


def _target_length(entry: Entry) -> int:
    return len((entry.target or "").encode("utf-8", "surrogateescape"))


class GuestDir:
    """A guest's folder; a partition's own when there is no `entry`."""

    def __init__(self, guest: Guest, path: Path, entry: Entry | None, note: str = "") -> None:
        self._guest, self._path, self._entry, self.note = guest, path, entry, note

    def attr(self) -> Attr:
        if self._entry is not None:
            return self._guest.attr(self._entry)
        return _folder(self._guest.inode(0), self._guest.mtime_ns)

    @property
    def start(self) -> int:
        """The byte of the disk at which its volume begins."""
        return self._guest.start

    def _number(self) -> int:
        return self._guest.volume.root if self._entry is None else self._entry.number

    def lookup(self, name: str) -> Node | None:
        if self._entry is None:
            self._guest.entered()
        found = self._guest.volume.lookup(self._path, self._number(), name)
        return None if found is None else self._guest.node((*self._path, found.name), found)

    def list(self) -> Iterator[tuple[str, Node]]:
        if self._entry is None:
            self._guest.entered()
        for name, entry in self._guest.volume.folder(self._path, self._number()).items():
            yield name, self._guest.node((*self._path, name), entry)


class GuestFile:
    """A guest's file."""

    def __init__(self, guest: Guest, entry: Entry) -> None:
        self._guest, self._entry = guest, entry

    @property
    def unreadable(self) -> str | None:
        """Why its content can't be read; None when it can."""
        return self._entry.unreadable

    def attr(self) -> Attr:
        return self._guest.attr(self._entry)

    def open(self) -> BlockSource:
        return self._guest.open(self._entry)

    def places(self) -> list[tuple[int, int]]:
        """(offset, length) in bytes of the disk of where its content lies, as far as it is not packed or kept
        elsewhere."""
        return self._guest.on_disk(self._entry)

    def stored_bytes(self) -> int:
        """As `nodes.Stored` demands."""
        return self._guest.stored_bytes(self._entry)

    def content(self) -> str | None:
        """As `nodes.Identified` demands."""
        return self._guest.content(self._entry)


class GuestLink:
    """A guest's link: into its own partition, or to nowhere."""

    def __init__(self, guest: Guest, entry: Entry) -> None:
        self._guest, self._entry = guest, entry

    def attr(self) -> Attr:
        return self._guest.attr(self._entry)

    def target(self) -> str:
        return self._entry.target or ""
