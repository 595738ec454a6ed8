"""A file that gets its name when it is whole.

Decided here and only here: how a file is written so that nothing half is ever found under its name, and
nothing that is there already is replaced: without a name (`O_TMPFILE`), so that a killed program leaves
nothing, or, where the file system has no such files, as `NAME.part`. Belongs to one thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from cloudmount.system import NO_FOLLOW, OPEN, TAKEN_AWAY_OPEN, TIMES_BY_DESCRIPTOR, name_bytes

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
PART = ".part"
_LONGEST = 255
"""Bytes of a name, nearly everywhere."""
_PARTS = 100


class NewFile:
    """A new file for `path`, writable, for its owner only. A context manager: what was not named by then
    is gone. `OSError` as the system tells it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part: Path | None = None
        self._give: Callable[[Path | int], None] | None = None
        self.fd = self._nameless()
        if self.fd < 0:
            self.fd, self._part = self._beside()

    def _nameless(self) -> int:
        kind = getattr(os, "O_TMPFILE", 0)
        if not kind:
            return -1
        try:
            fd = os.open(self.path.parent, kind | os.O_WRONLY | OPEN, 0o600)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            return -1
        if os.path.exists(f"/proc/self/fd/{fd}"):
            return fd
        os.close(fd)  # no /proc: it could never be named
        return -1

    def _beside(self) -> tuple[int, Path]:
        stem = self.path.name
        while len(name_bytes(stem)) > _LONGEST - len(PART) - 4:
            stem = stem[:-1]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW | OPEN
        for number in range(1, _PARTS):
            part = self.path.with_name(f"{stem}{PART}" + (f"-{number}" if number > 1 else ""))
            try:
                return os.open(part, flags, 0o600), part
            except FileExistsError:
                continue  # somebody's, or of a run that was killed
        raise FileExistsError(errno.EEXIST, f"{_PARTS} unfinished copies are there", os.fspath(self.path))

    def keep(self, give: Callable[[Path | int], None]) -> None:
        """Have `give` set times, mode and owner of what it is handed, when nothing is written any more."""
        if TIMES_BY_DESCRIPTOR:
            give(self.fd)
        else:
            self._give = give

    def name(self) -> None:
        """Sync it and give it its name; `FileExistsError` when something has that."""
        os.fsync(self.fd)
        if not TAKEN_AWAY_OPEN:
            assert self._part is not None
            self._close()
            if self._give is not None:
                self._give(self._part)
            os.rename(self._part, self.path)  # does not replace on Windows
            self._part = None
            return
        if self._part is None:
            # A descriptor given makes Python use linkat, which alone follows the link to the nameless file.
            os.link(f"/proc/self/fd/{self.fd}", self.path, src_dir_fd=self.fd, follow_symlinks=True)
            return
        try:
            os.link(self._part, self.path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self.path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path) from None
            os.rename(self._part, self.path)
            self._part = None

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if self._part is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._part)
