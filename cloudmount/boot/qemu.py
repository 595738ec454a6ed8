"""QEMU's programs on this computer.

Decided here and only here: which they are, and what is said when one is missing. Stateless.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cloudmount.errors import CloudMountError

_PACKAGES = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils"}


def program(name: str = "qemu-system-x86_64") -> str:
    """The path of a program of QEMU's; `CloudMountError` naming the package that brings it."""
    found = shutil.which(name)
    if found is None:
        raise CloudMountError(
            f"starting a machine needs the program {name}: install the package {_PACKAGES[name]}"
        )
    return found


def bound(command: Sequence[str]) -> list[str]:
    """The command, so that what it starts dies with the thread that starts it: a machine that nobody watches
    would run, or hang, for ever."""
    binds = shutil.which("setpriv")  # of util-linux
    return [binds, "--pdeathsig", "KILL", "--", *command] if binds is not None else [*command]


def create_overlay(overlay: Path, backing: str, size: int) -> None:
    """A new, empty qcow2 file at `overlay` over the raw image `backing` of `size` bytes.

    The image is not opened. The name is kept for people: machines are told their disks' backing by us.
    """
    command = [program("qemu-img"), "create", "-q", "-u", "-f", "qcow2"]
    command += ["-b", backing, "-F", "raw", str(overlay), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CloudMountError(f"qemu-img failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
