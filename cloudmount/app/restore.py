"""Restore: a snapshot, or a part of it, into files here.

Decided here and only here: what may be restored where (`cli.md`), in which order, and
how an unfinished restore goes on: `restorejournal` tells which outputs are whole; each
output is written in place, synced before it is entered. Every frame is verified
against its content id before it is written. Belongs to one thread; reading has its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from cloudmount.app.opening import looking_inside
from cloudmount.app.restoredisk import FORMATS, restore_disk
from cloudmount.app.restorefiles import FileRestore
from cloudmount.app.restoreinside import InsideRestore, outputs
from cloudmount.app.restorejournal import RestoreJournal
from cloudmount.app.select import Selected
from cloudmount.app.unnameable import UNNAMEABLE, renaming
from cloudmount.blobs.counting import CountingStore
from cloudmount.errors import (
    CloudMountError,
    DamagedError,
    NoRoomError,
    NotFoundError,
    TargetExistsError,
    UnreadableInputError,
    UsageError,
)
from cloudmount.memory import for_moving
from cloudmount.nodes import Dir, Kind, Node
from cloudmount.repo.entries import Entry
from cloudmount.repo.repository import Repository
from cloudmount.system import DISK_FULL, held, refused
from cloudmount.tree.drive import Drive
from cloudmount.tree.snapshotdir import MACHINE_JSON, OpenedSnapshot, SnapshotDir, StoredDisk

T = TypeVar("T")


@dataclass(slots=True)
class RestoreProgress:
    """Counters of one restore, in bytes of content but for files."""

    total_bytes: int = 0
    done_bytes: int = 0
    files: int = 0
    current: str = ""
    notes: list[str] = field(default_factory=list)
    """What could not be set as it was (owners without being root, ...), a line each."""


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """A finished restore. `bytes` of content restored, `fetched_bytes` from the store."""

    files: int
    bytes: int
    fetched_bytes: int
    seconds: float
    notes: list[str]
    skipped: list[tuple[Path, str]]
    """What the target can't hold, and why."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to restore: disks with their format and path below the target, entries, and `machine.json`."""

    disks: list[tuple[StoredDisk, str, str]]
    entries: list[tuple[int, Entry, str]]
    single: bool
    made: bytes | None = None


def _relative(path: str, folder: str) -> str | None:
    """`path` below `folder`; None when it isn't."""
    if not folder:
        return path
    return path[len(folder) + 1 :] if path.startswith(folder + "/") else None


def _plan(opened: OpenedSnapshot, path: str, format: str | None) -> _Plan:
    for disk in opened.disks:
        wanted: str | None = None
        if path == disk.path:
            wanted = format or _format(disk)
        elif path in (f"{disk.path}.vhdx", f"{disk.path}.img"):
            wanted = format or ("vhdx" if path.endswith(".vhdx") else "raw")
        if wanted is not None:
            name = (
                path.rpartition("/")[2] if format is None and path != disk.path else f"{disk.name}.{wanted}"
            )
            return _Plan([(disk, wanted, name)], [], True)
    found = opened.listing.lookup(path) if path else None
    if path == MACHINE_JSON and found is None:
        return _Plan([], [], True, opened.machine_json())
    if path and found is None:
        raise NotFoundError(f"the snapshot has no {path!r}; 'cloudmount ls' shows what it has")
    if found is not None and found[1].type != "dir":
        return _Plan([], [(*found, found[1].name)], True)
    disks = []
    for disk in opened.disks:
        below = _relative(disk.path, path)
        if below is not None:
            kind = format or _format(disk)
            disks.append((disk, kind, f"{below}.{kind}"))
    entries = [
        (number, entry, below)
        for number, entry in opened.listing.walk()
        if (below := _relative(entry.path, path)) is not None
    ]
    return _Plan(disks, entries, False)


def _format(disk: StoredDisk) -> str:
    came = str(disk.summary["source_format"])
    return came if came in FORMATS else "raw"


