"""A folder as the place of a drive (FUSE).

Decided here and only here: what a `Site` is for a mount point. Threading: as `site.Site`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from cloudmount.mounts import mountpoints
from cloudmount.mounts.driver import Drive
from cloudmount.mounts.looking import look
from cloudmount.mounts.records import find_record


def ours(path: str) -> bool:
    """Whether a drive of CloudMount's is mounted there."""
    found = mountpoints.mounted_at(path)
    return found is not None and found.ours


class FolderSite:
    """A `site.Site`."""

    def __init__(self, mountpoint: str, records: Path) -> None:
        self._place = look(mountpoint)
        self._records = records
        self.path = self._place.path
        self.made = False

    def take(self, tell: Callable[[str], None]) -> None:
        """Cleared of what a killed drive left, and made where it is missing."""
        self.made, notes = mountpoints.take(self._place)
        for note in notes:
            tell(note)
            left = find_record(self._records, self.path)
            self.made = self.made or (left is not None and left.made)

    def attached(self, drive: Drive) -> None:
        """The kernel knows where it is."""

    def stays(self) -> bool:
        """Until it is unmounted."""
        return ours(self.path)

    there = stays

    def detach(self, *, lazy: bool) -> str | None:
        """By fusermount3."""
        return mountpoints.detach(self.path, lazy=lazy)

    def leave(self) -> None:
        """Without its folder, if that was made for it."""
        if self.made:
            with contextlib.suppress(OSError):
                os.rmdir(self.path)
