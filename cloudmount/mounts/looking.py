"""Looking at places that may hang, and running what may never come back.

Decided here and only here: that nothing of CloudMount's own waits on a dead file system. The
kernel does not let a process die while it waits for one, so it is a process of its own that
looks (about 30 ms); when it does not answer it is killed and left to the kernel. Safe on any
thread.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from cloudmount.errors import CloudMountError

FIRST_SECONDS = 5.0
"""How long what a path lies in may take to answer, with a busy machine's start of a program in it."""
THEN_SECONDS = 2.0
"""How long the place itself may take then."""

_LOOK = """
import json, os, stat, sys
def say(**what): os.write(1, json.dumps(what).encode() + b"\\n")
path = os.path.abspath(sys.argv[1])
folder, name = os.path.split(path)
try:
    folder = os.path.realpath(folder, strict=True)
except OSError as e:
    say(path=path, errno=e.errno, above=True)
    raise SystemExit
path = os.path.join(folder, name)
say(path=path)
try:
    found = os.stat(path)
    if os.path.islink(path):
        path = os.path.realpath(path)
        folder = os.path.dirname(path)
    is_folder = stat.S_ISDIR(found.st_mode)
    say(path=path, errno=0, folder=is_folder)
    if is_folder and found.st_dev == os.stat(folder).st_dev:  # else something is mounted there
        with os.scandir(path) as names:
            say(empty=next(names, None) is None)
except OSError as e:
    say(errno=e.errno)
"""


@dataclass(slots=True)
class Place:
    """A path as it was found."""

    path: str = ""
    """Absolute, links followed; "" when what it lies in does not answer."""
    errno: int | None = None
    """0, or why it can't be looked at; None: it does not answer."""
    above: bool = False
    """The failure is that of a folder it would lie in."""
    folder: bool = False
    empty: bool | None = None
    """Whether a folder is; None: not known, because something is mounted there."""

    @property
    def lost(self) -> bool:
        """A drive whose process has ended ("Transport endpoint is not connected")."""
        return self.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def look(path: str) -> Place:
    """What is at `path`. `CloudMountError` when the file system that it lies in hangs."""
    place = Place()
    looker = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LOOK, path],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert looker.stdout is not None
    with looker.stdout as out:
        told = b""
        until = time.monotonic() + FIRST_SECONDS
        while more := _read(out, until):
            *lines, told = (told + more).split(b"\n")
            for line in lines:
                if not place.path:
                    until = time.monotonic() + THEN_SECONDS
                said: dict[str, Any] = json.loads(line)
                for name, value in said.items():
                    setattr(place, name, value)
    _leave(looker)
    if not place.path:
        raise CloudMountError(f"{path} does not answer: the file system it lies on hangs")
    return place


def run_for(command: Sequence[str], seconds: float) -> str | None:
    """Run a program: None when it ended well, else what it said; it is left when it takes longer."""
    program = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert program.stderr is not None
    said = b""
    until = time.monotonic() + seconds
    with program.stderr as out:
        while more := _read(out, until):
            said += more
    try:
        code = program.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        _leave(program)
        return f"{command[0]} did not end within {seconds:g} s"
    return None if code == 0 else said.decode(errors="replace").strip() or f"exit code {code}"


def _read(out: IO[bytes], until: float) -> bytes:
    """What comes next from a pipe; nothing at its end, or when nothing comes `until` then."""
    with selectors.DefaultSelector() as ready:  # not select(): that can't take descriptors above 1023
        ready.register(out, selectors.EVENT_READ)
        if not ready.select(max(0.0, until - time.monotonic())):
            return b""
        return os.read(out.fileno(), 65536)


def _leave(program: subprocess.Popen[bytes]) -> None:
    """Kill it if it still runs; the kernel may not let it end, so nobody waits here."""
    program.kill()
    try:
        program.wait(0.2)
    except subprocess.TimeoutExpired:
        threading.Thread(target=program.wait, name="cloudmount-left", daemon=True).start()
