"""Which files of a snapshot hold given frames: damage gets its names.

Decided here and only here: how a frame is traced back to snapshot, path and range. It is
a second walk over the maps, made only when damage was found, so that checking
keeps no way back from every frame. Belongs to one thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from cloudmount.errors import DamagedError
from cloudmount.repo.findings import Spot
from cloudmount.repo.listings import Listing
from cloudmount.repo.locations import Location
from cloudmount.repo.snapshots import Snapshot, StreamRoot
from cloudmount.repo.streams import MapCache, StreamMap


def disk_streams(snapshot: Snapshot) -> Iterator[tuple[str, StreamRoot, int, str]]:
    """The disks of a snapshot: path of the `.img` on the drive, root, size in bytes, content digest."""
    for summary, root in zip(snapshot.summary["disks"], snapshot.roots, strict=True):
        folder = f"{summary['path']}/" if summary["path"] else ""
        yield f"{folder}{summary['name']}.img", root, summary["size"], summary["content"]


class Holders:
    """Traces `bad` frames, given with why they are bad, back to files."""

    def __init__(self, maps: MapCache, bad: Mapping[Location, str]) -> None:
        self._maps, self._bad = maps, bad
        self._packs = {at.pack for at in bad}

    def in_snapshot(self, snapshot: Snapshot) -> Iterator[Spot]:
        """The ranges of a snapshot's files that lie in bad frames. Maps that don't open are passed over."""
        for path, root, size, content in disk_streams(snapshot):
            with contextlib.suppress(DamagedError):
                yield from self._in_stream(path, StreamMap(self._maps, snapshot, size, root, content))
        try:
            listing = Listing(self._maps, snapshot)
        except DamagedError:
            return
        for number in range(len(listing.parts)):
            with contextlib.suppress(DamagedError):
                yield from self._in_part(listing, number)

    def _in_part(self, listing: Listing, number: int) -> Iterator[Spot]:
        files = [e for e in listing.entries(number) if e.type == "file" and e.hardlink is None]
        for entry in files:
            if entry.first is None:
                with contextlib.suppress(DamagedError):
                    stream = listing.content(number, entry)
                    assert isinstance(stream, StreamMap)
                    yield from self._in_stream(entry.path, stream)
        part = listing.parts[number]
        segment = self._maps.segment(part.locations) if part.locations is not None else None
        if segment is None or self._packs.isdisjoint(segment.packs):
            return
        frame = self._maps.repository.geometry.frame
        for entry in files:
            count = -(-entry.size // frame)
            if entry.first is None or entry.first + count > segment.frames:
                continue
            for i in range(count):
                at = segment.locate(entry.first + i)
                if at is not None and at in self._bad:
                    begin = i * frame
                    yield Spot(entry.path, begin, min(frame, entry.size - begin), self._bad[at])

    def _in_stream(self, path: str, stream: StreamMap) -> Iterator[Spot]:
        for number in range(stream.segments):
            try:
                segment = stream.segment(number)
            except DamagedError:
                continue
            if segment is None or self._packs.isdisjoint(segment.packs):
                continue
            first = number * stream.segment_frames(0)
            for i in range(segment.frames):
                at = segment.locate(i)
                if at is not None and at in self._bad:
                    begin = (first + i) * stream.frame_bytes
                    yield Spot(path, begin, stream.frame_length(first + i), self._bad[at])
