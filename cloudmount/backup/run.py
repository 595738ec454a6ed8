"""One backup, from paths to a snapshot.

Decided here and only here: the order of a backup (FORMAT.md section 8), what is not
read again, and what makes a snapshot inconsistent or incomplete. One `Backup` does
one backup, on one thread; its pipeline and uploader have their own.
"""

from __future__ import annotations

import os
import platform
import time as clock
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudmount import __version__
from cloudmount.backup.disks import DiskBackup
from cloudmount.backup.files import FileBackup
from cloudmount.backup.pipeline import Pipeline
from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.sources import Sources
from cloudmount.backup.training import WORTH_BYTES, Training
from cloudmount.backup.uploader import Uploader
from cloudmount.errors import BlobMissingError, CloudMountError, DamagedError
from cloudmount.memory import for_moving
from cloudmount.repo.dedup import DedupIndex
from cloudmount.repo.listings import Listing
from cloudmount.repo.mapset import MapSet
from cloudmount.repo.names import INDEX, SnapshotKey, dictionary_names, iso_time
from cloudmount.repo.packs import INDEX_LIMIT, open_index
from cloudmount.repo.partwriter import PartWriter
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import Section, Snapshot, open_snapshot, seal_snapshot
from cloudmount.repo.streams import MapCache
from cloudmount.repo.trust import Trust, look

KEPT_PROBLEMS = 100
MAP_BYTES = 8 << 20
"""Length of a full map object: 16 of ids for a TiB of disk."""


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """How to back up. `machine` names the snapshot's machine; `journal` is where the dedup index lies."""

    machine: str
    journal: Path | None = None
    exclude: Sequence[str] = ()
    as_file: Sequence[str] = ()
    force_read: bool = False
    leave_out: frozenset[tuple[int, int]] = frozenset()
    known_sequence: int = 0
    """The highest sequence number this client has seen of the machine."""
    hardware: Mapping[str, Any] | None = None
    """What the machine is beside its disks, kept in the summary."""
    worth_bytes: int = WORTH_BYTES
    """Compressible bytes of a disk from which on a dictionary is trained of it."""


@dataclass(slots=True)
class Job:
    """What the parts of one backup share."""

    repository: Repository
    options: BackupOptions
    progress: BackupProgress
    trust: Trust
    maps: MapSet
    cache: MapCache
    pipeline: Pipeline
    training: Training
    previous: Snapshot | None
    problems: list[tuple[str, str]] = field(default_factory=list)
    incomplete: bool = False

    def skip(self, path: str, why: str) -> None:
        """Something is not, or not wholly, in the snapshot: told, and exit code 9."""
        self.problems.append((path, why))
        self.incomplete = True
        self.repository.tell(f"{path}: {why}")


@dataclass(frozen=True, slots=True)
class BackupResult:
    """A finished backup."""

    key: SnapshotKey
    machine: str
    summary: dict[str, Any]
    progress: BackupProgress
    seconds: float
    incomplete: bool


def _load_index(repository: Repository, dedup: DedupIndex) -> None:
    sizes = {info.name: info.size for info in repository.store.list(INDEX)}

    def load(name: str) -> Any:
        try:
            if sizes[name] > INDEX_LIMIT:
                raise DamagedError(f"{name} is larger than an index object is")
            return name, open_index(repository.keys, name, repository.store.read(name))
        except (DamagedError, BlobMissingError) as error:
            repository.warn(f"an index object is ignored: {error}")
            return name, None

    with ThreadPoolExecutor(4) as pool:
        for name, tables in pool.map(load, dedup.missing_indexes(sizes)):
            if tables is not None:
                dedup.enter(tables, name)


def _listing(job: Job) -> Listing | None:
    """The listing of the last snapshot; None when there is none to go by."""
    if job.previous is None:
        return None
    try:
        return Listing(job.cache, job.previous)
    except DamagedError as error:
        job.repository.warn(f"{error}: all files are read again")
        return None


