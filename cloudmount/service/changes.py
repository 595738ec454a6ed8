"""Files that an install makes, each of which is known before it is there, so that it can be taken away.

Decided here and only here: the record of an install (`/etc/cloudmount/NAME.json`, for root only), that it is
on the disk before anything else is made, and that nothing is ever overwritten. A failure undoes what was
done; after a power cut `remove` does. Belongs to one thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cloudmount.errors import CloudMountError, TargetExistsError
from cloudmount.system import NO_FOLLOW, OPEN, sync_folder

FOLDER = "etc/cloudmount"
SUFFIX = ".json"
_VERSION = 1


@dataclass(slots=True)
class Record:
    """What an install made: `files` and `folders` by path below the root, each file with the SHA-256 of its
    content; `kind` is what starts the drive (`systemd`, `fstab`, `windows`), `unit` its name there."""

    kind: str
    unit: str
    mountpoint: str
    credentials: str = ""
    arguments: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    line: str = ""
    """What was added to fstab."""
    complete: bool = False

    def digest_of(self, data: bytes) -> str:
        """What `files` keeps of content."""
        return hashlib.sha256(data).hexdigest()


def write_new(path: Path, data: bytes, mode: int) -> None:
    """A new file, on the disk when this returns; `TargetExistsError` when something is there."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW | OPEN, mode)
    except FileExistsError:
        raise TargetExistsError(f"{path} exists; it is not overwritten: move it away") from None
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(fd, mode)  # whatever the umask is
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_folder(path.parent)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Give a file new content at once: after a power cut it has the old or the new."""
    part = path.with_name(f".{path.name}.cloudmount")
    part.unlink(missing_ok=True)
    try:
        write_new(part, data, mode)
        with contextlib.suppress(OSError, AttributeError):
            status = os.stat(path)
            os.chown(part, status.st_uid, status.st_gid)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


class Records:
    """The installs of the system whose files lie below `root`."""

    def __init__(self, root: Path, folder: str = FOLDER) -> None:
        self.root = root
        self.folder = root / folder

    def path(self, name: str) -> Path:
        """The record of the install called `name`."""
        return self.folder / (name + SUFFIX)

    def read(self, name: str) -> Record | None:
        """An install; None when there is none. `CloudMountError` when its record can't be read."""
        path = self.path(name)
        try:
            value: Any = json.loads(path.read_bytes())
            if value.pop("version") != _VERSION:
                raise ValueError("made by another version")
            return Record(**value)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise CloudMountError(f"{path}: what was installed can't be read: {why}") from None

    def files(self, record: Record) -> list[str]:
        """Where the files of an install lie."""
        return [os.fspath(self.root / below) for below in record.files]

    def names(self) -> list[str]:
        """Every install, sorted."""
        try:
            return sorted(p.name.removesuffix(SUFFIX) for p in self.folder.glob(f"*{SUFFIX}"))
        except OSError:
            return []

    def write(self, name: str, record: Record) -> None:
        """Enter or replace a record."""
        data = json.dumps({"version": _VERSION, **asdict(record)}, indent=1).encode("ascii")
        replace(self.path(name), data, 0o600)

    def remove(self, name: str) -> None:
        """The install is gone; its folder too when it was the last."""
        self.path(name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


class Changes:
    """What one install has done so far; leaving the block by an exception undoes it, last first."""

    def __init__(self, records: Records, name: str, record: Record) -> None:
        self._records, self._name, self.record = records, name, record
        self._undo: list[Callable[[], object]] = []
        self.undone: list[str] = []
        """What could not be undone, and why."""

    def __enter__(self) -> Self:
        if self._records.path(self._name).exists():
            raise TargetExistsError(
                f"a service for {self.record.mountpoint} is installed; 'cloudmount service remove' ends it"
            )
        self._records.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.then_undo(lambda: self._records.remove(self._name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        for undo in reversed(self._undo):
            try:
                undo()
            except Exception as failed:  # the rest is undone all the same
                self.undone.append(str(failed))
        if self.undone and isinstance(error, CloudMountError):
            error.args = (f"{error}; not undone: {'; '.join(self.undone)}",)

    def complete(self) -> None:
        """Everything is done: the last word of the block."""
        self.record.complete = True
        self._records.write(self._name, self.record)

    def then_undo(self, undo: Callable[[], object]) -> None:
        """Something was done that `undo` undoes."""
        self._undo.append(undo)

    def planned(self, below: str, data: bytes) -> None:
        """Enter that this file is about to be made, by something else."""
        self.record.files[below] = self.record.digest_of(data)
        self._records.write(self._name, self.record)

    def file(self, below: str, data: bytes, mode: int, *, folder_mode: int = 0o755) -> Path:
        """Make a file, and its folders."""
        path = self._records.root / below
        self._folders(path.parent, folder_mode)
        if os.path.lexists(path):
            raise TargetExistsError(f"{path} exists; it is not overwritten: move it away")
        self.planned(below, data)
        self.then_undo(lambda: path.unlink(missing_ok=True))
        write_new(path, data, mode)
        return path

    def _folders(self, folder: Path, mode: int) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for made in reversed(missing):
            self.record.folders.append(made.relative_to(self._records.root).as_posix())
            made.mkdir(mode=mode)
            self.then_undo(made.rmdir)
        if missing:
            self._records.write(self._name, self.record)


def take_away(records: Records, record: Record) -> list[str]:
    """Remove what an install made; what was changed since is kept beside, as `NAME.saved`, and told."""
    notes = []
    for below, digest in record.files.items():
        path = records.root / below
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        if digest and record.complete and record.digest_of(data) != digest:
            saved = path.with_name(path.name + ".saved")
            os.replace(path, saved)
            notes.append(f"{path} was changed since it was installed: it is kept as {saved}")
        else:
            path.unlink(missing_ok=True)
        sync_folder(path.parent)
    for below in reversed(record.folders):
        with contextlib.suppress(OSError):
            (records.root / below).rmdir()
    return notes
