"""Restoring one disk into a container file.

Decided here and only here: how a stored disk becomes a raw, VHDX, VHD or qcow2 file: the
same synthesised bytes as on the drive, written in order, holes left out, each frame
verified by its content id on the way. Belongs to one thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cloudmount.app.restorejournal import RestoreJournal
from cloudmount.blobs.direct import LargeFile, aligned_memory
from cloudmount.disks.synthesis import synthesise_vhdx
from cloudmount.disks.vhd_synthesis import synthesise_vhd
from cloudmount.errors import CloudMountError, NoRoomError, TargetExistsError
from cloudmount.extents import BlockSource, Extent, check_range, merged
from cloudmount.reader.bulk import read_frames
from cloudmount.repo.frames import Frame
from cloudmount.repo.repository import Repository
from cloudmount.repo.streams import StreamMap
from cloudmount.tree.snapshotdir import StoredDisk

if TYPE_CHECKING:
    from cloudmount.app.restore import RestoreProgress

FORMATS = ("vhdx", "vhd", "raw", "qcow2")
CHUNK_BYTES = 4 << 20
SYNC_BYTES, SYNC_SECONDS = 256 << 20, 5.0
"""How much is written between two syncs, or for how long: what a kill loses at most."""


class _From:
    """The frames of a stream from a given one on, for `read_frames`."""

    def __init__(self, stream: StreamMap, first: int) -> None:
        self._stream, self._first = stream, first
        self.size, self.frame_bytes = stream.size, stream.frame_bytes
        self.locate, self.frame_length = stream.locate, stream.frame_length

    def present(self) -> Iterator[Frame]:
        """As of the stream, but for what comes before."""
        return (f for f in self._stream.present() if f.number >= self._first)


class InOrder:
    """A stored disk as a `BlockSource` that is read once, from front to back, verified."""

    def __init__(self, repository: Repository, stream: StreamMap) -> None:
        self._repository, self._stream = repository, stream
        self.size = stream.size
        self._frames: Iterator[tuple[Frame, bytes]] | None = None
        self._next: tuple[Frame, bytes] | None = None

    def _at(self, number: int) -> bytes | None:
        """The frame's bytes, None when it is absent; numbers never go back."""
        if self._frames is None:
            self._frames = read_frames(self._repository, _From(self._stream, number))
            self._next = next(self._frames, None)
        while self._next is not None and self._next[0].number < number:
            self._next = next(self._frames, None)
        if self._next is not None and self._next[0].number == number:
            return self._next[1]
        return None

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes; ranges ascend."""
        check_range(self.size, offset, length)
        parts = []
        size = self._stream.frame_bytes
        while length:
            number, inside = divmod(offset, size)
            n = min(length, self._stream.frame_length(number) - inside)
            plain = self._at(number)
            if plain is None:
                parts.append(bytes(n))
            else:
                parts.append(plain if n == len(plain) else plain[inside : inside + n])
            offset, length = offset + n, length - n
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Present and absent frames."""
        check_range(self.size, offset, length)

        def frames() -> Iterator[Extent]:
            at, end, size = offset, offset + length, self._stream.frame_bytes
            per = self._stream.segment_frames(0)
            while at < end:
                segment, place = self._stream.segment_of(at // size)
                base = segment * per * size
                found = self._stream.segment(segment)
                if found is None:
                    stop = min(end, base + per * size)
                    yield Extent(at, stop - at, False)
                    at = stop
                    continue
                for first, count, present in found.runs(place):
                    stop = min(end, base + (first + count) * size)
                    if at < stop:
                        yield Extent(at, stop - at, present)
                        at = stop

        return merged(frames())

    def close(self) -> None:
        """End reading."""
        if self._frames is not None and hasattr(self._frames, "close"):
            self._frames.close()
        self._frames = self._next = None


def _container(disk: StoredDisk, format: str, content: BlockSource) -> BlockSource:
    if format == "vhdx":
        return synthesise_vhdx(content, disk.presence, disk.identity)
    if format == "vhd":
        return synthesise_vhd(content, disk.presence, disk.identity)
    return content


def restore_disk(
    repository: Repository,
    disk: StoredDisk,
    format: str,
    out: Path,
    journal: RestoreJournal,
    below: str,
    progress: RestoreProgress,
) -> None:
    """Write the disk to `out` in `format`, going on where the journal says. Synced when it returns."""
    if format == "qcow2" and shutil.which("qemu-img") is None:
        raise CloudMountError("qcow2 needs the program qemu-img (Debian: apt install qemu-utils)")
    raw = out.with_name(f".{out.name}.raw") if format == "qcow2" else out
    start = journal.reached.get(below, 0) if journal.found else 0
    if os.path.lexists(out) and not journal.begun(below):
        raise TargetExistsError(f"{out} exists; it is not overwritten")
    if not raw.exists():
        start = 0
    journal.reaches(below, start)
    source = _container(disk, format, InOrder(repository, disk.map))
    try:
        _copy(source, raw, start, journal, below, progress, int(disk.summary["size"]))
    finally:
        source.close()
    if format == "qcow2":
        command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", os.fspath(raw), os.fspath(out)]
        # A disk holds secrets: its copy is for its owner, as the other formats are.
        done = subprocess.run(command, capture_output=True, text=True, check=False, umask=0o077)
        if done.returncode and "No space left" in done.stderr:
            raise NoRoomError(f"{out}: no room left; make room and run the same command again: it goes on")
        if done.returncode:
            raise CloudMountError(f"qemu-img could not make {out}: {done.stderr.strip()}")
        raw.unlink()
        with open(out, "rb+") as made:
            os.fsync(made.fileno())
    mtime = int(disk.summary["mtime_ns"])
    os.utime(out, ns=(mtime, mtime))


def _copy(
    source: BlockSource,
    out: Path,
    start: int,
    journal: RestoreJournal,
    below: str,
    progress: RestoreProgress,
    content_bytes: int,
) -> None:
    file = LargeFile(out, mode=0o600)
    room = aligned_memory(CHUNK_BYTES)
    try:
        os.ftruncate(file.fd, start)
        os.ftruncate(file.fd, source.size)  # what was beyond `start` is a hole again
        base, synced, since = progress.done_bytes, start, time.monotonic()
        for extent in source.extents(start, source.size - start):
            if extent.data:
                for at in range(extent.offset, extent.end, CHUNK_BYTES):
                    data = source.read_at(at, min(CHUNK_BYTES, extent.end - at))
                    room[: len(data)] = data
                    file.write_at(room[: len(data)], at)
                    late = time.monotonic() - since >= SYNC_SECONDS
                    if late or at + len(data) - synced >= SYNC_BYTES:
                        synced, since = at + len(data), time.monotonic()
                        file.sync()
                        journal.reaches(below, synced)
                    progress.done_bytes = base + content_bytes * (at + len(data)) // source.size
        file.sync()
        progress.done_bytes = base + content_bytes
    finally:
        file.close()


def write_all(fd: int, data: bytes, at: int) -> None:
    """All of `data` at position `at` of a file."""
    view = memoryview(data)
    while view:
        n = os.pwrite(fd, view, at)
        view, at = view[n:], at + n
