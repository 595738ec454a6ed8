"""Completing the disks that are read through a drive, in the background.

Decided here and only here: which disk's turn it is (the one that was opened last), which copy of a disk is
used (a finished one in any form before one to be filled), and what happens when that can't go on: the drive
reads through to the store, people are told once, and a store that does not answer is tried again.

Threading: `content`, `states` and `close` on any thread; one thread of its own fills one copy at a time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path

from cloudmount.errors import CloudMountError, StoreError, StoreTimeoutError
from cloudmount.reader.filling import COMPLETE, GIVEN_UP, NO_ANSWER, RUNNING, Filling
from cloudmount.reader.hydrating import HydratingSource, LocalDisk
from cloudmount.reader.localcopy import CopyInUseError
from cloudmount.reader.prefetch import Prefetchable
from cloudmount.reader.stored import FrameReader
from cloudmount.repo.frames import Frame
from cloudmount.tree.copies import DiskCopy, Format, Hydrated
from cloudmount.tree.drive import Drive
from cloudmount.tree.snapshotdir import StoredDisk

MEMORY = 24 << 20
"""Bytes in memory of what is on its way into a copy: requests of 2 MiB, so that readers soon have the
line."""
REQUESTS = 4
AGAIN_SECONDS = 5.0
"""After how long a store that failed is asked again."""
END_SECONDS = 2.0
ATTACH_SECONDS, SOON_SECONDS = 5.0, 0.5
"""How long the first read of a disk waits for the map that its copy needs; the latter while the store is
silent."""


class _Task:
    """One disk of the drive, and its copy once it was read."""

    def __init__(self, disk: StoredDisk, used: Callable[[_Task], None]) -> None:
        self.disk = disk
        self.local = LocalDisk(lambda local: used(self))
        self.other = LocalDisk()
        """A finished copy in a form that is not wanted, if there is one: what it has need not be fetched."""
        self.copy: DiskCopy | None = None
        self.filling: Filling | None = None
        self.given_up = False
        self.attaching = threading.Lock()

    @property
    def unfinished(self) -> bool:
        """Whether there is something to do for it."""
        copy = self.local.copy
        return copy is not None and not copy.finished and not self.given_up

    def told(self) -> Hydrated | None:
        """As in `status`."""
        copy, local, filling = self.copy, self.local.copy, self.filling
        if copy is None or local is None:
            return None
        done = copy.expected if local.finished else min(copy.expected, local.done_bytes)
        state = COMPLETE if local.finished else filling.state if filling is not None else RUNNING
        path = os.path.abspath(copy.path)
        return Hydrated(path, copy.snapshot, copy.disk.path, done, copy.expected, state)


class Hydrator:
    """Copies in the folder `root` of the disks of a drive."""

    def __init__(
        self,
        root: Path,
        drive: Drive,
        reader: FrameReader,
        tell: Callable[[str], None],
        *,
        form: Format | None = None,
    ) -> None:
        """`form` is that of the copies; None: whichever is there, VHDX where there is none."""
        self._root, self._drive, self._reader, self._tell = root, drive, reader, tell
        self._form = form
        self._tasks: dict[tuple[str, str], _Task] = {}
        self._order: list[_Task] = []
        """Those that were read, the one opened last at the end."""
        self.problem = ""
        """Why a copy could not be begun, the last time."""
        self._told: set[str] = set()
        self._ended = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="cloudmount-hydrator", daemon=True)
        self._thread.start()

    def content(self, disk: StoredDisk, stored: Prefetchable, *, starts: bool = True) -> HydratingSource:
        """The disk, from its copy where that has it; completed from its first read on if it `starts`."""
        task = self._task(disk)
        if self._form is not None:
            stored = HydratingSource(stored, task.other, starts=False)
        return HydratingSource(stored, task.local, starts=starts)

    def complete(self, disk: StoredDisk) -> bool:
        """Complete the disk, read or not; whether it is. To be asked again when something went wrong."""
        task = self._task(disk)
        if task.local.copy is None:
            self._used(task)
        copy = task.local.copy
        return copy is not None and copy.finished

    def opening(self, disk: StoredDisk) -> None:
        """Use a finished copy from the start, if there is one; others only when the disk is read.

        A driver that is given the path when it opens the file can have the kernel read it by itself.
        """
        task = self._task(disk)
        if task.local.copy is None and (self._root / disk.snapshot.machine).is_dir():
            self._within_reason(("finished", disk.ident), lambda: self._attach(task, claim=False))

    def _task(self, disk: StoredDisk) -> _Task:
        with self._change:
            task = self._tasks.get(disk.ident)
            if task is None:
                task = self._tasks[disk.ident] = _Task(disk, self._used)
            return task

    def path(self, disk: StoredDisk, format: str) -> str | None:
        """The finished copy in that form, once the disk was opened through this drive."""
        task = self._tasks.get(disk.ident)
        copy = task.local.copy if task is not None else None
        return copy.verified_path if copy is not None and copy.described.format == format else None

    def states(self) -> list[Hydrated]:
        """Every copy in use."""
        with self._change:
            tasks = list(self._order)
        return [told for task in tasks if (told := task.told()) is not None]

    def close(self) -> bool:
        """End within seconds; what is there stays. Whether nothing of it is in use any more; may be called
        again."""
        with self._change:
            self._ended = True
            self._change.notify_all()
            tasks = list(self._tasks.values())
        for task in tasks:
            if task.filling is not None:
                task.filling.stop()
        self._thread.join(END_SECONDS)
        if not self._thread.is_alive():
            for task in tasks:
                for local in (task.local, task.other):
                    copy, local.copy = local.copy, None
                    if copy is not None:
                        copy.close()
        return not self._thread.is_alive()

    # What is read

    def _used(self, task: _Task) -> None:
        """On a reader's thread: a source of this disk is read for the first time, or its copy is in doubt.

        Reads wait for the copy's map, but not long; what comes later is used from then on.
        """
        copy = task.local.copy
        if copy is not None and not (copy.doubtful and not copy.claimed):
            self._to_front(task)
            return
        self._within_reason(("copy", task.disk.ident), lambda: self._attach(task, claim=True))

    def _within_reason(self, key: tuple[str, Hashable], job: Callable[[], None]) -> None:
        """Have a worker do it, and wait for that, but not long."""
        wait = SOON_SECONDS if self._reader.outage else ATTACH_SECONDS
        until = time.monotonic() + min(wait, self._reader.io_timeout)
        try:
            self._reader.ask(key, job, until)
        except StoreTimeoutError:
            pass
        except (CloudMountError, OSError) as error:
            self.problem = str(error)
            self._tell_once(f"not completed here: {error}")

    def _to_front(self, task: _Task) -> None:
        """It is this disk's turn."""
        with self._change:
            if self._order[-1:] == [task] and not task.unfinished:
                return
            if task in self._order:
                self._order.remove(task)
            self._order.append(task)
            for other in self._order[:-1]:
                if task.unfinished and other.filling is not None:
                    other.filling.stop()
            self._change.notify_all()

    def _attach(self, task: _Task, *, claim: bool) -> None:
        """On a worker: have the task use a finished copy, else (`claim`) one to be filled."""
        if self._ended or not task.attaching.acquire(timeout=SOON_SECONDS):
            return
        try:
            copy = task.local.copy
            if copy is not None and copy.doubtful and not copy.claimed:
                task.local.copy = copy = None  # it was only to be read; now it has to be verified
            if copy is None and not self._attach_one(task, claim):
                return
        finally:
            task.attaching.release()
        self._to_front(task)

    def _attach_one(self, task: _Task, claim: bool) -> bool:
        folder = self._drive.folder_of(task.disk.snapshot)
        forms: tuple[Format, ...] = ("vhdx", "raw") if task.disk.vhdx_bytes() is not None else ("raw",)
        copies = [DiskCopy(self._root, task.disk, folder, form) for form in forms]
        if self._form is not None:
            for copy in copies:
                if copy.described.format != self._form and task.other.copy is None:
                    copy.finished(task.other)
            copies = [copy for copy in copies if copy.described.format == self._form]
        for copy in copies:
            if copy.finished(task.local):
                task.copy = copy
                return True
        if not claim:
            return False
        copy = next((c for c in copies if c.path.exists()), copies[0])
        try:
            copy.claim(task.local, self._tell_once)
        except CopyInUseError as error:
            self.problem = str(error)
            self._tell_once(f"{error}; this drive reads through to the store")
            return False
        task.copy, task.given_up = copy, False
        return True

    def _tell_once(self, line: str) -> None:
        with self._change:
            if line in self._told:
                return
            self._told.add(line)
        self._tell(line)

    # Filling

    def _next(self) -> _Task | None:
        """Wait for something to do; whose turn it is, None at the end."""
        with self._change:
            while not self._ended:
                for task in reversed(self._order):
                    if task.unfinished:
                        task.filling = self._filling(task)
                        return task
                self._change.wait()
        return None

    def _filling(self, task: _Task) -> Filling:
        copy, disk, reader = task.copy, task.disk, self._reader
        assert copy is not None

        def at_hand(frame: Frame) -> bytes | None:
            other = task.other.copy
            if other is not None:
                position = other.positions.position(frame.number * disk.map.frame_bytes)
                there = other.read(position, frame.length) if position is not None else None
                if there is not None:
                    return there
            plain = reader.table.get((disk.ident, frame.number))
            return plain if plain is not None else reader.cached(frame.at, frame.length)

        return Filling(
            self._drive.repository,
            disk.map,
            task.local,
            expected=copy.expected,
            mtime_ns=int(disk.summary["mtime_ns"]),
            tell=self._tell_once,
            idle=reader.idle,
            at_hand=at_hand,
            memory_bytes=MEMORY,
            workers=REQUESTS,
        )

    def _run(self) -> None:
        while (task := self._next()) is not None:
            copy, filling = task.copy, task.filling
            assert copy is not None
            assert filling is not None
            try:
                filling.fill(copy.blank)
            except StoreError as error:
                filling.state = NO_ANSWER
                self._tell_once(f"{copy.path}: waits for the store: {error}")
                with self._change:
                    if not self._ended:
                        self._change.wait(AGAIN_SECONDS)
            except Exception as error:  # the drive goes on without: it reads through
                task.given_up, filling.state = True, GIVEN_UP
                self._tell_once(str(error) if isinstance(error, CloudMountError) else f"{copy.path}: {error}")
