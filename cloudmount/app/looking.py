"""What a machine must have been, by looking at its disks.

Decided here and only here: which disk starts it, by which firmware, in which order they are, and whether it
looks like Windows.
Stateless; reads the partition tables, which lie in the first and last frames of the disks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloudmount.app.machinefile import Hardware, is_called
from cloudmount.boot.machine import Firmware
from cloudmount.disks.partitions import BIOS_BOOT, ESP, PartitionTable, read_partitions
from cloudmount.tree.snapshotdir import StoredDisk

_MICROSOFT_RESERVED = "e3c9e316-0b5c-4db8-817d-f92df00215ae"
_NTFS = "0x07"
_MBR_ESP = "0xef"


@dataclass(frozen=True, slots=True)
class Look:
    """A disk's outside. `boots`: the firmware that it starts by, None when it does not look like one that
    starts a machine. `windows`: whether Windows is on it."""

    boots: Firmware | None
    windows: bool


def look_at(disk: StoredDisk) -> Look:
    """Look at a disk's partition table."""
    content = disk.content()
    try:
        return by_table(read_partitions(content, int(disk.summary["logical_sector"])))
    finally:
        content.close()


def by_table(table: PartitionTable) -> Look:
    """What a partition table tells: an EFI system partition means UEFI; a BIOS starts what has a partition
    for that, or an active one; an EFI partition in an MBR counts where none is active."""
    types = {p.type for p in table.partitions}
    active = [p for p in table.partitions if p.active] if table.kind == "mbr" else []
    windows = _MICROSOFT_RESERVED in types or any(p.type == _NTFS for p in active)
    if (table.kind == "gpt" and ESP in types) or (table.kind == "mbr" and not active and _MBR_ESP in types):
        return Look("uefi", windows)
    return Look("bios" if active or BIOS_BOOT in types else None, windows)


def firmware(looks: Sequence[Look]) -> Firmware:
    """That of the first disk which starts a machine; BIOS, which tries any disk, where none looks so."""
    return next((look.boots for look in looks if look.boots is not None), "bios")


def firmware_of(kept: Hardware, looks: Sequence[Look]) -> Firmware:
    """What the machine's file says; secure boot and variables are a UEFI's; else as its disks tell."""
    needs_uefi = kept.secure_boot or kept.nvram is not None
    return kept.firmware or ("uefi" if needs_uefi else firmware(looks))


def in_order(disks: list[StoredDisk], kept: Hardware) -> list[StoredDisk]:
    """The disks that the machine's file names, in its order, then the others."""
    named = [next((d for d in disks if is_called(d.path, name)), None) for name, _ in kept.disks]
    first = list(dict.fromkeys(d for d in named if d is not None))
    return first + [d for d in disks if d not in first]
