"""Whether a machine runs on a PC: what is looked at, and what is said of it.

Decided here and only here: which of a machine's needs a PC must meet (a problem: it will not run), which it
had better meet (a warning), and what is to be done about each. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from cloudmount.app.thispc import ThisPc
from cloudmount.boot.machine import LEAST_MEMORY, MIB, Machine, default_memory, pauses
from cloudmount.boot.running import ROOM

Level = Literal["ok", "warn", "problem"]

OLDEST_QEMU = (6, 1)
"""What comes before lacks what machines are started with here."""
TRIED_QEMU = (7, 2)
OVERLAY = 2 << 30
"""Bytes that a server's own writes (logs, updates, paging) may well take in its first days."""
BESIDE = 300 * MIB
"""What QEMU and the drive's process take beside the guest's memory."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, in words, and what to do about it (nothing: empty)."""

    what: str
    level: Level
    text: str
    advice: str = ""


def will_run(findings: Iterable[Finding]) -> bool:
    """Whether nothing of it is a problem."""
    return all(f.level != "problem" for f in findings)


def judged(machine: Machine, pc: ThisPc, *, variables: int | None, copy_bytes: int) -> Iterator[Finding]:
    """What `pc` is for `machine`. `variables`: length of the UEFI variables that were kept of it, or None;
    `copy_bytes`: what complete copies of its disks take."""
    yield from _qemu(pc)
    yield _drive(pc)
    yield _virtualisation(pc)
    yield from _firmware(machine, pc, variables)
    yield _memory(machine, pc)
    yield _processors(machine, pc)
    yield _overlay(pc)
    yield _copy(pc, copy_bytes)
    yield from _disks(machine)


def _qemu(pc: ThisPc) -> Iterator[Finding]:
    if pc.qemu is None:
        yield Finding("qemu", "problem", pc.qemu_why, "install the package qemu-system-x86")
    elif pc.qemu < OLDEST_QEMU:
        text = f"QEMU {_version(pc.qemu)} is too old"
        yield Finding("qemu", "problem", text, f"install QEMU {_version(TRIED_QEMU)} or newer")
    elif pc.qemu < TRIED_QEMU:
        text = f"QEMU {_version(pc.qemu)} is older than any that this program was tried with"
        yield Finding("qemu", "warn", text, f"install QEMU {_version(TRIED_QEMU)} or newer")
    else:
        yield Finding("qemu", "ok", f"QEMU {_version(pc.qemu)}")
    if not pc.qemu_img:
        text = "the program qemu-img, which makes the overlays, is not there"
        yield Finding("qemu-img", "problem", text, "install the package qemu-utils")


def _version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _drive(pc: ThisPc) -> Finding:
    if pc.drive_why:
        return Finding("drive", "problem", pc.drive_why, "without a drive no machine starts from its backup")
    return Finding("drive", "ok", "a drive can be mounted")


def _virtualisation(pc: ThisPc) -> Finding:
    if pc.accelerator == "kvm":
        return Finding("virtualisation", "ok", "KVM runs machines at full speed")
    text = f"{pc.kvm_why}: the machine is emulated, several times slower"
    return Finding("virtualisation", "warn", text, pc.kvm_advice)


def _firmware(machine: Machine, pc: ThisPc, variables: int | None) -> Iterator[Finding]:
    if machine.firmware == "bios":
        yield Finding("firmware", "ok", "a BIOS, which QEMU brings")
        return
    kind = "UEFI with secure boot" if machine.secure_boot else "UEFI"
    there = pc.secure_variables if machine.secure_boot else pc.variables
    if there is None:
        text = f"it starts by {kind}, and there is no such firmware here"
        yield Finding("firmware", "problem", text, "install the package ovmf")
        return
    yield Finding("firmware", "ok", f"{kind} is there")
    if variables is not None and variables != there:
        text = f"the machine's UEFI variables are {variables} bytes, this computer's UEFI has {there}"
        advice = "it starts with new ones: its boot entry may have to be made anew in the firmware's menu"
        yield Finding("uefi variables", "warn", text, advice)


def _memory(machine: Machine, pc: ThisPc) -> Finding:
    needs = machine.memory + BESIDE
    text = f"it has {_gib(machine.memory)}; this PC has {_gib(pc.memory)}, {_gib(pc.memory_free)} of it free"
    less = min(default_memory(pc.memory), max(pc.memory_free - BESIDE, 0) // MIB * MIB)
    advice = f"start it with --memory {less // MIB}MiB, if that is enough for its guest"
    if less < LEAST_MEMORY:
        advice = "free some, or take a larger PC"
    if needs > pc.memory:
        return Finding("memory", "problem", text, advice)
    if needs > pc.memory_free:
        return Finding("memory", "warn", text, f"end other programs, or {advice}")
    return Finding("memory", "ok", text)


def _processors(machine: Machine, pc: ThisPc) -> Finding:
    text = f"it has {machine.cpus}, this PC {pc.cpus}"
    if machine.cpus > pc.cpus:
        advice = f"it runs slower than it did; --cpus {pc.cpus} spares switching between them"
        return Finding("processors", "warn", text, advice)
    return Finding("processors", "ok", text)


def _overlay(pc: ThisPc) -> Finding:
    text = f"{_gib(pc.free)} are free in {pc.folder} for what the machine writes"
    if pc.free < ROOM:
        return Finding("disk", "problem", text, "free some: the machine would pause at once")
    if pc.free < OVERLAY:
        return Finding("disk", "warn", text, "free some: the machine pauses when it is full")
    return Finding("disk", "ok", text)


def _copy(pc: ThisPc, copy_bytes: int) -> Finding:
    text = f"complete copies take {_gib(copy_bytes)}; {_gib(pc.copy_free)} are free in {pc.copy_folder}"
    same = pc.copy_folder == pc.folder
    if copy_bytes + (OVERLAY if same else 0) > pc.copy_free:
        advice = "the machine runs without; for a copy name a larger disk with --hydrate-to"
        return Finding("hydration", "warn", text, advice)
    return Finding("hydration", "ok", text)


def _disks(machine: Machine) -> Iterator[Finding]:
    if not any(disk.bootable for disk in machine.disks):
        text = "none of its disks looks like one that starts a machine"
        yield Finding("disks", "warn", text, "perhaps the disk that does is in another snapshot")
    if not all(pauses(disk.bus) for disk in machine.disks):
        text = "a disk hangs on NVMe: a link lost for 10 s is an I/O error for its guest, no pause"
        yield Finding("disks", "warn", text, "--bus ide or virtio, where its guest starts from that")


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"
