"""Where the parent of a differencing disk may lie, from the paths its child recorded.

Decided here and only here: how a path written by Windows is looked up on this
system. Relative ones count from the child's folder; a drive letter means nothing
elsewhere than on Windows, so there an absolute path stands for its last component
beside the child. Names are matched as written, else without regard to case, as
their writer would. Pure but for listing folders; safe on any thread.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

_MAX_PATH = 32767  # UTF-16 units, Windows' own limit


def parent_paths(child: Path, relative: Iterable[str], absolute: Iterable[str]) -> list[Path]:
    """Existing paths of the parent of `child` first in order, then the places where it was not found.

    `relative` and `absolute` are as recorded in the child, best first.
    """
    folder = child.parent
    found: list[Path] = []
    last: list[str] = []
    for text in relative:
        if parts := _parts(text):
            found.append(_resolved(folder, parts))
            last.append(parts[-1])
    for text in absolute:
        if parts := _parts(text):
            if sys.platform == "win32" or text.startswith("/"):
                found.append(Path(text))
            last.append(parts[-1])
    found += [_resolved(folder, [name]) for name in last]
    unique = list(dict.fromkeys(found))
    return sorted(
        unique, key=lambda p: not os.path.exists(p)
    )  # stable: the order stays among those that exist


def _parts(text: str) -> list[str]:
    """The path's components, without a drive; none when no path can be meant."""
    if not text or len(text) > _MAX_PATH or "\0" in text:
        return []
    parts = [p for p in re.split(r"[\\/]", text) if p not in ("", ".")]
    if parts and re.fullmatch(r"[A-Za-z]:", parts[0]):
        parts = parts[1:]
    return parts if parts and parts[-1] != ".." else []


def _resolved(folder: Path, parts: list[str]) -> Path:
    """`parts` below `folder`, each in the case that exists."""
    here = folder
    for part in parts:
        step = here / part
        if part != ".." and not os.path.exists(step):
            try:
                names = sorted(os.listdir(here))
            except OSError:
                names = []
            step = here / next((n for n in names if n.casefold() == part.casefold()), part)
        here = step
    return here
