"""The drive: repository -> root `Dir`.

Decided here and only here: what the drive looks like (architecture, "The drive"): machines,
their snapshots by time and `latest`, and how soon new ones appear. What lies in a snapshot is
`snapshotdir`. Safe on any thread.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator

from cloudmount.errors import DamagedError
from cloudmount.nodes import Attr, Dir, Kind, Node
from cloudmount.reader.stored import FrameReader
from cloudmount.repo.names import SnapshotKey, folders
from cloudmount.repo.repository import Machine, Repository
from cloudmount.repo.snapshots import Snapshot
from cloudmount.repo.streams import MapCache
from cloudmount.tree.snapshotdir import SnapshotDir

LATEST = "latest"
FRESH_SECONDS = 3.0
"""How long a machine's list of snapshots is believed before the store is asked again."""
MACHINES_SECONDS = 15.0


def inode(*parts: str) -> int:
    """A stable number for a path: 63 bits of its hash."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1


class Drive:
    """The root folder: one folder per machine."""

    def __init__(self, repository: Repository, reader: FrameReader | None) -> None:
        """Without a `reader` the drive can be looked at, but no file's content opened."""
        self.repository = repository
        self._reader = reader
        self.maps = MapCache(repository)
        self._machines: dict[str, MachineDir] = {}
        self._listed: list[str] = []
        self._listed_at = float("-inf")
        self._lock = threading.Lock()

    @property
    def reader(self) -> FrameReader:
        """What reads contents."""
        assert self._reader is not None
        return self._reader

    def attr(self) -> Attr:
        return Attr(Kind.DIR, 0, 0, 0o555, inode(self.repository.config.repo_id), nlink=2)

    def space(self) -> tuple[int, int]:
        """What `df` shows, from memory: bytes of the newest snapshots opened so far, and their number."""
        with self._lock:
            machines = list(self._machines.values())
        known = [size for m in machines if (size := m.known_size) is not None]
        return sum(known), len(known)

    def _dir(self, machine: Machine) -> MachineDir:
        with self._lock:
            if machine.name not in self._machines:
                self._machines[machine.name] = MachineDir(self, machine)
            return self._machines[machine.name]

    def lookup(self, name: str) -> Node | None:
        found = self._dir(self.repository.machine(name))
        return found if found.keys() else None

    def list(self) -> Iterator[tuple[str, Node]]:
        if time.monotonic() - self._listed_at > MACHINES_SECONDS:
            self._listed = [m.name for m in self.repository.machines()]
            self._listed_at = time.monotonic()
        for name in self._listed:
            yield name, self._dir(self.repository.machine(name))


class MachineDir:
    """A machine: a folder per snapshot, and `latest`."""

    def __init__(self, drive: Drive, machine: Machine) -> None:
        self.drive, self.machine = drive, machine
        self._keys: dict[str, SnapshotKey] = {}
        self._asked_at = float("-inf")
        self._lock = threading.Lock()
        self.known_size: int | None = None
        """Bytes of its newest snapshot's sources, once it was opened."""

    def keys(self) -> dict[str, SnapshotKey]:
        """The snapshots by their folder's name, oldest first."""
        with self._lock:
            if time.monotonic() - self._asked_at > FRESH_SECONDS:
                self._infos = self.drive.repository.listed(self.machine.tag)
                self._keys = folders(list(self._infos))
                self._asked_at = time.monotonic()
            return self._keys

    def load(self, key: SnapshotKey) -> Snapshot:
        """Open one of its snapshots."""
        return self.drive.repository.load(self._infos[key])

    def latest(self) -> tuple[str, Snapshot] | None:
        """The folder and snapshot of the newest that opens."""
        for folder, key in reversed(self.keys().items()):
            try:
                snapshot = self.load(key)
                self.known_size = int(snapshot.summary["source_bytes"])
                return folder, snapshot
            except DamagedError as error:
                self.drive.repository.warn(f"{error}; the next newest snapshot is taken as {LATEST}")
        return None

    def attr(self) -> Attr:
        newest = max((k.time for k in self._keys.values()), default=0)
        at = inode(self.drive.repository.config.repo_id, self.machine.tag)
        return Attr(Kind.DIR, 0, newest * 10**9, 0o555, at, nlink=2)

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
