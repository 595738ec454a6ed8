"""What a boot out of the repository will read, and how long it takes, told beforehand.

Decided here and only here: that a trace of an earlier boot goes before any guess, and the guesses: measured
where something was measured (`benchmarks/README.md`), else said to be guesses by `traced` being false.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloudmount.app.linkspeed import Link
from cloudmount.app.looking import Look
from cloudmount.boot.accelerator import Accelerator
from cloudmount.reader.prefetch import AT_ONCE, PIECE
from cloudmount.reader.runs import coalesce
from cloudmount.repo.locations import Location
from cloudmount.repo.traces import Trace
from cloudmount.tree.snapshotdir import StoredDisk

LINUX_BYTES, WINDOWS_BYTES = 55 * 10**6, 500 * 10**6
"""Sealed bytes of a boot. The benchmarks' Linux server reads 55 MB; Windows' is a guess."""
REQUEST_BYTES = 170_000
"""Of a request when nothing is known beforehand: 320 for those 55 MB."""
GUEST_SECONDS: dict[tuple[Accelerator, bool], float] = {
    ("kvm", False): 10.0, ("kvm", True): 40.0, ("tcg", False): 25.0, ("tcg", True): 300.0,
}  # fmt: skip
"""What a guest takes from a local disk, by whether it is Windows. Emulated, the benchmarks' server takes
17 s, and real ones have more services; the others are guesses."""
MOST_SEGMENTS = 32
"""Segments of a disk whose maps are read (a request each) to know what a trace's frames take; of more the
rest is taken to be alike."""


@dataclass(frozen=True, slots=True)
class BootNeeds:
    """Sealed bytes that come down until a machine is ready, in about so many requests. `traced`: by an
    earlier boot's trace, which is fetched ahead; else guessed, and its guest waits for each."""

    bytes: int
    requests: int
    traced: bool

    def seconds(self, link: Link | None, accelerator: Accelerator, windows: bool) -> float:
        """From power-on to ready, about."""
        guest = GUEST_SECONDS[accelerator, windows]
        if link is None:
            return guest
        if self.traced:  # while the guest works
            return max(guest, link.seconds(self.bytes, self.requests / AT_ONCE))
        return guest + link.seconds(self.bytes, self.requests)


def boot_needs(
    disks: Sequence[StoredDisk], looks: Sequence[Look], trace_of: Callable[[StoredDisk], Trace | None]
) -> BootNeeds:
    """Of a machine with these disks; `trace_of` finds a disk's newest trace."""
    traced = [(disk, trace) for disk in disks if (trace := trace_of(disk)) is not None]
    if traced:
        found = [_of_trace(disk, trace) for disk, trace in traced]
        return BootNeeds(sum(n for n, _ in found), sum(r for _, r in found), True)
    stored = sum(disk.root.sealed for disk in disks)
    usual = WINDOWS_BYTES if any(look.windows for look in looks) else LINUX_BYTES
    size = min(usual, stored)
    return BootNeeds(size, -(-size // REQUEST_BYTES), False)


def _of_trace(disk: StoredDisk, trace: Trace) -> tuple[int, int]:
    """Sealed bytes of the disk's frames that a trace names, and the requests that bring them."""
    frames = dict.fromkeys(
        number
        for first, count, _ in trace.runs
        if trace.frame_bytes == disk.map.frame_bytes
        for number in range(first, min(first + count, disk.map.frames))
    )
    segments: set[int] = set()
    looked = 0
    there: list[Location] = []
    for frame in frames:
        segment = disk.map.segment_of(frame)[0]
        if segment not in segments and len(segments) == MOST_SEGMENTS:
            continue
        segments.add(segment)
        looked += 1
        at = disk.map.locate(frame)
        if at is not None:
            there.append(at)
    runs = coalesce(there, lambda at: at, longest=PIECE)
    share = len(frames) / looked if looked else 0.0
    return round(sum(run.length for run in runs) * share), round(len(runs) * share)
