"""A running machine is given over from the drive to disks of this computer's, without its noticing.

Decided here and only here: in which steps, and what is entered before each, so that whoever dies at any of
them leaves a machine that goes on as it was entered last:

1. Each overlay is put over the complete copy of its disk here (`blockdev-reopen`), which is not written to
   yet. That is entered (`moved`); the drive is needed no longer.
2. Disk by disk: the copy is made the guest's (`opens`), and what the overlay holds is copied into it
   (`block-commit`). Until the end of that the guest writes into the overlay, which so holds all it ever
   wrote.
3. The machine is stopped for a moment: QEMU ends the copying, and hangs the machine on the copy itself. That
   is entered (`merged`), and only then does the machine go on. So there is no moment in which it could have
   written what only one of both has, and in which it is not known which.

A step that fails leaves the machine running as it was, and is tried again.

Threading: the machine's thread; what its owner does, but for the moment of step 3, on a thread of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from cloudmount.boot.blocknodes import disk_name, drive_names, file_name, local_name, local_node, overlay_node
from cloudmount.boot.machine import Disk
from cloudmount.boot.qmp import Qmp, QmpError, QmpRefusedError
from cloudmount.errors import CloudMountError

log = logging.getLogger("cloudmount.boot")

AGAIN_SECONDS = 30.0
"""After how long a step that failed is tried again."""
ENTER_SECONDS = 1.0
"""The same where the machine waits for it."""
FAILURES = (CloudMountError, OSError)


class Owner(Protocol):
    """Who keeps what a machine is. Each may raise `CloudMountError` or `OSError`; it is called again then."""

    def moved(self) -> None:
        """Enter that the overlays lie over the disks here; then do without the drive, which nobody reads."""

    def opens(self, number: int) -> None:
        """Disk `number` (from 0) is going to be written: nothing may take it for what it was copied from."""

    def merging(self, number: int) -> None:
        """Have at hand what `merged` will enter, so that it takes neither time nor room."""

    def merged(self, number: int) -> None:
        """Enter that disk `number` is all there is, and its overlay no longer counts; on the disk when this
        returns."""


class HandOver:
    """The way of one machine to the disks at `paths` (absolute), which are whole; `disks` is how it was
    started."""

    def __init__(self, disks: Sequence[Disk], paths: Sequence[str], owner: Owner) -> None:
        self._disks, self._paths, self._owner = disks, paths, owner
        self.done = False
        """Whether all of it is over."""
        self.doing = ""
        """What goes on, or went wrong, in words."""
        self.waits = ""
        """Why the machine waits for this, when that takes longer than a moment."""
        self._drive = {n for n, disk in enumerate(disks) if not disk.is_local}
        """Disks whose overlays still lie over the drive; and the nodes that are left of it, in order:"""
        self._left = [name for number in sorted(self._drive) for name in reversed(drive_names(number))]
        self._added = set(range(len(disks))) - self._drive
        self._unmoved = bool(self._drive)
        self._overlays = [n for n, disk in enumerate(disks) if disk.overlay]
        self._steps: Iterator[None] | None = None
        self._again = 0.0
        self._events: list[dict[str, Any]] = []

    def heard(self, event: dict[str, Any]) -> None:
        """An event of QEMU's."""
        if event["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
            self._events.append(event)

    def step(self, qmp: Qmp) -> None:
        """Go on as far as that goes without waiting. Called again and again."""
        if self.done or time.monotonic() < self._again:
            return
        if self._steps is None:
            self._steps = self._run(qmp)
        try:
            next(self._steps)
        except StopIteration:
            self.done = True
            self._at("")
        except FAILURES as error:
            if qmp.ended:
                return  # it was switched off
            self._steps, self._again = None, time.monotonic() + AGAIN_SECONDS
            told = f"the hand-over failed, and is tried again: {error}"
            if told != self.doing:
                log.warning("%s", told)
            self.doing = told

    def _at(self, doing: str) -> None:
        self.doing = doing

    def _run(self, qmp: Qmp) -> Iterator[None]:
        for number in sorted(self._drive):
            self._at(f"moving disk {number + 1}")
            self._move(qmp, number)
        while self._left:
            _delete(qmp, self._left[0])
            self._left.pop(0)
        if self._unmoved:
            self._at("leaving the drive")
            yield from _aside(self._owner.moved)
            self._unmoved = False
        while self._overlays:
            yield from self._merge(qmp, self._overlays[0])

    def _move(self, qmp: Qmp, number: int) -> None:
        if number not in self._added:
            qmp.execute("blockdev-add", **local_node(number, self._paths[number]))
            self._added.add(number)
        qmp.execute("blockdev-reopen", options=[overlay_node(number, local_name(number))])
        self._drive.remove(number)

    def _merge(self, qmp: Qmp, number: int) -> Iterator[None]:
        path, job = self._paths[number], f"merge{number}"
        self._at(f"opening disk {number + 1}")
        yield from _aside(lambda: self._owner.opens(number))
        self._at(f"merging disk {number + 1}")
        if job not in [there["id"] for there in qmp.execute("query-jobs")]:  # from a try that failed later
            qmp.execute("blockdev-reopen", options=[local_node(number, path, read_only=False)])
            self._events.clear()
            disk = disk_name(number)
            qmp.execute(
                "block-commit",
                **{"job-id": job, "device": disk, "top-node": disk, "base-node": local_name(number)},
            )
        while not self._is_ready(qmp, job):
            yield
        yield from _aside(lambda: _sync(path))
        yield from _aside(lambda: self._owner.merging(number))
        while not qmp.execute("query-status")["running"]:
            yield  # it waits for its disks
        self._at(f"switching disk {number + 1}")
        yield from self._switch(qmp, number, job)
        self._overlays.remove(number)
        self._at(f"leaving the overlay of disk {number + 1}")
        with contextlib.suppress(*FAILURES):  # it only stays open
            _delete(qmp, disk_name(number))
            _delete(qmp, file_name(number))

    def _switch(self, qmp: Qmp, number: int, job: str) -> Iterator[None]:
        """What the machine has to stand still for."""
        try:
            qmp.execute("stop")
            self._complete(qmp, job)
            while not self._has_completed(job):
                yield
        except FAILURES:  # the machine hangs on its overlay as before
            yield from self._go_on(qmp)
            raise
        self._at(f"entering disk {number + 1}")
        yield from self._until_done(lambda: _sync(self._paths[number]))
        yield from self._until_done(lambda: self._owner.merged(number))
        yield from self._go_on(qmp)

    def _go_on(self, qmp: Qmp) -> Iterator[None]:
        yield from self._until_done(lambda: qmp.execute("cont"), lambda: qmp.ended)

    def _until_done(
        self, job: Callable[[], object], ended: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        while not ended():
            try:
                job()
                self.waits = ""
                return
            except FAILURES as error:
                if str(error) != self.waits:
                    log.warning("the machine waits for the end of its hand-over: %s", error)
                self.waits = str(error)
            until = time.monotonic() + ENTER_SECONDS
            while time.monotonic() < until:
                yield

    def _is_ready(self, qmp: Qmp, job: str) -> bool:
        """Whether all that the overlay holds was copied; `CloudMountError` when that failed."""
        self._has_completed(job)
        return any(there["device"] == job and there["ready"] for there in qmp.execute("query-block-jobs"))

    @staticmethod
    def _complete(qmp: Qmp, job: str) -> None:
        try:
            qmp.execute("job-complete", id=job)
        except QmpRefusedError:
            raise
        except QmpError as error:  # it may have been heard all the same: the job's end tells
            log.warning("%s", error)

    def _has_completed(self, job: str) -> bool:
        """Whether QEMU said so of the job; `CloudMountError` when it said that it failed."""
        for event in self._events:
            data = event["data"]
            if data.get("device", data.get("id")) == job:
                if event["event"] == "BLOCK_JOB_COMPLETED" and not data.get("error"):
                    return True
                raise CloudMountError(f"{job} ended: {data.get('error', 'cancelled')}")
        return False


def _delete(qmp: Qmp, node: str) -> None:
    qmp.execute("blockdev-del", **{"node-name": node})


def _sync(path: str) -> None:
    """Have what was written to a file on the disk."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _aside(job: Callable[[], None]) -> Iterator[None]:
    """Do it on a thread of its own; its failures are raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            job()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="cloudmount-handover", daemon=True)
    thread.start()
    while thread.is_alive():
        yield
    if failed:
        raise failed[0]
