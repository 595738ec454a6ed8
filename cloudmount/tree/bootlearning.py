"""What boots read: recorded, kept, and used for the next.

Decided here and only here: where traces lie (with the machine in the repository; here too, for where the
credential may not write), which one a boot uses (the newest of that disk), when a new one is worth keeping,
and what is fetched ahead of a boot: what its boot pack and its trace say (`bootplan`), else a guess
(`bootguess`). Nothing that goes wrong with either is an error: boots only take longer.

Threading: any number of threads.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cloudmount.blobs.store import BlobInfo
from cloudmount.errors import CloudMountError
from cloudmount.extents import BlockSource
from cloudmount.reader.aside import Aside
from cloudmount.reader.fetching import FrameReader
from cloudmount.reader.prefetch import Plan, Prefetch, guessed
from cloudmount.reader.tracing import SECONDS, Recorder
from cloudmount.repo.names import traces_of
from cloudmount.repo.repository import Repository
from cloudmount.repo.traces import Trace, open_trace, read_trace, seal_trace
from cloudmount.tree.bootfiles import system_ranges
from cloudmount.tree.bootguess import LIMIT, boot_ranges
from cloudmount.tree.bootplan import boot_pack, places, plan

if TYPE_CHECKING:
    from cloudmount.tree.snapshotdir import StoredDisk

TRACE_LIMIT = 512 << 20
"""Plain bytes that are fetched by a trace, at most."""
LOOKED_AT = 8
"""How many of a machine's traces are looked at for a disk's; and kept here."""
NEW_SHARE, OLD_SHARE = 0.1, 0.4
"""A trace is kept when more than the one share of its frames is new, or the other of the last's is unused."""
KERNEL_BYTES = 16 << 20
"""Bytes stored of boot partitions from which the kernel is taken to be among them."""
STORE_SECONDS = 10.0
END_SECONDS = 1.5


