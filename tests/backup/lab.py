"""A small repository and everything needed to fill it, read it back and compare.

Sizes are shrunk (frames of 4 KiB, packs of 64 KiB, segments of 2 MiB, pages of 32 MiB), so that
a few megabytes have many packs, segments and pages. Reading back goes by the maps alone:
every present frame by its own request, opened and compared with its content id.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudmount.app.check import CheckResult, check
from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.run import BackupOptions, BackupResult, run_backup
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.store import BlobStore
from cloudmount.crypto.phrase import new_phrase
from cloudmount.crypto.slots import KdfCost
from cloudmount.repo.config import Geometry
from cloudmount.repo.entries import Entry
from cloudmount.repo.frames import FrameMap
from cloudmount.repo.listings import Listing
from cloudmount.repo.names import SnapshotKey, pack_name
from cloudmount.repo.packs import open_frame
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import Snapshot
from cloudmount.repo.streams import MapCache, StreamMap
from tests.trained import text

FRAME, PACK, SEGMENT, PAGE, DICTIONARY = 4 << 10, 64 << 10, 2 << 20, 32 << 20, 2 << 10
SMALL = Geometry(FRAME, PACK, SEGMENT, PAGE, DICTIONARY)
CHEAP = KdfCost(8, 1, 1)
WORTH = 64 << 10
"""Compressible bytes of a disk from which on labs train a dictionary."""
PASSPHRASE = "correct horse"
PHRASE = new_phrase()


def new_repository(store: BlobStore | None = None, geometry: Geometry = SMALL) -> Repository:
    """A repository, in memory unless told otherwise."""
    return Repository.init(store or MemoryStore(), PASSPHRASE, PHRASE, geometry=geometry, cost=CHEAP)


@dataclass(slots=True)
class Stored:
    """What a snapshot holds, read back: disks by path without ending, entries and contents by path."""

    snapshot: Snapshot
    disks: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)


class Lab:
    """A repository with one machine's journal, and what happened."""

    def __init__(self, folder: Path, store: BlobStore | None = None, geometry: Geometry = SMALL) -> None:
        self.folder = folder
        self.store = store or MemoryStore()
        self.repository = new_repository(self.store, geometry)
        self.told: list[str] = []
        self.repository.tell = self.told.append
        self.journal: Path | None = folder / "state" / "dedup.sqlite"

    def reopened(self, store: BlobStore | None = None) -> Repository:
        """The same repository, opened again, as another process would; perhaps through another store."""
        return Repository.open(store or self.store, PASSPHRASE, tell=self.told.append)

    def backup(
        self,
        *paths: Path | str,
        machine: str = "srv",
        store: BlobStore | None = None,
        journal: Path | bool | None = True,
        progress: BackupProgress | None = None,
        **options: Any,
    ) -> BackupResult:
        """Back paths up, by a repository opened anew."""
        where = self.journal if journal is True else journal or None
        options.setdefault("worth_bytes", WORTH)
        chosen = BackupOptions(machine, journal=where, **options)
        return run_backup(
            self.reopened(store), [os.fspath(p) for p in paths], chosen, progress or BackupProgress()
        )

    def snapshot(self, key: SnapshotKey, machine: str = "srv") -> Snapshot:
        """A snapshot by its key."""
        return self.repository.load(self.repository.listed(self.repository.keys.tag(machine))[key])

    def read(self, result: BackupResult, repository: Repository | None = None) -> Stored:
        """Everything in the snapshot that a backup made."""
        repository = repository or self.reopened()
        tag = repository.keys.tag(result.machine)
        return read_back(repository, repository.load(repository.listed(tag)[result.key]))

    def check(self, read_data: float | None = 100.0) -> CheckResult:
        """Check everything."""
        return check(self.reopened(), read_data=read_data)

    def clean(self) -> CheckResult:
        """Check everything, which must be without damage."""
        result = self.check()
        assert result.ok, result.damage
        return result


def frames_of(repository: Repository, frames: FrameMap) -> dict[int, bytes]:
    """The present frames of a stream by number, each read from the store and proved."""
    found = {}
    for f in frames.present():
        sealed = repository.store.read(pack_name(f.at.pack), f.at.offset, f.at.length)
        plain = open_frame(repository.keys, f.at, sealed, f.length, repository.dictionaries.get)
        assert repository.keys.content_id(plain) == f.content
        assert any(plain), "a frame of zeros is stored"
        assert frames.locate(f.number) == f.at
        found[f.number] = plain
    return found


def stream_bytes(repository: Repository, frames: FrameMap) -> bytes:
    """The whole content of a stream."""
    content = bytearray(frames.size)
    for number, plain in frames_of(repository, frames).items():
        at = number * frames.frame_bytes
        content[at : at + len(plain)] = plain
    return bytes(content)


def disk_maps(repository: Repository, snapshot: Snapshot) -> dict[str, StreamMap]:
    """The maps of a snapshot's disks by path without ending."""
    cache = MapCache(repository)
    return {
        "/".join(p for p in (s["path"], s["name"]) if p): StreamMap(
            cache, snapshot, s["size"], root, s["content"]
        )
        for s, root in zip(snapshot.summary["disks"], snapshot.roots, strict=True)
    }


