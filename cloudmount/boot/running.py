"""A machine that runs in QEMU, from power-on to its end, watched over QMP.

Decided here and only here: what becomes of a machine whose disks can't be read or written, when it goes on,
when its guest counts as ready, and what its states are called. QEMU stops the machine at a failed read or
write (`rerror`, `werror`), so the guest waits and sees no error; it goes on when what failed can be read
again: a guest that went on too early would wait another `io_timeout`, and its own patience (30 s for an IDE
disk) would end.

Threading: `run` belongs to one thread, which QEMU does not outlive (nor its process): everything else may
be called by any. While the machine is paused a daemon thread tries its disks.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cloudmount.boot.accelerator import Accelerator
from cloudmount.boot.agent import Agent
from cloudmount.boot.commandline import options
from cloudmount.boot.folder import AGENT, VmFolder
from cloudmount.boot.handover import HandOver
from cloudmount.boot.machine import Machine
from cloudmount.boot.picture import take_picture
from cloudmount.boot.qemu import bound, program
from cloudmount.boot.qmp import Qmp, QmpError
from cloudmount.boot.readiness import SerialLine
from cloudmount.errors import CloudMountError

log = logging.getLogger("cloudmount.boot")

BOOTING, RUNNING, POWERED_OFF, STOPPED = "booting", "running", "powered off", "stopped"
PAUSED, FAILED = "paused", "failed"
"""How the states of a machine that waits, or that QEMU left, begin; a colon and why follow."""

TICK_SECONDS = 0.2
START_SECONDS = 20.0
STATISTICS_SECONDS = 2.0
QUIT_SECONDS = 2.0
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0
FLAP_SECONDS = 15.0
"""A machine that has to wait again so soon after it went on is tried again more slowly."""
ROOM = 64 << 20
"""Bytes that must be free before a machine that had no room to write goes on."""


class Backing(Protocol):
    """What a machine's disks are read from, when reading failed. On any thread."""

    def why(self) -> str:
        """Why it failed, in words: "repository unreachable"."""

    def retry(self) -> bool:
        """Read again what failed; whether all of it can be read now. Ends within seconds."""


@dataclass(frozen=True, slots=True)
class Moment:
    """How a machine is. `ready`: whether its guest ever was; `stage` how far it came, for people.
    `ready_by`: what told that it was, "serial", "agent" or "power-off"; empty before."""

    state: str
    stage: str
    ready: bool
    qemu_pid: int
    ready_by: str = ""


