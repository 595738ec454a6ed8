"""The drive: repository -> root `Dir`.

Decided here and only here: what the drive looks like (architecture, "The drive"): machines,
their snapshots by time and `latest`, and how soon new ones appear. What lies in a snapshot is
`snapshotdir`. Safe on any thread.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import cachetools

from cloudmount.blobs.store import BlobInfo
from cloudmount.errors import BlobMissingError, DamagedError, NotFoundError
from cloudmount.guest.children import Children
from cloudmount.guest.volume import KeptFolders
from cloudmount.nodes import Attr, Dir, Kind, Node
from cloudmount.reader.prefetch import Prefetchable
from cloudmount.reader.stored import FrameReader
from cloudmount.reader.tracing import Recorder
from cloudmount.repo.names import SnapshotKey, folders
from cloudmount.repo.repository import Machine, Repository
from cloudmount.repo.snapshots import Snapshot
from cloudmount.repo.streams import MapCache
from cloudmount.tree.bootlearning import BootLearning
from cloudmount.tree.refreshed import Refreshed
from cloudmount.tree.snapshotdir import OpenedSnapshot, SnapshotDir, StoredDisk

LATEST = "latest"
FRESH_SECONDS = 3.0
"""How long a machine's list of snapshots is believed before the store is asked again."""
MACHINES_SECONDS = 15.0
DAMAGED_SECONDS = 60.0
"""How long a snapshot that didn't open is not tried again for `latest`."""
MAP_BYTES = 16 << 20
"""Of decoded maps: 80 GiB of a disk that is read at random. Kept small, so that a drive's process is."""
MOST_TOLD = 1000
"""Different warnings of what lies inside disks."""
KEPT_SNAPSHOTS = 8
"""Opened snapshots kept; each may hold 24 MiB of listings."""


def inode(*parts: str) -> int:
    """A stable number for a path: 63 bits of its hash."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1


class LocalContent(Protocol):
    """Gives disks from elsewhere than the store where it can."""

    def content(self, disk: StoredDisk, stored: Prefetchable, *, starts: bool = True) -> Prefetchable:
        """The raw disk; owns `stored`, which reads it from the store. It is completed once it is read, unless
        it `starts` nothing."""

    def opening(self, disk: StoredDisk) -> None:
        """A file of the disk is being opened: what is wholly here is to be known by then. Waits not long."""

    def path(self, disk: StoredDisk, format: str) -> str | None:
        """A file here that is the disk in `format` ("vhdx", "raw"), as `extents.LocalCopy` demands."""


class Drive:
    """The root folder: one folder per machine."""

    def __init__(
        self,
        repository: Repository,
        reader: FrameReader | None,
        saw: Callable[[Snapshot], None] = lambda newest: None,
    ) -> None:
        """Without a `reader` the drive can be looked at, but no file's content opened. `saw` is told each
        machine's newest snapshot when it is first looked at."""
        self.repository = repository
        self.saw = saw
        self.local: LocalContent | None = None
        """What has disks on this machine; set before the drive is used."""
        self.learning = BootLearning(repository, reader) if reader is not None else None
        """What makes boots quicker; may be replaced before the drive is used."""
        self._reader = reader
        self.maps = MapCache(repository, MAP_BYTES)
        self.parsers = Children()
        """What reads file systems inside disks."""
        self.folders = KeptFolders()
        """Of those."""
        self._machines: dict[str, MachineDir] = {}
        self._listed = Refreshed(repository.machines, MACHINES_SECONDS, repository.warn)
        self._opened: cachetools.LRUCache[str, OpenedSnapshot] = cachetools.LRUCache(KEPT_SNAPSHOTS)
        self._since = int(time.time())
        self._told: set[str] = set()
        self._lock = threading.Lock()

    @property
    def reader(self) -> FrameReader:
        """What reads contents."""
        assert self._reader is not None
        return self._reader

    def close(self) -> None:
        """End what reads inside disks. May be called twice."""
        self.parsers.close()

    def attr(self) -> Attr:
        with self._lock:
            newest = max((m.newest for m in self._machines.values()), default=0)
        when = (newest or self._since) * 10**9
        return Attr(Kind.DIR, 0, when, 0o555, inode(self.repository.config.repo_id), nlink=2)

    def opened(self, snapshot: Snapshot) -> OpenedSnapshot:
        """What the folders of a snapshot share; one object as long as it is in use."""
        with self._lock:
            found = self._opened.get(snapshot.name)
            if found is None:
                found = self._opened[snapshot.name] = OpenedSnapshot(self, snapshot)
            return found

    def tell(self, text: str) -> None:
        """Have people know something of what lies inside disks; once, however often it is met."""
        with self._lock:
            if text in self._told or len(self._told) >= MOST_TOLD:
                return
            self._told.add(text)
        self.repository.warn(text)

    def space(self) -> tuple[int, int]:
        """What `df` shows, from memory: bytes of the newest snapshots opened so far, and their number."""
        with self._lock:
            machines = list(self._machines.values())
        known = [size for m in machines if (size := m.known_size) is not None]
        return sum(known), len(known)

    def boots(self, disk: StoredDisk) -> None:
        """A machine seems to boot from the disk."""
        if self.learning is not None:
            self.learning.boots(disk)

    def recorder(self, disk: StoredDisk) -> Recorder | None:
        """What records the disk's reads, while a machine boots from it."""
        return self.learning.recorder(disk.ident) if self.learning is not None else None

    def folder_of(self, snapshot: Snapshot) -> str:
        """What a snapshot's folder is called."""
        keys = self._dir(self.repository.machine(snapshot.machine)).keys()
        return next((name for name, key in keys.items() if key == snapshot.key), snapshot.key.folder)

    def _dir(self, machine: Machine) -> MachineDir:
        with self._lock:
            return self._machines.get(machine.name) or MachineDir(self, machine)

    def _keep(self, found: MachineDir) -> MachineDir:
        """The folder of a machine that there is; one object for all."""
        with self._lock:
            return self._machines.setdefault(found.machine.name, found)

    def lookup(self, name: str) -> Node | None:
        found = self._dir(self.repository.machine(name))
        return self._keep(found) if found.keys() else None

    def list(self) -> Iterator[tuple[str, Node]]:
        for machine in self._listed.get():
            yield machine.name, self._keep(self._dir(machine))


