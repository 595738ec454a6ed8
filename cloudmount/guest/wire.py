"""What the parent and a parser's process say to each other, over two pipes.

Decided here and only here: the frames (one byte of kind, four of length, the payload) and their limits.
The child is not trusted: whoever reads its frames says how long one may be. JSON, never pickle. Standard
library only; each end belongs to one thread at a time.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any

CALL, ASK, EXPECT, BYTES, PART, VALUE, FAILED = b"C", b"A", b"E", b"B", b"P", b"V", b"F"
"""A call (JSON: its name and arguments); a request for a range of the volume (`RANGE`); ranges that will be
asked for next (several `RANGE`s, answered by nothing); raw bytes; a part of a long result (JSON: a list), the
last of which is a `VALUE`; a call's result (JSON); a failure (JSON: `DAMAGED` or `UNREADABLE`, and why)."""

DAMAGED, UNREADABLE = "damaged", "unreadable"

MOST_ASKED = 1 << 20
"""Bytes of one range asked for."""
MOST_EXPECTED = 4096
"""Ranges told at once."""
MOST_READ = 1 << 20
"""Bytes of a file given by one call."""
MOST_VALUE = 32 << 20
"""Bytes of one result, or part of one. Parsed, the worst takes 20 times as much."""
PART_ENTRIES = 10_000
"""Of a folder told at once."""
MOST_ENTRIES = 1 << 20
"""Of a folder."""
MOST_SMALL = 64 << 10
"""Bytes of a result that is no list."""

RANGE = struct.Struct("<QI")
_HEAD = struct.Struct("<cI")
_PIECE = 1 << 20


class BrokenFrameError(Exception):
    """The other end is gone, or says what it must not."""


def send(fd: int, kind: bytes, payload: bytes) -> None:
    """One frame. `BrokenFrameError` when nobody reads it any more."""
    data = memoryview(_HEAD.pack(kind, len(payload)) + payload)
    try:
        while data:
            data = data[os.write(fd, data[:_PIECE]) :]
    except OSError as error:
        raise BrokenFrameError(str(error)) from None


def send_json(fd: int, kind: bytes, value: object) -> None:
    """One frame with JSON in it."""
    send(fd, kind, json.dumps(value, separators=(",", ":")).encode("ascii"))


def receive(fd: int, most: int) -> tuple[bytes, bytes]:
    """The next frame's kind and payload, of at most `most` bytes. `BrokenFrameError` at the end."""
    kind, length = _HEAD.unpack(_exactly(fd, _HEAD.size))
    if length > most:
        raise BrokenFrameError(f"a frame of {length} bytes where at most {most} belong")
    return kind, _exactly(fd, length)


def parsed(payload: bytes) -> Any:
    """JSON; `BrokenFrameError` when it is none."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        raise BrokenFrameError("no JSON where it belongs") from None


def _exactly(fd: int, length: int) -> bytes:
    parts = []
    while length:
        try:
            part = os.read(fd, min(length, _PIECE))
        except OSError as error:
            raise BrokenFrameError(str(error)) from None
        if not part:
            raise BrokenFrameError("the other end is gone")
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
