"""What is fetched ahead of a boot that is known: from where, in which requests, in which order.

Decided here and only here: frames come in the order in which they will be read. Those that the boot pack
has unchanged come from it, a few megabytes at a time, the first pieces small. The others are grouped by pack,
some megabytes of the order at once; of the gaps between frames the smallest are read through, as long as what
is read for nothing stays below `WASTE` of what is needed: with several requests under way a round trip costs
little, and bytes are what a thin line lacks. Also which of a machine's boot packs is used: the newest of that
disk.

Pure, but for what looks up the boot pack and the places.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from cloudmount.errors import CloudMountError
from cloudmount.reader.aside import Aside, Via
from cloudmount.reader.fetching import GROUP, PLANNED, FrameReader
from cloudmount.reader.prefetch import Request
from cloudmount.reader.runs import coalesce
from cloudmount.repo.bootpacks import HEAD_BYTES, BootPack, read_boot_pack
from cloudmount.repo.locations import Location
from cloudmount.repo.names import boot_packs_of
from cloudmount.repo.repository import Repository
from cloudmount.repo.streams import StreamMap

FIRST = 512 << 10
"""Sealed bytes of the first piece of a boot pack; each piece is twice the one before, up to `PLANNED`."""
WINDOW = 8 << 20
"""Sealed bytes of the order that are grouped by pack."""
SHORT = 1 << 20
"""Sealed bytes of a request for frames of packs, at most: others that are needed sooner wait behind it."""
SMALLEST, SOON = 256 << 10, 2.0
"""Where the line is slow a request asks for no more than comes in so many seconds, by what the first took:
the deadlines of who waits for a frame of it are not long."""
GAP = 512 << 10
"""The largest gap that may be read through: what 100 Mbit/s carry in a round trip of 40 ms."""
WASTE = 0.05
LOOKED_AT = 8
"""How many of a machine's boot packs are looked at for a disk's."""
AT_ONCE = 8


class Wanted(NamedTuple):
    """A frame to be fetched, and where it lies in its pack."""

    frame: int
    at: Location


def bridge(places: Iterable[Location], waste: float = WASTE) -> int:
    """The largest gap between neighbours that is read through, in bytes: as large as may be for all gaps up
    to it to be together at most `waste` of the bytes wanted."""
    pack, end = b"", 0
    gaps = []
    needed = 0
    for at in sorted(places, key=lambda at: at[:2]):
        if pack != at.pack:
            pack, end = at.pack, at.offset
        if 0 < at.offset - end <= GAP:
            gaps.append(at.offset - end)
        needed += max(0, at.offset + at.length - max(end, at.offset))
        end = max(end, at.offset + at.length)
    gaps.sort()
    left, most = needed * waste, 0
    for i, gap in enumerate(gaps):
        left -= gap
        if left < 0:
            break
        if i + 1 == len(gaps) or gaps[i + 1] != gap:  # all of one size or none
            most = gap
    return most


def plan(
    wanted: Sequence[Wanted], aside: Aside | None, frame_bytes: int, size: int, most: int = PLANNED
) -> list[Request]:
    """Requests for the frames `wanted`, in the order in which they are, of a disk of `size` bytes; each of at
    most `most` sealed bytes, or one frame."""
    order = {w.frame: i for i, w in enumerate(wanted)}
    copied: list[tuple[Wanted, Location]] = []
    others: list[tuple[Wanted, Location]] = []
    for w in wanted:
        at = aside.where(w.at) if aside is not None else None
        if at is not None:
            copied.append((w, at))
        else:
            others.append((w, w.at))
    made: list[tuple[int, Request]] = []

    def group(members: list[tuple[Wanted, Location]], via: Via, longest: int) -> None:
        for run in coalesce(members, lambda m: m[1], longest=longest, bridge=via.bridge):
            frames = [w.frame for w, _ in run.members]
            ranges = [(n * frame_bytes, min(frame_bytes, size - n * frame_bytes)) for n in frames]
            made.append((min(order[n] for n in frames), Request(ranges, run.length, via)))

    if copied:
        via = Via(aside, bridge(at for _, at in copied))
        for piece in _pieces(copied, (min(FIRST << i, most) for i in itertools.count())):
            group(piece, via, most)
    for piece in _pieces(others, itertools.repeat(WINDOW)):
        group(piece, Via(None, bridge(at for _, at in piece)), min(SHORT, most))
    made.sort(key=lambda m: m[0])
    return [request for _, request in made]


def _pieces(
    members: Iterable[tuple[Wanted, Location]], sizes: Iterator[int]
) -> Iterator[list[tuple[Wanted, Location]]]:
    """The members in their order, up to so many sealed bytes at a time."""
    piece: list[tuple[Wanted, Location]] = []
    held, most = 0, next(sizes)
    for member in members:
        if piece and held + member[1].counted > most:
            yield piece
            piece, held, most = [], 0, next(sizes)
        piece.append(member)
        held += member[1].counted
    if piece:
        yield piece


class Found(NamedTuple):
    """A boot pack, and the sealed bytes that a request may ask of it so that its answer comes soon."""

    pack: BootPack
    most: int


def boot_pack(repository: Repository, tag: str, disk: str, deadline: float) -> Found | None:
    """The newest boot pack of the machine's disk that opens; None without any. Two requests where the machine
    has one disk. One that does not open is told."""
    try:
        listed = list(repository.store.list(boot_packs_of(tag), limit=LOOKED_AT, deadline=deadline))
    except CloudMountError:
        return None
    for info in listed:
        began = time.monotonic()
        try:
            found = read_boot_pack(repository, info, deadline=deadline)
        except CloudMountError as error:
            repository.warn(f"{info.name}: {error}; the boot goes on without it, and may take longer")
            continue
        if found.disk == disk and found.frame_bytes == repository.geometry.frame:
            speed = min(info.size, HEAD_BYTES) / max(time.monotonic() - began, 0.001)
            return Found(found, int(max(SMALLEST, min(PLANNED, speed * SOON))))
    return None


def places(
    reader: FrameReader, stream: StreamMap, frames: Iterable[int], limit: int, ends: float
) -> list[Wanted]:
    """Where those of the frames lie that are stored, in their order, `limit` plain bytes at most. The parts
    of the map that are needed are loaded at once; what can't be is left out."""
    chosen = [n for n in dict.fromkeys(frames) if n < stream.frames]
    chosen = chosen[: limit // stream.frame_bytes]
    groups = list(dict.fromkeys(n // GROUP for n in chosen))
    segments = {stream.segment_of(g * GROUP)[0]: g for g in reversed(groups)}
    _all(lambda g: reader.load_places(stream, g), list(segments.values()), ends)
    found: list[Wanted] = []
    rows: dict[int, list[Location | None]] = {}
    for g in groups:
        try:
            rows[g] = reader.load_places(stream, g)
        except CloudMountError:
            rows[g] = []
    for n in chosen:
        of_group = rows[n // GROUP]
        at = of_group[n % GROUP] if of_group else None
        if at is not None:
            found.append(Wanted(n, at))
    return found


def _all(job: Callable[[int], object], numbers: Sequence[int], ends: float) -> None:
    """Call `job` with each number on threads, and wait until that is done or `ends`. Errors are met again."""
    left = iter(list(numbers))
    lock = threading.Lock()

    def run() -> None:
        while time.monotonic() < ends:
            with lock:
                number = next(left, None)
            if number is None:
                return
            try:
                job(number)
            except CloudMountError:
                continue

    threads = [
        threading.Thread(target=run, name="cloudmount-prefetch", daemon=True)
        for _ in range(min(AT_ONCE, len(numbers)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
