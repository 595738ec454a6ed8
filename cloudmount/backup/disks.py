"""Backing disks up: chains flattened, identity kept, unchanged images not read again.

Decided here and only here: which disk of the last snapshot a disk continues, when its
image counts as unchanged, and when a disk is inconsistent. Belongs to the backup's thread.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cloudmount.backup.inuse import locked, open_for_writing
from cloudmount.backup.shrinking import ShrinkingSource
from cloudmount.backup.sources import Found
from cloudmount.disks.detect import OpenDisk, open_disk
from cloudmount.disks.raw import RawDisk
from cloudmount.errors import DamagedError, UnreadableInputError
from cloudmount.repo.snapshots import StreamRoot
from cloudmount.repo.streams import StreamMap
from cloudmount.repo.streamwriter import BuiltStream, StreamBuilder
from cloudmount.repo.takeover import whole_stream

if TYPE_CHECKING:
    from cloudmount.backup.run import Job


class _DiskSink(StreamBuilder):
    """A disk's map being built."""

    error: UnreadableInputError | None = None

    def failed(self, error: UnreadableInputError) -> None:
        self.error = error


def _source(path: os.PathLike[str]) -> dict[str, Any]:
    s = os.stat(path)
    return {
        "path": os.fspath(path),
        "size": s.st_size,
        "mtime_ns": s.st_mtime_ns,
        "ctime_ns": s.st_ctime_ns,
        "inode": s.st_ino,
        "device": s.st_dev,
        "block": stat.S_ISBLK(s.st_mode),
    }


class DiskBackup:
    """Takes the disks of one backup."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._done: list[tuple[dict[str, Any], BuiltStream]] = []
        self.consistent = True

    @property
    def summaries(self) -> list[dict[str, Any]]:
        """The disks as in the summary, sorted by folder and name."""
        return [summary for summary, _ in self._sorted()]

    def _sorted(self) -> list[tuple[dict[str, Any], BuiltStream]]:
        return sorted(self._done, key=lambda d: (d[0]["path"], d[0]["name"]))

    def roots(self, sections: list[bytes]) -> list[StreamRoot]:
        """The disks' roots in the order of `summaries`; their pages go to `sections`, digests last."""
        disks = [built for _, built in self._sorted()]
        small = [b for b in disks if len(b.pages) == 1 and b.pages[0].blocks]
        pages = {id(b): len(sections) + i for i, b in enumerate(small, 1)}
        sections += [b.pages[0].page for b in small]
        digests = {id(b): len(sections) + i for i, b in enumerate(small, 1)}
        sections += [b.pages[0].digests for b in small]
        roots = []
        for b in disks:
            if id(b) in pages:
                roots.append(b.root_in_sections(pages[id(b)], digests[id(b)]))
            else:
                roots.append(b.root_in_items(self._job.maps))
        return roots

    def add(self, found: Found) -> None:
        """The next disk; its content is stored by the pipeline."""
        try:
            disk = open_disk(found.path, named=found.named)
        except UnreadableInputError as error:
            self._unreadable(found, error)
            return
        try:
            before = [_source(path) for path in disk.files]
        except OSError as error:
            disk.close()
            self._unreadable(found, UnreadableInputError(f"{found.path}: can't be read: {error.strerror}"))
            return
        job = self._job
        job.progress.add(source_bytes=disk.source.size)
        in_use = any(locked(s["path"]) for s in before)
        old = self._old(found)
        summary = self._summary(found, disk, before, old[0] if old is not None else None)
        if old is not None and not in_use and self._take_over(old, before, summary):
            disk.close()
            return
        stream = old[1] if old is not None else None
        job.pipeline.dictionary = job.training.before(disk.source)
        keys, geometry = job.repository.keys, job.repository.geometry
        sink = _DiskSink(keys, geometry, job.maps, job.trust, disk.source.size, stream)
        try:
            raw = disk.source
            job.pipeline.stream(
                ShrinkingSource(raw) if isinstance(raw, RawDisk) else raw,
                sink,
                again=lambda: open_disk(found.path, named=found.named).source,
            )
        except UnreadableInputError as error:
            sink.failed(error)
        job.pipeline.then(lambda: self._finish(found, disk, sink, summary, in_use))

    def _unreadable(self, found: Found, error: UnreadableInputError) -> None:
        if found.named:
            raise error
        why = str(error).removeprefix(f"{found.path}: ")
        self._job.skip(found.path, f"skipped: {why} (--as-file keeps it as an ordinary file)")

    def _old(self, found: Found) -> tuple[Mapping[str, Any], StreamMap] | None:
        """The disk of the last snapshot that this one continues."""
        previous = self._job.previous
        if previous is None:
            return None
        for summary, root in zip(previous.summary["disks"], previous.roots, strict=True):
            if (summary["path"], summary["original"]) == (found.folder, found.original):
                cache = self._job.cache
                try:
                    stream = StreamMap(cache, previous, summary["size"], root, summary["content"])
                except DamagedError as error:
                    self._job.repository.warn(f"{error}: the disk is read again")
                    return None
                return summary, stream
        return None

    @staticmethod
    def _summary(
        found: Found, disk: OpenDisk, sources: Sequence[Mapping[str, Any]], old: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        identity = disk.identity
        disk_id = identity.virtual_disk_id or (uuid.UUID(old["disk_id"]) if old is not None else uuid.uuid4())
        return {
            "name": found.name,
            "path": found.folder,
            "original": found.original,
            "size": disk.source.size,
            "logical_sector": identity.logical_sector,
            "physical_sector": identity.physical_sector,
            "disk_id": str(disk_id),
            "source_format": identity.source_format,
            "generation": identity.generation,
            "mtime_ns": max(s["mtime_ns"] for s in sources),
            "sources": list(sources),
            "consistent": True,
        }

    def _take_over(
        self,
        old: tuple[Mapping[str, Any], StreamMap],
        sources: Sequence[Mapping[str, Any]],
        summary: dict[str, Any],
    ) -> bool:
        was, stream = old
        job = self._job
        if (
            job.options.force_read
            or was["sources"] != sources
            or not was["consistent"]
            or was["size"] != summary["size"]
            or any(s["block"] or open_for_writing(s["path"]) for s in sources)
            or job.previous is None
        ):
            return False
        built = whole_stream(stream, job.previous, was["content"], job.trust)
        if built is None:
            return False
        job.progress.add(done_bytes=summary["size"], frames=built.frames)
        summary["content"] = built.content
        self._done.append((summary, built))
        return True

    def _finish(
        self, found: Found, disk: OpenDisk, sink: _DiskSink, summary: dict[str, Any], in_use: bool
    ) -> None:
        disk.close()
        if sink.error is not None:
            self._unreadable(found, sink.error)
            return
        why = "is in use by another program (it holds a lock)" if in_use else None
        try:
            changed = [_source(path) for path in disk.files] != summary["sources"]
        except OSError:
            changed = True
        if changed and not summary["sources"][0]["block"]:
            why = "changed while it was read"
        if why is not None:
            summary["consistent"] = self.consistent = False
            self._job.skip(found.path, f"{why}: stored, but what it holds may not fit together")
        built = sink.finish()
        summary["content"] = built.content
        self._done.append((summary, built))
