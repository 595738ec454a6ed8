"""What an ext2, 3 or 4 inode says that pytsk3 doesn't pass on: flags, blocks, its time in full.

Decided here and only here: which features of an ext file system are known (`Superblock.unknown`), and
where an inode lies. Layouts are those of the kernel's Documentation/filesystems/ext4. Pure; both ends use it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

ENCRYPTED, INLINE, COMPRESSED, HUGE = 0x800, 0x10000000, 0x4, 0x40000
SUPERBLOCK_AT, SUPERBLOCK_LENGTH = 1024, 1024

_FILETYPE, _RECOVER, _EXTENTS, _WIDE, _MMP, _FLEX = 0x2, 0x4, 0x40, 0x80, 0x100, 0x200
_EA_INODE, _SEED, _LARGEDIR, _ENCRYPT, _CASEFOLD = 0x400, 0x2000, 0x4000, 0x10000, 0x20000
_KNOWN = (
    _FILETYPE
    | _RECOVER
    | _EXTENTS
    | _WIDE
    | _MMP
    | _FLEX
    | _EA_INODE
    | _SEED
    | _LARGEDIR
    | _ENCRYPT
    | _CASEFOLD
)
_NAMES = {0x1: "compression", 0x8: "a journal by itself", 0x10: "meta_bg", 0x8000: "inline_data"}
_BIGALLOC = 0x200
_HAS_JOURNAL = 0x4


@dataclass(frozen=True, slots=True)
class Superblock:
    """What of it is asked here; sizes in bytes."""

    block: int
    first_data_block: int
    inodes: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    compatible: int
    incompatible: int
    read_only: int
    label: str

    @property
    def type(self) -> str:
        """ext2, ext3 or ext4, by the features in use."""
        if self.incompatible & ~(_FILETYPE | _RECOVER) or self.read_only & ~0x7:
            return "ext4"
        return "ext3" if self.compatible & _HAS_JOURNAL else "ext2"

    @property
    def unknown(self) -> str | None:
        """Features that reading would have to know and doesn't, in words."""
        odd = [
            _NAMES.get(1 << bit, f"feature 0x{1 << bit:x}")
            for bit in range(32)
            if (self.incompatible & ~_KNOWN) >> bit & 1
        ]
        if self.read_only & _BIGALLOC:
            odd.append("bigalloc")
        return ", ".join(odd) or None

    @property
    def in_use(self) -> bool:
        """Whether its journal holds what was not yet put in its place."""
        return bool(self.incompatible & _RECOVER)


def superblock(raw: bytes) -> Superblock:
    """The superblock in these bytes; `ValueError` when it makes no sense."""
    if len(raw) < 264 or raw[56:58] != b"\x53\xef":
        raise ValueError("no ext superblock")
    inodes, log_block = struct.unpack_from("<I", raw, 0)[0], struct.unpack_from("<I", raw, 24)[0]
    per_group, revision = struct.unpack_from("<I", raw, 40)[0], struct.unpack_from("<I", raw, 76)[0]
    compatible, incompatible, read_only = struct.unpack_from("<III", raw, 92)
    inode_size = struct.unpack_from("<H", raw, 88)[0] if revision else 128
    wide = struct.unpack_from("<H", raw, 254)[0] if incompatible & _WIDE else 32
    if log_block > 6 or not per_group or inode_size < 128 or inode_size > 1024 << log_block or wide < 32:
        raise ValueError("an ext superblock that makes no sense")
    label = raw[120:136].split(b"\0")[0].decode("utf-8", "replace")
    first = struct.unpack_from("<I", raw, 20)[0]
    return Superblock(
        1024 << log_block,
        first,
        inodes,
        per_group,
        inode_size,
        wide,
        compatible,
        incompatible,
        read_only,
        label,
    )


@dataclass(frozen=True, slots=True)
class Inode:
    """`allocated` in bytes; `mtime_ns` since 1970."""

    flags: int
    allocated: int
    mtime_ns: int


def inode(number: int, about: Superblock, read: Callable[[int, int], bytes]) -> Inode:
    """The inode `number` (from 1), `read` from the volume. `ValueError` when there is no such one."""
    if not 1 <= number <= about.inodes:
        raise ValueError(f"no inode {number}")
    group, place = divmod(number - 1, about.inodes_per_group)
    at = (about.first_data_block + 1) * about.block + group * about.descriptor_size
    descriptor = read(at, about.descriptor_size)
    if len(descriptor) < 32:
        raise ValueError("a group descriptor lies outside")
    table: int = struct.unpack_from("<I", descriptor, 8)[0]
    if len(descriptor) >= 64:
        table |= struct.unpack_from("<I", descriptor, 40)[0] << 32
    raw = read(table * about.block + place * about.inode_size, about.inode_size)
    if len(raw) < 128:
        raise ValueError("an inode lies outside")
    seconds: int = struct.unpack_from("<i", raw, 16)[0]
    nanoseconds = 0
    if len(raw) >= 140 and struct.unpack_from("<H", raw, 128)[0] >= 12:
        extra = struct.unpack_from("<I", raw, 136)[0]
        seconds += (extra & 3) << 32
        nanoseconds = extra >> 2
    flags = struct.unpack_from("<I", raw, 32)[0]
    blocks = struct.unpack_from("<I", raw, 28)[0] | struct.unpack_from("<H", raw, 116)[0] << 32
    unit = about.block if flags & HUGE else 512
    return Inode(flags, blocks * unit, seconds * 10**9 + nanoseconds)
