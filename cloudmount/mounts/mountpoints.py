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
import time
from dataclasses import dataclass

from cloudmount.errors import CloudMountError, NotFoundError, TargetExistsError, UsageError
from cloudmount.mounts.driver import FILESYSTEM
from cloudmount.mounts.looking import Place, look, run_for

_UNMOUNT_SECONDS = 2.0


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
    sought = os.fsencode(path)
    found = None
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            for line in table:
                fields, _, rest = line.partition(b" - ")
                point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), fields.split(b" ")[4])
                if point == sought:
                    kind, source, *_ = os.fsdecode(rest).split(" ")
                    found = Mounted(kind, source)
    except OSError:
        return None
    return found


def resolved(path: str) -> str:
    """The absolute path, links followed. `CloudMountError` when the file system it lies on hangs."""
    return look(path).path


def detach(path: str, *, lazy: bool) -> str | None:
    """Unmount what is at `path`; None when that worked, else why not. `lazy` also while it is in use."""
    why = "neither fusermount3 nor fusermount is installed (package fuse3)"
    commands = []
    for program in ("fusermount3", "fusermount"):
        if shutil.which(program):
            commands.append([program, "-u", *(["-z"] if lazy else []), "--", path])
            break
    if os.geteuid() == 0:
        commands.append(["umount", *(["-l"] if lazy else []), "--", path])
    until = time.monotonic() + _UNMOUNT_SECONDS
    for command in commands:
        try:
            failure = run_for(command, max(0.1, until - time.monotonic()))
        except OSError as error:
            failure = str(error)
        if failure is None:
            return None
        why = failure
    return why


def take(place: Place) -> tuple[bool, list[str]]:
    """Make a place fit to be mounted at: (whether its folder was made, what people should know).

    A stale drive of ours is cleared; a live one, a foreign mount, a file or a folder with something in
    it is an error.
    """
    path = place.path
    notes = []
    while (found := mounted_at(path)) is not None and found.ours:  # killed ones may lie on one another
        if not place.lost:
            raise TargetExistsError(f"a drive is mounted at {path} already; 'cloudmount umount' ends it")
        why = detach(path, lazy=True)
        if why is not None:
            raise CloudMountError(
                f"{path} has a drive whose process was killed, and it can't be cleared: {why}"
            )
        notes.append(f"{path}: a drive whose process was killed was cleared")
        place = look(path)
    if found is not None:
        raise TargetExistsError(f"{path}: another file system ({found.kind}) is mounted there")
    if place.errno == errno.ENOENT and not place.above:
        try:
            os.mkdir(path)
        except OSError as error:
            raise CloudMountError(f"{path}: can't be made: {error.strerror}") from None
        return True, notes
    if place.errno == errno.ENOENT:
        raise NotFoundError(f"{path}: its parent folder does not exist")
    if place.errno is None:
        raise CloudMountError(f"{path} does not answer: the file system there hangs")
    if place.errno:
        raise CloudMountError(f"{path}: can't be looked at: {os.strerror(place.errno)}")
    if not place.folder:
        raise UsageError(f"{path} is not a folder; a drive is mounted at an empty folder")
    if not place.empty:
        raise TargetExistsError(f"{path} is not empty; a drive is mounted at an empty folder")
    return False, notes
