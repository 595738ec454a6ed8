"""The virtual machines of this machine's user: what is recorded of each, and which one a user means.

Decided here and only here: where a VM's folder lies (`$XDG_STATE_HOME/cloudmount/vms/NAME`), its two
records (`vm.json`: what it is; `state.json`: how it is, written by its process), and when a record is
stale: its process is gone. Files are replaced atomically, `vm.json` durably too. Safe on any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cloudmount.app.places import state_folder
from cloudmount.boot.accelerator import Accelerator
from cloudmount.boot.folder import VmFolder
from cloudmount.boot.machine import Disk, Machine
from cloudmount.boot.running import FAILED, POWERED_OFF, STOPPED
from cloudmount.errors import CloudMountError, NotFoundError, TargetExistsError
from cloudmount.mounts.mountpoints import detach, mounted_at
from cloudmount.mounts.records import start_time
from cloudmount.reader.filelock import locked_file
from cloudmount.reader.sidecar import sidecar_path
from cloudmount.system import KILL, sync_folder

STARTING = "starting"
KILLED = "its process was killed"
_DEFINITION, _STATE, _LOCK = "vm.json", "state.json", "lock"
_PATIENCE = 10.0
_LOOK_SECONDS, _END_SECONDS = 0.2, 0.05
_LONGEST = 180
"""Bytes of a machine's name in that of its VM: folders have names of 255 at most."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a VM is: the snapshot it came from, and its machine."""

    name: str
    machine: str
    snapshot: str
    """The snapshot's folder on the drive."""
    snapshot_id: str
    repo_id: str
    repository: str
    hardware: Machine
    hydrate_to: str | None = None
    """Where its disks are completed, to be given over to them."""
    ready: str | None = None
    """As in `backup --machine`; kept from when it is needed without the repository."""

    @property
    def is_local(self) -> bool:
        """Whether its disks are on this computer, and it needs no repository any more."""
        return all(disk.is_local for disk in self.hardware.disks)


class State(NamedTuple):
    """How a VM is. Processes by their id and start (`records.start_time`); times are ISO 8601."""

    pid: int
    started: int
    qemu_pid: int
    qemu_started: int
    accelerator: Accelerator
    state: str
    stage: str
    since: str
    """When it was switched on."""
    ready: str | None
    seconds_to_ready: float | None
    fetched_bytes: int
    reads: int
    hydration: str = ""
    """What goes on with its disks' copies; empty: nothing."""
    done_bytes: int = 0
    total_bytes: int = 0
    """Of those copies."""
    ready_by: str = ""
    """What told that it was ready (`running.Moment`)."""


