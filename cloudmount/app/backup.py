"""Backing up: options filled in from what this machine knows."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloudmount.app.machinefile import Hardware, disk_path, is_called
from cloudmount.app.places import cache_folder, state_folder
from cloudmount.app.select import machine_name
from cloudmount.app.sightings import Sightings, journal_path
from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.run import BackupOptions, BackupResult, run_backup
from cloudmount.errors import CloudMountError, UsageError
from cloudmount.repo.names import folders
from cloudmount.repo.repository import Repository


def host_name() -> str:
    """What a machine is called when nobody says."""
    try:
        return machine_name(platform.node().partition(".")[0])
    except UsageError:
        raise UsageError("this computer has no usable name: give the machine's with --name") from None


def backup(
    repository: Repository,
    paths: Sequence[str],
    *,
    name: str | None,
    progress: BackupProgress,
    exclude: Sequence[str] = (),
    as_file: Sequence[str] = (),
    force_read: bool = False,
    hardware: Hardware | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[BackupResult, str]:
    """Back `paths` up; the result, and the snapshot's folder on the drive.

    A repository in a folder is left out where it is met, as are this program's caches and state: both
    change while they are read, and nothing there is needed to restore. `hardware` is kept with the snapshot.
    """
    machine = machine_name(name) if name is not None else host_name()
    tag = repository.keys.tag(machine)
    own = own_folders(repository, environ)
    for path in paths:
        with contextlib.suppress(OSError, ValueError):  # told by the backup itself
            if _identity(path) in own:
                raise UsageError(f"{path} is where CloudMount itself keeps things: it can't be backed up")
    sightings = Sightings(repository, environ)
    newest = repository.newest(tag)
    if newest is not None:
        sightings.saw(newest[0])
    elif sightings.highest(tag):
        repository.warn(
            f"{machine}: snapshot number {sightings.highest(tag)} was seen here before, and now there is "
            "none: they were removed, or the store went back in time"
        )
    options = BackupOptions(
        machine,
        journal=_journal(repository, environ),
        exclude=exclude,
        as_file=as_file,
        force_read=force_read,
        leave_out=own,
        known_sequence=sightings.highest(tag),
        hardware=hardware.kept() if hardware is not None else None,
    )
    result = run_backup(repository, paths, options, progress)
    if hardware is not None:
        _tell_unknown(repository, hardware, result)
    return result, _entered(repository, sightings, result, tag)


def _tell_unknown(repository: Repository, hardware: Hardware, result: BackupResult) -> None:
    there = [disk_path(summary) for summary in result.summary["disks"]]
    for name, _ in hardware.disks:
        if not any(is_called(path, name) for path in there):
            repository.warn(f"--machine names a disk {name!r}; the disks are: {', '.join(there) or 'none'}")


def _entered(repository: Repository, sightings: Sightings, result: BackupResult, tag: str) -> str:
    """The new snapshot's folder on the drive. It is made: nothing here can fail the backup any more."""
    key = result.key
    try:
        infos = repository.listed(tag)
        sightings.saw(repository.load(infos[key]))
    except (CloudMountError, KeyError) as error:
        repository.warn(f"the backup is made, but looking at it failed: {error}")
        return key.folder
    same = [k for k in infos if k.sequence == key.sequence and k.id != key.id]
    if same:
        repository.warn(
            f"{result.machine} was backed up by two at once: {len(same) + 1} snapshots have number "
            f"{key.sequence}; all of them stand"
        )
    return next(folder for folder, k in folders(list(infos)).items() if k == key)


def _journal(repository: Repository, environ: Mapping[str, str]) -> Path | None:
    """Where the journal of uploads lies; None, told, when nothing can be kept there."""
    path = journal_path(repository, environ)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b"room?")
    except OSError as error:
        repository.warn(
            f"{path.parent} can't be written to ({error.strerror}): the backup goes on, but if it is "
            "interrupted it starts anew"
        )
        return None
    return path


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def own_folders(
    repository: Repository, environ: Mapping[str, str] = os.environ
) -> frozenset[tuple[int, int]]:
    """(device, inode) of the folders that a backup leaves out."""
    found = set()
    for folder in (repository.store.address, cache_folder(environ), state_folder(environ)):
        with contextlib.suppress(OSError, ValueError):  # not a folder, or not there yet
            found.add(_identity(folder))
    return frozenset(found)