def restore(
    repository: Repository,
    selected: Selected,
    target: Path,
    *,
    into: bool = False,
    format: str | None = None,
    progress: RestoreProgress | None = None,
    environ: Mapping[str, str] = os.environ,
) -> RestoreResult:
    """Restore what `selected` names into `target`.

    A folder or a whole snapshot goes into the folder `target`: made, empty, or left by an unfinished
    restore of the same. One file goes into an existing folder, or one to be made (`into`), else `target` is
    its new name.
    `TargetExistsError` when something is in the way, `DamagedError` naming what could not be restored.
    """
    for_moving()
    began = time.monotonic()
    if format is not None and format not in FORMATS:
        raise UsageError(f"the format {format!r} is none of {', '.join(FORMATS)}")
    progress = progress or RestoreProgress()
    fetched = repository.store.snapshot().bytes_down if isinstance(repository.store, CountingStore) else 0
    opened = OpenedSnapshot(Drive(repository, None), selected.snapshot)
    if any(_relative(selected.path, disk.path) for disk in opened.disks):
        made, found = _inside(repository, selected, target, into, format, progress, environ)
        if isinstance(repository.store, CountingStore):
            fetched = repository.store.snapshot().bytes_down - fetched
        seconds = time.monotonic() - began
        return RestoreResult(made, progress.done_bytes, fetched, seconds, progress.notes, found)
    plan = _plan(opened, selected.path, format)
    if len({below for *_, below in [*plan.disks, *plan.entries]}) != len(plan.disks) + len(plan.entries):
        raise UsageError("two things would be restored under one name; choose another --format")
    what = f"{selected.snapshot.id}:{selected.path}:{format or ''}"
    place = _Place(target, plan.single, into, progress.notes)
    progress.total_bytes = sum(d.summary["size"] for d, *_ in plan.disks)
    progress.total_bytes += sum(e.size for _, e, _ in plan.entries if e.type == "file" and not e.hardlink)
    damaged: list[tuple[Path, CloudMountError]] = []
    skipped: list[tuple[Path, str]] = []
    progress.current = os.fspath(target)
    try:
        with place.journal(what) as journal:
            _disks(repository, plan, place, journal, progress, damaged, skipped)
            files = FileRestore(repository, opened.listing, journal, progress)
            holdable = place.holdable(plan.entries, lambda each: each[2], skipped)
            files.run([(number, entry, place.path(below), below) for number, entry, below in holdable])
            damaged += files.damaged
            skipped += files.skipped
            if plan.made is not None:
                _write_new(place.path(MACHINE_JSON), plan.made)
                progress.files, progress.done_bytes = 1, len(plan.made)
            if damaged:
                raise _damaged(progress, damaged)
            journal.remove()
    except OSError as error:
        raise _unwritten(progress, error) from None
    if isinstance(repository.store, CountingStore):
        fetched = repository.store.snapshot().bytes_down - fetched
    seconds = time.monotonic() - began
    return RestoreResult(progress.files, progress.done_bytes, fetched, seconds, progress.notes, skipped)


def _damaged(progress: RestoreProgress, damaged: list[tuple[Path, CloudMountError]]) -> DamagedError:
    told = "; ".join(f"{path}: {error}" for path, error in damaged[:5])
    return DamagedError(
        f"{len(damaged)} of {progress.files + len(damaged)} could not be restored, because what "
        f"is stored of them is damaged; the others were ({told})"
    )


def _unwritten(progress: RestoreProgress, error: OSError) -> CloudMountError:
    if error.errno in DISK_FULL:
        return NoRoomError(
            f"{progress.current}: no room left; make room and run the same command again: it goes on"
        )
    return TargetExistsError(f"{progress.current}: can't be written: {error.strerror}")


