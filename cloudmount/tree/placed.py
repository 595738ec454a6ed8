"""What maps know of a file inside a disk: by the frames that its places touch.

Decided here and only here: what such a file takes in the store at most, and when two of them are equal for
sure: when they lie alike in equal frames, are as long, and were written at the same time (a file system may
make bytes of a file visible without writing to the disk). Frames hold neighbours' bytes too: unequal ones
say nothing. Reads maps, no content. Safe on any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cloudmount.crypto.keyring import ZERO_ID, Keyring
from cloudmount.repo.frames import FrameMap
from cloudmount.repo.streams import StreamMap

Place = tuple[int, int, int]
"""(offset in the file, offset in the disk or partition, length), in bytes."""


class PlacedFiles:
    """What the map `stream` knows of the files in a partition that begins at the byte `start` of the disk."""

    def __init__(self, keys: Keyring, stream: StreamMap, start: int) -> None:
        self._keys, self._stream, self.start = keys, stream, start

    def stored_bytes(self, places: Sequence[Place]) -> int:
        """Sealed bytes of the frames that hold a file; `places` are in the partition."""
        return stored_bytes(self._stream, self.on_disk(places))

    def content(self, size: int, mtime_ns: int, places: Sequence[Place]) -> str | None:
        """As the function `content`; `places` are in the partition."""
        return content(self._keys, self._stream, size, mtime_ns, self.on_disk(places))

    def on_disk(self, places: Sequence[Place]) -> list[Place]:
        """Where places in the partition are on the disk."""
        return [(offset, self.start + at, length) for offset, at, length in places]


def stored_bytes(stream: FrameMap, places: Sequence[Place]) -> int:
    """Sealed bytes of the frames that hold a file."""
    frames = {n for _, at, length in places for n in _frames(stream, at, length)}
    return sum(at.counted for n in frames if (at := stream.locate(n)) is not None)


def content(
    keys: Keyring, stream: StreamMap, size: int, mtime_ns: int, places: Sequence[Place]
) -> str | None:
    """What a file's content is known by: equal for equal contents only. None unless `places` cover all of it
    (what is compressed, sparse or resident is not told apart by where it lies)."""
    end = 0
    for offset, _, length in places:
        if offset > end:
            return None
        end = max(end, offset + length)
    if end < size:
        return None
    parts = [b"%d %d\n" % (size, mtime_ns)]
    for offset, at, length in places:
        parts.append(b"%d %d %d\n" % (offset, at % stream.frame_bytes, length))
        parts += _ids(stream, _frames(stream, at, length))
    return f"placed:{keys.digest('placed', parts).hex()}"


def _frames(stream: FrameMap, at: int, length: int) -> range:
    """The frames that a range of the disk touches."""
    return (
        range(at // stream.frame_bytes, (at + length - 1) // stream.frame_bytes + 1) if length else range(0)
    )


def _ids(stream: StreamMap, frames: range) -> Iterator[bytes]:
    known = -1
    ids: list[bytes] = []
    for n in frames:
        number, place = stream.segment_of(n)
        segment = stream.segment(number)
        if segment is None or segment.row(place) < 0:
            yield ZERO_ID
            continue
        if number != known:
            known, ids = number, stream.ids(number)
        yield ids[segment.row(place)]
