"""Restoring files from inside a disk.

Decided here and only here: what becomes of a guest's file here: content, times, links; modes and owners
where the guest has such (Windows' rights mean nothing here). What can't be read rightly is left out and told.
Belongs to one thread; reading has its own.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cloudmount.app.restorefiles import SYNC_BYTES, SYNC_FILES
from cloudmount.app.restorejournal import RestoreJournal
from cloudmount.app.unnameable import TOO_LARGE, UNNAMEABLE
from cloudmount.app.writing import write_content
from cloudmount.errors import CloudMountError, DamagedError, TargetExistsError, UnreadableInputError
from cloudmount.nodes import Attr, Dir, File, Kind, Link, Node
from cloudmount.system import is_root, set_times, sync_named

if TYPE_CHECKING:
    from cloudmount.app.restore import RestoreProgress

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class Output:
    """A node, and its path below the target."""

    node: Node
    attr: Attr
    below: str


def outputs(
    node: Node, name: str, progress: RestoreProgress, skipped: list[tuple[Path, str]]
) -> list[Output]:
    """All that restoring `node` makes: itself under `name`, or what is in it for a folder. Folders that can't
    be listed go to `skipped`; `progress` counts the bytes."""
    attr = node.attr()
    if attr.kind is not Kind.DIR:
        progress.total_bytes += attr.size if attr.kind is Kind.FILE else 0
        return [Output(node, attr, name)]
    found: list[Output] = []
    seen: set[int] = set()
    for output in _below(cast(Dir, node), "", skipped):
        found.append(output)
        if output.attr.kind is Kind.FILE and output.attr.inode not in seen:
            seen.add(output.attr.inode)
            progress.total_bytes += output.attr.size
    return found


def _below(folder: Dir, path: str, skipped: list[tuple[Path, str]]) -> Iterator[Output]:
    try:
        children = list(folder.list())
    except UnreadableInputError as error:
        if not path:
            raise
        skipped.append((Path(path), str(error)))
        return
    for name, node in children:
        output = Output(node, node.attr(), f"{path}/{name}" if path else name)
        yield output
        if output.attr.kind is Kind.DIR:
            yield from _below(cast(Dir, node), output.below, skipped)


class InsideRestore:
    """Writes outputs in their order; times of folders last."""

    def __init__(self, journal: RestoreJournal, progress: RestoreProgress) -> None:
        self._journal, self._progress = journal, progress
        self.damaged: list[tuple[Path, CloudMountError]] = []
        """Files of which some of what is stored is damaged."""
        self.skipped: list[tuple[Path, str]] = []
        """What can't be read or can't be held here, and why."""
        self._first: dict[int, Path] = {}
        self._unsynced: list[tuple[Path, str]] = []
        self._pending = 0

    def run(self, planned: list[tuple[Output, Path]]) -> None:
        """Make them. `OSError` when the target can't be written."""
        folders = [(o, p) for o, p in planned if o.attr.kind is Kind.DIR]
        others = [(o, p) for o, p in planned if o.attr.kind is not Kind.DIR]
        for _, path in folders:
            self._named(path, functools.partial(path.mkdir, parents=True, exist_ok=True))
        for output, path in others:
            if output.below not in self._journal.done and not self._journal.begun(output.below):
                self._check_free(path)
        for at in range(0, len(others), SYNC_FILES):
            batch = others[at : at + SYNC_FILES]
            self._journal.start([o.below for o, _ in batch])
            for output, path in batch:
                self._one(output, path)
            self._sync()
        for output, path in reversed(folders):
            if path.is_dir():
                _attributes(path, output.attr)

    @staticmethod
    def _check_free(path: Path) -> None:
        try:
            os.lstat(path)
        except OSError:  # nothing there, or a name that can't be
            return
        raise TargetExistsError(f"{path} exists; it is not overwritten")

    def _one(self, output: Output, path: Path) -> None:
        attr, before = output.attr, self._progress.done_bytes
        self._progress.current = os.fspath(path)
        if output.below in self._journal.done:
            self._progress.done_bytes += attr.size if attr.kind is Kind.FILE else 0
            self._progress.files += 1
            self._first.setdefault(attr.inode, path)
            return
        if self._journal.begun(output.below) and os.path.lexists(path):
            path.unlink()  # begun by the run before, not finished
        try:
            if attr.kind is Kind.LINK:
                made = self._named(
                    path, lambda: os.symlink(cast(Link, output.node).target(), path), link=True
                )
            else:
                made = self._named(path, lambda: self._file(cast(File, output.node), attr, path))
        except (UnreadableInputError, DamagedError) as error:
            path.unlink(missing_ok=True)  # never zeros of the right length
            self._progress.done_bytes = before
            if isinstance(error, DamagedError):
                self.damaged.append((path, error))
            else:
                self.skipped.append((path, str(error)))
            return
        if not made:
            self._progress.done_bytes = before
        else:
            self._progress.files += 1
            self._unsynced.append((path, output.below))
            if self._pending >= SYNC_BYTES:
                self._sync()

    def _named(self, path: Path, make: Callable[[], object], *, link: bool = False) -> bool:
        """Make something at `path`; False, told, where this file system can't hold it."""
        try:
            make()
        except FileExistsError:
            self.skipped.append((path, "it is there since, or has another's name but for case"))
            return False
        except OSError as error:
            if error.errno == errno.EFBIG:
                path.unlink(missing_ok=True)
                self.skipped.append((path, TOO_LARGE))
            elif error.errno == errno.EPERM and link:
                self.skipped.append((path, f"not made: {error.strerror}"))
            elif error.errno in UNNAMEABLE:
                self.skipped.append((path, f"{error.strerror}: the file system there can't hold this name"))
            else:
                raise
            return False
        return True

    def _file(self, node: File, attr: Attr, path: Path) -> None:
        """As another name of one that is there, where the file system has such, else with its content."""
        if attr.inode in self._first:
            try:
                os.link(self._first[attr.inode], path)
                return
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
        self._write(node, attr, path)

    def _write(self, node: File, attr: Attr, path: Path) -> None:
        def wrote(length: int) -> None:
            self._progress.done_bytes += length
            self._pending += length

        source = node.open()
        try:
            with open(path, "xb", buffering=0) as file:
                write_content(file.fileno(), source, wrote)
        finally:
            source.close()
        _attributes(path, attr)
        self._first[attr.inode] = path

    def _sync(self) -> None:
        for path, _ in self._unsynced:
            if path.is_symlink():
                continue
            sync_named(path)
        self._journal.finished_many([below for _, below in self._unsynced])
        self._unsynced.clear()
        self._pending = 0


def _attributes(path: Path, attr: Attr) -> None:
    if attr.uid is not None:
        if is_root():
            os.chown(path, attr.uid, attr.gid if attr.gid is not None else -1)
        set_times(path, attr.mtime_ns)
        os.chmod(path, attr.mode)
    else:
        set_times(path, attr.mtime_ns)
