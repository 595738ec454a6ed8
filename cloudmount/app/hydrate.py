"""Hydration: complete copies of a snapshot's disks on this machine.

Decided here and only here: which disks are meant, and how the outcome of several is told. Where the copies
lie is decided in `tree.copies`, how they fill in `reader.filling`. Belongs to one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cloudmount.app.hydrations import announced
from cloudmount.app.select import Selected
from cloudmount.blobs.counting import CountingStore
from cloudmount.errors import DamagedError, NoRoomError, NotFoundError, TargetExistsError
from cloudmount.memory import for_moving
from cloudmount.reader import localcopy
from cloudmount.reader.filling import COMPLETE, NO_ROOM, RUNNING, Filling
from cloudmount.reader.hydrating import LocalDisk
from cloudmount.repo.repository import Repository
from cloudmount.tree.copies import ENDINGS, DiskCopy, Format, Hydrated
from cloudmount.tree.drive import Drive
from cloudmount.tree.snapshotdir import OpenedSnapshot, StoredDisk


@dataclass(frozen=True, slots=True)
class HydrateResult:
    """Finished copies: `bytes` of files, `fetched_bytes` from the store."""

    files: int
    bytes: int
    fetched_bytes: int
    seconds: float


class _Job:
    """One disk's copy, before, while and after it is filled."""

    def __init__(self, copy: DiskCopy) -> None:
        self.copy = copy
        self.filling: Filling | None = None
        self.finished = False
        self.no_room = False
        """Whether there was not even room to begin."""

    @property
    def done_bytes(self) -> int:
        """Of `copy.expected`."""
        if self.finished:
            return self.copy.expected
        return self.filling.done_bytes if self.filling is not None else 0

    @property
    def state(self) -> str:
        """As in `status`."""
        if self.finished:
            return COMPLETE
        if self.filling is not None:
            return self.filling.state
        return NO_ROOM if self.no_room else RUNNING


class HydrateProgress:
    """How far a hydration is."""

    def __init__(self) -> None:
        self.jobs: list[_Job] = []
        self.current: _Job | None = None

    @property
    def total_bytes(self) -> int:
        """Bytes to be there in the end."""
        return sum(j.copy.expected for j in self.jobs)

    @property
    def done_bytes(self) -> int:
        """Bytes there now."""
        return sum(j.done_bytes for j in self.jobs)

    @property
    def doing(self) -> str:
        """What goes on, for people."""
        job = self.current
        if job is None:
            return ""
        return str(job.copy.path) + (f" ({job.state})" if job.state != RUNNING else "")

    def states(self) -> list[Hydrated]:
        """As in `status`."""
        return [
            Hydrated(
                os.path.abspath(j.copy.path),
                j.copy.snapshot,
                j.copy.disk.path,
                j.done_bytes,
                j.copy.expected,
                j.state,
            )
            for j in self.jobs
        ]


def meant_disks(opened: OpenedSnapshot, path: str) -> list[StoredDisk]:
    """The disk of a snapshot that `path` names, all of them without one; `NotFoundError` when there is
    none."""
    disks = [
        disk
        for disk in opened.disks
        if not path or path in (disk.path, *(disk.path + ending for ending in ENDINGS.values()))
    ]
    if not disks:
        have = ", ".join(repr(d.path) for d in opened.disks[:10]) or "none"
        what = f"no disk {path!r}" if path else "no disks"
        raise NotFoundError(f"the snapshot has {what}; its disks: {have}")
    return disks


def hydrate(
    repository: Repository,
    selected: Selected,
    target: Path,
    *,
    format: Format = "vhdx",
    progress: HydrateProgress | None = None,
    tell: Callable[[str], None] = lambda line: None,
    environ: Mapping[str, str] = os.environ,
) -> HydrateResult:
    """Complete the copies in `target` of the disks that `selected` names.

    `NotFoundError` when there are none such, `TargetExistsError` when something is in the way, `DamagedError`
    when some can't be completed because what is stored of them is damaged.
    """
    for_moving()
    began = time.monotonic()
    progress = progress or HydrateProgress()
    counting = repository.store if isinstance(repository.store, CountingStore) else None
    fetched = counting.snapshot().bytes_down if counting is not None else 0
    opened = OpenedSnapshot(Drive(repository, None), selected.snapshot)
    disks = meant_disks(opened, selected.path)
    progress.jobs = [_Job(DiskCopy(target, disk, selected.folder, format)) for disk in disks]
    damaged = []
    with announced(progress.states, environ):
        for job in progress.jobs:
            progress.current = job
            try:
                _hydrate(repository, job, tell)
            except DamagedError as error:
                damaged.append(str(error))
    if damaged:
        raise DamagedError("; ".join(damaged[:5]))
    if counting is not None:
        fetched = counting.snapshot().bytes_down - fetched
    size = sum(j.copy.described.size for j in progress.jobs)
    return HydrateResult(len(disks), size, fetched, time.monotonic() - began)


def _claim(job: _Job, local: LocalDisk, tell: Callable[[str], None]) -> None:
    """Claim its copy, as soon as there is room for as much as that takes."""
    while True:
        try:
            job.copy.claim(local, tell)
            return
        except NoRoomError as error:
            if not job.no_room:
                tell(f"{error}; it goes on as soon as there is room")
            job.no_room = True
            time.sleep(localcopy.ROOM_SECONDS)


def _hydrate(repository: Repository, job: _Job, tell: Callable[[str], None]) -> None:
    copy, disk = job.copy, job.copy.disk
    local = LocalDisk()
    if not copy.finished(local):
        _claim(job, local, tell)
    assert local.copy is not None
    try:
        if not local.copy.finished:
            job.filling = Filling(
                repository,
                disk.map,
                local,
                expected=copy.expected,
                mtime_ns=int(disk.summary["mtime_ns"]),
                tell=tell,
            )
            job.filling.fill(copy.blank)
        job.finished = True
    except OSError as error:
        raise TargetExistsError(f"{copy.path}: can't be written: {error.strerror}") from None
    finally:
        if job.filling is not None:
            job.filling.stop()  # nothing of it waits for room any more
        local.copy.close()
