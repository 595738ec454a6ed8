"""What things are called on the drive: the naming rules of `cli.md`, "What is a disk".

Decided here and only here: a disk's three names, and who gets `-2` when names meet.
Pure.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from cloudmount.system import name_bytes

RESERVED_AT_TOP = frozenset({"machine.json"})
"""What the drive itself puts into a snapshot's folder."""


def stem(name: str) -> str:
    """A file's name without its ending."""
    base, _ = os.path.splitext(name)
    return base


def _base(name: str, n: int) -> str:
    return stem(name) if n == 1 else f"{stem(name)}-{n}"


def disk_names(base: str) -> tuple[str, str, str]:
    """The names that a disk called `base` takes in its folder."""
    return base, f"{base}.vhdx", f"{base}.img"


def numbered(name: str, n: int) -> str:
    """`name` with `-n` before its ending; itself for 1."""
    if n == 1:
        return name
    base, ending = os.path.splitext(name)
    return f"{base}-{n}{ending}"


def drive_names(items: Iterable[tuple[str, bool]], reserved: Iterable[str] = ()) -> dict[str, str]:
    """The drive's name for each of a folder's items, given as (name, whether it is a disk).

    A disk's is its base. Names are handed out in sorted order (as bytes); where one is taken the
    later item gets `-2`, `-3`, ... . Nothing is hidden, whatever the names.
    """
    taken = set(reserved)
    names = {}
    for name, disk in sorted(items, key=lambda item: name_bytes(item[0])):
        n = 1
        while True:
            mine = _base(name, n) if disk else numbered(name, n)
            wanted = disk_names(mine) if disk else (mine,)
            if not taken.intersection(wanted):
                break
            n += 1
        taken.update(wanted)
        names[name] = mine
    return names


def last_components(paths: Sequence[str]) -> list[str]:
    """What each path given is kept under: its last component, a second equal one with `-2`."""
    names: list[str] = []
    for path in paths:
        name = os.path.basename(os.path.abspath(path).rstrip(os.sep)) or "root"
        n = 1
        while numbered(name, n) in names:
            n += 1
        names.append(numbered(name, n))
    return names