class RunningVm:
    """A machine in its folder, whose overlays and firmware variables are there."""

    def __init__(
        self,
        machine: Machine,
        folder: VmFolder,
        accelerator: Accelerator,
        *,
        backing: Backing,
        report: Callable[[Moment], None],
        ready: re.Pattern[str] | None = None,
    ) -> None:
        """`report` is told each change, and once a second how it is. `ready`: as in `SerialLine`."""
        self._machine, self._folder, self._accelerator = machine, folder, accelerator
        self._backing, self._report = backing, report
        self._serial = SerialLine(folder.serial_log, ready)
        self._agent = Agent(lambda: folder.connect(AGENT, 1.0))
        self._waits_for_pattern = ready is not None
        self._ready_by = ""
        self._folders = [folder.path, *(Path(d.path).parent for d in machine.disks if d.is_local)]
        """Where its disks are written."""
        self._hand_over: HandOver | None = None
        self._pause: _Pause | None = None
        self._went_on = float("-inf")
        self._outcome = ""
        self._read_bytes, self._counted = 0, 0.0
        self._told: Moment | None = None
        self._told_at = 0.0
        self._asked_to_quit = threading.Event()
        self.started = threading.Event()
        """Set when the machine runs, or can't: `failure` then says why."""
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Switch the machine on and watch it until it is off."""
        try:
            qmp = self._start()
        except BaseException as error:
            self.failure = error
            self._kill()
            self.ended.set()
            self.started.set()
            return
        self._tell()
        self.started.set()
        try:
            self._watch(qmp)
        except QmpError as error:
            self._outcome = self._outcome or f"{FAILED}: {error}"
        finally:
            qmp.close()
            self._agent.close()
            if self._pause is not None:
                self._pause.end()
            self._bury()
            self._tell()
            self.ended.set()

    def quit(self) -> None:
        """Switch it off, as by its plug, within seconds. What the guest flushed is kept."""
        self._asked_to_quit.set()
        if not self.ended.wait(QUIT_SECONDS):
            self._kill()
            self.ended.wait(QUIT_SECONDS)

    def hand_over(self, way: HandOver, folders: Sequence[Path]) -> None:
        """Give it over, while it runs, to disks in these folders."""
        self._folders += [folder for folder in folders if folder not in self._folders]
        self._hand_over = way

    # Its start and its end

    def _start(self) -> Qmp:
        ours, its = socket.socketpair()
        try:
            command = bound([program(), *options(self._machine, self._accelerator, its.fileno())])
            with self._folder.qemu_log.open("wb") as log:
                self._process = subprocess.Popen(
                    command, cwd=self._folder.path, pass_fds=[its.fileno()],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            its.close()
            return Qmp(ours, seconds=START_SECONDS)
        except QmpError as error:
            ours.close()
            raise CloudMountError(f"QEMU did not start: {self._qemu_said() or error}") from None
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()

    def _qemu_said(self) -> str:
        with contextlib.suppress(OSError):
            return " ".join(self._folder.qemu_log.read_text(errors="replace").split())[-500:]
        return ""

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()

    def _bury(self) -> None:
        assert self._process is not None
        try:
            code = self._process.wait(START_SECONDS if self._outcome else QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            code = self._process.wait()
        if not self._outcome:
            said = self._qemu_said()
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            asked = self._asked_to_quit.is_set()
            self._outcome = STOPPED if asked else f"{FAILED}: QEMU {how}" + (f": {said}" if said else "")

    # While it runs

    def _watch(self, qmp: Qmp) -> None:
        while not qmp.ended:
            for event in qmp.events(TICK_SECONDS):
                self._heard(qmp, event)
                if self._hand_over is not None:
                    self._hand_over.heard(event)
            if self._asked_to_quit.is_set() and not self._outcome:
                self._outcome = STOPPED
                qmp.execute("quit")
            if self._outcome:
                continue
            self._look()
            try:
                self._steer(qmp)
            except QmpError as error:  # busy for long, with a slow disk of this computer's: asked again
                log.warning("%s: %s", self._folder.path.name, error)
            if self._hand_over is not None:
                self._hand_over.step(qmp)
            self._tell()

    def _steer(self, qmp: Qmp) -> None:
        if self._pause is not None and self._pause.over:
            qmp.execute("cont")
            self._pause = None
            self._went_on = time.monotonic()
        if not self._ready_by and time.monotonic() - self._counted > STATISTICS_SECONDS:
            self._counted = time.monotonic()
            self._read_bytes = _read_bytes(qmp.execute("query-blockstats"))

    def _heard(self, qmp: Qmp, event: dict[str, Any]) -> None:
        name, data = event["event"], event.get("data", {})
        if name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            self._wait_for_disks(writing=data.get("operation") == "write", why=str(data.get("reason", "")))
        elif name == "SHUTDOWN" and data.get("guest"):
            self._look()  # for what it said at last
            self._ready_by = self._ready_by or "power-off"
            self._outcome = POWERED_OFF
            take_picture(qmp)  # its last screen, before it is gone
            qmp.execute("quit")
        elif name == "SHUTDOWN":
            self._outcome = self._outcome or STOPPED

    def _wait_for_disks(self, *, writing: bool, why: str) -> None:
        if self._pause is not None:
            return  # one of several requests that were under way
        slower = time.monotonic() - self._went_on < FLAP_SECONDS
        pause = LONGEST_PAUSE if slower else FIRST_PAUSE
        self._pause = _Pause(self._folders, None if writing else self._backing, why, pause)
        self._tell()

    def _look(self) -> None:
        self._serial.read()
        if not self._ready_by and self._serial.ready:
            self._ready_by = "serial"
        elif not self._ready_by and not self._waits_for_pattern and self._agent.answers():
            self._ready_by = "agent"

    @property
    def _state(self) -> str:
        if self._outcome:
            return self._outcome
        if self._pause is not None:
            return self._pause.text
        if self._hand_over is not None and self._hand_over.waits:
            return f"{PAUSED}: the hand-over can't be entered: {self._hand_over.waits}"
        return RUNNING if self._ready_by else BOOTING

    def _tell(self) -> None:
        assert self._process is not None
        stage = "ready" if self._ready_by else self._serial.stage(self._read_bytes)
        moment = Moment(self._state, stage, bool(self._ready_by), self._process.pid, self._ready_by)
        now = time.monotonic()
        if moment != self._told or now - self._told_at >= 1:
            self._told, self._told_at = moment, now
            self._report(moment)


class _Pause:
    """A machine waits for its disks: for what failed to be read, or (no `backing`) for room to write."""

    def __init__(self, folders: Sequence[Path], backing: Backing | None, why: str, pause: float) -> None:
        self._folders, self._backing, self._first = folders, backing, pause
        since = f"since {dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
        where = min(folders, key=_free)
        why = f"can't write to {where}: {why}" if backing is None else backing.why()
        self.text = f"{PAUSED}: {why} {since}"
        self.over = False
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="cloudmount-disks", daemon=True).start()

    def end(self) -> None:
        """The machine is gone."""
        self._ended.set()

    def _run(self) -> None:
        pause = self._first
        while not self._ended.wait(pause):
            if self._is_over():
                self.over = True
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    def _is_over(self) -> bool:
        if self._backing is not None:
            return self._backing.retry()
        return min(map(_free, self._folders)) >= ROOM


def _free(folder: Path) -> int:
    """Bytes free there; 0 when that can't be told."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free
    return 0


def _read_bytes(statistics: list[dict[str, Any]]) -> int:
    """What the guest read of its disks so far."""
    return sum(int(entry["stats"]["rd_bytes"]) for entry in statistics if entry.get("qdev"))