class _Listed(NamedTuple):
    """A machine's snapshots, oldest first."""

    keys: Mapping[str, SnapshotKey]
    infos: Mapping[SnapshotKey, BlobInfo]


class MachineDir:
    """A machine: a folder per snapshot, and `latest`."""

    def __init__(self, drive: Drive, machine: Machine) -> None:
        self.drive, self.machine = drive, machine
        self._listed = Refreshed(self._ask, FRESH_SECONDS, drive.repository.warn)
        self._damaged: dict[SnapshotKey, float] = {}
        self._saw: SnapshotKey | None = None
        self.known_size: int | None = None
        """Bytes of its newest snapshot's sources, once it was opened."""

    def _ask(self) -> _Listed:
        infos = self.drive.repository.listed(self.machine.tag)
        return _Listed(folders(list(infos)), infos)

    def keys(self) -> Mapping[str, SnapshotKey]:
        """The snapshots by their folder's name, oldest first."""
        return self._listed.get().keys

    @property
    def newest(self) -> int:
        """Time of the newest snapshot known, in seconds since 1970; asks nothing."""
        known = self._listed.known
        return max((k.time for k in known.keys.values()), default=0) if known is not None else 0

    def load(self, key: SnapshotKey) -> Snapshot:
        """Open one of its snapshots."""
        known = self._listed.known
        if known is None or key not in known.infos:
            raise NotFoundError(f"snapshot {key.id} of {self.machine.name} is no longer in the store")
        return self.drive.repository.load(known.infos[key])

    def latest(self) -> tuple[str, Snapshot] | None:
        """The folder and snapshot of the newest that opens."""
        for folder, key in reversed(list(self.keys().items())):
            if time.monotonic() - self._damaged.get(key, float("-inf")) < DAMAGED_SECONDS:
                continue
            try:
                snapshot = self.load(key)
            except (DamagedError, BlobMissingError, NotFoundError) as error:
                self._damaged[key] = time.monotonic()
                self.drive.repository.warn(f"{error}; the next newest snapshot is taken as {LATEST}")
                continue
            self.known_size = int(snapshot.summary["source_bytes"])
            if self._saw != key:
                self._saw = key
                self.drive.saw(snapshot)
            return folder, snapshot
        return None

    def attr(self) -> Attr:
        at = inode(self.drive.repository.config.repo_id, self.machine.tag)
        return Attr(Kind.DIR, 0, self.newest * 10**9, 0o555, at, nlink=2)

    def lookup(self, name: str) -> Node | None:
        if name == LATEST:
            return LatestLink(self) if self.latest() is not None else None
        key = self.keys().get(name)
        return self._snapshot(key) if key is not None else None

    def _snapshot(self, key: SnapshotKey) -> Dir:
        return SnapshotDir(self.drive, key, lambda: self.load(key))

    def list(self) -> Iterator[tuple[str, Node]]:
        keys = self.keys()
        for name, key in keys.items():
            yield name, self._snapshot(key)
        if keys and self.latest() is not None:
            yield LATEST, LatestLink(self)


class LatestLink:
    """The link to the newest snapshot of a machine."""

    def __init__(self, machine: MachineDir) -> None:
        self._machine = machine

    def attr(self) -> Attr:
        target = self.target()
        key = self._machine.keys().get(target)
        at = inode(self._machine.drive.repository.config.repo_id, self._machine.machine.tag, LATEST)
        return Attr(Kind.LINK, len(target), (key.time if key else 0) * 10**9, 0o777, at)

    def target(self) -> str:
        found = self._machine.latest()
        if found is None:
            raise DamagedError(f"no snapshot of {self._machine.machine.name} opens")
        return found[0]
