"""What this client has seen of a repository, so that going back in time is noticed.

Decided here and only here: what is remembered (per address its repository, per machine
the highest sequence number of a snapshot that opened) and what is said when it is gone
(FORMAT.md section 10). A file in the state folder, replaced atomically; losing it loses only the memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from cloudmount.app.places import state_folder
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import Snapshot


class Sightings:
    """The memory of one repository's address."""

    def __init__(self, repository: Repository, environ: Mapping[str, str] = os.environ) -> None:
        self._repository = repository
        at = hashlib.sha256(repository.store.address.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._file = state_folder(environ) / "seen" / f"{at}.json"
        self._highest: dict[str, int] = {}
        try:
            value = json.loads(self._file.read_text())
            if value["repo_id"] == repository.config.repo_id:
                self._highest = {str(tag): int(n) for tag, n in value["highest"].items()}
            else:
                repository.warn(
                    "this address held another repository when it was last used here "
                    f"({value['repo_id'][:8]}, now {repository.config.repo_id[:8]})"
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # nothing remembered, or nothing readable: as on a new machine

    def highest(self, tag: str) -> int:
        """The highest sequence number seen of the machine with this tag; 0 without any."""
        return self._highest.get(tag, 0)

    def saw(self, newest: Snapshot) -> None:
        """A machine's newest snapshot that opens; tells when a newer one was seen before."""
        known = self._highest.get(newest.tag, 0)
        if newest.key.sequence < known:
            self._repository.warn(
                f"{newest.machine}: snapshot number {known} was seen here before, and now the newest is "
                f"number {newest.key.sequence} of {newest.key.folder}: newer ones were removed, or the "
                "store went back in time"
            )
        elif newest.key.sequence > known:
            self._highest[newest.tag] = newest.key.sequence
            self._save()

    def _save(self) -> None:
        value = {"repo_id": self._repository.config.repo_id, "highest": self._highest}
        with contextlib.suppress(OSError):  # a read-only home: nothing is remembered
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part = Path(f"{self._file}.{os.getpid()}")
            part.write_text(json.dumps(value))
            os.replace(part, self._file)


def journal_path(repository: Repository, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the dedup index and upload journal of this repository lie."""
    return state_folder(environ) / "repositories" / repository.config.repo_id / "dedup.sqlite"
