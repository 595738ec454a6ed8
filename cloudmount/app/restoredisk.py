"""Restoring one disk into a container file.

Decided here and only here: how a stored disk becomes a raw, VHDX, VHD or qcow2 file: the
same synthesised bytes as on the drive, holes left out. What is not the disk's own comes first; its frames
are verified by their content ids and written by the threads that brought them, so that two copies of
a server's disk never wait for one thread. Belongs to one thread, but for `_FrameWriter`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cloudmount.app.restorejournal import RestoreJournal
from cloudmount.blobs.direct import LargeFile, aligned_memory
from cloudmount.disks.synthesis import VhdxPositions
from cloudmount.disks.vhd_synthesis import VhdPositions, synthesise_vhd
from cloudmount.errors import CloudMountError, DamagedError, NoRoomError, TargetExistsError
from cloudmount.extents import BlockSource, Zeros
from cloudmount.reader.bulk import GROUP, Hooks, read_frames
from cloudmount.reader.positions import Positions, Unmoved
from cloudmount.repo.frames import Frame
from cloudmount.repo.repository import Repository
from cloudmount.repo.streams import StreamMap
from cloudmount.system import pwrite
from cloudmount.tree.snapshotdir import StoredDisk

if TYPE_CHECKING:
    from cloudmount.app.restore import RestoreProgress

FORMATS = ("vhdx", "vhd", "raw", "qcow2")
HEAD_CHUNK = 4 << 20
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


class _FrameWriter(Hooks):
    """Writes frames where they lie in a container, on the threads that brought them."""

    keeps = False

    def __init__(self, file: LargeFile, positions: Positions, frame_bytes: int) -> None:
        self._file, self._positions, self._frame_bytes = file, positions, frame_bytes
        self._local = threading.local()
        self._writing = 0
        self._closed = False
        self._change = threading.Condition()

    def verified(self, frames: Sequence[tuple[Frame, bytes]]) -> None:
        """Write them. `OSError` when that fails, or the restore is over."""
        with self._change:
            if self._closed:
                raise OSError("the restore is over")
            self._writing += 1
        try:
            self._write(frames)
        finally:
            with self._change:
                self._writing -= 1
                self._change.notify_all()

    def _write(self, frames: Sequence[tuple[Frame, bytes]]) -> None:
        if not hasattr(self._local, "room"):
            self._local.room = aligned_memory(GROUP + self._frame_bytes)
        room: memoryview = self._local.room
        at = filled = 0
        for frame, plain in frames:
            position = self.position(frame)
            if filled and (position != at + filled or filled + len(plain) > len(room)):
                self._file.write_at(room[:filled], at)
                filled = 0
            if not filled:
                at = position
            room[filled : filled + len(plain)] = plain
            filled += len(plain)
        if filled:
            self._file.write_at(room[:filled], at)

    def position(self, frame: Frame) -> int:
        """Where a frame lies in the file."""
        offset = frame.number * self._frame_bytes
        found = self._positions.position(offset)
        if found is None:
            raise DamagedError(
                f"the map has a frame at {offset} of the disk, and its page tells of none there"
            )
        return found

    def close(self) -> None:
        """Returns when nothing is being written any more, nor will be."""
        with self._change:
            self._closed = True
            while self._writing:
                self._change.wait()


class _Container:
    """The file that a disk becomes: its bytes beside the disk's own, and where those lie."""

    def __init__(self, disk: StoredDisk, format: str) -> None:
        self.positions: Positions = Unmoved()
        self.blank: BlockSource = Zeros(int(disk.summary["size"]))
        if format == "vhdx":
            self.positions, self.blank = VhdxPositions(disk.presence, disk.identity), disk.blank
        elif format == "vhd":
            self.positions = VhdPositions(disk.presence, disk.identity)
            self.blank = synthesise_vhd(self.blank, disk.presence, disk.identity)

    def after(self, reached: int) -> int:
        """How much of the file is whole when the disk is up to `reached`, where a frame ends."""
        last = self.positions.position(reached - 1) if reached else None
        return 0 if last is None else last + 1


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
    container = _Container(disk, format)
    journal.reaches(below, start)
    _fill(repository, disk.map, container, raw, start, journal, below, progress)
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


def _fill(
    repository: Repository,
    stream: StreamMap,
    container: _Container,
    out: Path,
    start: int,
    journal: RestoreJournal,
    below: str,
    progress: RestoreProgress,
) -> None:
    """Write `out`, whose disk is there already up to the byte `start`."""
    file = LargeFile(out, mode=0o600)
    writer = _FrameWriter(file, container.positions, stream.frame_bytes)
    frames = read_frames(repository, _From(stream, start // stream.frame_bytes), hooks=writer)
    try:
        # What is beyond is a hole again; the byte before `start` is a frame's last.
        os.ftruncate(file.fd, container.after(start))
        os.ftruncate(file.fd, container.blank.size)
        for extent in container.blank.extents(0, container.blank.size):
            if extent.data:
                for at in range(extent.offset, extent.end, HEAD_CHUNK):
                    file.write_at(container.blank.read_at(at, min(HEAD_CHUNK, extent.end - at)), at)
        base, synced, since = progress.done_bytes, start, time.monotonic()
        for frame, _ in frames:
            reached = frame.number * stream.frame_bytes + frame.length
            progress.done_bytes = base + reached
            if time.monotonic() - since >= SYNC_SECONDS or reached - synced >= SYNC_BYTES:
                file.sync()
                synced, since = reached, time.monotonic()
                journal.reaches(below, synced)
        file.sync()
        progress.done_bytes = base + stream.size
    finally:
        frames.close()
        writer.close()
        file.close()


def write_all(fd: int, data: bytes, at: int) -> None:
    """All of `data` at position `at` of a file."""
    view = memoryview(data)
    while view:
        n = pwrite(fd, view, at)
        view, at = view[n:], at + n
