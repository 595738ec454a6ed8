"""What a virtual machine is made of, whatever runs it.

Decided here and only here: the parts that can be said of a machine, and what is taken for those that nobody
said: how much memory and how many processors of this computer, and which bus a disk hangs on. Pure but for
the look at this computer; immutable.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

Firmware = Literal["bios", "uefi"]
Bus = Literal["ide", "sata", "virtio", "sas", "nvme"]
Network = Literal["none", "user"]
FIRMWARES: tuple[Firmware, ...] = ("bios", "uefi")
BUSES: tuple[Bus, ...] = ("ide", "sata", "virtio", "sas", "nvme")
NETWORKS: tuple[Network, ...] = ("none", "user")

MIB = 1 << 20
MOST_MEMORY = 4096 * MIB
LEAST_MEMORY = 512 * MIB
MOST_CPUS = 4
IDE_DISKS = 4


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk to be attached; `path` is its raw image: relative to the VM's folder (on the drive), or
    absolute (a disk of this computer's).

    `size` and sectors in bytes. `bootable`: whether it looks like one that starts the machine. `overlay`:
    whether what the guest writes goes into an overlay, and the image is only read; else it goes into the
    image.
    """

    path: str
    size: int
    logical_sector: int = 512
    physical_sector: int = 512
    bus: Bus = "ide"
    bootable: bool = False
    overlay: bool = True

    @property
    def is_local(self) -> bool:
        """Whether it is read from this computer, and from nowhere else."""
        return os.path.isabs(self.path)


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine; `memory` in bytes, disks in the order in which they are attached."""

    firmware: Firmware
    memory: int
    cpus: int
    disks: tuple[Disk, ...]
    network: Network = "none"
    macs: tuple[str, ...] = ()
    """Hardware addresses of its network cards, one card each; none: one card with any."""
    secure_boot: bool = False
    local_clock: bool = False
    """Its clock shows local time, as Windows expects; else UTC."""


def default_bus(number: int, logical_sector: int, windows: bool) -> Bus:
    """The bus of disk `number` (from 0) when nobody said one.

    IDE is what every system starts from without drivers added: Windows of any version, Linux, and kernels
    made for clouds, which have no AHCI; it takes four disks of 512-byte sectors. Further ones hang on SATA.
    IDE and SATA can't have sectors of 4096 bytes: virtio does, or NVMe for Windows, which has no driver for
    virtio. Not SAS (LSI's, as of VMware's machines): OVMF as Debian builds it does not see its disks.
    """
    if logical_sector != 512:
        return "nvme" if windows else "virtio"
    return "ide" if number < IDE_DISKS else "sata"


def pauses(bus: Bus) -> bool:
    """Whether a machine can wait for a disk on this bus. QEMU 7.2 can't stop for an NVMe one: what fails
    fails in the guest."""
    return bus != "nvme"


def memory_here() -> int:
    """Bytes of this computer's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 2 * MOST_MEMORY


def default_memory(there: int | None = None) -> int:
    """4 GiB, or half of a computer's memory (this one's, unless told) where that is less."""
    there = memory_here() if there is None else there
    return max(LEAST_MEMORY, min(MOST_MEMORY, there // 2)) // MIB * MIB


def default_cpus(there: int | None = None) -> int:
    """As many as a computer (this one, unless told) has, at most four."""
    return min(MOST_CPUS, there or os.cpu_count() or 1)
