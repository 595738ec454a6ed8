"""A stored disk as a VHDX, the same bytes for ever: [MS-VHDX], dynamic, packed.

Decided here and only here: every byte of the drive's `disk.vhdx` that is not
the disk's own. A differencing child made once must find the same parent years
later, so nothing here may ever change, and nothing depends on a clock, on
chance, on where frames lie, or on CloudMount's version: only on which blocks
are present and on the `Identity`. Golden hashes in the tests hold it fast.

    0       file identifier; headers; region tables    (openvmm's layout, which
    1 MiB   log, 1 MiB, empty                           QEMU, libvhdi and dissect
    2 MiB   metadata, 1 MiB                             all accept)
    3 MiB   BAT, rounded up to 1 MiB
            present blocks in disk order, each at full length

Blocks are of 2 MiB up to 2 TiB, of 32 MiB above (the BAT of 64 TiB is then 17
MiB, not 257); one is present if any of its 2 MiB is. An absent one is
PAYLOAD_BLOCK_ZERO without an offset: Hyper-V refuses an offset there, and
NOT_PRESENT leaves the content undefined. Never LeaveBlockAllocated: libvhdi
then reads wrong data from 4 GiB on. A disk that is no multiple of its sector
size gets zeros up to the next sector.

Measured: a read finds its place in 8 µs; the BAT is computed as it is read,
at 10 million entries a second. Threading: immutable, as safe as `content`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from uuid import UUID, uuid5

from cloudmount.disks import vhdx_records as vhdx
from cloudmount.disks.packing import Packed, Placed, Table, padded
from cloudmount.disks.presence import BLOCK_SIZE, Presence
from cloudmount.errors import UsageError
from cloudmount.extents import BlockSource, Bytes

LARGE_BLOCK_SIZE = 32 * vhdx.MIB
LARGE_ABOVE = 2 * vhdx.TIB  # bytes of disk

_LOG_OFFSET, _LOG_LENGTH = vhdx.HEADER_SECTION_LENGTH, vhdx.MIB
_METADATA_OFFSET, _METADATA_LENGTH = 2 * vhdx.MIB, vhdx.MIB
BAT_OFFSET = 3 * vhdx.MIB
_CREATOR = "CloudMount"
_NAMESPACE = UUID("d50ee634-eae5-456a-aefd-4731268e72e5")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a container says of a disk beside its content; `ValueError` for what no disk has.

    `size` in bytes; sector sizes in bytes, `logical_sector` 512 or 4096;
    `disk_id` the SCSI page 83 identifier; `snapshot_id` the snapshot's
    content-derived id; `name` the disk's own within that snapshot.
    """

    size: int
    logical_sector: int
    physical_sector: int
    disk_id: UUID
    snapshot_id: bytes
    name: str

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"a disk can't have {self.size} bytes")
        if self.logical_sector not in vhdx.SECTOR_SIZES:
            raise ValueError(f"logical sectors are of 512 or 4096 bytes, not of {self.logical_sector}")
        if self.physical_sector < 512:
            raise ValueError(f"physical sectors can't have {self.physical_sector} bytes")

    @property
    def sectors_size(self) -> int:
        """`size` rounded up to whole logical sectors: what a container shows."""
        return -(-self.size // self.logical_sector) * self.logical_sector

    def derived(self, purpose: str) -> UUID:
        """A GUID of this disk in this snapshot, the same for ever.

        UUIDv5 (RFC 9562 5.5) of "PURPOSE/SNAPSHOT/NAME", the snapshot's id and
        the UTF-8 bytes of the name in hexadecimal. From both, never from the
        disk alone: a child checks only this GUID before it trusts its parent.
        """
        name = self.name.encode("utf-8", "surrogatepass")  # a name need not be valid Unicode
        return uuid5(_NAMESPACE, f"{purpose}/{self.snapshot_id.hex()}/{name.hex()}")

    def check_blocks(self, presence: Presence) -> None:
        """`ValueError` unless `presence` is of a disk of this size."""
        if presence.blocks != -(-self.size // BLOCK_SIZE):
            raise ValueError(f"presence of {presence.blocks} blocks is not that of {self.size} bytes")


def vhdx_block_size(size: int) -> int:
    """Bytes of a block in the VHDX of a disk of `size` bytes."""
    return LARGE_BLOCK_SIZE if size > LARGE_ABOVE else BLOCK_SIZE


class _Plan:
    """Where things lie in the VHDX of one disk."""

    def __init__(self, identity: Identity) -> None:
        if not 0 < identity.size <= vhdx.MAX_DISK_SIZE:
            raise UsageError(
                f"{identity.name} has {identity.size} bytes, and a VHDX holds 1 byte to 64 TiB: "
                "use the raw image instead (disk.img, --format raw)"
            )
        self.block_size = vhdx_block_size(identity.size)
        self.blocks = -(-identity.size // self.block_size)
        self.ratio = vhdx.chunk_ratio(self.block_size, identity.logical_sector)
        self.entries = vhdx.bat_entry_count(
            identity.sectors_size, self.block_size, identity.logical_sector, has_parent=False
        )
        self.bat_length = -(-self.entries * vhdx.BAT_ENTRY_LENGTH // vhdx.ALIGNMENT) * vhdx.ALIGNMENT
        self.payload_offset = BAT_OFFSET + self.bat_length

    def bat(self, presence: Presence, start: int, stop: int) -> bytes:
        """BAT entries `start`..`stop` (2.5.1): a chunk's blocks, then its sector bitmap, not present."""
        entries: list[int] = []
        while start < stop:
            chunk, slot = divmod(start, self.ratio + 1)
            if slot == self.ratio:
                entries.append(vhdx.BlockState.NOT_PRESENT)
                start += 1
                continue
            n = min(stop - start, self.ratio - slot)
            block = chunk * self.ratio + slot
            entry = self.payload_offset + presence.rank(block) * self.block_size
            entry |= vhdx.BlockState.FULLY_PRESENT
            for flag in presence.flags(block, block + n):
                if flag:
                    entries.append(entry)
                    entry += self.block_size
                else:
                    entries.append(vhdx.BlockState.ZERO)
            start += n
        return struct.pack(f"<{len(entries)}Q", *entries)


def vhdx_size(identity: Identity, present: int) -> int:
    """Bytes of the file that `synthesise_vhdx` gives, from one number: neither content nor presence is read.

    `present` counts the present blocks of `vhdx_block_size`. Errors: as there.
    """
    plan = _Plan(identity)
    if not 0 <= present <= plan.blocks:
        raise ValueError(f"{identity.name} can't have {present} of its {plan.blocks} blocks present")
    return plan.payload_offset + present * plan.block_size


class VhdxPositions:
    """Where the disk's own bytes lie in the file that `synthesise_vhdx` gives. Safe on any thread."""

    def __init__(self, presence: Presence, identity: Identity) -> None:
        identity.check_blocks(presence)
        plan = _Plan(identity)
        self.block_size = plan.block_size
        """Bytes of the disk that lie together."""
        self.head = plan.payload_offset
        """Bytes before the first of the disk's own."""
        if plan.block_size != BLOCK_SIZE:
            presence = presence.coarsened(plan.block_size // BLOCK_SIZE)
        self._presence = presence
        self.size = self.head + presence.count * plan.block_size
        """Bytes of the file."""
        self._last: tuple[int, int | None] = -1, None
        """The block that was asked for last, and its place: whoever fills a file asks for all in a row."""

    def position(self, offset: int) -> int | None:
        """Where the byte at `offset` of the disk is; None in an absent block."""
        block, within = divmod(offset, self.block_size)
        known, place = self._last
        if known != block:
            place = None
            if self._presence.present(block):
                place = self.head + self._presence.rank(block) * self.block_size
            self._last = block, place
        return None if place is None else place + within


def synthesise_vhdx(content: BlockSource, presence: Presence, identity: Identity) -> BlockSource:
    """The disk `content` as a VHDX file; owns `content`.

    `presence` is in blocks of 2 MiB, those that it lacks must read as zeros.
    `UsageError` for a disk that no VHDX can hold (empty, or above 64 TiB),
    `ValueError` when the three don't belong together.
    """
    if content.size != identity.size:
        raise ValueError(f"{identity.name} has {content.size} bytes, its identity says {identity.size}")
    identity.check_blocks(presence)
    plan = _Plan(identity)
    if plan.block_size != BLOCK_SIZE:
        presence = presence.coarsened(plan.block_size // BLOCK_SIZE)
    region_table = Bytes(_region_table(plan.bat_length))
    metadata_table, metadata_items = _metadata(identity, plan.block_size)
    blocks = padded(content, plan.blocks * plan.block_size)
    bat = Table(plan.entries, vhdx.BAT_ENTRY_LENGTH, partial(plan.bat, presence))
    return Placed(
        [
            (
                0,
                Bytes(
                    vhdx.FileTypeIdentifier(
                        vhdx.FILE_SIGNATURE, _CREATOR.encode("utf-16-le").ljust(512, b"\0")
                    ).pack()
                ),
            ),
            *((at, Bytes(_header(number, identity))) for number, at in enumerate(vhdx.HEADER_OFFSETS, 1)),
            *((at, region_table) for at in vhdx.REGION_TABLE_OFFSETS),
            (_METADATA_OFFSET, Bytes(metadata_table)),
            (_METADATA_OFFSET + vhdx.METADATA_TABLE_LENGTH, Bytes(metadata_items)),
            (BAT_OFFSET, bat),
            (plan.payload_offset, Packed(blocks, presence, plan.block_size)),
        ]
    )


def _identifier() -> bytes:
    """The file type identifier (2.2.1), without the zeros that fill its 64 KiB."""
    return vhdx.FileTypeIdentifier(vhdx.FILE_SIGNATURE, _CREATOR.encode("utf-16-le").ljust(512, b"\0")).pack()


def _header(sequence_number: int, identity: Identity) -> bytes:
    """A header (2.2.2), without the zeros that fill its 4 KiB. The second one is current."""
    header = vhdx.Header(
        signature=vhdx.HEADER_SIGNATURE,
        checksum=0,
        sequence_number=sequence_number,
        file_write_guid=identity.derived("vhdx-file-write").bytes_le,
        data_write_guid=identity.derived("vhdx-data-write").bytes_le,
        log_guid=vhdx.ZERO_GUID,  # nothing to replay
        log_version=vhdx.LOG_VERSION,
        version=vhdx.HEADER_VERSION,
        log_length=_LOG_LENGTH,
        log_offset=_LOG_OFFSET,
    )
    return vhdx.checksummed(header.pack().ljust(vhdx.HEADER_LENGTH, b"\0"))[: vhdx.Header.SIZE]


def _region_table(bat_length: int) -> bytes:
    """The region table (2.2.3), without the zeros that fill its 64 KiB."""
    table = vhdx.RegionTableHeader(vhdx.REGION_TABLE_SIGNATURE, 0, 2, 0).pack()
    for region, offset, length in (
        (vhdx.BAT_REGION, BAT_OFFSET, bat_length),
        (vhdx.METADATA_REGION, _METADATA_OFFSET, _METADATA_LENGTH),
    ):
        table += vhdx.RegionTableEntry(region.bytes_le, offset, length, vhdx.REGION_REQUIRED).pack()
    return vhdx.checksummed(table.ljust(vhdx.REGION_TABLE_LENGTH, b"\0"))[: len(table)]


def _metadata(identity: Identity, block_size: int) -> tuple[bytes, bytes]:
    """The metadata table (2.6.1) and, 64 KiB after its start, the items (2.6.2)."""
    # VHDX knows physical sectors of 512 and 4096 bytes; there are larger ones.
    physical = 4096 if max(identity.physical_sector, identity.logical_sector) >= 4096 else 512
    required, of_disk = vhdx.METADATA_IS_REQUIRED, vhdx.METADATA_IS_REQUIRED | vhdx.METADATA_IS_VIRTUAL_DISK
    described = (
        (vhdx.FILE_PARAMETERS_ITEM, required, vhdx.FileParameters(block_size, 0).pack()),
        (vhdx.VIRTUAL_DISK_SIZE_ITEM, of_disk, struct.pack("<Q", identity.sectors_size)),
        (vhdx.LOGICAL_SECTOR_SIZE_ITEM, of_disk, struct.pack("<I", identity.logical_sector)),
        (vhdx.PHYSICAL_SECTOR_SIZE_ITEM, of_disk, struct.pack("<I", physical)),
        (vhdx.PAGE_83_ITEM, of_disk, identity.disk_id.bytes_le),
    )
    table = vhdx.MetadataTableHeader(vhdx.METADATA_SIGNATURE, 0, len(described), bytes(20)).pack()
    items = b""
    for item_id, flags, item in described:
        offset = vhdx.METADATA_TABLE_LENGTH + len(items)
        table += vhdx.MetadataTableEntry(item_id.bytes_le, offset, len(item), flags, 0).pack()
        items += item
    return table, items
