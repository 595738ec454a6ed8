"""Local copies for the tests: small, of content that is known."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cloudmount.reader.localcopy import LocalCopy
from cloudmount.reader.piecewriter import Put
from cloudmount.reader.sidecar import Described

PIECE = 4096


def described(size: int, **changes: object) -> Described:
    """A disk of `size` bytes in pieces of 4 KiB."""
    value = {
        "repository": "r", "machine": "srv", "snapshot": "ab", "folder": "2026", "disk": "disk",
        "format": "raw", "size": size, "piece": PIECE, **changes,
    }  # fmt: skip
    return Described(**value)  # type: ignore[arg-type]  # of the right types


def claim(path: Path, size: int, tell: Callable[[str], None] | None = None, **changes: object) -> LocalCopy:
    """A copy opened to be filled; what was doubtful is verified."""
    copy = LocalCopy.claim(path, described(size, **changes), tell or (lambda line: None))
    if copy.doubtful:
        assert copy.verify(lambda: False)
    return copy


def fill(copy: LocalCopy, content: bytes, first: int = 0, stop: int | None = None) -> None:
    """Put what is missing of the pieces from `first` up to `stop`."""
    for low, high in list(copy.trusted.runs(first, stop, present=False)):
        for n in range(low, high):
            copy.put([Put(n * PIECE, content[n * PIECE : (n + 1) * PIECE])])
    copy.commit()


def right(copy: LocalCopy, content: bytes) -> int:
    """Assert that everything it gives is right; how many pieces those are."""
    given = 0
    for n in range(copy.described.pieces):
        expected = content[n * PIECE : (n + 1) * PIECE]
        found = copy.read(n * PIECE, len(expected))
        if found is not None:
            assert found == expected, f"piece {n} is wrong"
            given += 1
    return given


def noise(size: int) -> bytes:
    """Bytes that are nowhere zero."""
    return bytes(b or 1 for b in os.urandom(size))
