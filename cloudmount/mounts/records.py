"""Which mounts this machine's user has, each in a small file: for `status` and `umount`.

Decided here and only here: what is recorded of a mount, and when a record is stale (its
process is gone: id and start time disagree). Files are replaced atomically; safe on any thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from cloudmount.system import process_start as start_time

__all__ = ["MountRecord", "find_record", "read_records", "remove_record", "start_time", "write_record"]


@dataclass(frozen=True, slots=True)
class MountRecord:
    """A mount that is up. `since` is Unix time; `started` the process's start in clock ticks after boot."""

    pid: int
    started: int
    mountpoint: str
    repository: str
    since: float
    made: bool = False
    """Its folder was made for it, and goes with it."""
    driver: str = ""
    """What serves it; empty when an older program recorded it."""
    pass_through: str = ""
    """Whether the kernel reads complete local copies by itself, as the driver says."""

    @property
    def alive(self) -> bool:
        """Whether its process still runs."""
        return start_time(self.pid) == self.started


def _file(folder: Path, mountpoint: str) -> Path:
    return folder / f"{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32]}.json"


def write_record(folder: Path, record: MountRecord) -> None:
    """Enter a mount; a folder that can't be written only loses `status`."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        target = _file(folder, record.mountpoint)
        part = target.with_suffix(f".{record.pid}")
        part.write_text(json.dumps(asdict(record)))
        os.replace(part, target)


def remove_record(folder: Path, mountpoint: str) -> None:
    """The mount is gone."""
    with contextlib.suppress(OSError):
        _file(folder, mountpoint).unlink(missing_ok=True)


def read_records(folder: Path) -> list[MountRecord]:
    """Every mount entered, sorted by mount point; check `alive`."""
    found = []
    for file in folder.glob("*.json") if folder.is_dir() else ():
        try:
            found.append(MountRecord(**json.loads(file.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(found, key=lambda r: r.mountpoint)


def find_record(folder: Path, mountpoint: str) -> MountRecord | None:
    """The record of the mount at this path."""
    return next((r for r in read_records(folder) if r.mountpoint == mountpoint), None)


def _asked(folder: Path, mountpoint: str) -> Path:
    return _file(folder, mountpoint).with_suffix(".end")


def ask_to_end(folder: Path, mountpoint: str, pid: int) -> None:
    """Leave word for the process that serves a mount: it is to end. `OSError` when that can't be written."""
    _asked(folder, mountpoint).write_text(str(pid))


def asked_to_end(folder: Path, mountpoint: str, pid: int) -> bool:
    """Whether somebody left word for this process."""
    try:
        return _asked(folder, mountpoint).read_text() == str(pid)
    except (OSError, ValueError):
        return False


def forget_asked(folder: Path, mountpoint: str) -> None:
    """Take such a word away."""
    with contextlib.suppress(OSError):
        _asked(folder, mountpoint).unlink(missing_ok=True)
