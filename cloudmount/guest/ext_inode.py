"""What the superblock and the inodes of ext2, 3 and 4 say.

Decided here and only here: which features of an ext file system are known (`Superblock.unknown`), and
where an inode lies. Layouts are those of the kernel's Documentation/filesystems/ext4. Pure; both ends use it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

ENCRYPTED, INLINE, COMPRESSED, HUGE, EXTENTS = 0x800, 0x10000000, 0x4, 0x40000, 0x80000
SUPERBLOCK_AT, SUPERBLOCK_LENGTH = 1024, 1024

FILETYPE, RECOVER = 0x2, 0x4
_EXTENTS, _WIDE, _MMP, _FLEX, META = 0x40, 0x80, 0x100, 0x200, 0x10
_EA_INODE, _SEED, _LARGEDIR, _INLINE, _ENCRYPT, _CASEFOLD = 0x400, 0x2000, 0x4000, 0x8000, 0x10000, 0x20000
_KNOWN = (
    FILETYPE | RECOVER | _EXTENTS | _WIDE | _MMP | _FLEX | META | _EA_INODE | _SEED | _LARGEDIR | _INLINE
    | _ENCRYPT | _CASEFOLD
)  # fmt: skip
_NAMES = {0x1: "compression", 0x8: "a journal by itself"}
_HAS_JOURNAL, _SPARSE_2 = 0x4, 0x200
_SPARSE = 0x1

KIND, FOLDER, FILE, LINK = 0xF000, 0x4000, 0x8000, 0xA000
SPECIAL = {0x1000: "a named pipe", 0x2000: "a device", 0x6000: "a device", 0xC000: "a socket"}
_INLINE_MAGIC, _SYSTEM = 0xEA020000, 7
MAP_LENGTH = 60
_MOST_TABLES = 1 << 16


@dataclass(frozen=True, slots=True)
class Superblock:
    """What of it is asked here; `block` in bytes."""

    block: int
    blocks: int
    first_data_block: int
    blocks_per_group: int
    inodes: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    first_meta_group: int
    backup_groups: tuple[int, int]
    compatible: int
    incompatible: int
    read_only: int
    journal: int
    """The number of its journal's inode; 0 when that is elsewhere."""
    label: str

    @property
    def type(self) -> str:
        """ext2, ext3 or ext4, by the features in use."""
        if self.incompatible & ~(FILETYPE | RECOVER | META) or self.read_only & ~0x7:
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
        return ", ".join(odd) or None

    @property
    def in_use(self) -> bool:
        """Whether its journal holds what was not yet put in its place."""
        return bool(self.incompatible & RECOVER)

    def descriptor_at(self, group: int) -> int:
        """Where in the volume, in bytes, a group's descriptor lies."""
        table = (1024 // self.block + 1) * self.block
        each = self.block // self.descriptor_size
        if not self.incompatible & META or group // each < self.first_meta_group:
            return table + group * self.descriptor_size
        first = group // each * each
        block = self.first_data_block + first * self.blocks_per_group + self._has_superblock(first)
        if not first and self.block == 1024 and not self.first_data_block:
            block += 1  # the boot block is before it, though it belongs to no group
        return block * self.block + group % each * self.descriptor_size

    def _has_superblock(self, group: int) -> int:
        if self.compatible & _SPARSE_2:
            return int(group == 0 or group in self.backup_groups)
        if group <= 1 or not self.read_only & _SPARSE:
            return 1
        for root in (3, 5, 7):
            power = root
            while power < group:
                power *= root
            if power == group:
                return 1
        return 0


def superblock(raw: bytes) -> Superblock:
    """The superblock in these bytes; `ValueError` when it makes no sense."""
    if len(raw) < SUPERBLOCK_LENGTH or raw[56:58] != b"\x53\xef":
        raise ValueError("no ext superblock")
    inodes, blocks = struct.unpack_from("<II", raw)
    first, log_block = struct.unpack_from("<II", raw, 20)
    blocks_per_group, _, per_group = struct.unpack_from("<III", raw, 32)
    revision: int = struct.unpack_from("<I", raw, 76)[0]
    compatible, incompatible, read_only = struct.unpack_from("<III", raw, 92)
    inode_size = struct.unpack_from("<H", raw, 88)[0] if revision else 128
    wide = struct.unpack_from("<H", raw, 254)[0] if incompatible & _WIDE else 32
    if incompatible & _WIDE:
        blocks |= struct.unpack_from("<I", raw, 336)[0] << 32
    if log_block > 6 or not per_group or not 128 <= inode_size <= 1024 << log_block:
        raise ValueError("an ext superblock that makes no sense")
    if not 32 <= wide <= 1024 or wide & (wide - 1):
        raise ValueError("an ext superblock that makes no sense")
    return Superblock(
        1024 << log_block,
        blocks,
        first,
        blocks_per_group,
        inodes,
        per_group,
        inode_size,
        wide,
        struct.unpack_from("<I", raw, 260)[0],
        struct.unpack_from("<II", raw, 588),
        compatible,
        incompatible,
        read_only,
        struct.unpack_from("<I", raw, 224)[0],
        raw[120:136].split(b"\0")[0].decode("utf-8", "replace"),
    )


@dataclass(frozen=True, slots=True)
class Inode:
    """`size`, `allocated` in bytes; `mtime_ns` since 1970; `map`: the 60 bytes that say where it lies;
    `tail`: what is behind its fields, attributes mostly."""

    mode: int
    size: int
    allocated: int
    mtime_ns: int
    links: int
    uid: int
    gid: int
    flags: int
    map: bytes
    tail: bytes

    @property
    def kind(self) -> int:
        """`FOLDER`, `FILE`, `LINK`, or one of `SPECIAL`."""
        return self.mode & KIND

    @property
    def special(self) -> str | None:
        """What it is instead of a file, folder or link."""
        return None if self.kind in (FOLDER, FILE, LINK) else SPECIAL.get(self.kind, "of no known kind")


class Inodes:
    """The inodes of a volume, from 1; `ValueError` for one that there isn't. `read` reads the volume."""

    def __init__(self, about: Superblock, read: Callable[[int, int], bytes]) -> None:
        self._about, self._read = about, read
        self._tables: dict[int, int] = {}

    def at(self, number: int) -> int:
        """Where in the volume, in bytes, an inode lies."""
        if not 1 <= number <= self._about.inodes:
            raise ValueError(f"no inode {number}")
        group, place = divmod(number - 1, self._about.inodes_per_group)
        table = self._tables.get(group)
        if table is None:
            table = self._told(group, 8, 40)
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            self._tables[group] = table
        return table + place * self._about.inode_size

    def get(self, number: int) -> Inode:
        """One of them."""
        return _inode(self._read(self.at(number), self._about.inode_size), self._about)

    def bitmap_at(self, number: int) -> int:
        """Where in the volume, in bytes, the block lies that tells whether an inode is in use."""
        return self._told((number - 1) // self._about.inodes_per_group, 4, 36)

    def _told(self, group: int, low: int, high: int) -> int:
        """A place that a group's descriptor tells in two halves."""
        descriptor = self._read(self._about.descriptor_at(group), self._about.descriptor_size)
        if len(descriptor) < 32:
            raise ValueError("a group descriptor lies outside")
        block: int = struct.unpack_from("<I", descriptor, low)[0]
        if len(descriptor) >= 64:
            block |= struct.unpack_from("<I", descriptor, high)[0] << 32
        return block * self._about.block


_FIELDS = struct.Struct("<HHII4xI4xHHII")


def _inode(raw: bytes, about: Superblock) -> Inode:
    if len(raw) < 128:
        raise ValueError("an inode lies outside")
    mode, uid, size, _, seconds, gid, links, blocks, flags = _FIELDS.unpack_from(raw)
    seconds = (seconds ^ 1 << 31) - (1 << 31)
    blocks_high, _, uid_high, gid_high = struct.unpack_from("<4H", raw, 116)
    if mode & KIND == FILE or (mode & KIND == FOLDER and about.incompatible & _LARGEDIR):
        size |= struct.unpack_from("<I", raw, 108)[0] << 32
    extra = struct.unpack_from("<H", raw, 128)[0] if len(raw) >= 132 else 0
    nanoseconds = 0
    if extra >= 12 and len(raw) >= 140:
        more = struct.unpack_from("<I", raw, 136)[0]
        seconds += (more & 3) << 32
        nanoseconds = more >> 2
    return Inode(
        mode,
        size,
        (blocks | blocks_high << 32) * (about.block if flags & HUGE else 512),
        seconds * 10**9 + nanoseconds,
        links,
        uid | uid_high << 16,
        gid | gid_high << 16,
        flags,
        raw[40:100],
        raw[128 + extra :],
    )


def inline_content(found: Inode) -> bytes:
    """Content kept in the inode: in its map, going on in the attribute `system.data`."""
    return found.map + _system_data(found.tail)


def _system_data(tail: bytes) -> bytes:
    if len(tail) < 8 or struct.unpack_from("<I", tail)[0] != _INLINE_MAGIC:
        return b""
    values, at = tail[4:], 0
    while at + 16 <= len(values) and values[at : at + 4] != bytes(4):
        length, index, offset = struct.unpack_from("<BBH", values, at)
        elsewhere, size = struct.unpack_from("<II", values, at + 4)
        if index == _SYSTEM and values[at + 16 : at + 16 + length] == b"data":
            if elsewhere or offset + size > len(values):
                raise ValueError("content kept in an inode lies outside of it")
            return values[offset : offset + size]
        at += 16 + (length + 3 & ~3)
    return b""
