"""Running a script: the one place that starts PowerShell.

Decided here and only here: which PowerShell, how it is started, and how what it says and its end are told.
Only Windows has one: `runner` gives None elsewhere. Belongs to one thread. **Not run on Windows.**
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from cloudmount import system
from cloudmount.errors import CloudMountError

Runner: TypeAlias = Callable[[Path, Sequence[str]], str]
"""Runs a script with arguments (names of ours, never values from outside) and gives back what it said;
`CloudMountError` with its last words when it failed."""
_SAID = 300


def runner(environ: Mapping[str, str] = os.environ) -> Runner | None:
    """What runs scripts on this computer; None where there is no Windows."""
    if not system.WINDOWS:
        return None
    root = environ.get("SystemRoot", r"C:\Windows")
    program = rf"{root}\System32\WindowsPowerShell\v1.0\powershell.exe"  # 5.1, part of every Windows
    return lambda script, arguments: run([program], script, arguments)


def run(program: Sequence[str], script: Path, arguments: Sequence[str]) -> str:
    """What `script` said. Policies that forbid scripts do not count for this one run."""
    command = [*program, "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File"]
    encoding = "oem" if system.WINDOWS else "utf-8"  # that of consoles, which pipes get too
    try:
        done = subprocess.run(
            [*command, os.fspath(script), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding=encoding,
            errors="backslashreplace",
            check=False,
        )
    except OSError as error:
        raise CloudMountError(f"PowerShell can't be started: {error.strerror}") from None
    if done.returncode:
        words = " ".join(done.stderr.split()) or " ".join(done.stdout.split())
        raise CloudMountError(
            f"{words[-_SAID:] or 'it said nothing'} (PowerShell ended with {done.returncode})"
        )
    return done.stdout.strip()
