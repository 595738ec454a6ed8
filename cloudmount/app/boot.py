"""Booting: a snapshot's disks, mounted for one VM alone, overlays over them, and the machine started.

Decided here and only here: how a VM is made of a snapshot, what of it may be said anew when it goes on, and
that its drive gives up a read after at most 10 s: the machine pauses then, well before a guest's own
patience ends.

A VM whose disks are on this computer needs none of it: it goes on without its repository.

`boot` belongs to the main thread of a process and is its last job, as `mount` is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cloudmount.app.handover import check_local
from cloudmount.app.looking import firmware_of, in_order, look_at
from cloudmount.app.machinefile import Hardware, hardware_of, is_called
from cloudmount.app.mount import OpenedDrive, opened_drive
from cloudmount.app.places import state_folder
from cloudmount.app.select import Selected, select
from cloudmount.app.vmrun import Away, VmRun
from cloudmount.app.vms import Definition, Vm, find_vm, making_one, new_folder, vm_of
from cloudmount.boot.accelerator import Trial
from cloudmount.boot.firmware import give_variables
from cloudmount.boot.folder import DRIVE, VARS
from cloudmount.boot.machine import (
    Bus,
    Disk,
    Firmware,
    Machine,
    Network,
    default_bus,
    default_cpus,
    default_memory,
    pauses,
)
from cloudmount.boot.qemu import create_overlay
from cloudmount.boot.readiness import pattern
from cloudmount.errors import NotFoundError, TargetExistsError
from cloudmount.tree.images import image_name
from cloudmount.tree.snapshotdir import StoredDisk

IO_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class BootOptions:
    """What was asked for; None: as the machine was, or as is usual. `memory` in bytes."""

    memory: int | None = None
    cpus: int | None = None
    network: Network | None = None
    bus: Bus | None = None
    firmware: Firmware | None = None
    ready: str | None = None
    hydrate_to: Path | None = None


def log_file(environ: Mapping[str, str] = os.environ) -> Path:
    """What the processes of VMs write to."""
    return state_folder(environ) / "boot.log"


def boot(
    address: str,
    passphrase: str,
    text: str,
    options: BootOptions,
    *,
    resume: bool = False,
    began: float | None = None,
    bandwidth: tuple[float | None, float | None] = (None, None),
    up: Callable[[Vm], None],
    tell: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Start the VM of the snapshot `text` and serve its disks until it is off; `up` is told when it was
    switched on. With `resume`, `text` names a VM that there is, and its overlays are used; `address` and
    `passphrase` are not needed when it is local.

    `began`: when its user began to wait, in `time.monotonic`. `TargetExistsError` when the snapshot has a VM
    already, or the one to be resumed runs.
    """
    began = time.monotonic() if began is None else began
    with contextlib.ExitStack() as held:
        trial = Trial()
        held.callback(trial.close)
        there = find_vm(text, environ) if resume else None
        if there is not None:
            _claim(there, held)
            there = find_vm(there.name, environ)  # as whoever had it left it
        if there is not None and there.definition.is_local:
            vm, away, words = _here(there, options, tell), None, there.definition.ready
        else:
            hydrate_to = options.hydrate_to
            if hydrate_to is None and there is not None and there.definition.hydrate_to is not None:
                hydrate_to = Path(there.definition.hydrate_to)
            drive = contextlib.ExitStack()
            held.callback(drive.close)
            opened = drive.enter_context(
                opened_drive(
                    address,
                    passphrase,
                    io_timeout=IO_TIMEOUT,
                    bandwidth=bandwidth,
                    hydrate_to=hydrate_to,
                    hydrate_form="raw",
                    tell=tell,
                    environ=environ,
                )
            )

            def leave() -> None:
                drive.close()
                opened.store.close()

            if there is not None:
                vm, disks, kept = _again(there, opened, options, tell)
            else:
                selected = select(opened.repository, text, environ)
                vm, disks, kept = _made(opened, selected, options, held, tell, environ)
            away, words = Away(opened, disks, leave), kept.ready
        words = options.ready if options.ready is not None else words
        ready = pattern(words) if words is not None else None
        run = VmRun(vm, away, trial.result(), ready, began)
        try:
            run.until_off(up, tell)
        except BaseException:
            if there is None and not run.is_up:
                with contextlib.suppress(Exception):
                    vm.delete()  # nothing of a guest's is in it
            raise


class _Made(NamedTuple):
    """A VM, its disks in the order in which they are attached, and what its machine's file said."""

    vm: Vm
    disks: list[StoredDisk]
    kept: Hardware


def _claim(vm: Vm, held: contextlib.ExitStack) -> None:
    """Have a VM for this process alone; what a killed one left is cleared."""
    lock = vm.claim()
    if lock is None:
        raise TargetExistsError(f"{vm.name} is on; 'cloudmount stop {vm.name}' switches it off")
    held.callback(os.close, lock)
    vm.clear()


def _again(vm: Vm, opened: OpenedDrive, options: BootOptions, tell: Callable[[str], None]) -> _Made:
    """A VM that there is, with what is asked for anew."""
    d = vm.definition
    if opened.repository.config.repo_id != d.repo_id:
        raise NotFoundError(f"{vm.name} is of another repository, that of {d.repository}: give it by --repo")
    selected = select(opened.repository, f"{d.machine}/{d.snapshot}")
    if selected.snapshot.id != d.snapshot_id:
        selected = select(opened.repository, d.snapshot_id)
    kept = hardware_of(selected.snapshot.summary)
    vm = _asked_anew(vm, options)
    kind = vm.definition.hardware.firmware
    hardware = dataclasses.replace(vm.definition.hardware, secure_boot=kept.secure_boot and kind != "bios")
    vm.definition = dataclasses.replace(vm.definition, hardware=hardware, ready=kept.ready)
    _tell_what_fails(vm, tell)
    _complete(vm, kept, tell)
    vm.write_definition()
    return _Made(vm, in_order(opened.drive.opened(selected.snapshot).disks, kept), kept)


