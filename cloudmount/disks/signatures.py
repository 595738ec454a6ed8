"""Known file systems and volumes by the marks they carry.

Decided here and only here: which content makes a file a disk when nobody said
so (`cli.md`, "What is a disk"). A mark is at least four bytes, or a boot sector
whose every field makes sense: a camera's `.raw` must not pass. Some thirty
small reads within the first MiB. Pure; safe on any thread.
"""

from __future__ import annotations

from cloudmount.extents import BlockSource

# (name, offset in bytes, mark)
_MARKS: tuple[tuple[str, int, bytes], ...] = (
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("refs", 3, b"ReFS\0\0\0\0"),
    ("bitlocker", 3, b"-FVE-FS-"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("xfs", 0, b"XFSB"),
    ("squashfs", 0, b"hsqs"),
    ("apfs", 32, b"NXSB"),
    ("hfs+", 1024, b"H+\0\x04"),
    ("hfsx", 1024, b"HX\0\x05"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("jfs", 32768, b"JFS1"),
    ("iso9660", 32769, b"CD001"),
    ("udf", 32769, b"BEA01"),
    ("reiserfs", 65536 + 52, b"ReIsEr"),
    ("btrfs", 65536 + 64, b"_BHRfS_M"),
    ("swap", 4096 - 10, b"SWAPSPACE2"),
    ("swap", 65536 - 10, b"SWAPSPACE2"),
    ("raid", 4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0"),
    ("raid", 0, b"\xfc\x4e\x2b\xa9\x01\0\0\0"),
    ("zfs", 131072, b"\x0c\xb1\xba\0\0\0\0\0"),
    ("vmfs", 1024 * 1024, b"\x0d\xd0\x01\xc0"),
)
_BITLOCKER_TO_GO = bytes.fromhex("3bd67449292ed84a8399f6a339e3d001")


def file_system(source: BlockSource) -> str | None:
    """The name of the file system or volume that fills the source from its start; None when unknown."""
    for name, offset, mark in _MARKS:
        if offset + len(mark) <= source.size and source.read_at(offset, len(mark)) == mark:
            return name
    head = source.read_at(0, min(source.size, 4096))
    for sector in range(4):
        label = head[sector * 512 :]
        if label.startswith(b"LABELONE") and label[24:32] == b"LVM2 001":
            return "lvm"
    if _is_ext(head):
        return "ext"
    if _is_fat(head):
        # BitLocker To Go hides behind a FAT32 boot sector
        return "bitlocker" if head[424:440] == _BITLOCKER_TO_GO else "fat"
    return None


def _is_ext(head: bytes) -> bool:
    """An ext2, 3 or 4 superblock at 1 KiB: its magic is two bytes, so its counts are asked as well."""
    if head[1024 + 56 : 1024 + 58] != b"\x53\xef":
        return False
    inodes, blocks = (int.from_bytes(head[at : at + 4], "little") for at in (1024, 1028))
    log_block = int.from_bytes(head[1048:1052], "little")
    revision = int.from_bytes(head[1100:1104], "little")
    return bool(inodes and blocks and log_block <= 6 and revision <= 1)


def _is_fat(head: bytes) -> bool:
    """A FAT12, 16 or 32 boot sector: every field of its BIOS parameter block must make sense."""
    if len(head) < 512 or head[510:512] != b"\x55\xaa" or head[0] not in (0xEB, 0xE9):
        return False

    def number(at: int, width: int) -> int:
        return int.from_bytes(head[at : at + width], "little")

    sector, cluster = number(11, 2), head[13]
    sectors = number(19, 2) or number(32, 4)
    return (
        sector in (512, 1024, 2048, 4096)
        and cluster > 0
        and cluster & (cluster - 1) == 0
        and number(14, 2) > 0  # reserved sectors
        and head[16] in (1, 2)  # FATs
        and (head[21] == 0xF0 or head[21] >= 0xF8)  # media
        and sectors > 0
        and (number(22, 2) > 0 or number(36, 4) > 0)  # sectors a FAT
    )
