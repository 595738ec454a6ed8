"""A stored disk as a VHD ("Virtual Hard Disk Image Format Specification" 1.0), dynamic or fixed.

Decided here and only here: every byte of a restored `.vhd` that is not the
disk's own. Like the VHDX of `synthesis`, it has no clock, chance or version in
it. A VHD has sectors of 512 bytes and ends at 2040 GiB; a disk that is no
multiple of 512 bytes gets zeros up to the next sector.

The creator is `win ` (Hyper-V): with others QEMU takes the size from the
geometry, which can't say most sizes, and loses the disk's tail.

Threading: immutable, as safe as `content`.
"""

from __future__ import annotations

import struct

from cloudmount.disks import vhd_records as vhd
from cloudmount.disks.packing import Packed, Placed, Table, padded
from cloudmount.disks.presence import BLOCK_SIZE, Presence
from cloudmount.disks.synthesis import Identity
from cloudmount.errors import UsageError
from cloudmount.extents import BlockSource, Bytes

_CREATOR_VERSION = 0x000A0000  # what Hyper-V of Windows Server 2016 and later writes
_HEADER_OFFSET = vhd.FOOTER_LENGTH
_BAT_OFFSET = _HEADER_OFFSET + vhd.DYNAMIC_LENGTH
_BITMAP = b"\xff" * vhd.bitmap_length(BLOCK_SIZE)  # every sector of a present block is present


