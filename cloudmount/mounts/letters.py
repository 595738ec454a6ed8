"""A letter as the place of a drive (Windows), and how another process has the drive there end.

Decided here and only here: what a `Site` is for a letter. `umount` can't reach into the process that serves
a letter, and Windows has no signal that would: it leaves a word beside the drive's record, which that
process looks for four times a second. A process that was killed takes its drive with it. Not run on
Windows. Threading: as `site.Site`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from cloudmount.errors import NotFoundError, TargetExistsError, UsageError
from cloudmount.mounts.driver import Drive
from cloudmount.mounts.lifecycle import end_process
from cloudmount.mounts.records import (
    ask_to_end,
    asked_to_end,
    find_record,
    forget_asked,
    remove_record,
)
from cloudmount.system import WINDOWS

__all__ = ["WINDOWS", "LetterSite", "letter", "unmount"]


class _Unmountable(Protocol):
    def unmount(self) -> None:
        """Have its `run` end."""


def letter(text: str) -> str:
    """`x:\\` as `X:`; `UsageError` for what is none."""
    if not re.fullmatch(r"[A-Za-z]:[\\/]?", text):
        raise UsageError(f"{text}: on Windows a drive is mounted at a letter that is free, such as X:")
    return text[:2].upper()


class LetterSite:
    """A `site.Site`."""

    made = False

    def __init__(self, mountpoint: str, records: Path) -> None:
        self.path = letter(mountpoint)
        self._records = records
        self._drive: _Unmountable | None = None

    def take(self, tell: Callable[[str], None]) -> None:
        """Whose drive it is, where it is one of this user's; of all others WinFsp knows."""
        left = find_record(self._records, self.path)
        if left is not None and left.alive and left.pid != os.getpid():
            raise TargetExistsError(
                f"a drive is mounted at {self.path} already; 'cloudmount umount {self.path}' ends it"
            )
        forget_asked(self._records, self.path)

    def attached(self, drive: Drive) -> None:
        """Remembered, to end it."""
        self._drive = cast(_Unmountable, drive)

    def stays(self) -> bool:
        """Until `unmount` asked this process."""
        return not asked_to_end(self._records, self.path, os.getpid())

    def there(self) -> bool:
        """As long as nobody detached it."""
        return self._drive is not None

    def detach(self, *, lazy: bool) -> str | None:
        """Never waits for what hangs, so always works."""
        drive, self._drive = self._drive, None
        if drive is not None:
            drive.unmount()
        return None

    def leave(self) -> None:
        """Without the word that ended it."""
        forget_asked(self._records, self.path)


def unmount(mountpoint: str, *, records: Path, tell: Callable[[str], None]) -> str:
    """Take a drive of this user's down, within 5 s whatever its reads do; its letter.

    `NotFoundError` when none is there.
    """
    began = time.monotonic()
    path = letter(mountpoint)
    record = find_record(records, path)
    if record is None or not record.alive:
        remove_record(records, path)
        raise NotFoundError(f"no drive of this user's is mounted at {path}")
    ask_to_end(records, path, record.pid)
    end_process(record, began)
    remove_record(records, path)
    forget_asked(records, path)
    return path
