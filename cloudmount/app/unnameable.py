"""What a file system can't hold: names, and files too large for it.

Decided here and only here: which of its answers mean that, so that the rest still comes and what is missing
is told. Safe on any thread.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

UNNAMEABLE = (errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG)
"""What file systems answer to names that they can't hold: vfat and exFAT hold no `?`, none 300 bytes."""

TOO_LARGE = "the file system there holds no file as large as this"


def renaming(names: tuple[str, str]) -> str:
    """What is said of a path of a snapshot that copies have under another name here (`system.held`)."""
    path, shown = names
    return f"{path!a} is called {shown!a} here, as on the drive: Windows can't hold its name"


class Unnameable:
    """The outputs that could not be made for their names."""

    def __init__(self) -> None:
        self.skipped: list[tuple[Path, str]] = []
        """What this file system can't hold, and why."""
        self._unmade: set[Path] = set()

    def made(self, path: Path, make: Callable[[], None]) -> bool:
        """Make something at `path`; False, noted, where this file system holds no such name."""
        try:
            make()
        except OSError as error:
            if error.errno not in UNNAMEABLE:
                raise
            self._unmade.add(path)
            self.skipped.append((path, f"{error.strerror}: the file system there can't hold this name"))
            return False
        return True

    def nowhere(self, path: Path) -> bool:
        """Whether it, or a folder that it lies in, can't be there."""
        return bool(self._unmade) and (path in self._unmade or not self._unmade.isdisjoint(path.parents))
