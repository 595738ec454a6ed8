"""How much a backup will have to look at, told while it runs: for its time left.

Decided here and only here: that it is an estimate (containers by their ending, not by their
signature: opening every file a second time would cost more than it tells). One thread of its own.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import stat
import threading
from collections.abc import Sequence

from cloudmount.disks.detect import open_disk
from cloudmount.errors import CloudMountError

CONTAINERS = (".vhdx", ".vhd", ".avhdx", ".avhd")
DELAY = 1.0
"""Seconds before it begins: most backups of little, or of what is unchanged, are done by then."""


class Estimate:
    """Adds up the sizes of `paths`. `total` is in bytes, None until it is known."""

    def __init__(
        self,
        paths: Sequence[str],
        *,
        exclude: Sequence[str] = (),
        leave_out: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        self.total: int | None = None
        self._paths, self._exclude, self._leave_out = paths, exclude, leave_out
        self._linked: set[tuple[int, int]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="estimate", daemon=True)

    def start(self) -> None:
        """Begin, in `DELAY` seconds."""
        self._thread.start()

    def stop(self) -> None:
        """End; who stops it needs it no more."""
        self._ended.set()

    def _run(self) -> None:
        if not self._ended.wait(DELAY):
            total = sum(self._size(path) for path in self._paths)
            if not self._ended.is_set():
                self.total = total

    def _size(self, path: str, *, follow: bool = True) -> int:
        """Of a path and all below it. What can't be looked at counts as nothing."""
        if self._ended.is_set() or (not follow and self._excluded(path)):
            return 0
        try:
            status = os.stat(path, follow_symlinks=follow)
            if (status.st_dev, status.st_ino) in self._leave_out:
                return 0
            if stat.S_ISDIR(status.st_mode):
                return sum(self._size(os.path.join(path, name), follow=False) for name in os.listdir(path))
        except OSError:
            return 0
        return self._file(path, status, named=follow)

    def _file(self, path: str, status: os.stat_result, *, named: bool) -> int:
        device = stat.S_ISBLK(status.st_mode) and named
        if device or (stat.S_ISREG(status.st_mode) and path.lower().endswith(CONTAINERS)):
            with contextlib.suppress(CloudMountError, OSError, ValueError):
                disk = open_disk(path, named=named)
                try:
                    return disk.source.size
                finally:
                    disk.close()
        if not stat.S_ISREG(status.st_mode):
            return 0
        if status.st_nlink > 1:
            at = (status.st_dev, status.st_ino)
            if at in self._linked:
                return 0
            self._linked.add(at)
        return status.st_size

    def _excluded(self, path: str) -> bool:
        name = os.path.basename(path)
        whole = os.path.abspath(path)
        return any(
            fnmatch.fnmatchcase(whole if os.sep in p else name, p.rstrip(os.sep)) for p in self._exclude
        )
