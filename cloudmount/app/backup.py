"""Backing up: options filled in from what this machine knows."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence

from cloudmount.app.select import machine_name
from cloudmount.app.sightings import Sightings, journal_path
from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.run import BackupOptions, BackupResult, run_backup
from cloudmount.errors import UsageError
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
    repository_folder: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[BackupResult, str]:
    """Back `paths` up; the result, and the snapshot's folder on the drive.

    `repository_folder` is left out where it is met, as are this program's caches.
    """
    machine = machine_name(name) if name is not None else host_name()
    sightings = Sightings(repository, environ)
    tag = repository.keys.tag(machine)
    options = BackupOptions(
        machine,
        journal=journal_path(repository, environ),
        exclude=exclude,
        as_file=as_file,
        force_read=force_read,
        leave_out=_left_out(repository_folder),
        known_sequence=sightings.highest(tag),
    )
    result = run_backup(repository, paths, options, progress)
    infos = repository.listed(tag)
    sightings.saw(repository.load(infos[result.key]))
    folder = next(f for f, key in folders(list(infos)).items() if key == result.key)
    same = [k for k in infos if k.sequence == result.key.sequence and k.id != result.key.id]
    if same:
        repository.warn(
            f"{machine} was backed up by two at once: {len(same) + 1} snapshots have number "
            f"{result.key.sequence}; all of them stand"
        )
    return result, folder


def _left_out(folder: str | None) -> frozenset[tuple[int, int]]:
    try:
        status = os.stat(folder) if folder is not None else None
    except OSError:
        return frozenset()
    return frozenset({(status.st_dev, status.st_ino)}) if status is not None else frozenset()
