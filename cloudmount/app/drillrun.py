"""A drill's machine: switched on in a process of its own, watched, its screen taken, switched off.

Decided here and only here: that its process ends with ours, whatever ends ours (it holds a pipe's other end),
and removes the drill's place then; when watching is over; and how the stage is known: from the serial line,
and once a second from what the processors execute. Belongs to the main thread, before any other was started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cloudmount.app.boot import BootOptions, boot
from cloudmount.app.drillplace import DrillPlace
from cloudmount.app.places import state_folder
from cloudmount.app.vms import Vm, all_vms, find_vm, is_final
from cloudmount.boot.folder import CONTROL
from cloudmount.boot.picture import take_picture
from cloudmount.boot.proving import Furthest, Stage, executing
from cloudmount.boot.qmp import Qmp, QmpError
from cloudmount.boot.readiness import SerialLine
from cloudmount.guest.marks import Mark
from cloudmount.mounts.lifecycle import in_background

PEEK_SECONDS = 30.0
"""How often the disks of a guest that says nothing are looked at for marks."""
SETTLE_SECONDS = 20.0
"""What a guest gets that was found running so, before its screen is taken."""
_SAMPLE_SECONDS, _LINE_SECONDS = 1.0, 5.0
_LEFT_SECONDS = 3.5
"""How long the machine's process may take to end when a drill is broken off; main() gives us five."""

Bandwidth = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Seen:
    """What watching a machine told. `ready_ms`: milliseconds until it was ready, None when it never was;
    `bytes` and `reads` of the store until then, or until the end."""

    state: str
    stage: Stage
    ready_ms: int | None
    ready_by: str
    bytes: int
    reads: int


def log_file(environ: Mapping[str, str] = os.environ) -> Path:
    """What the processes of drills' machines write to."""
    return state_folder(environ) / "drill.log"


@contextlib.contextmanager
def switched_on(
    place: DrillPlace,
    address: str,
    passphrase: str,
    text: str,
    options: BootOptions,
    *,
    began: float,
    bandwidth: Bandwidth,
    tell: Callable[[str], None],
    environ: Mapping[str, str],
) -> Iterator[Vm]:
    """The machine of the snapshot `text`, on, as long as the block runs at most. Errors as of `boot`."""
    reading, writing = os.pipe()

    def run(ready: Callable[[str], None]) -> None:
        os.close(writing)
        orphaned = threading.Event()
        threading.Thread(
            target=_end_with_it, args=(reading, orphaned), name="cloudmount-drill", daemon=True
        ).start()
        try:
            boot(
                address, passphrase, text, options,
                began=began, bandwidth=bandwidth, up=lambda vm: ready(vm.name), tell=tell,
                environ=place.environ,
            )  # fmt: skip
        finally:
            if orphaned.is_set():
                with contextlib.suppress(Exception):
                    place.remove()

    try:
        yield find_vm(in_background(run, log_file(environ)), place.environ)
    finally:
        os.close(reading)
        os.close(writing)
        for vm in all_vms(place.environ):  # there is one, or none yet
            vm.ended(_LEFT_SECONDS)


def _end_with_it(reading: int, orphaned: threading.Event) -> None:
    """End this process once the drill's has closed its end of the pipe, or is gone."""
    while os.read(reading, 1):
        pass
    orphaned.set()
    os.kill(os.getpid(), signal.SIGTERM)


def watch(
    vm: Vm, *, began: float, until: float, peek: Callable[[], list[Mark]] | None, say: Callable[[str], None]
) -> Seen:
    """Watch it until it is ready or off, or `until`; then take its screen. `peek` looks for marks on its
    disks, for a guest that says nothing."""
    line, furthest = _Line(vm), Furthest()
    told, sampled, peeked = "", 0.0, began + PEEK_SECONDS
    settled: float | None = None
    ready_ms: int | None = None
    ready_by = ""
    try:
        for state, text in vm.looks():
            now = time.monotonic()
            if state is not None:
                if state.ready_by != "power-off":  # which is no stage that it reached
                    furthest.saw(state.stage)
                if state.ready is not None and ready_ms is None:
                    ready_ms, ready_by = int((state.seconds_to_ready or 0.0) * 1000), state.ready_by
            if text != told:
                say(f"{vm.definition.machine}: {text}")
                told = text
            if is_final(text) or now > until or ready_by or (settled is not None and now > settled):
                break
            if now - sampled > _SAMPLE_SECONDS:
                sampled = now
                furthest.saw(line.stage())
            if peek is not None and settled is None and now - peeked > PEEK_SECONDS:
                marks = [mark for mark in peek() if mark.running]
                peeked = time.monotonic()
                if marks:
                    say(f"{vm.definition.machine}: {marks[0].what}")
                    furthest.saw("services")
                    ready_ms, settled = int((peeked - began) * 1000), peeked + SETTLE_SECONDS
        if not is_final(text):
            furthest.saw(line.stage())
            line.picture()
    finally:
        line.close()
    said = SerialLine(vm.folder.serial_log, whole=True)
    said.read()
    furthest.saw(said.stage(0))
    state = vm.state
    fetched, reads = (state.fetched_bytes, state.reads) if state is not None else (0, 0)
    return Seen(vm.state_text, furthest.stage, ready_ms, ready_by, fetched, reads)


class _Line:
    """A line to the machine's QEMU. What goes wrong with it is no error: the machine may just end."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._qmp: Qmp | None = None

    def stage(self) -> Stage | None:
        """The stage by what the processors execute now."""
        told = self._ask(
            lambda qmp: qmp.execute("human-monitor-command", **{"command-line": "info registers -a"})
        )
        return executing(told) if isinstance(told, str) else None

    def picture(self) -> None:
        """Take the machine's screen."""
        self._ask(take_picture)

    def close(self) -> None:
        """Hang up."""
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None

    def _ask(self, question: Callable[[Qmp], object]) -> object:
        try:
            if self._qmp is None:
                self._qmp = Qmp(self._vm.folder.connect(CONTROL, _LINE_SECONDS), seconds=_LINE_SECONDS)
            self._qmp.events(0)  # nobody needs them here
            return question(self._qmp)
        except (OSError, QmpError, ValueError):
            self.close()
            return None
