"""Restoring ordinary files and folders.

Decided here and only here: what is put back of a file beside its content, in which
order, and what is merely noted when it can't be (owners, devices, attributes without
being root). Belongs to one thread.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cloudmount.app.restoredisk import write_all
from cloudmount.app.restorejournal import RestoreJournal
from cloudmount.app.unnameable import Unnameable
from cloudmount.errors import CloudMountError, TargetExistsError
from cloudmount.reader.bulk import read_frames
from cloudmount.repo.entries import Entry
from cloudmount.repo.frames import Frame
from cloudmount.repo.listings import Listing
from cloudmount.repo.locations import Location
from cloudmount.repo.repository import Repository
from cloudmount.system import NO_FOLLOW, OPEN, WINDOWS, is_root, set_times, sync_named

if TYPE_CHECKING:
    from cloudmount.app.restore import RestoreProgress

Output = tuple[int, Entry, Path, str]
"""Part number, entry, where it goes, and its path below the target."""
SYNC_FILES, SYNC_BYTES = 500, 256 << 20
"""After how much finished files are synced and entered in the journal."""


class _Together:
    """The frames of several files one after another, numbered through, for `read_frames`."""

    def __init__(self, listing: Listing, outputs: Sequence[Output], frame_bytes: int) -> None:
        self._listing, self._outputs = listing, outputs
        self.frame_bytes = frame_bytes
        self.size = 0
        self.owner: dict[int, tuple[int, int]] = {}
        """For each frame handed out and not yet taken: the output's number, and its number in it."""

    def locate(self, frame: int) -> Location | None:
        """Not used by reading in order."""
        return None

    def frame_length(self, frame: int) -> int:
        """Not used by reading in order."""
        return self.frame_bytes

    def present(self) -> Iterator[Frame]:
        """Every present frame of every file, in order."""
        n = 0
        for output, (number, entry, _, _) in enumerate(self._outputs):
            for f in self._listing.content(number, entry).present():
                self.owner[n] = (output, f.number)
                yield f._replace(number=n)
                n += 1


