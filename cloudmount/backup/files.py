"""Backing ordinary files up: entries, content, and what is not read again.

Decided here and only here: when a file's last backup still holds (`cli.md`: size,
mtime, ctime, inode and device unchanged), and what becomes of one that changes or
can't be read. Belongs to the backup's thread.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cloudmount.backup.fileentries import HardLinks, make_entry
from cloudmount.backup.shrinking import ShrinkingSource
from cloudmount.backup.sources import Found
from cloudmount.disks.raw import RawDisk
from cloudmount.errors import DamagedError, UnreadableInputError
from cloudmount.repo.entries import Entry
from cloudmount.repo.listings import Listing, SmallFile
from cloudmount.repo.locations import Location
from cloudmount.repo.partwriter import SMALL_FRAMES, FrameList, PartWriter, small_content
from cloudmount.repo.snapshots import StreamRoot
from cloudmount.repo.streams import StreamMap
from cloudmount.repo.streamwriter import StreamBuilder
from cloudmount.repo.takeover import small_file, whole_stream

if TYPE_CHECKING:
    from cloudmount.backup.run import Job


class _SmallSink:
    """Collects the frames of a small file."""

    def __init__(self, count: int) -> None:
        self.frames: list[tuple[bytes, Location] | None] = [None] * count
        self.error: UnreadableInputError | None = None

    def add(self, first: int, contents: list[bytes], places: list[Location | None]) -> None:
        for frame, (content, at) in enumerate(zip(contents, places, strict=True), first):
            if at is not None:
                self.frames[frame] = (content, at)

    def known(self, _first: int, contents: list[bytes]) -> list[Location | None]:
        return [None] * len(contents)

    def usable(self, frame: int, at: Location) -> bool:
        return True

    def failed(self, error: UnreadableInputError) -> None:
        self.error = error


class _LargeSink(StreamBuilder):
    """A large file's map being built."""

    error: UnreadableInputError | None = None

    def failed(self, error: UnreadableInputError) -> None:
        self.error = error


class FileBackup:
    """Takes files and folders in order and writes them to `parts`."""

    def __init__(self, job: Job, previous: Listing | None, parts: PartWriter) -> None:
        self._job, self._previous, self._parts = job, previous, parts
        self._links = HardLinks()
        self.consistent = True
        self.count = 0
        """Regular files stored."""

    def add(self, found: Found) -> None:
        """The next file or folder; its content is stored by the pipeline."""
        try:
            entry, problem = make_entry(found)
        except OSError as error:
            self._unreadable(found, error.strerror or "can't be read")
            return
        if problem is not None:
            self._job.skip(found.path, problem)
        pipeline, progress = self._job.pipeline, self._job.progress
        if entry.type != "file":
            pipeline.then(lambda: self._parts.add(entry))
            return
        entry.hardlink = self._links.earlier(entry, found.status.st_nlink)
        if entry.hardlink is not None:
            pipeline.then(lambda: self._parts.add(entry))
            return
        progress.add(source_bytes=entry.size)
        if self._unchanged(entry):
            progress.add(done_bytes=entry.size)
            return
        try:
            source = RawDisk(found.path)
        except UnreadableInputError as error:
            self._links.forget(entry)
            self._unreadable(found, str(error).removeprefix(f"{found.path}: "))
            return
        if source.hides_content():
            source.close()
            self._links.forget(entry)
            self._unreadable(found, "it says that it is empty and is not, as files of /proc do")
            return
        progress.add(source_bytes=source.size - entry.size)
        entry.size = source.size
        geometry = self._job.repository.geometry
        frames = -(-source.size // geometry.frame)
        sink: _SmallSink | _LargeSink
        if frames > SMALL_FRAMES:
            keys = self._job.repository.keys
            stream = self._old_stream(entry)
            sink = _LargeSink(keys, geometry, self._job.maps, self._job.trust, source.size, stream)
        else:
            sink = _SmallSink(frames)
        try:
            # A small file's frames are not known by their place, so what spans two would be looked for anew.
            again = (lambda: RawDisk(found.path)) if isinstance(sink, _LargeSink) else None
            pipeline.stream(ShrinkingSource(source), sink, again)
        except UnreadableInputError as error:  # while its holes were looked for
            sink.failed(error)
        pipeline.then(lambda: self._finish(found, entry, source, sink))

    def _unreadable(self, found: Found, why: str) -> None:
        if found.named:
            raise UnreadableInputError(f"{found.path}: can't be read: {why}")
        self._job.skip(found.path, f"skipped: {why}")

    def _finish(self, found: Found, entry: Entry, source: RawDisk, sink: _SmallSink | _LargeSink) -> None:
        source.close()
        if sink.error is not None:
            self._links.forget(entry)
            self._unreadable(found, str(sink.error).removeprefix(f"{found.path}: "))
            return
        try:
            now = os.stat(found.path, follow_symlinks=found.named)
            changed = (now.st_size, now.st_mtime_ns) != (entry.size, entry.mtime_ns)
        except OSError:
            changed = True
        if changed:
            entry.consistent = self.consistent = False
            self._job.skip(found.path, "changed while it was read")
        self.count += 1
        if isinstance(sink, _LargeSink):
            built = sink.finish()
            entry.content = built.content
            self._parts.add(entry, root=built.root_in_items(self._job.maps))
            return
        keys, geometry = self._job.repository.keys, self._job.repository.geometry
        entry.content = small_content(keys, geometry, entry.size, sink.frames)
        self._parts.add(entry, sink.frames)

    def _give_up(self, error: DamagedError) -> None:
        """The last snapshot's maps are damaged: from here on files are read again, as without it."""
        self._job.repository.warn(f"{error}: files are read again")
        self._previous = None

    def _old(self, entry: Entry) -> tuple[int, Entry] | None:
        if self._previous is None:
            return None
        try:
            found = self._previous.lookup(entry.path)
        except DamagedError as error:
            self._give_up(error)
            return None
        return found if found is not None and found[1].type == "file" else None

    def _old_stream(self, entry: Entry) -> StreamMap | None:
        old = self._old(entry)
        if old is None or self._previous is None or old[1].first is not None or old[1].hardlink is not None:
            return None
        try:
            stream = self._previous.content(*old)
        except DamagedError as error:
            self._give_up(error)
            return None
        return stream if isinstance(stream, StreamMap) else None

    def _unchanged(self, entry: Entry) -> bool:
        """Take the file over from the last snapshot, if nothing of it changed."""
        old = self._old(entry)
        if self._job.options.force_read or old is None or self._previous is None:
            return False
        was = old[1]
        same = all(
            getattr(entry, k) == getattr(was, k) for k in ("size", "mtime_ns", "ctime_ns", "inode", "device")
        )
        if not same or not was.consistent or was.hardlink is not None or was.content is None:
            return False
        frames: FrameList = ()
        root: StreamRoot | None = None
        try:
            content = self._previous.content(*old)
            if isinstance(content, SmallFile):
                kept = small_file(content, self._job.trust)
                if kept is None:
                    return False
                frames = kept
            elif isinstance(content, StreamMap):
                built = whole_stream(content, self._previous.snapshot, was.content, self._job.trust)
                if built is None:
                    return False
                root = built.root_in_items(self._job.maps)
        except DamagedError as error:
            self._give_up(error)
            return False
        entry.content = was.content
        self.count += 1
        self._job.progress.add(frames=sum(f is not None for f in frames) if root is None else root.frames)
        self._job.pipeline.then(lambda: self._parts.add(entry, frames, root))
        return True
