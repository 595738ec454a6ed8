"""What a machine must have been, by looking at its disks.

Decided here and only here: which disk starts it, by which firmware, and whether it looks like Windows.
Stateless; reads the partition tables, which lie in the first and last frames of the disks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