class Vm:
    """A VM in its folder."""

    def __init__(self, definition: Definition, folder: VmFolder) -> None:
        self.definition, self.folder = definition, folder

    @property
    def name(self) -> str:
        """What it is called."""
        return self.definition.name

    @property
    def state(self) -> State | None:
        """How it is, as its process wrote it last; None before it did."""
        try:
            return State(**json.loads((self.folder.path / _STATE).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        state = self.state
        return state is not None and start_time(state.pid) == state.started

    def claim(self) -> int | None:
        """Have it for this process alone, until the file that is given is closed; None when another has."""
        return locked_file(self.folder.path / _LOCK)

    def write_state(self, state: State) -> None:
        """Enter how it is; on a full disk in the place that it had. Where that fails too only it is lost."""
        file = self.folder.path / _STATE
        try:
            _write(file, state._asdict())
        except OSError:
            with contextlib.suppress(OSError), file.open("r+b") as old:
                old.write(json.dumps(state._asdict()).encode())
                old.truncate()

    def write_definition(self) -> None:
        """Enter what it is; on the disk when this returns."""
        self.prepare_definition(self.definition)
        self.enter_prepared()

    def prepare_definition(self, definition: Definition) -> None:
        """Have on the disk what `enter_prepared` enters."""
        with _part(self.folder.path / _DEFINITION).open("w") as file:
            file.write(json.dumps(asdict(definition), indent=1))
            file.flush()
            os.fsync(file.fileno())

    def enter_prepared(self) -> None:
        """Enter what was prepared: it needs no room, and is on the disk when this returns. May be called
        again when that failed."""
        file = self.folder.path / _DEFINITION
        if _part(file).exists():
            os.replace(_part(file), file)
        sync_folder(os.fspath(self.folder.path))

    def clear(self) -> None:
        """End what a process that was killed left behind: its drive, and QEMU."""
        state = self.state
        if state is not None and state.qemu_pid and start_time(state.qemu_pid) == state.qemu_started:
            with contextlib.suppress(OSError):
                os.kill(state.qemu_pid, KILL)
        self.clear_drive()

    def clear_drive(self) -> None:
        """Take its drive down, used or not."""
        path = str(self.folder.drive)
        while (found := mounted_at(path)) is not None and found.ours:
            why = detach(path, lazy=True)
            if why is not None:
                raise CloudMountError(f"{path} can't be cleared: {why}")

    def delete(self) -> None:
        """Remove it with all that its guest wrote. It must not run."""
        self.clear()
        for path in self.half_merged:
            Path(path).unlink(missing_ok=True)
        shutil.rmtree(self.folder.path, ignore_errors=True)
        if self.folder.path.exists():
            raise CloudMountError(f"{self.folder.path} can't be removed entirely")

    @property
    def half_merged(self) -> list[str]:
        """Local disks that may hold a part of what their overlays do: of no use without those."""
        disks = self.definition.hardware.disks
        there = [disk.path for disk in disks if disk.is_local and disk.overlay]
        return [path for path in there if not sidecar_path(Path(path)).exists()]

    @property
    def local_disks(self) -> list[str]:
        """Local disks that are all there is of what the guest wrote."""
        return [disk.path for disk in self.definition.hardware.disks if not disk.overlay]

    def told(self) -> dict[str, Any]:
        """As in `vms` and `status`."""
        d, state = self.definition, self.state
        return {
            "vm": d.name,
            "snapshot": f"{d.machine}/{d.snapshot}",
            "repository": d.repository,
            "state": self.state_text,
            "stage": state.stage if state else None,
            "pid": state.pid if state and self.alive else None,
            "accelerator": state.accelerator if state else None,
            "since": state.since if state else None,
            "ready": state.ready if state else None,
            "seconds_to_ready": state.seconds_to_ready if state else None,
            "written_bytes": self.folder.written_bytes(),
            "fetched_bytes": state.fetched_bytes if state else 0,
            "reads": state.reads if state else 0,
            "local": d.is_local,
            "local_disks": self.local_disks,
            "hydration": self._hydration(state),
            "folder": str(self.folder.path),
            "serial_log": str(self.folder.serial_log),
            "screen": str(self.folder.screen),
        }

    def _hydration(self, state: State | None) -> dict[str, Any] | None:
        if state is None or not state.hydration or not self.alive:
            return None
        return {
            "state": state.hydration,
            "done_bytes": state.done_bytes,
            "total_bytes": state.total_bytes,
        }

    @property
    def state_text(self) -> str:
        """How it is, in words."""
        state = self.state
        if state is None:
            return "never started"
        return state.state if is_final(state.state) or self.alive else KILLED

    def looks(self) -> Iterator[tuple[State | None, str]]:
        """How it is, and that in words: now, and every 0.2 s for as long as is asked."""
        while True:
            yield self.state, self.state_text
            time.sleep(_LOOK_SECONDS)

    def ended(self, seconds: float) -> bool:
        """Whether its process is gone; waits for that, so long at most."""
        until = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > until:
                return False
            time.sleep(_END_SECONDS)
        return True


def is_final(state: str) -> bool:
    """Whether the state's machine is off."""
    return state in (POWERED_OFF, STOPPED, KILLED) or state.startswith(FAILED)


def _part(file: Path) -> Path:
    return file.with_suffix(".part")


def _write(file: Path, value: object) -> None:
    part = _part(file)
    part.write_text(json.dumps(value, indent=1))
    os.replace(part, file)


def vms_folder(environ: Mapping[str, str]) -> Path:
    """Where all of them lie; links followed, as mount points are told."""
    return Path(os.path.realpath(state_folder(environ))) / "vms"


def all_vms(environ: Mapping[str, str] = os.environ) -> list[Vm]:
    """Every VM of this user's here, sorted by name."""
    root = vms_folder(environ)
    found = []
    for file in root.glob(f"*/{_DEFINITION}") if root.is_dir() else ():
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found.append(Vm(_definition(json.loads(file.read_text())), VmFolder(file.parent)))
    return sorted(found, key=lambda vm: vm.name)


def _definition(value: dict[str, Any]) -> Definition:
    hardware = dict(value["hardware"])
    hardware["disks"] = tuple(Disk(**disk) for disk in hardware["disks"])
    hardware["macs"] = tuple(hardware["macs"])
    return Definition(**{**value, "hardware": Machine(**hardware)})


def find_vm(text: str, environ: Mapping[str, str] = os.environ) -> Vm:
    """The VM that `text` names: by its own name, its snapshot's, or its machine's if that has only one here.
    `NotFoundError` tells what there is."""
    there = all_vms(environ)
    snapshot = text.removesuffix("/latest")
    for meant in (
        [vm for vm in there if vm.name == text],
        [vm for vm in there if f"{vm.definition.machine}/{vm.definition.snapshot}" == text],
        [vm for vm in there if vm.definition.machine == snapshot],
        [vm for vm in there if len(text) >= 8 and vm.definition.snapshot_id.startswith(text.lower())],
    ):
        if len(meant) == 1:
            return meant[0]
        if meant:
            names = ", ".join(vm.name for vm in meant)
            raise NotFoundError(f"{text!r} has {len(meant)} VMs here: {names}; name one")
    names = ", ".join(vm.name for vm in there) or "none"
    raise NotFoundError(f"there is no VM {text!r} on this machine; there is {names}")


def vm_of(snapshot_id: str, environ: Mapping[str, str]) -> Vm | None:
    """The VM that was made of a snapshot."""
    return next((vm for vm in all_vms(environ) if vm.definition.snapshot_id == snapshot_id), None)


@contextlib.contextmanager
def making_one(environ: Mapping[str, str]) -> Iterator[None]:
    """While the block runs nobody else of this user's makes a VM, so that a snapshot gets only one."""
    root = vms_folder(environ)
    until = time.monotonic() + _PATIENCE
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        while (held := locked_file(root / _LOCK)) is None:
            if time.monotonic() > until:
                raise CloudMountError(f"another 'cloudmount boot' holds {root / _LOCK}; try again")
            time.sleep(0.05)
    except OSError as error:
        raise CloudMountError(f"{root}: no VM can be made: {error.strerror}") from None
    try:
        yield
    finally:
        os.close(held)


def new_folder(machine: str, snapshot: str, environ: Mapping[str, str]) -> VmFolder:
    """A folder for a new VM, made, for its owner only."""
    root = vms_folder(environ)
    short = machine.encode("utf-8", "surrogateescape")[:_LONGEST].decode("utf-8", "ignore")
    name = f"{short}-{snapshot}"
    try:
        for number in range(1, 100):  # another repository's may have the same name
            path = root / (f"{name}-{number}" if number > 1 else name)
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
                return VmFolder(path)
    except OSError as error:
        raise CloudMountError(f"{root}: no folder for a VM can be made: {error.strerror}") from None
    raise TargetExistsError(f"{root} has too many folders called {name}")