def _inside(
    repository: Repository,
    selected: Selected,
    target: Path,
    into: bool,
    format: str | None,
    progress: RestoreProgress,
    environ: Mapping[str, str],
) -> tuple[int, list[tuple[Path, str]]]:
    """Restore a file or folder from inside a disk: how many files were made, what was left out and why."""
    if format is not None:
        raise UsageError("--format is for whole disks, not for files inside one")
    skipped: list[tuple[Path, str]] = []
    with looking_inside(repository, environ) as drive:
        node: Node = SnapshotDir(drive, selected.snapshot.key, lambda: selected.snapshot)
        for part in selected.path.split("/"):
            below = cast(Dir, node).lookup(part) if node.attr().kind is Kind.DIR else None
            if below is None:
                raise NotFoundError(
                    f"the snapshot has no {selected.path!r}: nothing is called {part!r} there; "
                    "'cloudmount ls' shows what it has"
                )
            node = below
        planned = outputs(node, selected.path.rpartition("/")[2], progress, skipped)
        place = _Place(target, node.attr().kind is not Kind.DIR, into, progress.notes)
        progress.current = os.fspath(target)
        try:
            with place.journal(f"{selected.snapshot.id}:{selected.path}:") as journal:
                files = InsideRestore(journal, progress)
                holdable = place.holdable(planned, lambda output: output.below, skipped)
                files.run([(output, place.path(output.below)) for output in holdable])
                if files.damaged:
                    raise _damaged(progress, files.damaged)
                if not (place.single and files.skipped):
                    journal.remove()
        except OSError as error:
            raise _unwritten(progress, error) from None
        if place.single and files.skipped:
            journal.remove()
            raise UnreadableInputError(files.skipped[0][1])
    return progress.files, skipped + files.skipped


def _disks(
    repository: Repository,
    plan: _Plan,
    place: _Place,
    journal: RestoreJournal,
    progress: RestoreProgress,
    damaged: list[tuple[Path, CloudMountError]],
    skipped: list[tuple[Path, str]],
) -> None:
    for disk, kind, below in place.holdable(plan.disks, lambda each: each[2], skipped):
        out = place.path(below)
        if not plan.single:
            out.parent.mkdir(parents=True, exist_ok=True)
        progress.current = os.fspath(out)
        if below not in journal.done:
            try:
                restore_disk(repository, disk, kind, out, journal, below, progress)
            except DamagedError as error:
                out.unlink(missing_ok=True)
                damaged.append((out, error))
                continue
            except OSError as error:
                if plan.single or error.errno not in UNNAMEABLE:
                    raise
                skipped.append((out, f"{error.strerror}: the file system there can't hold this name"))
                continue
            journal.finished(below)
        else:
            progress.done_bytes += disk.summary["size"]
        progress.files += 1


def _write_new(path: Path, data: bytes) -> None:
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise TargetExistsError(f"{path} exists; it is not overwritten") from None


class _Place:
    """Where a restore goes: a folder, or one file under its old or a new name."""

    def __init__(self, target: Path, single: bool, into: bool, notes: list[str]) -> None:
        """`notes` are added to."""
        self._into_folder = not single or into or target.is_dir()
        self.target, self.single, self._notes = target, single, notes

    def path(self, below: str) -> Path:
        """Where the output with this path below the target goes."""
        return self.target / (held(below) or below) if self._into_folder else self.target

    def holdable(
        self, outputs: Sequence[T], below: Callable[[T], str], skipped: list[tuple[Path, str]]
    ) -> list[T]:
        """Those outputs that this system can hold, under their names or others, which are noted; what it
        can't hold is added to `skipped`."""
        found = []
        for output in outputs:
            path = below(output)
            why = refused(path) if self._into_folder else None
            if why is not None:
                skipped.append((self.target / path, why))
                continue
            found.append(output)
            shown = (held(path) or path).rpartition("/")[2]
            if self._into_folder and shown != path.rpartition("/")[2]:
                self._notes.append(renaming((path, shown)))
        return found

    def journal(self, what: str) -> RestoreJournal:
        """The journal beside the outputs; `TargetExistsError` when the target is not free."""
        if self.single:
            folder = self.target if self._into_folder else self.target.parent
            if self._into_folder:
                folder.mkdir(parents=False, exist_ok=True)
            elif not folder.is_dir():
                raise NotFoundError(f"{folder} is not a folder: nothing can be put there")
            return RestoreJournal(folder, what, self.target.name if not self._into_folder else None)
        if self.target.exists() and not self.target.is_dir():
            raise TargetExistsError(f"{self.target} exists and is not a folder")
        self.target.mkdir(parents=True, exist_ok=True)
        journal = RestoreJournal(self.target, what, None)
        if not journal.found and any(self.target.iterdir()):
            raise TargetExistsError(
                f"{self.target} is not empty, and holds no unfinished restore of this; choose an empty folder"
            )
        return journal