def run_backup(
    repository: Repository, paths: Sequence[str], options: BackupOptions, progress: BackupProgress
) -> BackupResult:
    """Back `paths` up as one snapshot. `UnreadableInputError` when one of them can't be read."""
    started, began = clock.time(), clock.monotonic()
    for_moving()
    problems: list[tuple[str, str]] = []
    sources = Sources(
        paths,
        exclude=options.exclude,
        as_file=options.as_file,
        leave_out=options.leave_out,
    )
    tag = repository.keys.tag(options.machine)
    newest = repository.newest(tag)
    previous = newest[0] if newest is not None else None
    trust = look(repository)
    dedup = DedupIndex(options.journal)
    uploader: Uploader | None = None
    pipeline: Pipeline | None = None
    finished = False
    try:
        dedup.trust(trust)
        _load_index(repository, dedup)
        uploader = Uploader(repository, dedup, progress)
        pipeline = Pipeline(repository.keys, repository.geometry, uploader, progress)
        training = Training(repository, uploader.create_now, options.worth_bytes)
        pipeline.dictionary = training.found
        maps = MapSet(repository.keys, uploader.send, min(repository.geometry.pack, MAP_BYTES))
        cache = MapCache(repository)
        job = Job(repository, options, progress, trust, maps, cache, pipeline, training, previous, problems)
        for id in training.lost(previous, trust.damage) if previous is not None else ():
            job.skip(
                dictionary_names(id)[0],
                "the dictionary is lost, so what was compressed with it can't be read: bring one of its two "
                "objects back, or run 'cloudmount check --read-data', after which a backup stores that anew",
            )
        listing = _listing(job)
        parts = PartWriter(repository.keys, repository.geometry, maps, trust, listing)
        files, disks = FileBackup(job, listing, parts), DiskBackup(job)
        for found in sources.walk(job.skip):
            progress.current = found.path
            if found.disk:
                disks.add(found)
            else:
                files.add(found)
        pipeline.drain()
        index, digest = parts.finish()
        sections: list[bytes] = []
        roots = disks.roots(sections)
        section: Section | None = None
        if parts.count:
            sections.append(index)
            section = len(sections)
        maps.close()
        uploader.finish()
        summary = {
            "version": 0,
            "machine": options.machine,
            "sequence": 1 + max(options.known_sequence, previous.key.sequence if previous is not None else 0),
            "previous": previous.id if previous is not None else None,
            "time": iso_time(int(started)),
            "creation": os.urandom(8).hex(),
            "host": platform.node(),
            "program": f"cloudmount {__version__}",
            "consistent": disks.consistent and files.consistent,
            "incomplete": job.incomplete,
            "problems": [{"path": p[:500], "why": w[:500]} for p, w in problems[:KEPT_PROBLEMS]],
            "problem_count": len(problems),
            "disks": disks.summaries,
            "files": {"count": files.count, "bytes": parts.bytes, "digest": digest},
            "source_bytes": progress.source_bytes,
            "read_bytes": progress.read_bytes,
            "seconds": round(clock.monotonic() - began),
        }
        if options.hardware is not None:
            summary["hardware"] = dict(options.hardware)
        name, data, key = seal_snapshot(
            repository.keys, tag, int(started), summary, roots, section, sections, training.needed
        )
        _commit(repository, uploader, name, data, sections)
        finished = True
    finally:
        if pipeline is not None:
            pipeline.close()
        if uploader is not None:
            uploader.close() if finished else uploader.abandon()
        if finished or uploader is None:
            dedup.close()
    return BackupResult(key, options.machine, summary, progress, clock.monotonic() - began, job.incomplete)


def _commit(
    repository: Repository, uploader: Uploader, name: str, data: bytes, sections: Sequence[bytes]
) -> None:
    opened, reader = open_snapshot(repository.keys, name, data)
    for number, plain in enumerate(sections, 1):
        offset, length = opened.section_range(number)
        if reader.open(number, data[offset : offset + length]) != plain:
            raise CloudMountError(f"{name} does not open to what was sealed: faulty memory?")
    uploader.create_now(name, data)
