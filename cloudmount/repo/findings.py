"""What a check finds: damage, by snapshot, path and range.

Decided here and only here: how ranges are merged and how many are kept. `Findings` is
safe on any thread.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

KEPT = 10_000
"""So many findings are kept; all are counted. A lost disk of 1 TiB gives one; scattered damage many."""


class Spot(NamedTuple):
    """A damaged range: `length` bytes at `offset` of what lies at `path`; a `length` of 0 means all of it
    in a way that has no size."""

    path: str
    offset: int
    length: int
    why: str


class Finding(NamedTuple):
    """Damage. `snapshot` is MACHINE/FOLDER, empty for objects that belong to none.

    `path` is as on the drive (a disk as its `.img`), or an object's name when `snapshot` is empty;
    empty for a whole snapshot. `offset` and `length` are bytes of that file, or of that object.
    """

    snapshot: str
    path: str
    offset: int
    length: int
    why: str


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(offset, end) pairs, sorted, with overlapping and adjoining ones made one."""
    result: list[tuple[int, int]] = []
    for offset, end in sorted(ranges):
        if result and offset <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((offset, end))
    return result


class Findings:
    """Collects damage; ranges of one file and reason that adjoin become one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
        self._kept = 0
        self.dropped = 0
        """Findings beyond those kept."""

    def add(self, snapshot: str, spot: Spot) -> None:
        """Damage to a snapshot's file, or with an empty `snapshot` to an object."""
        path, offset, length, why = spot
        end = offset + length
        with self._lock:
            ranges = self._found.setdefault((snapshot, path, why), [])
            if ranges and ranges[-1][0] <= offset <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(ranges[-1][1], end))
            elif self._kept < KEPT:
                ranges.append((offset, end))
                self._kept += 1
            else:
                self.dropped += 1

    def all(self) -> list[Finding]:
        """What was found, sorted by snapshot, path and offset."""
        with self._lock:
            return sorted(
                Finding(snapshot, path, offset, end - offset, why)
                for (snapshot, path, why), ranges in self._found.items()
                for offset, end in _merged(ranges)
            )