class BootLearning:
    """The boots of a drive's machines; `folder` keeps traces here, when given."""

    def __init__(self, repository: Repository, reader: FrameReader, folder: Path | None = None) -> None:
        self._repository, self._reader, self._folder = repository, reader, folder
        self._recorders: dict[tuple[str, str], Recorder] = {}
        self._pending: dict[tuple[str, str], StoredDisk] = {}
        self._known: dict[tuple[str, str], set[int]] = {}
        self._lock = threading.Lock()

    def recorder(self, disk: tuple[str, str]) -> Recorder | None:
        """What records the disk named so, when it is being booted."""
        return self._recorders.get(disk)

    def boots(self, disk: StoredDisk) -> None:
        """A machine seems to boot from the disk: fetch what it will read, and record what it does; once."""
        with self._lock:
            if disk.ident in self._recorders:
                return
            self._recorders[disk.ident] = Recorder(disk.map.frame_bytes, lambda: self._ending([disk.ident]))
            self._pending[disk.ident] = disk
        Prefetch(self._reader, disk.content(), lambda: self._plan(disk)).start()

    def cut(self) -> None:
        """The machines read elsewhere from now on: what is recorded is the beginning of a boot only, no
        better than what is known of an earlier one."""
        with self._lock:
            for ident in [i for i in self._pending if i in self._known]:
                self._recorders[ident].ended = True
                del self._pending[ident]

    def close(self) -> None:
        """Keep what was recorded so far; within seconds."""
        with self._lock:
            pending = list(self._pending)
        if pending:
            self._ending(pending).join(END_SECONDS)

    def _ending(self, disks: list[tuple[str, str]]) -> threading.Thread:
        """A thread that ends these recordings: readers don't wait for the store."""
        thread = threading.Thread(target=self._end, args=(disks,), name="cloudmount-learning", daemon=True)
        thread.start()
        return thread

    # Using

    def _plan(self, disk: StoredDisk) -> Plan:
        repository, tag = self._repository, disk.snapshot.tag
        deadline = time.monotonic() + min(STORE_SECONDS, self._reader.io_timeout)
        traces: list[Trace] = []
        looking = threading.Thread(
            target=lambda: traces.extend(self._newest(disk, deadline)),
            name="cloudmount-prefetch",
            daemon=True,
        )
        looking.start()
        found = boot_pack(repository, tag, disk.path, deadline)
        looking.join()
        if found is None and not traces:
            source = disk.content()
            return Plan(guessed(source, self._guess(disk, source), LIMIT))
        frames = [copy.frame for copy in found.pack.copies] if found is not None else []
        frame = disk.map.frame_bytes
        for trace in traces:
            frames += _frames(trace.runs, trace.frame_bytes, frame)
        self._known[disk.ident] = set(frames)
        wanted = places(self._reader, disk.map, frames, TRACE_LIMIT, deadline)
        size = int(disk.summary["size"])
        self._reader.expect(disk.ident, frames, SECONDS)
        if found is None:
            return Plan(plan(wanted, None, frame, size), eager=True)
        return Plan(plan(wanted, Aside(found.pack, repository.warn), frame, size, found.most), eager=True)

    @staticmethod
    def _guess(disk: StoredDisk, source: BlockSource) -> Iterator[tuple[int, int]]:
        """What a machine reads of a disk of which no boot was seen."""
        boots = list(boot_ranges(source, int(disk.summary["logical_sector"])))
        yield from boots
        held = sum(e.length for offset, length in boots for e in source.extents(offset, length) if e.data)
        yield from system_ranges(disk, kernel=held < KERNEL_BYTES)

    def newest(self, disk: StoredDisk) -> Trace | None:
        """The newest trace of the disk, of any snapshot; from the store, or kept here."""
        deadline = time.monotonic() + min(STORE_SECONDS, self._reader.io_timeout)
        return next(self._newest(disk, deadline), None)

    def _newest(self, disk: StoredDisk, deadline: float) -> Iterator[Trace]:
        """The newest trace of the disk, if there is one."""
        for name, place in sorted(self._names(disk.snapshot.tag, deadline).items())[:LOOKED_AT]:
            try:
                if isinstance(place, Path):
                    trace = open_trace(self._repository.keys, name, place.read_bytes())
                else:
                    trace = read_trace(self._repository, place, deadline=deadline)
            except (CloudMountError, OSError):
                continue
            if trace.disk == disk.path:
                yield trace
                return

    def _names(self, tag: str, deadline: float) -> dict[str, Path | BlobInfo]:
        """The machine's traces by their names, which sort newest first; those that are here from here."""
        found: dict[str, Path | BlobInfo] = {}
        with contextlib.suppress(CloudMountError):
            listed = self._repository.store.list(traces_of(tag), limit=LOOKED_AT, deadline=deadline)
            found |= {info.name: info for info in listed}
        found |= {traces_of(tag) + path.name: path for path in self._here(tag)}
        return found

    def _here(self, tag: str) -> Iterator[Path]:
        if self._folder is not None:
            with contextlib.suppress(OSError):
                yield from sorted(p for p in (self._folder / tag).iterdir() if not p.name.startswith("."))

    # Learning

    def _end(self, disks: list[tuple[str, str]]) -> None:
        for ident in disks:
            with self._lock:
                disk = self._pending.pop(ident, None)
            if disk is not None:
                self._keep(disk, self._recorders[ident])

    def traces(self) -> list[Trace]:
        """What was recorded so far of the disks that machines boot from."""
        with self._lock:
            pending = list(self._pending.values())
        return [trace for disk in pending if (trace := self._recorded(disk)) is not None]

    def _recorded(self, disk: StoredDisk) -> Trace | None:
        """What was recorded of a disk, if that was a boot."""
        recorder = self._recorders[disk.ident]
        if not recorder.is_boot:
            return None
        now, size = int(time.time()), int(disk.summary["size"])
        return Trace(disk.path, disk.snapshot.id, now, size, disk.map.frame_bytes, recorder.runs)

    def _keep(self, disk: StoredDisk, recorder: Recorder) -> None:
        """Keep what was recorded, if it is worth that."""
        recorder.ended = True
        trace = self._recorded(disk)
        if trace is None or not self._is_new(trace, self._known.get(disk.ident)):
            return
        with contextlib.suppress(CloudMountError):
            name, data = seal_trace(self._repository.keys, disk.snapshot.tag, trace)
            with contextlib.suppress(OSError):
                self._keep_here(disk.snapshot.tag, name, data)
            self._repository.store.create(name, data, deadline=time.monotonic() + STORE_SECONDS)

    @staticmethod
    def _is_new(trace: Trace, old: set[int] | None) -> bool:
        if old is None:
            return True
        new = set(_frames(trace.runs, trace.frame_bytes, trace.frame_bytes))
        return len(new - old) > NEW_SHARE * len(new) or len(old - new) > OLD_SHARE * len(old)

    def _keep_here(self, tag: str, name: str, data: bytes) -> None:
        if self._folder is None:
            return
        folder = self._folder / tag
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = folder / name.rpartition("/")[2]
        making = place.with_name(f".{place.name}")
        try:
            making.write_bytes(data)
            os.replace(making, place)
        except OSError:  # a full disk
            making.unlink(missing_ok=True)
            raise
        for path in list(self._here(tag))[LOOKED_AT:]:
            path.unlink(missing_ok=True)


def _frames(runs: tuple[tuple[int, int, int], ...], size: int, frame: int) -> list[int]:
    """The frames of `frame` bytes that hold these runs of frames of `size` bytes, in order."""
    return list(
        dict.fromkeys(
            number
            for first, count, _ in runs
            for number in range(
                first * size // frame, -(-min(first + count, first + (1 << 20)) * size // frame)
            )
        )
    )
