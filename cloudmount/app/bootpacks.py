"""Leaving a boot pack after a drill.

Decided here and only here: what a boot pack is made of (the frames that a trace names, as the snapshot has
them), that they are read in large ranges and each proved by its content id, that none is left where the last
one still has nearly all of it, and that what fails is told and fails nothing else. Belongs to one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cloudmount.errors import BlobMissingError, CloudMountError, DamagedError
from cloudmount.reader.fetching import cache_key
from cloudmount.reader.runs import coalesce
from cloudmount.repo.bootpacks import MOST_BYTES, MOST_FRAMES, Source, seal_boot_pack
from cloudmount.repo.frames import Frame
from cloudmount.repo.names import pack_name
from cloudmount.repo.packs import open_frame
from cloudmount.repo.repository import Repository, SealedCache
from cloudmount.repo.snapshots import Snapshot
from cloudmount.repo.streams import MapCache, StreamMap
from cloudmount.repo.traces import Trace
from cloudmount.tree.bootplan import boot_pack

LONGEST = 8 << 20
STILL = 0.95
"""A boot pack that has this share of the frames as they are now serves on: nothing is ever deleted, and
drills of a server that hardly changes would else store its boot anew each time."""
LOOK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class LeftBootPack:
    """A boot pack that was stored: its object's name, how many frames it has, its length in bytes."""

    name: str
    frames: int
    bytes: int


def leave_boot_pack(
    repository: Repository,
    snapshot: Snapshot,
    trace: Trace,
    *,
    cache: SealedCache | None = None,
    tell: Callable[[str], None],
) -> LeftBootPack | None:
    """Store a boot pack of what `trace` says is read of a disk of `snapshot`; what is in `cache`, a disk
    cache of frames, is taken from there. None when the last one serves on; or when it could not be, which is
    told: only speed is lost."""
    try:
        return _leave(repository, snapshot, trace, cache)
    except CloudMountError as error:
        tell(f"no boot pack was left, the next boot may take longer: {error}")
        return None


def _leave(
    repository: Repository, snapshot: Snapshot, trace: Trace, cache: SealedCache | None
) -> LeftBootPack | None:
    for summary, root in zip(snapshot.summary["disks"], snapshot.roots, strict=True):
        if "/".join(part for part in (summary["path"], summary["name"]) if part) == trace.disk:
            stream = StreamMap(MapCache(repository), snapshot, summary["size"], root, summary["content"])
            break
    else:
        raise CloudMountError(f"the snapshot has no disk {trace.disk}, of which the boot was recorded")
    frames = _chosen(stream, trace)
    if _serves_on(repository, snapshot, trace.disk, frames):
        return None
    sealed = _sealed(repository, frames, cache)
    sources = [Source(f.number, f.at, f.content, sealed[f.number]) for f in frames if f.number in sealed]
    if not sources:
        raise CloudMountError("nothing that the boot read could be copied")
    name, data = seal_boot_pack(
        repository.keys,
        snapshot.tag,
        disk=trace.disk,
        snapshot=snapshot.id,
        time=int(time.time()),
        size=stream.size,
        frame_bytes=stream.frame_bytes,
        frames=sources,
        find=repository.dictionaries.get,
    )
    repository.store.create(name, data, tier="hot")
    return LeftBootPack(name, len(sources), len(data))


def _serves_on(repository: Repository, snapshot: Snapshot, disk: str, frames: list[Frame]) -> bool:
    found = boot_pack(repository, snapshot.tag, disk, time.monotonic() + LOOK_SECONDS)
    if found is None or not frames:
        return False
    there = {(copy.birth, copy.number, copy.length) for copy in found.pack.copies}  # what readers go by
    same = sum((f.at.birth, f.at.number, f.at.length) in there for f in frames)
    return same >= STILL * len(frames)


def _chosen(stream: StreamMap, trace: Trace) -> list[Frame]:
    """The stored frames that the trace names, in its order, their ids proved; as many as fit."""
    if trace.frame_bytes != stream.frame_bytes:
        raise CloudMountError(f"the boot was recorded in frames of {trace.frame_bytes} bytes")
    wanted = dict.fromkeys(_numbers(stream, trace))
    of_segment: dict[int, list[int]] = {}
    for n in wanted:
        of_segment.setdefault(stream.segment_of(n)[0], []).append(n)
    digests = stream.proved()
    found: dict[int, Frame] = {}
    for segment in of_segment.keys() & digests.keys():
        found |= {f.number: f for f in stream.present_in(segment, digests[segment]) if f.number in wanted}
    chosen: list[Frame] = []
    left = MOST_BYTES
    for n in wanted:
        frame = found.get(n)
        if frame is None:
            continue
        left -= frame.at.length
        if left < 0 or len(chosen) == MOST_FRAMES:
            break
        chosen.append(frame)
    return chosen


def _numbers(stream: StreamMap, trace: Trace) -> Iterator[int]:
    for first, count, _ in trace.runs:
        yield from range(first, min(first + count, stream.frames))


def _sealed(repository: Repository, frames: list[Frame], cache: SealedCache | None) -> dict[int, bytes]:
    """The sealed bytes of those of the frames that are sound, by number."""
    found: dict[int, bytes] = {}

    def take(frame: Frame, sealed: bytes) -> None:
        plain = open_frame(repository.keys, frame.at, sealed, frame.length, repository.dictionaries.get)
        if repository.keys.content_id(plain) == frame.content:
            found[frame.number] = sealed

    for frame in frames:
        kept = cache.get(cache_key(frame.at)) if cache is not None else None
        if kept is not None:
            try:
                take(frame, kept)
            except DamagedError:
                continue  # as if it were not there
    missing = [frame for frame in frames if frame.number not in found]
    for run in coalesce(missing, lambda f: f.at, longest=LONGEST):
        try:
            data = repository.store.read(pack_name(run.pack), run.offset, run.length)
        except (BlobMissingError, DamagedError):
            continue
        for frame in run.members:
            begin = frame.at.offset - run.offset
            try:
                take(frame, data[begin : begin + frame.at.length])
            except DamagedError:
                continue
    return found
