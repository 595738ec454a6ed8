"""Talking to systemd, through `systemctl`.

Decided here and only here: whether there is a systemd that can be asked, and what its answers mean. Belongs
to one thread; each call ends within two minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from cloudmount.errors import CloudMountError

_SECONDS = 120
"""More than the unit's own TimeoutStartSec."""
_RUNNING = Path("/run/systemd/system")
"""There when systemd is the init (sd_booted(3))."""


class NoSystemdError(CloudMountError):
    """There is no systemd to be asked."""


def running() -> bool:
    """Whether systemd runs this computer."""
    return _RUNNING.is_dir() and shutil.which("systemctl") is not None


def systemctl(*arguments: str, root: Path | None = None) -> str:
    """What `systemctl` says; `NoSystemdError` where there is none, `CloudMountError` when it failed. With
    `root` it works on the files below it, which needs no systemd that runs."""
    program = shutil.which("systemctl")
    if program is None or (root is None and not running()):
        raise NoSystemdError("there is no systemctl here" if program is None else "systemd does not run here")
    command = [program, "--no-pager", *([f"--root={root}"] if root is not None else []), *arguments]
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CloudMountError(f"systemctl {' '.join(arguments)}: {error}") from None
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split()) or f"exit {done.returncode}"
        raise CloudMountError(f"systemctl {' '.join(arguments)}: {said}")
    return done.stdout.decode(errors="replace")


def state(unit: str) -> tuple[str, str]:
    """Of a unit: its state (`active`, `failed (exit-code)`, ...), and `enabled` or not; ("unknown: why",
    "unknown") where nothing tells."""
    try:
        told = systemctl("show", "--property=ActiveState,SubState,Result,UnitFileState", "--", unit)
    except CloudMountError as error:
        return f"unknown: {error}", "unknown"
    values = dict(line.partition("=")[::2] for line in told.splitlines())
    active, sub = values.get("ActiveState", "unknown"), values.get("SubState", "")
    result = values.get("Result", "success")
    more = (
        result if result not in ("", "success") else sub if sub not in ("", active, "running", "dead") else ""
    )
    return active + (f" ({more})" if more else ""), values.get("UnitFileState") or "unknown"
