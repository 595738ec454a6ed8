"""What every stored stream offers its readers, whether a disk, a large file or a small one.

Decided here and only here: the `FrameMap` interface, and how content digests are
built from ids (FORMAT.md section 3). Safe on any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from cloudmount.crypto.keyring import ZERO_ID, Keyring
from cloudmount.repo.locations import Location


class Frame(NamedTuple):
    """A present frame of a stream: its number, content id, location, and plain length."""

    number: int
    content: bytes
    at: Location
    length: int


class FrameMap(Protocol):
    """A stream's map. `size` and `frame_bytes` in bytes."""

    size: int
    frame_bytes: int

    def locate(self, frame: int) -> Location | None:
        """Where a frame lies; None when it is absent (reads as zeros)."""

    def frame_length(self, frame: int) -> int:
        """Plain bytes of a frame."""

    def present(self) -> Iterator[Frame]:
        """Every present frame in order, its id proved to be the snapshot's: `DamagedError` when the
        ids do not add up to the content digest."""


def segment_digest(keys: Keyring, ids: Sequence[bytes]) -> bytes:
    """The digest of a segment from the ids of all its frames, `ZERO_ID` for absent ones."""
    return ZERO_ID if all(i == ZERO_ID for i in ids) else keys.digest("segment", [b"".join(ids)])


def content_digest(keys: Keyring, size: int, frame_bytes: int, segments: Iterable[bytes]) -> bytes:
    """The content digest of a stream from its segments' digests."""
    head = size.to_bytes(8, "little") + frame_bytes.to_bytes(4, "little")
    return keys.digest("content", [head, *segments])
