"""Whether KVM can be used on this computer, decided by trying it.

Decided here and only here: that only a machine which started proves KVM. /dev/kvm being there and allowed
is not enough: inside some virtual machines it opens, and then the guest stops or hangs at one of its first
instructions. So QEMU starts a machine without disks; KVM is usable when the firmware came to its end and said
so soon, by the processor's time, which others' work does not lengthen. The trial goes on beside whatever else
there is to do.

Threading: a daemon thread for each trial; its result may be asked for by any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from typing import Literal

from cloudmount.boot.qemu import bound, program
from cloudmount.errors import CloudMountError

Accelerator = Literal["kvm", "tcg"]

TRIAL_SECONDS = 3.0
"""Of the clock: only a computer that is very busy needs more than half of one."""
CPU_SECONDS = 1
"""Of a processor. QEMU's emulation takes 0.1 to 0.2 s. A KVM that is emulated itself, inside a virtual
machine, was measured to take 1.7 to 1.9 s: a guest is better off without that, and by the clock it was
chance which one it got."""
_KILLED_SECONDS = 1.0
DEVICE = "/dev/kvm"
_PROOF = b"No bootable device"
_COMMAND = (
    "-nodefaults", "-no-user-config", "-machine", "pc", "-m", "32", "-accel", "kvm", "-display", "none",
    "-chardev", "stdio,id=debug", "-device", "isa-debugcon,iobase=0x402,chardev=debug",
)  # fmt: skip


class Trial:
    """A trial that is under way."""

    def __init__(
        self, device: str = DEVICE, command: tuple[str, ...] = _COMMAND, seconds: float = TRIAL_SECONDS
    ) -> None:
        """`command`: QEMU's options for a machine that proves it, within so many `seconds` of the clock."""
        self._seconds = seconds
        self._result: Accelerator = "tcg"
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()
        if os.access(device, os.R_OK | os.W_OK):
            self._thread = threading.Thread(
                target=self._try, args=(command,), name="cloudmount-kvm", daemon=True
            )
            self._thread.start()

    def result(self) -> Accelerator:
        """`kvm` when it ran a machine, else `tcg`: QEMU's own emulation, several times slower."""
        if self._thread is not None:
            self._thread.join(self._seconds + 2 * _KILLED_SECONDS)
        return self._result

    def close(self) -> None:
        """End it. Must come before the process ends: the kernel ends with it only what has begun."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        if self._thread is not None:
            self._thread.join(_KILLED_SECONDS)

    def _try(self, command: tuple[str, ...]) -> None:
        try:
            trial = subprocess.Popen(
                bound([*_limited(), program(), *command]),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, CloudMountError):  # it is met again, and told, when the machine is started
            return
        assert trial.stdout is not None
        with self._lock:
            self._process = trial
            if self._closed:
                trial.kill()
        ending = threading.Timer(self._seconds, trial.kill)
        ending.daemon = True
        ending.start()
        try:
            said = b""
            while more := os.read(trial.stdout.fileno(), 4096):
                said += more
                if _PROOF in said:
                    self._result = "kvm"
                    return
        finally:
            ending.cancel()
            trial.kill()
            trial.stdout.close()
            trial.wait()  # a process that KVM doesn't let go is waited for here, not by who asks


def _limited() -> list[str]:
    """What ends a trial that takes too much of a processor."""
    limits = shutil.which("prlimit")  # of util-linux, as setpriv
    return [limits, f"--cpu={CPU_SECONDS}"] if limits is not None else []
