"""What is to be backed up: the paths given, walked, with their names on the drive.

Decided here and only here: what is met in which order (the order of entries, FORMAT.md
section 6.4), what is left out, and that a path given must be readable while one met on
the way is skipped and told. Belongs to one thread; reads folders and signatures only.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloudmount.backup.naming import RESERVED_AT_TOP, drive_names, last_components
from cloudmount.disks.detect import DiskKind, detect, parents_in
from cloudmount.errors import UnreadableInputError, UsageError
from cloudmount.system import full_status, name_bytes, opened_path, shown_path, stored_name

Tell = Callable[[str, str], None]
"""Called with a path and why it is skipped."""


@dataclass(frozen=True, slots=True)
class Found:
    """Something to back up. `folder` and `name` are the drive's; a disk's name has no ending."""

    path: str
    folder: str
    name: str
    original: str
    status: os.stat_result
    disk: bool
    named: bool

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.status.st_mode)


class Sources:
    """The paths of one backup.

    `exclude` and `as_file` are patterns as in `fnmatch`: one without a slash is held against names, one
    with a slash against whole paths. `leave_out` names files by (device, inode): the repository itself.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        exclude: Sequence[str] = (),
        as_file: Sequence[str] = (),
        leave_out: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        if not paths:
            raise UsageError("nothing to back up: give at least one path")
        self._exclude, self._as_file = list(exclude), list(as_file)
        self._leave_out = leave_out
        self._tell: Tell = lambda path, why: None
        self._top: list[tuple[str, str, os.stat_result, DiskKind | None]] = []
        for path, name in zip(paths, last_components(paths), strict=True):
            try:
                status = os.stat(path)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                raise UnreadableInputError(f"{path}: can't be read: {why}") from None
            kind = None if _matches(path, self._as_file) else detect(path, named=True)
            if stat.S_ISDIR(status.st_mode):
                if not os.access(path, os.R_OK | os.X_OK):
                    raise UnreadableInputError(f"{path}: can't be read: permission denied")
            elif stat.S_ISREG(status.st_mode) and not os.access(path, os.R_OK):
                raise UnreadableInputError(f"{path}: can't be read: permission denied")
            self._top.append((path, name, status, kind))

    def walk(self, tell: Tell) -> Iterator[Found]:
        """Everything, in the order of entries: a folder's children before what lies deeper."""
        self._tell = tell
        items = [(name, kind is not None) for _, name, _, kind in self._top]
        names = drive_names(items, RESERVED_AT_TOP)
        top = [
            Found(path, "", names[name], name, status, kind is not None, True)
            for path, name, status, kind in self._top
        ]
        yield from self._group(top)

    def _group(self, group: list[Found]) -> Iterator[Found]:
        group.sort(key=lambda f: name_bytes(f.name))
        yield from group
        for found in group:
            if found.is_folder:
                inner = f"{found.folder}/{found.name}" if found.folder else found.name
                yield from self._group(self._children(found.path, inner, found.named))

    def _children(self, path: str, folder: str, named: bool) -> list[Found]:
        try:
            with os.scandir(opened_path(path)) as scan:
                entries = sorted(scan, key=lambda e: name_bytes(stored_name(e.name)))
        except OSError as error:
            if named:
                raise UnreadableInputError(f"{path}: can't be read: {error.strerror}") from None
            self._tell(path, error.strerror or "can't be listed")
            return []
        met: list[tuple[str, str, os.stat_result, bool]] = []
        for entry in entries:
            at = opened_path(entry.path)
            if _matches(at, self._exclude):
                continue
            try:
                status = full_status(entry)
                if (status.st_dev, status.st_ino) in self._leave_out:
                    continue
                disk = self._is_disk(at, status)
            except (OSError, UnreadableInputError) as error:
                self._tell(at, getattr(error, "strerror", None) or _short(error, at))
                continue
            met.append((at, stored_name(entry.name), status, disk))
        parents = parents_in(Path(at) for at, *_, disk in met if disk) if any(d for *_, d in met) else set()
        met = [m for m in met if Path(m[0]) not in parents]
        names = drive_names([(name, disk) for _, name, _, disk in met])
        return [Found(at, folder, names[name], name, s, disk, False) for at, name, s, disk in met]

    def _is_disk(self, path: str, status: os.stat_result) -> bool:
        if not stat.S_ISREG(status.st_mode) or _matches(path, self._as_file):
            return False
        return detect(path, named=False) is not None


def _short(error: Exception, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")


def _matches(path: str, patterns: Sequence[str]) -> bool:
    name = os.path.basename(path.rstrip(os.sep))
    whole = shown_path(os.path.abspath(path))
    return any(fnmatch.fnmatchcase(whole if os.sep in p else name, p.rstrip(os.sep)) for p in patterns)
