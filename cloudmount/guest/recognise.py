"""What fills a partition, and whether its files can be shown.

Decided here and only here: which file systems are read and by which parser, and what is said of the others.
Reads a few KiB through our own code (`disks.signatures`); no library sees a byte before. Pure; safe on any
thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloudmount.disks.partitions import Partition
from cloudmount.disks.signatures import file_system
from cloudmount.extents import BlockSource
from cloudmount.guest import ext_inode

_FAT12_BELOW, _FAT16_BELOW = 4085, 65525
"""Clusters: what tells the three kinds apart (Microsoft, FAT32 File System Specification, 1.03)."""

_SHOWN = {
    "ntfs": "NTFS", "fat12": "FAT12", "fat16": "FAT16", "fat32": "FAT32", "ext2": "ext2", "ext3": "ext3",
    "ext4": "ext4", "exfat": "exFAT", "refs": "ReFS", "bitlocker": "BitLocker (encrypted by Windows)",
    "luks": "LUKS (encrypted by Linux)", "lvm": "LVM (Linux logical volumes)", "xfs": "XFS", "btrfs": "btrfs",
    "swap": "Linux swap space", "raid": "Linux software RAID", "zfs": "ZFS", "apfs": "APFS", "hfs+": "HFS+",
    "hfsx": "HFS+", "f2fs": "F2FS", "jfs": "JFS", "reiserfs": "ReiserFS", "squashfs": "SquashFS",
    "iso9660": "ISO 9660", "udf": "UDF", "vmfs": "VMFS",
}  # fmt: skip
_BY_TYPE = {
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "a Windows dynamic disk (LDM)",
    "af9b60a0-1431-4f62-bc68-3311714a69ad": "a Windows dynamic disk (LDM)",
    "0x42": "a Windows dynamic disk (LDM)",
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": "Windows Storage Spaces",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "a partition that Windows reserves for itself, without files",
    "21686148-6449-6e6f-744e-656564454649": "a boot loader's partition, without files",
}


@dataclass(frozen=True, slots=True)
class Recognised:
    """`what`: in words. `parser`: what reads it ("ntfs", "fat12", ..., "ext4"), None when nothing does."""

    what: str
    parser: str | None
    name: str | None = None
    """In one short word, for who has no label ("NTFS", "BitLocker"); None when it isn't known."""


def recognise(source: BlockSource, partition: Partition | None = None) -> Recognised:
    """What is in a partition's bytes; `partition` tells its type when they say nothing."""
    if partition is not None and partition.type in _BY_TYPE:
        return Recognised(_BY_TYPE[partition.type], None, partition.type_name)
    found = file_system(source)
    if found == "ext":
        return _ext(source)
    if found == "fat":
        return _fat(source)
    if found is None:
        kind = "no type" if partition is None else f"partition type {partition.type_name}"
        return Recognised(f"nothing that is known ({kind})", None)
    what = _SHOWN.get(found, found)
    return Recognised(what, "ntfs" if found == "ntfs" else None, what.split(" (")[0])


def _ext(source: BlockSource) -> Recognised:
    raw = source.read_at(ext_inode.SUPERBLOCK_AT, min(ext_inode.SUPERBLOCK_LENGTH, source.size - 1024))
    try:
        about = ext_inode.superblock(raw)
    except ValueError as error:
        return Recognised(str(error), None, "ext")
    if about.unknown is not None:
        return Recognised(
            f"{about.type} with features that are not known here ({about.unknown})", None, about.type
        )
    return Recognised(about.type, about.type, about.type)


def _fat(source: BlockSource) -> Recognised:
    boot = source.read_at(0, 512)

    def number(at: int, width: int) -> int:
        return int.from_bytes(boot[at : at + width], "little")

    sector = number(11, 2)
    roots = -(-number(17, 2) * 32 // sector)
    tables = boot[16] * (number(22, 2) or number(36, 4))
    clusters = ((number(19, 2) or number(32, 4)) - number(14, 2) - tables - roots) // boot[13]
    if clusters < 1:
        return Recognised("a FAT file system that makes no sense", None, "FAT")
    bits = 12 if clusters < _FAT12_BELOW else 16 if clusters < _FAT16_BELOW else 32
    return Recognised(_SHOWN[f"fat{bits}"], f"fat{bits}", f"FAT{bits}")