class FileRestore:
    """Restores entries in their order."""

    def __init__(
        self, repository: Repository, listing: Listing, journal: RestoreJournal, progress: RestoreProgress
    ) -> None:
        self._repository, self._listing = repository, listing
        self._journal, self._progress = journal, progress
        self._frame = repository.geometry.frame
        self.damaged: list[tuple[Path, CloudMountError]] = []
        """Files that were not restored, because some of what is stored of them is damaged."""
        self._names = Unnameable()
        self._base = 0
        """`done_bytes` when the file being written was begun: a large one counts as it grows."""

    @property
    def skipped(self) -> list[tuple[Path, str]]:
        """What this file system can't hold, and why."""
        return self._names.skipped

    def run(self, outputs: Sequence[Output]) -> None:
        """Folders first, then contents, then everything that has none; folders' times last."""
        folders = [o for o in outputs if o[1].type == "dir"]
        for _, _, path, _ in folders:
            make = functools.partial(path.mkdir, parents=True, exist_ok=True)
            if not self._names.nowhere(path) and self._names.made(path, make):
                os.chmod(path, 0o700)
        for _, _, path, _ in outputs:
            if not self._names.nowhere(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        files = [o for o in outputs if o[1].type == "file" and not o[1].hardlink]
        waiting = []
        for output in files:
            _, entry, path, below = output
            if below in self._journal.done:
                self._progress.done_bytes += entry.size
                self._progress.files += 1
                continue
            self._check_free(path, below)
            waiting.append(output)
        special = [o for o in outputs if o[1].type not in ("file", "dir") or o[1].hardlink]
        for _, _, path, below in special:
            self._check_free(path, below)
        self._contents(waiting)
        for at in range(0, len(special), SYNC_FILES):
            self._journal.start([below for *_, below in special[at : at + SYNC_FILES]])
        for _, entry, path, below in special:
            if not self._names.nowhere(path):
                self._names.made(path, functools.partial(self._special, entry, path, below, outputs))
            self._progress.files += 1
        for _, entry, path, _ in reversed(folders):
            if not self._names.nowhere(path):
                self._attributes(entry, path)

    def _check_free(self, path: Path, below: str) -> None:
        if self._journal.begun(below):
            return
        try:
            os.lstat(path)
        except OSError:  # nothing there, or a name that can't be
            return
        raise TargetExistsError(f"{path} exists; it is not overwritten")

    def _contents(self, outputs: Sequence[Output]) -> None:
        frames = _Together(self._listing, outputs, self._frame)
        at, fd = 0, -1
        unsynced: list[tuple[Path, str]] = []
        pending = 0
        bad: dict[int, CloudMountError] = {}

        def damaged(frame: Frame, error: CloudMountError) -> None:
            bad.setdefault(frames.owner.pop(frame.number)[0], error)

        try:
            for frame, plain in read_frames(self._repository, frames, on_damage=damaged):
                output, number = frames.owner.pop(frame.number)
                while at < output or fd < 0:
                    if fd >= 0:
                        self._close(fd, outputs[at], bad.get(at), unsynced)
                        fd, at = -1, at + 1
                    if at <= output:
                        fd = self._open(outputs, at)
                write_all(fd, plain, number * self._frame)
                self._progress.done_bytes = self._base + min(
                    outputs[output][1].size, number * self._frame + len(plain)
                )
                pending += len(plain)
                if pending >= SYNC_BYTES or len(unsynced) >= SYNC_FILES:
                    self._sync(unsynced)
                    pending = 0
            while at < len(outputs):
                if fd < 0:
                    fd = self._open(outputs, at)
                self._close(fd, outputs[at], bad.get(at), unsynced)
                fd, at = -1, at + 1
        finally:
            if fd >= 0:
                os.close(fd)
        self._sync(unsynced)

    def _open(self, outputs: Sequence[Output], at: int) -> int:
        _, entry, path, below = outputs[at]
        self._progress.current = os.fspath(path)
        self._base = self._progress.done_bytes
        if not self._journal.started(below):
            self._journal.start([b for *_, b in outputs[at : at + SYNC_FILES]])
        opened: list[int] = []

        def make() -> None:
            if self._journal.begun(below) and os.path.lexists(path):
                path.unlink()  # begun by the run before, not finished
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW | OPEN
            opened.append(os.open(path, flags, 0o600))
            os.ftruncate(opened[0], entry.size)

        if self._names.nowhere(path) or not self._names.made(path, make):
            return os.open(os.devnull, os.O_WRONLY | OPEN)
        return opened[0]

    def _close(
        self, fd: int, output: Output, bad: CloudMountError | None, unsynced: list[tuple[Path, str]]
    ) -> None:
        os.close(fd)
        _, entry, path, below = output
        if self._names.nowhere(path):
            return
        if bad is not None:  # never zeros of the right length
            path.unlink()
            self.damaged.append((path, bad))
            self._progress.done_bytes = self._base
            return
        self._attributes(entry, path)
        self._progress.done_bytes = self._base + entry.size
        self._progress.files += 1
        unsynced.append((path, below))

    def _sync(self, unsynced: list[tuple[Path, str]]) -> None:
        for path, _ in unsynced:
            sync_named(path)
        self._journal.finished_many([below for _, below in unsynced])
        unsynced.clear()

    def _special(self, entry: Entry, path: Path, below: str, outputs: Sequence[Output]) -> None:
        if self._journal.begun(below) and os.path.lexists(path):
            path.unlink()
        if entry.hardlink:
            first = next((p for _, e, p, _ in outputs if e.path == entry.hardlink), None)
            if first is not None and (self._names.nowhere(first) or any(first == p for p, _ in self.damaged)):
                return
            if first is not None:
                os.link(first, path)
            else:  # the file it is the same as is not part of this restore
                found = self._listing.lookup(entry.path)
                if found is not None:
                    self._contents([(found[0], entry, path, below)])
            return
        try:
            if entry.type == "link":
                os.symlink(entry.target or "", path)
            elif WINDOWS:
                self._progress.notes.append(f"{path}: a {entry.type}, which Windows has not, left out")
                return
            elif entry.type == "fifo":
                os.mkfifo(path, 0o600)
            elif entry.type in ("char", "block"):
                kind = stat.S_IFCHR if entry.type == "char" else stat.S_IFBLK
                os.mknod(path, 0o600 | kind, entry.rdev or 0)
            else:
                self._progress.notes.append(f"{path}: a socket, left out")
                return
        except OSError as error:
            if not (isinstance(error, PermissionError) or (WINDOWS and entry.type == "link")):
                raise
            self._progress.notes.append(f"{path}: not made: {error.strerror}")
            return
        self._attributes(entry, path)

    def _attributes(self, entry: Entry, path: Path) -> None:
        link = entry.type == "link"
        if is_root():
            os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        for name, value in (entry.xattrs or {}).items():
            if WINDOWS:
                self._progress.notes.append(f"{path}: attribute {name} not set: Windows has no such")
                continue
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
            except OSError as error:
                self._progress.notes.append(f"{path}: attribute {name} not set: {error.strerror}")
        set_times(path, entry.mtime_ns, link=link)  # before the mode: read-only forbids it on Windows
        if not link:
            os.chmod(path, entry.mode)
