"""Mount points: what is mounted where, and taking it off again.

Decided here and only here: how one of our mounts is known (file system `fuse.cloudmount` in
/proc/self/mountinfo), when it is stale (its process was killed), and which programs
unmount. Linux; elsewhere nothing is found. Stateless; safe on any thread.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import threading
from dataclasses import dataclass

from cloudmount.errors import CloudMountError, NotFoundError, TargetExistsError, UsageError
from cloudmount.mounts.driver import FILESYSTEM

_STAT_SECONDS = 2.0
_UNMOUNT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Mounted:
    """What is mounted at a path, topmost."""

    kind: str
    source: str

    @property
    def ours(self) -> bool:
        """Whether it is a drive of CloudMount's."""
        return self.kind == f"fuse.{FILESYSTEM}" and self.source == FILESYSTEM


def mounted_at(path: str) -> Mounted | None:
    """What is mounted exactly at an absolute `path`; asks nothing of the file system there."""
    found = None
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            for line in table:
                fields, _, rest = line.partition(" - ")
                point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields.split()[4])
                point = os.fsdecode(point.encode("utf-8", "surrogateescape"))
                if point == path:
                    kind, source, *_ = rest.split()
                    found = Mounted(kind, source)
    except OSError:
        return None
    return found


def resolved(path: str) -> str:
    """The absolute path, links in its parents followed; its last part isn't touched: it may hang."""
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    return os.path.join(os.path.realpath(parent), name) if name else path


def is_stale(path: str) -> bool:
    """Whether the drive at `path` has lost its process ("Transport endpoint is not connected")."""
    answer: list[bool] = []

    def look() -> None:
        try:
            os.stat(path)
            answer.append(False)
        except OSError as error:
            answer.append(error.errno in (errno.ENOTCONN, errno.ECONNABORTED))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(_STAT_SECONDS)
    return bool(answer and answer[0])  # no answer: alive, but slow


def detach(path: str, *, lazy: bool) -> str | None:
    """Unmount what is at `path`; None when that worked, else why not. `lazy` also while it is in use."""
    why = "neither fusermount3 nor fusermount is installed (package fuse3)"
    commands = []
    for program in ("fusermount3", "fusermount"):
        if shutil.which(program):
            commands.append([program, "-u", *(["-z"] if lazy else []), "--", path])
    if os.geteuid() == 0:
        commands.append(["umount", *(["-l"] if lazy else []), "--", path])
    for command in commands:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_UNMOUNT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            why = str(error)
            continue
        if done.returncode == 0:
            return None
        why = done.stderr.strip() or why
    return why


def take(path: str) -> tuple[bool, list[str]]:
    """Make `path` fit to be mounted at: (whether its folder was made, what people should know).

    A stale drive of ours is cleared; a live one, a foreign mount, a file or a folder with something in
    it is an error.
    """
    notes = []
    found = mounted_at(path)
    if found is not None and found.ours:
        if not is_stale(path):
            raise TargetExistsError(f"a drive is mounted at {path} already; 'cloudmount umount' ends it")
        why = detach(path, lazy=True)
        if why is not None:
            raise CloudMountError(
                f"{path} has a drive whose process was killed, and it can't be cleared: {why}"
            )
        notes.append(f"{path}: a drive whose process was killed was cleared")
    elif found is not None:
        raise TargetExistsError(f"{path}: another file system ({found.kind}) is mounted there")
    made = False
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        try:
            os.mkdir(path)
        except FileNotFoundError:
            raise NotFoundError(f"{path}: its parent folder does not exist") from None
        except OSError as error:
            raise CloudMountError(f"{path}: can't be made: {error.strerror}") from None
        made = True
    except OSError as error:
        raise CloudMountError(f"{path}: can't be looked at: {error.strerror}") from None
    else:
        if not stat.S_ISDIR(mode):
            raise UsageError(f"{path} is not a folder; a drive is mounted at an empty folder")
        try:
            if os.listdir(path):
                raise TargetExistsError(f"{path} is not empty; a drive is mounted at an empty folder")
        except PermissionError as error:
            raise CloudMountError(f"{path}: can't be listed: {error.strerror}") from None
    return made, notes
