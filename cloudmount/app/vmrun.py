"""A VM from power-on until it is off.

Decided here and only here: how its drive, its machine and its copies end together; when its disks are
complete here, that it is given over to them then (`boot.handover`), and that its process stays with it
afterwards, without a drive. What it learns of the machine goes into `state.json`.

Threading: `until_off` belongs to the main thread and is the process's last job. The machine has a thread of
its own, and so has watching its copies.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloudmount.app.handover import LocalDisks, clear_overlays
from cloudmount.app.mount import OpenedDrive
from cloudmount.app.vms import STARTING, State, Vm
from cloudmount.boot.accelerator import Accelerator
from cloudmount.boot.handover import HandOver
from cloudmount.boot.running import Moment, RunningVm
from cloudmount.errors import CloudMountError
from cloudmount.mounts.driver import DriveOptions
from cloudmount.mounts.lifecycle import end_for_certain, serve, signalled
from cloudmount.mounts.mountpoints import detach
from cloudmount.mounts.records import start_time
from cloudmount.reader.filling import COMPLETE, RUNNING
from cloudmount.tree.images import FailedReads, Images
from cloudmount.tree.snapshotdir import StoredDisk

LOOK_SECONDS = 1.0
LEAVE_SECONDS = 5.0
AGAIN_SECONDS = 5.0
"""After how long a copy that could not be begun is tried again."""


@dataclass(frozen=True, slots=True)
class Away:
    """What a VM's disks come from while they are not on this computer: the drive, its disks in the order in
    which they are attached, and what ends all of it."""

    opened: OpenedDrive
    disks: Sequence[StoredDisk]
    close: Callable[[], None]


class _Backing:
    """Why reads failed, wherever the disks are."""

    def __init__(self) -> None:
        self.away: FailedReads | None = None

    def why(self) -> str:
        """As `boot.running.Backing` demands."""
        return self.away.why() if self.away is not None else "a disk of this computer's can't be read"

    def retry(self) -> bool:
        """As `boot.running.Backing` demands."""
        return self.away is None or self.away.retry()


class VmRun:
    """A VM that is off, claimed by this process; with `away` unless its disks are here."""

    def __init__(
        self, vm: Vm, away: Away | None, accelerator: Accelerator, ready: re.Pattern[str] | None, began: float
    ) -> None:
        """`ready`: as in `RunningVm`; `began`: when its user began to wait, in `time.monotonic`."""
        self._vm, self._away, self._began = vm, away, began
        self._backing = _Backing()
        self._state = State(
            os.getpid(), start_time(os.getpid()), 0, 0, accelerator, STARTING, "", _now(), None, None, 0, 0
        )
        vm.write_state(self._state)
        clear_overlays(vm)
        hardware = vm.definition.hardware
        self._running = RunningVm(
            hardware, vm.folder, accelerator, backing=self._backing, report=self._report, ready=ready
        )
        self._way: HandOver | None = None
        self._bytes = sum(disk.size for disk in hardware.disks)
        """Of its disks here, once it is given over to them."""
        self._drive_is_needed = away is not None
        if away is None and any(disk.overlay for disk in hardware.disks):  # it was switched off meanwhile
            self._give_over([disk.path for disk in hardware.disks])
        self.is_up = False

    def until_off(self, up: Callable[[Vm], None], tell: Callable[[str], None]) -> None:
        """Mount its disks, switch it on, serve until it is off."""
        if self._away is None:
            self._without_drive(up)
            return
        opened = self._away.opened
        self._backing.away = failed = FailedReads()

        def mounted(path: str) -> None:
            assert self._away is not None
            for disk in self._away.disks:
                if opened.hydrator is not None:
                    opened.hydrator.opening(disk)  # what is here need not be fetched ahead
                opened.drive.boots(disk)
            self._switch_on(up)
            if opened.hydrator is not None:
                threading.Thread(target=self._complete, name="cloudmount-copies", daemon=True).start()

        serve(
            opened.driver,
            Images(self._away.disks, failed),
            str(self._vm.folder.drive),
            DriveOptions(),
            records=self._vm.folder.path / "mounts",
            repository=opened.store.address,
            driver_name=opened.driver_name,
            ready=mounted,
            staying=self._stay,
            ending=self._running.quit,
            tell=tell,
        )

    def _without_drive(self, up: Callable[[Vm], None]) -> None:
        with signalled() as stop:
            try:
                self._switch_on(up)
                self._stay(stop)
            finally:
                end_for_certain()
                self._running.quit()

    def _switch_on(self, up: Callable[[Vm], None]) -> None:
        threading.Thread(target=self._run, name="cloudmount-vm", daemon=True).start()
        self._running.started.wait()
        if self._running.failure is not None:
            raise self._running.failure
        up(self._vm)
        self.is_up = True

    def _stay(self, stop: threading.Event) -> None:
        """With a machine that needs no drive."""
        while not (self._drive_is_needed or self._running.ended.is_set() or stop.wait(0.25)):
            pass

    def _run(self) -> None:
        try:
            self._running.run()
        finally:
            if self._running.failure is None:
                self._vm.clear_drive()  # which ends `serve`

    # Its copies

    def _complete(self) -> None:
        """On a thread of its own: have all disks completed here, then the machine given over to them."""
        assert self._away is not None
        hydrator, disks = self._away.opened.hydrator, self._away.disks
        assert hydrator is not None
        begun = 0
        while not self._running.ended.wait(LOOK_SECONDS if begun in (0, len(disks)) else AGAIN_SECONDS):
            # The first disk last: it goes first then.
            if all([hydrator.complete(disk) for disk in reversed(disks)]):
                paths = [hydrator.path(disk, "raw") for disk in disks]
                if None not in paths:
                    self._bytes = sum(each.total_bytes for each in hydrator.states())
                    self._give_over([path for path in paths if path is not None])
                    return
            begun = len(hydrator.states())

    def _give_over(self, paths: Sequence[str]) -> None:
        disks = self._vm.definition.hardware.disks
        self._way = HandOver(disks, paths, LocalDisks(self._vm, paths, self._leave))
        self._running.hand_over(self._way, [Path(path).parent for path in paths])

    def _leave(self) -> None:
        """Do without the drive, from now on."""
        if self._away is None:
            return
        opened = self._away.opened
        if opened.hydrator is not None and not opened.hydrator.close():
            raise CloudMountError("its copies are still in use")
        self._drive_is_needed = False
        path = str(self._vm.folder.drive)
        if detach(path, lazy=False) is not None:
            detach(path, lazy=True)  # somebody looks into it
        if opened.drive.learning is not None:
            opened.drive.learning.cut()
        self._backing.away = None
        close = self._away.close

        def end() -> None:
            with contextlib.suppress(CloudMountError, OSError):
                close()

        ending = threading.Thread(target=end, name="cloudmount-leaving", daemon=True)
        ending.start()
        ending.join(LEAVE_SECONDS)  # what hangs at a dead line is waited for by nobody
        self._away = None
        os.chdir(self._vm.folder.path)  # whoever started it may have stood on the disk that is unplugged now

    # What is told

    def _report(self, moment: Moment) -> None:
        state = self._state
        if moment.ready and state.ready is None:
            state = state._replace(
                ready=_now(),
                ready_by=moment.ready_by,
                seconds_to_ready=round(time.monotonic() - self._began, 2),
            )
        if state.qemu_pid != moment.qemu_pid:
            state = state._replace(qemu_pid=moment.qemu_pid, qemu_started=start_time(moment.qemu_pid))
        away = self._away
        if away is not None:
            counts = away.opened.store.snapshot()
            state = state._replace(fetched_bytes=counts.bytes_down, reads=counts.reads)
        state = self._with_copies(state._replace(state=moment.state, stage=moment.stage), away)
        if state != self._state:
            self._state = state
            self._vm.write_state(state)

    def _with_copies(self, state: State, away: Away | None) -> State:
        way = self._way
        if way is not None:
            doing = way.doing or ("" if way.done else COMPLETE)
            return state._replace(hydration=doing, done_bytes=self._bytes, total_bytes=self._bytes)
        hydrator = away.opened.hydrator if away is not None else None
        if hydrator is None:
            return state
        states = hydrator.states()
        words = {each.state for each in states} - {COMPLETE, RUNNING}
        if away is not None and len(states) < len(away.disks) and hydrator.problem:
            words.add(f"not begun: {hydrator.problem}")
        return state._replace(
            hydration=", ".join(sorted(words)) or RUNNING,
            done_bytes=sum(each.done_bytes for each in states),
            total_bytes=sum(each.total_bytes for each in states),
        )


def _now() -> str:
    return f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
