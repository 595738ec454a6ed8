"""A virtual machine booted to ready, measured.

Decided here and only here: which machine the boots are compared on, and when it counts as ready: at
the line GUEST-READY on its serial port. Its writes go to a fresh qcow2 overlay on the disk under test,
which QEMU opens read-only; making the overlay is in the time, as a user waits for it too. One thread;
whatever it starts it ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.commands import BenchmarkError, program, run, stop
from cloudmount.boot.accelerator import Trial

CODE, VARS = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
MEMORY_MIB, CPUS = 1024, 2
_LOOK_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Disk:
    """What a VM boots from: QEMU's name of it (a path, or `json:` with a block node), and its format."""

    name: str
    format: str = "vhdx"


def boot(
    disk: Disk, folder: Path, limit: float, failed: Callable[[], str | None], ready: Callable[[], None]
) -> float:
    """Boot from `disk`; the seconds to ready. `folder` gets the overlay and the serial port's text.

    `ready` is called when the guest is, before it has powered off. `failed` is asked now and then whether
    what serves the disk has gone, and says how. BenchmarkError when the guest is not ready after `limit`
    seconds.
    """
    if not CODE.exists():
        raise BenchmarkError(f"{CODE} is missing: apt-get install ovmf")
    overlay, serial = folder / "overlay.qcow2", folder / "serial.log"
    errors = folder / "qemu.log"
    for left in (overlay, serial):
        left.unlink(missing_ok=True)
    pflash = "if=pflash,format=raw"
    command = [
        program("qemu-system-x86_64", "qemu-system-x86"), "-nodefaults", "-no-user-config", "-machine", "q35",
        "-accel", Trial().result(), "-cpu", "max", "-smp", str(CPUS), "-m", str(MEMORY_MIB),
        "-drive", f"{pflash},unit=0,readonly=on,file={CODE}",
        "-drive", f"{pflash},unit=1,snapshot=on,file={VARS}",
        "-drive", f"if=none,id=d,format=qcow2,file={overlay}",
        "-device", "virtio-blk-pci,drive=d,bootindex=0",
        "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot",
        "-serial", f"file:{serial}",
    ]  # fmt: skip
    began = time.monotonic()
    create = [program("qemu-img", "qemu-utils"), "create", "-q", "-f", "qcow2", "-b", disk.name]
    run([*create, "-F", disk.format, overlay])
    with errors.open("wb") as said:
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    is_ready, text = False, ""
    try:
        while time.monotonic() - began < limit:
            ended = machine.poll() is not None  # asked before what it said is read
            text = serial.read_text(errors="replace") if serial.exists() else ""
            # Not at the start of a line: the kernel writes to that port too.
            if is_ready := bool(re.search(r"GUEST-READY [\d.]+\s", text)):
                seconds = time.monotonic() - began
                ready()
                return seconds
            if ended:
                raise BenchmarkError(
                    f"QEMU ended before the guest was ready: {errors.read_text().strip()}; its last lines: "
                    + text[-500:]
                )
            if why := failed():
                raise BenchmarkError(f"what serves the disk has ended: {why}")
            time.sleep(_LOOK_SECONDS)
        raise BenchmarkError(f"the guest was not ready after {limit:.0f} s; its last lines: {text[-500:]}")
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            machine.wait(10 if is_ready else 0)  # the guest powers off by itself
        stop(machine, patience=5)
