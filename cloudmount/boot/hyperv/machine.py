"""A machine as Hyper-V has it: generation, controllers, names; and what it can't have.

Decided here and only here: how a `Machine` becomes one of Hyper-V's, on which controller each disk hangs,
which names are replaced, and the table of `boot.ps1`. Pure. The limits are those of Microsoft's
documentation: generation 1 starts from IDE only, which has four places and no sectors of 4096 bytes; a SCSI
controller has 64 places, and a machine four of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cloudmount.boot.hyperv.literals import Value, literal
from cloudmount.boot.machine import MIB, Machine
from cloudmount.errors import CloudMountError
from cloudmount.system import windows_refuses

Via = Literal["drive", "local"]
VIAS: tuple[Via, ...] = ("drive", "local")
COPIES = "copies"
"""The folder of complete local copies beside the script, as `hydrate --to` fills it."""

_IDE_PLACES = 4
_SCSI_PLACES = 64
_SCSI_CONTROLLERS = 4
_LEAST_MEMORY = 32 * MIB
_MEMORY_STEP = 2 * MIB
_MOST_NIC = 8
_LONGEST_NAME = 80
_UNSAFE = re.compile('[\\x00-\\x1f\\x7f-\\x9f<>:"/\\\\|?*\\[\\]`$\\u2028\\u2029\\ud800-\\udfff]')
"""What Windows' names can't hold, what cmdlets may take for a pattern, and what no screen shows."""


def safe_name(text: str) -> str:
    """`text` as a name that Windows and Hyper-V take for a file, folder or VM: what they don't is `_`."""
    name = _UNSAFE.sub("_", text)[:_LONGEST_NAME].strip(" .")
    return f"_{name}" if windows_refuses(name) is not None else name


@dataclass(frozen=True, slots=True)
class Place:
    """Where a disk hangs."""

    controller: Literal["IDE", "SCSI"]
    number: int
    location: int


@dataclass(frozen=True, slots=True)
class NamedDisk:
    """A disk of a snapshot: `path` is its place on the drive without ending."""

    path: str
    logical_sector: int
    bootable: bool


@dataclass(frozen=True, slots=True)
class HypervMachine:
    """A machine to be made by `boot.ps1`. `snapshot`: `MACHINE/SNAPSHOT`."""

    snapshot: str
    machine: Machine
    disks: tuple[NamedDisk, ...]
    windows: bool

    @property
    def name(self) -> str:
        """The VM's."""
        return safe_name(self.snapshot.replace("/", " "))

    @property
    def generation(self) -> int:
        """Of Hyper-V's machines: 2 has a UEFI, 1 a BIOS."""
        return 2 if self.machine.firmware == "uefi" else 1

    @property
    def first(self) -> int:
        """The number of the disk that starts it."""
        return next((n for n, disk in enumerate(self.disks) if disk.bootable), 0)

    def places(self) -> list[Place]:
        """Where each disk hangs. `CloudMountError` when Hyper-V can't have it so."""
        ide, scsi = self._split()
        if len(scsi) > _SCSI_PLACES * _SCSI_CONTROLLERS:
            most = _SCSI_PLACES * _SCSI_CONTROLLERS
            raise CloudMountError(f"{self.snapshot} has {len(self.disks)} disks; Hyper-V takes {most}")
        found = {n: Place("IDE", *divmod(at, 2)) for at, n in enumerate(ide)}
        found |= {n: Place("SCSI", *divmod(at, _SCSI_PLACES)) for at, n in enumerate(scsi)}
        return [found[n] for n in range(len(self.disks))]

    def _split(self) -> tuple[list[int], list[int]]:
        """The numbers of the disks on IDE and on SCSI."""
        numbers = list(range(len(self.disks)))
        if self.generation == 2:
            return [], numbers
        first = self.first
        if self.disks[first].logical_sector != 512:
            raise CloudMountError(
                f"{self.disks[first].path!r} starts by a BIOS and has sectors of "
                f"{self.disks[first].logical_sector} bytes: Hyper-V's generation 1 starts from IDE only, "
                "which has none such. 'cloudmount boot' (QEMU, on Linux) can"
            )
        order = [first] + [n for n in numbers if n != first]
        ide = [n for n in order if self.disks[n].logical_sector == 512][:_IDE_PLACES]
        return ide, [n for n in numbers if n not in ide]


def table(
    made: HypervMachine,
    *,
    via: Via,
    program: str,
    version: str,
    proved_host: str,
) -> dict[str, Value]:
    """The table of `boot.ps1`. `proved_host`: the only computer on which it may start from the drive; empty:
    any. The paths in it are relative: to the drive, or to the script's folder."""
    hardware = made.machine
    memory = -(-max(hardware.memory, _LEAST_MEMORY) // _MEMORY_STEP) * _MEMORY_STEP
    disks: list[Value] = []
    for number, (disk, place) in enumerate(zip(made.disks, made.places(), strict=True)):
        file = f"{made.snapshot}/{disk.path}.vhdx".replace("/", "\\")
        leaf = disk.path.rpartition("/")[2]
        disks.append(
            {
                "Drive": file,
                "Copy": f"{COPIES}\\{file}",
                "Child": f"disks\\{number + 1}-{safe_name(leaf)}.vhdx",
                "Controller": place.controller,
                "Number": place.number,
                "Location": place.location,
                "Starts": number == made.first,
            }
        )
    return {
        "Version": version,
        "Via": via,
        "VmName": made.name,
        "Notes": f"{made.snapshot}, from its backup by CloudMount; its disks lie beside its script",
        "Hydrate": f"cloudmount hydrate {literal(made.snapshot)} --to",
        "Program": program,
        "ProvedHost": proved_host,
        "Generation": made.generation,
        "SecureBoot": hardware.secure_boot and made.generation == 2,
        "SecureBootTemplate": "MicrosoftWindows" if made.windows else "MicrosoftUEFICertificateAuthority",
        "Memory": memory,
        "Processors": hardware.cpus,
        "MacAddresses": [mac.replace(":", "") for mac in hardware.macs[:_MOST_NIC]],
        "Disks": disks,
    }
