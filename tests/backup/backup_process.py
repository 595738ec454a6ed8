"""A backup in a process of its own, to be killed: `python -m tests.backup.backup_process ...`.

Prints "begins" when the backup begins (imports are done), "done" at its end. The arguments:
repository folder, journal, machine, bytes a second to the store, paths.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.run import BackupOptions, run_backup
from cloudmount.blobs.limited import LimitedStore
from cloudmount.blobs.local import LocalStore
from cloudmount.repo.repository import Repository
from tests.backup.lab import PASSPHRASE, WORTH


def main(folder: str, journal: str, machine: str, speed: str, *paths: str) -> None:
    """Back up."""
    store = LimitedStore(LocalStore(Path(folder)), up=float(speed))
    repository = Repository.open(store, PASSPHRASE)
    print("begins", flush=True)
    options = BackupOptions(machine, journal=Path(journal), worth_bytes=WORTH)
    run_backup(repository, paths, options, BackupProgress())
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