def _here(vm: Vm, options: BootOptions, tell: Callable[[str], None]) -> Vm:
    """A VM whose disks are on this computer, with what is asked for anew."""
    if options.hydrate_to is not None:
        tell(f"{vm.name} has its disks on this computer already: --hydrate-to has nothing to do")
        options = dataclasses.replace(options, hydrate_to=None)
    check_local(vm, tell)
    vm = _asked_anew(vm, options)
    _tell_what_fails(vm, tell)
    _complete(vm, Hardware(), tell)
    vm.write_definition()
    return vm


def _asked_anew(vm: Vm, options: BootOptions) -> Vm:
    d, old = vm.definition, vm.definition.hardware
    kind = options.firmware or old.firmware
    hardware = dataclasses.replace(
        old,
        firmware=kind,
        secure_boot=old.secure_boot and kind != "bios",
        memory=options.memory or old.memory,
        cpus=options.cpus or old.cpus,
        network=options.network or old.network,
        disks=tuple(dataclasses.replace(disk, bus=options.bus or disk.bus) for disk in old.disks),
    )
    to = os.fspath(options.hydrate_to) if options.hydrate_to is not None else d.hydrate_to
    return Vm(dataclasses.replace(d, hardware=hardware, hydrate_to=to), vm.folder)


def _made(
    opened: OpenedDrive,
    selected: Selected,
    options: BootOptions,
    held: contextlib.ExitStack,
    tell: Callable[[str], None],
    environ: Mapping[str, str],
) -> _Made:
    """A new VM."""
    snapshot = selected.snapshot
    kept = hardware_of(snapshot.summary)
    disks = in_order(opened.drive.opened(snapshot).disks, kept)
    if not disks:
        raise NotFoundError(f"{snapshot.machine}/{selected.folder} has no disks to start a machine from")
    _check_free(snapshot.id, environ)
    hardware = machine_of(disks, options, kept)
    with making_one(environ):
        _check_free(snapshot.id, environ)
        folder = new_folder(snapshot.machine, selected.folder, environ)
        vm = Vm(
            Definition(
                folder.path.name,
                snapshot.machine,
                selected.folder,
                snapshot.id,
                opened.repository.config.repo_id,
                opened.store.address,
                hardware,
                os.fspath(options.hydrate_to) if options.hydrate_to is not None else None,
                kept.ready,
            ),
            folder,
        )
        try:
            lock = vm.claim()
            assert lock is not None
            held.callback(os.close, lock)
            _tell_what_fails(vm, tell)
            _complete(vm, kept, tell)
            vm.write_definition()
        except BaseException:
            vm.delete()
            raise
    return _Made(vm, disks, kept)


def _check_free(snapshot_id: str, environ: Mapping[str, str]) -> None:
    vm = vm_of(snapshot_id, environ)
    if vm is not None:
        raise TargetExistsError(
            f"this snapshot has a VM already, {vm.name} ({vm.state_text}): "
            f"'cloudmount boot --resume {vm.name}' goes on with it, "
            f"'cloudmount stop --delete {vm.name}' removes it with all it wrote"
        )


def machine_of(disks: list[StoredDisk], options: BootOptions, kept: Hardware) -> Machine:
    """The machine that is made of a snapshot's disks (`in_order`): as asked for, else as its file said, else
    as is usual."""
    looks = [look_at(disk) for disk in disks]
    windows = any(look.windows for look in looks)
    attached = []
    for number, (disk, look) in enumerate(zip(disks, looks, strict=True)):
        said = next((bus for name, bus in kept.disks if is_called(disk.path, name)), None)
        logical, physical = int(disk.summary["logical_sector"]), int(disk.summary["physical_sector"])
        attached.append(
            Disk(
                f"{DRIVE}/{image_name(number)}",
                int(disk.summary["size"]),
                logical,
                physical,
                options.bus or said or default_bus(number, logical, windows),
                look.boots is not None,
            )
        )
    kind = options.firmware or firmware_of(kept, looks)
    return Machine(
        kind,
        options.memory or kept.memory or default_memory(),
        options.cpus or kept.cpus or default_cpus(),
        tuple(attached),
        options.network or "none",
        kept.macs,
        secure_boot=kept.secure_boot and kind != "bios",
        local_clock=kept.clock == "local" if kept.clock is not None else windows,
    )


def _tell_what_fails(vm: Vm, tell: Callable[[str], None]) -> None:
    if not all(pauses(disk.bus) for disk in vm.definition.hardware.disks):
        tell("a disk hangs on NVMe: should the repository not answer for 10 s, its guest sees an I/O error")


def _complete(vm: Vm, kept: Hardware, tell: Callable[[str], None]) -> None:
    """Make what is missing in its folder."""
    hardware, folder = vm.definition.hardware, vm.folder
    for number, disk in enumerate(hardware.disks):
        if disk.overlay and not disk.is_local and not folder.overlay(number).exists():
            create_overlay(folder.overlay(number), str(folder.path / disk.path), disk.size)
    variables = folder.path / VARS
    if hardware.firmware == "uefi" and not variables.exists():
        give_variables(variables, secure_boot=hardware.secure_boot)
        if kept.nvram is not None and len(kept.nvram) == variables.stat().st_size:
            variables.write_bytes(kept.nvram)
        elif kept.nvram is not None:
            tell(
                f"the machine's UEFI variables are {len(kept.nvram)} bytes, this computer's UEFI has "
                f"{variables.stat().st_size}: it starts with new ones"
            )