def read_back(repository: Repository, snapshot: Snapshot) -> Stored:
    """Everything in a snapshot."""
    stored = Stored(snapshot)
    for path, stream in disk_maps(repository, snapshot).items():
        stored.disks[path] = stream_bytes(repository, stream)
    listing = Listing(MapCache(repository), snapshot)
    keys = []
    for number, entry in listing.walk():
        assert entry.path not in stored.entries, f"{entry.path} twice"
        keys.append(entry.key)
        stored.entries[entry.path] = entry
        if entry.type == "file":
            stored.contents[entry.path] = stream_bytes(repository, listing.content(number, entry))
            found = listing.lookup(entry.path)
            assert found == (number, entry)
    assert keys == sorted(keys)
    folders = {e.folder for e in stored.entries.values()}
    for folder in folders:
        names = [e.name for _, e in listing.children(folder)]
        assert names == sorted(
            (e.name for e in stored.entries.values() if e.folder == folder), key=os.fsencode
        )
    return stored


_TYPES: Sequence[tuple[Callable[[int], bool], str]] = [
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "dir"),
    (stat.S_ISLNK, "link"),
    (stat.S_ISFIFO, "fifo"),
    (stat.S_ISSOCK, "socket"),
]


def compare_folder(stored: Stored, folder: Path, below: str, skip: frozenset[str] = frozenset()) -> None:
    """All of `folder`, but for paths (in the snapshot) in `skip`, lies as it is under the path `below`."""
    expected = {below: folder}
    for root, dirs, files in os.walk(os.fsencode(folder)):
        for name in [*dirs, *files]:
            path = Path(os.fsdecode(os.path.join(root, name)))
            expected[f"{below}/{path.relative_to(folder)}"] = path
    there = {p for p in stored.entries if p == below or p.startswith(f"{below}/")}
    assert there == expected.keys() - skip
    for path in there:
        compare_entry(stored, path, expected[path])


def compare_entry(stored: Stored, name: str, path: Path) -> None:
    """The entry `name` is what lies at `path`: content, attributes, times."""
    entry, status = stored.entries[name], path.lstat()
    assert entry.type == next(t for test, t in _TYPES if test(status.st_mode))
    assert entry.mode == stat.S_IMODE(status.st_mode)
    assert (entry.uid, entry.gid, entry.mtime_ns) == (status.st_uid, status.st_gid, status.st_mtime_ns)
    xattrs = {
        a: os.getxattr(path, a, follow_symlinks=False) for a in os.listxattr(path, follow_symlinks=False)
    }
    assert (entry.xattrs or {}) == xattrs
    if entry.type == "link":
        assert entry.target == os.readlink(path)
    if entry.type == "file":
        assert stored.contents[name] == path.read_bytes()
        assert entry.size == status.st_size


def fill(folder: Path, seed: int, common: int = 0) -> Path:
    """A source with a disk of which a dictionary is trained, folders, small files and a large one; half of it
    the same for each `common`. The disk holds 90,000 bytes twice, at another alignment."""
    mine, shared = random.Random(seed), random.Random(common)
    folder.mkdir(parents=True)
    with (folder / "disk.img").open("wb") as f:
        f.truncate(5 << 20)
        f.write(
            bytes(446) + bytes([0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 16, 0, 0]) + bytes(48) + b"\x55\xaa"
        )
        f.write(mine.randbytes(200_000))
        f.seek(2 << 20)
        f.write(text(common, 150_000) + text(seed, 50_000))
        f.seek(3 << 20)
        f.write(noise := shared.randbytes(300_000))
        f.seek((4 << 20) + 3 * 512)
        f.write(noise[:90_000])
    with (folder / "large").open("wb") as f:
        f.write(shared.randbytes(40 * FRAME))
        f.seek(1000 * FRAME)
        f.write(mine.randbytes(40 * FRAME))
    for n in range(20):
        (folder / f"small{n}").write_bytes(mine.randbytes(100) + shared.randbytes(5000))
    (folder / "sub" / "deeper").mkdir(parents=True)
    (folder / "sub" / "deeper" / "f").write_bytes(b"f")
    return folder


def same(stored: Stored, folder: Path) -> None:
    """All of a source by `fill` lies under its name."""
    disk = f"{folder.name}/disk.img"
    compare_folder(stored, folder, folder.name, skip=frozenset({disk}))
    assert stored.disks[disk.removesuffix(".img")] == (folder / "disk.img").read_bytes()


def flip(store: MemoryStore, name: str, bit: int) -> None:
    """One bit of an object, the other way round."""
    wrong = bytearray(store.objects[name])
    wrong[bit // 8] ^= 1 << bit % 8
    store.objects[name] = bytes(wrong)


def replace(store: MemoryStore, name: str, data: bytes) -> None:
    """Other bytes under the same name, as the listing shows too."""
    store.delete(name)
    store.create(name, data)


def objects(store: MemoryStore, prefix: str) -> Mapping[str, bytes]:
    """The objects whose names begin so, in order."""
    return {name: store.objects[name] for name in sorted(store.objects) if name.startswith(prefix)}