def _bat_entries(presence: Presence) -> int:
    """Entries of the BAT, which fills whole sectors."""
    per_sector = vhd.SECTOR // vhd.BAT_ENTRY_LENGTH
    return -(-presence.blocks // per_sector) * per_sector


def _payload_offset(presence: Presence) -> int:
    return _BAT_OFFSET + _bat_entries(presence) * vhd.BAT_ENTRY_LENGTH


class VhdPositions:
    """Where the disk's own bytes lie in the file that `synthesise_vhd` gives. Immutable."""

    block_size = BLOCK_SIZE
    """Bytes of the disk that lie together."""

    def __init__(self, presence: Presence, identity: Identity) -> None:
        identity.check_blocks(presence)
        self._presence = presence
        self.head = _payload_offset(presence) + len(_BITMAP)
        """Bytes before the first of the disk's own."""

    def position(self, offset: int) -> int | None:
        """Where the byte at `offset` of the disk is; None in an absent block."""
        block, within = divmod(offset, BLOCK_SIZE)
        if not self._presence.present(block):
            return None
        return self.head + self._presence.rank(block) * (len(_BITMAP) + BLOCK_SIZE) + within


def synthesise_vhd(content: BlockSource, presence: Presence, identity: Identity) -> BlockSource:
    """The disk `content` as a dynamic VHD of 2 MiB blocks, packed; owns `content`.

    Blocks that `presence` lacks must read as zeros. `UsageError` for a disk that
    no VHD can hold, `ValueError` when the three don't belong together.
    """
    identity.check_blocks(presence)
    footer = Bytes(_footer(content, identity, vhd.DISK_DYNAMIC, _HEADER_OFFSET))
    payload_offset = _payload_offset(presence)
    stride = len(_BITMAP) + BLOCK_SIZE

    def bat(start: int, stop: int) -> bytes:
        """The sector of each block's bitmap; entries after the last block are unused."""
        start_block, stop_block = min(start, presence.blocks), min(stop, presence.blocks)
        at = payload_offset + presence.rank(start_block) * stride
        sectors: list[int] = []
        for flag in presence.flags(start_block, stop_block):
            sectors.append(at // vhd.SECTOR if flag else vhd.BAT_UNUSED)
            at += stride * flag
        sectors += [vhd.BAT_UNUSED] * (stop - start - len(sectors))
        return struct.pack(f">{len(sectors)}I", *sectors)

    return Placed(
        [
            (0, footer),
            (_HEADER_OFFSET, Bytes(_dynamic_header(presence.blocks))),
            (_BAT_OFFSET, Table(_bat_entries(presence), vhd.BAT_ENTRY_LENGTH, bat)),
            (
                payload_offset,
                Packed(padded(content, presence.blocks * BLOCK_SIZE), presence, BLOCK_SIZE, _BITMAP),
            ),
            (payload_offset + presence.count * stride, footer),
        ]
    )


def synthesise_fixed_vhd(content: BlockSource, identity: Identity) -> BlockSource:
    """The disk `content` as a fixed VHD: itself, then the footer. Owns `content`; errors as above."""
    footer = _footer(content, identity, vhd.DISK_FIXED, vhd.NO_DATA_OFFSET)
    return Placed([(0, padded(content, identity.sectors_size)), (identity.sectors_size, Bytes(footer))])


def _footer(content: BlockSource, identity: Identity, disk_type: int, data_offset: int) -> bytes:
    """The footer ("Hard Disk Footer Format"), after checking that a VHD can hold this disk."""
    if content.size != identity.size:
        raise ValueError(f"{identity.name} has {content.size} bytes, its identity says {identity.size}")
    if identity.logical_sector != vhd.SECTOR:
        raise UsageError(
            f"{identity.name} has sectors of {identity.logical_sector} bytes, and a VHD has 512: "
            "use --format vhdx or raw"
        )
    if not 0 < identity.size <= vhd.MAX_DISK_SIZE:
        raise UsageError(
            f"{identity.name} has {identity.size} bytes, and a VHD holds 1 byte to 2040 GiB: "
            "use --format vhdx or raw"
        )
    cylinders, heads, sectors_per_track = _geometry(identity.sectors_size // vhd.SECTOR)
    footer = vhd.Footer(
        cookie=vhd.FOOTER_COOKIE,
        features=vhd.FEATURES_RESERVED,
        file_format_version=vhd.FILE_FORMAT_VERSION,
        data_offset=data_offset,
        # A child compares its parent's id, which all snapshots of a disk share, and this: so it
        # is no time but a mark of the snapshot, and no child fits another snapshot's disk.
        time_stamp=identity.derived("vhd-time-stamp").int >> 98,  # 30 bits: before 2034
        creator_application=vhd.CREATOR_WINDOWS,
        creator_version=_CREATOR_VERSION,
        creator_host_os=vhd.CREATOR_HOST_WINDOWS,
        original_size=identity.sectors_size,
        current_size=identity.sectors_size,
        cylinders=cylinders,
        heads=heads,
        sectors_per_track=sectors_per_track,
        disk_type=disk_type,
        checksum=0,
        unique_id=identity.disk_id.bytes_le,
        saved_state=0,
        reserved=bytes(427),
    )
    return footer.replace(checksum=vhd.checksum(footer)).pack()


def _dynamic_header(blocks: int) -> bytes:
    """The dynamic disk header of a disk without a parent."""
    header = vhd.DynamicHeader(
        cookie=vhd.DYNAMIC_COOKIE,
        data_offset=vhd.NO_DATA_OFFSET,
        table_offset=_BAT_OFFSET,
        header_version=vhd.DYNAMIC_VERSION,
        max_table_entries=blocks,
        block_size=BLOCK_SIZE,
        checksum=0,
        parent_unique_id=bytes(16),
        parent_time_stamp=0,
        reserved=0,
        parent_name=bytes(512),
        locators=bytes(192),
        reserved2=bytes(256),
    )
    return header.replace(checksum=vhd.checksum(header)).pack()


def _geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track of a disk ("CHS Calculation" of the appendix)."""
    sectors = min(sectors, vhd.MAX_GEOMETRY)
    if sectors >= 65535 * 16 * 63:
        heads, per_track = 16, 255
    else:
        per_track = 17
        heads = max(4, -(-(sectors // per_track) // 1024))
        if heads > 16 or sectors // per_track >= heads * 1024:
            heads, per_track = 16, 31
        if sectors // per_track >= heads * 1024:
            heads, per_track = 16, 63
    return sectors // per_track // heads, heads, per_track
