"""What this PC is, as far as a machine that is to run on it minds.

Decided here and only here: where each fact comes from. Nothing is written. KVM is tried by a machine that
starts (`boot.accelerator`), up to 2 s.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cloudmount.app.mount import drive_ready
from cloudmount.app.places import free_bytes
from cloudmount.app.vms import vms_folder
from cloudmount.boot.accelerator import DEVICE, Accelerator, Trial
from cloudmount.boot.firmware import uefi
from cloudmount.boot.machine import memory_here
from cloudmount.boot.qemu import program
from cloudmount.errors import CloudMountError

_SECONDS = 20.0
"""For QEMU to tell its version."""
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class ThisPc:
    """Facts of a PC; sizes in bytes. A `..._why` says why something can't be used, and is empty else."""

    memory: int
    memory_free: int
    cpus: int
    folder: str
    """Where what machines write is kept."""
    free: int
    copy_folder: str
    """Where complete copies of disks would lie."""
    copy_free: int
    qemu: tuple[int, int] | None
    """Its version."""
    qemu_why: str
    qemu_img: bool
    accelerator: Accelerator
    kvm_why: str
    kvm_advice: str
    variables: int | None
    """Length of the UEFI's variables; None: no UEFI here."""
    secure_variables: int | None
    """Those of the UEFI with secure boot."""
    drive_why: str


def this_pc(copies: Path | None = None, environ: Mapping[str, str] = os.environ) -> ThisPc:
    """Look at this computer; `copies`: the folder for complete copies, if one is meant."""
    folder = vms_folder(environ)
    where = folder if copies is None else copies
    trial = Trial()
    try:
        qemu, qemu_why = _qemu()
        accelerator = trial.result()
    finally:
        trial.close()
    kvm_why, kvm_advice = _kvm_why() if accelerator == "tcg" else ("", "")
    return ThisPc(
        memory=memory_here(),
        memory_free=_memory_free(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        folder=str(folder),
        free=free_bytes(folder),
        copy_folder=str(where),
        copy_free=free_bytes(where),
        qemu=qemu,
        qemu_why=qemu_why,
        qemu_img=_is_there("qemu-img"),
        accelerator=accelerator,
        kvm_why=kvm_why,
        kvm_advice=kvm_advice,
        variables=_variables(secure_boot=False),
        secure_variables=_variables(secure_boot=True),
        drive_why=_drive_why(),
    )


def _memory_free(meminfo: Path = _MEMINFO) -> int:
    """What programs could still be given, as the kernel estimates it; all, where it doesn't."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) << 10 if found else memory_here()


def _is_there(name: str) -> bool:
    try:
        program(name)
    except CloudMountError:
        return False
    return True


def _qemu() -> tuple[tuple[int, int] | None, str]:
    """QEMU's version, or why there is none."""
    try:
        path = program()
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=False, timeout=_SECONDS,
            stdin=subprocess.DEVNULL, errors="replace",
        )  # fmt: skip
    except CloudMountError:
        return None, "QEMU, which runs the machine, is not there"
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"QEMU does not start: {error}"
    found = re.search(r"version (\d+)\.(\d+)", done.stdout)
    if done.returncode or not found:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        return None, f"{path} does not tell its version: {said[0]}"
    return (int(found[1]), int(found[2])), ""


def _kvm_why(device: str = DEVICE) -> tuple[str, str]:
    """Why KVM was not used, and what may help."""
    if not os.path.exists(device):
        return (
            f"there is no {device}",
            "switch on virtualisation (VT-x, AMD-V, SVM) in this PC's firmware setup; inside a virtual "
            "machine, nested virtualisation",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} is not for this user", "add the user to the group kvm, and log in again"
    return f"{device} is there, but no machine starts with it", "inside a virtual machine that is usual"


def _variables(*, secure_boot: bool) -> int | None:
    try:
        return uefi(secure_boot=secure_boot)[1].stat().st_size
    except (CloudMountError, OSError):
        return None


def _drive_why() -> str:
    try:
        drive_ready()
    except CloudMountError as error:
        return str(error)
    return ""
