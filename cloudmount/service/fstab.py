"""A drive in /etc/fstab.

Decided here and only here: the line, and the program that `mount` starts for it. For a file system
`fuse.cloudmount` mount(8) runs `/sbin/mount.fuse.cloudmount SPEC DIR [-sfnv] [-o OPTIONS]`; ours is a script
of two lines that starts this Python. SPEC is `cloudmount#NAME`, where NAME is an install (`changes`), so
neither the address nor a secret stands in fstab, which everybody may read. Belongs to one thread.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from cloudmount.errors import UsageError
from cloudmount.service.changes import replace
from cloudmount.service.escaping import fstab_field

FSTAB = "etc/fstab"
HELPER = "sbin/mount.fuse.cloudmount"
SPEC = "cloudmount#"
OPTIONS = "_netdev,nofail,x-systemd.mount-timeout=90"
"""After the network; a start of the computer neither fails nor waits because of it."""


def line_for(name: str, mountpoint: str) -> str:
    """The line of an install."""
    fields = (
        fstab_field(SPEC + name).replace("\\043", "#"),
        fstab_field(mountpoint),
        "fuse.cloudmount",
        OPTIONS,
    )
    return " ".join((*fields, "0", "0"))


def helper_text(program: Sequence[str]) -> bytes:
    """The program that mount(8) starts."""
    return (
        "#!/bin/sh\n# Made by 'cloudmount service install --fstab': mount(8) starts it for fuse.cloudmount.\n"
        f'exec {shlex.join(program)} service fstab "$@"\n'
    ).encode("utf-8", "surrogateescape")


def name_of(spec: str) -> str:
    """The install that `spec` names; `UsageError` for anything else."""
    name = spec.removeprefix(SPEC)
    if name == spec or not name or "/" in name:
        raise UsageError(f"{spec!r} is no drive of CloudMount's: the line in fstab begins with {SPEC}NAME")
    return name


def add_line(root: Path, line: str) -> None:
    """Append it. `OSError` when fstab can't be written."""
    path = root / FSTAB
    old = path.read_bytes() if path.exists() else b""
    if old and not old.endswith(b"\n"):
        old += b"\n"
    replace(path, old + line.encode("utf-8", "surrogateescape") + b"\n", _mode(path))


def remove_line(root: Path, line: str) -> bool:
    """Take it away, if it is there as it was added."""
    path = root / FSTAB
    raw = line.encode("utf-8", "surrogateescape")
    old = path.read_bytes().split(b"\n") if path.exists() else []
    if raw not in old:
        return False
    old.remove(raw)
    replace(path, b"\n".join(old), _mode(path))
    return True


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777 if path.exists() else 0o644
