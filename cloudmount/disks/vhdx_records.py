"""VHDX on disk: every structure, offset and GUID of [MS-VHDX], declared once.

Decided here and only here: the layout of the format's structures, where the
fixed ones lie, the limits a reader or writer keeps to, how a BAT index is found,
and how a structure gets its checksum. Reader, log replay and synthesis all
import these. All integers are little-endian; GUIDs are in the mixed-endian form
of `uuid.UUID.bytes_le`; offsets and lengths are bytes. Pure; safe on any thread.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated
from uuid import UUID

from cloudmount.disks.crc32c import crc32c
from cloudmount.records import Record, record

KIB = 1024
MIB = 1024 * KIB
TIB = 1024 * 1024 * MIB

# 2.2 Header section: the first MiB
FILE_SIGNATURE = b"vhdxfile"
HEADER_OFFSETS = (64 * KIB, 128 * KIB)
HEADER_LENGTH = 4 * KIB  # of which the checksum covers all
REGION_TABLE_OFFSETS = (192 * KIB, 256 * KIB)
REGION_TABLE_LENGTH = 64 * KIB  # of which the checksum covers all
HEADER_SECTION_LENGTH = MIB
ALIGNMENT = MIB  # of regions, the log, payload and sector bitmap blocks

HEADER_SIGNATURE = b"head"
HEADER_VERSION = 1
LOG_VERSION = 0

REGION_TABLE_SIGNATURE = b"regi"
REGION_TABLE_MAX_ENTRIES = 2047
REGION_REQUIRED = 1  # RegionTableEntry.flags
BAT_REGION = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")

# 2.3 Log
LOG_SECTOR = 4 * KIB
LOG_MAX_LENGTH = 1024 * MIB  # the specification has no limit; Microsoft's reader has this one
LOG_ENTRY_SIGNATURE = b"loge"
LOG_DATA_SIGNATURE = b"desc"
LOG_ZERO_SIGNATURE = b"zero"
LOG_DATA_SECTOR_SIGNATURE = b"data"
LOG_DESCRIPTOR_LENGTH = 32

# 2.5 BAT
BAT_ENTRY_LENGTH = 8
BAT_STATE_MASK = 0x7
BAT_RESERVED_MASK = 0xFFFF8  # bits 3..19
BAT_OFFSET_MASK = 0xFFFFFFFFFFF00000  # FileOffsetMB: bits 20..63, so masking gives bytes
SECTOR_BITMAP_LENGTH = MIB  # one bit, least significant first, for each sector of a chunk
SECTORS_PER_CHUNK = 8 * SECTOR_BITMAP_LENGTH  # 2^23

# 2.6 Metadata region
METADATA_SIGNATURE = b"metadata"
METADATA_TABLE_LENGTH = 64 * KIB
METADATA_MAX_ENTRIES = 2047
METADATA_MAX_REGION = 128 * MIB  # like the next: a limit of Microsoft's reader, not of the specification
METADATA_MAX_ITEM = MIB
METADATA_IS_USER = 1  # MetadataTableEntry.flags
METADATA_IS_VIRTUAL_DISK = 2
METADATA_IS_REQUIRED = 4

FILE_PARAMETERS_ITEM = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
VIRTUAL_DISK_SIZE_ITEM = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")  # u64, bytes
PAGE_83_ITEM = UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")  # the virtual disk id, a GUID
LOGICAL_SECTOR_SIZE_ITEM = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")  # u32, 512 or 4096
PHYSICAL_SECTOR_SIZE_ITEM = UUID("CDA348C7-445D-4471-9CC9-E9885251C556")  # u32, 512 or 4096
PARENT_LOCATOR_ITEM = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
# Not in [MS-VHDX], but Microsoft's own reader knows them:
CHS_PARAMETERS_ITEM = UUID("DA02D7BC-3D3A-423C-AC88-2A36AB21479B")
PMEM_LABELS_ITEM = UUID("10E1AE8A-4B7E-4169-A40F-CD70DE928393")
INCOMPLETE_FILE_ITEM = UUID("71CC85F0-1B69-4E28-9558-C3BF83AE75D3")  # creation never finished

PARENT_LOCATOR_VHDX = UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")
PARENT_LOCATOR_MAX_ENTRIES = 256
PARENT_LINKAGE = "parent_linkage"  # values: "{GUID}", the parent's DataWriteGuid
PARENT_LINKAGE2 = "parent_linkage2"
PARENT_RELATIVE_PATH = "relative_path"
PARENT_VOLUME_PATH = "volume_path"
PARENT_ABSOLUTE_PATH = "absolute_win32_path"

LEAVE_BLOCKS_ALLOCATED = 1  # FileParameters.flags: a fixed disk
HAS_PARENT = 2

SECTOR_SIZES = (512, 4096)
MIN_BLOCK = MIB
MAX_BLOCK = 256 * MIB
MAX_DISK_SIZE = 64 * TIB
MAX_FILE_SIZE = 128 * TIB  # ours: twice the largest disk, so that no count derived from it is absurd

ZERO_GUID = bytes(16)


class BlockState(IntEnum):
    """State of a payload block (2.5.1.1). A sector bitmap block is NOT_PRESENT or FULLY_PRESENT (2.5.1.2)."""

    NOT_PRESENT = 0  # a differencing disk: in the parent
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7  # a differencing disk: the sector bitmap says, sector by sector


@record(size=520, spec="[MS-VHDX] 2.2.1")
class FileTypeIdentifier(Record):
    """At offset 0. `creator` is UTF-16LE text, for information only."""

    signature: Annotated[bytes, "8s"]
    creator: Annotated[bytes, "512s"]


@record(size=80, spec="[MS-VHDX] 2.2.2")
class Header(Record):
    """One of two, the rest of its 4 KiB zero. `checksum` is at byte 4."""

    signature: Annotated[bytes, "4s"]
    checksum: Annotated[int, "I"]
    sequence_number: Annotated[int, "Q"]
    file_write_guid: Annotated[bytes, "16s"]
    data_write_guid: Annotated[bytes, "16s"]
    log_guid: Annotated[bytes, "16s"]
    log_version: Annotated[int, "H"]
    version: Annotated[int, "H"]
    log_length: Annotated[int, "I"]
    log_offset: Annotated[int, "Q"]


@record(size=16, spec="[MS-VHDX] 2.2.3.1")
class RegionTableHeader(Record):
    """Starts each of the two region tables of 64 KiB. `checksum` is at byte 4."""

    signature: Annotated[bytes, "4s"]
    checksum: Annotated[int, "I"]
    entry_count: Annotated[int, "I"]
    reserved: Annotated[int, "I"]


@record(size=32, spec="[MS-VHDX] 2.2.3.2")
class RegionTableEntry(Record):
    """One region: where it lies, and whether a reader must know it (`flags` bit 0)."""

    guid: Annotated[bytes, "16s"]
    file_offset: Annotated[int, "Q"]
    length: Annotated[int, "I"]
    flags: Annotated[int, "I"]


@record(size=64, spec="[MS-VHDX] 2.3.1.1")
class LogEntryHeader(Record):
    """Starts a log entry; `checksum` (at byte 4) covers all `entry_length` bytes."""

    signature: Annotated[bytes, "4s"]
    checksum: Annotated[int, "I"]
    entry_length: Annotated[int, "I"]
    tail: Annotated[int, "I"]
    sequence_number: Annotated[int, "Q"]
    descriptor_count: Annotated[int, "I"]
    reserved: Annotated[int, "I"]
    log_guid: Annotated[bytes, "16s"]
    flushed_file_offset: Annotated[int, "Q"]
    last_file_offset: Annotated[int, "Q"]


@record(size=32, spec="[MS-VHDX] 2.3.1.2")
class LogZeroDescriptor(Record):
    """`length` bytes at `file_offset` become zeros."""

    signature: Annotated[bytes, "4s"]
    reserved: Annotated[int, "I"]
    length: Annotated[int, "Q"]
    file_offset: Annotated[int, "Q"]
    sequence_number: Annotated[int, "Q"]


@record(size=32, spec="[MS-VHDX] 2.3.1.3")
class LogDataDescriptor(Record):
    """4 KiB at `file_offset`: `leading_bytes`, the data sector's 4084, `trailing_bytes`."""

    signature: Annotated[bytes, "4s"]
    trailing_bytes: Annotated[bytes, "4s"]
    leading_bytes: Annotated[bytes, "8s"]
    file_offset: Annotated[int, "Q"]
    sequence_number: Annotated[int, "Q"]


@record(size=4096, spec="[MS-VHDX] 2.3.1.4")
class LogDataSector(Record):
    """A data descriptor's sector, its first 8 and last 4 bytes taken by these fields."""

    signature: Annotated[bytes, "4s"]
    sequence_high: Annotated[int, "I"]
    data: Annotated[bytes, "4084s"]
    sequence_low: Annotated[int, "I"]


@record(size=32, spec="[MS-VHDX] 2.6.1.1")
class MetadataTableHeader(Record):
    """Starts the metadata region."""

    signature: Annotated[bytes, "8s"]
    reserved: Annotated[int, "H"]
    entry_count: Annotated[int, "H"]
    reserved2: Annotated[bytes, "20s"]


@record(size=32, spec="[MS-VHDX] 2.6.1.2")
class MetadataTableEntry(Record):
    """One item; `offset` counts from the start of the metadata region, at least 64 KiB."""

    item_id: Annotated[bytes, "16s"]
    offset: Annotated[int, "I"]
    length: Annotated[int, "I"]
    flags: Annotated[int, "I"]
    reserved2: Annotated[int, "I"]


@record(size=8, spec="[MS-VHDX] 2.6.2.1")
class FileParameters(Record):
    """Block size in bytes; `flags`: LEAVE_BLOCKS_ALLOCATED, HAS_PARENT."""

    block_size: Annotated[int, "I"]
    flags: Annotated[int, "I"]


@record(size=20, spec="[MS-VHDX] 2.6.2.6.1")
class ParentLocatorHeader(Record):
    """Starts the parent locator item."""

    locator_type: Annotated[bytes, "16s"]
    reserved: Annotated[int, "H"]
    key_value_count: Annotated[int, "H"]


@record(size=12, spec="[MS-VHDX] 2.6.2.6.2")
class ParentLocatorEntry(Record):
    """A key and a value, UTF-16LE without a terminator; offsets count from the item's start."""

    key_offset: Annotated[int, "I"]
    value_offset: Annotated[int, "I"]
    key_length: Annotated[int, "H"]
    value_length: Annotated[int, "H"]


def checksummed(structure: bytes) -> bytes:
    """The same bytes with the CRC-32C of all of them (that field taken as zero) at byte 4."""
    blank = structure[:4] + bytes(4) + structure[8:]
    return blank[:4] + crc32c(blank).to_bytes(4, "little") + blank[8:]


def checksum_holds(structure: bytes) -> bool:
    """Whether the CRC-32C at byte 4 is that of the whole structure."""
    return checksummed(structure) == structure


def chunk_ratio(block_size: int, logical_sector: int) -> int:
    """Payload blocks per sector bitmap block (2.5.1): 16 to 32768."""
    return SECTORS_PER_CHUNK * logical_sector // block_size


def payload_index(block: int, ratio: int) -> int:
    """Index in the BAT of payload block number `block`."""
    return block + block // ratio


def bitmap_index(chunk: int, ratio: int) -> int:
    """Index in the BAT of the sector bitmap block of chunk number `chunk`."""
    return (chunk + 1) * (ratio + 1) - 1


def bat_entry_count(disk_size: int, block_size: int, logical_sector: int, *, has_parent: bool) -> int:
    """Entries the BAT must have (2.5): with a parent every chunk has its bitmap's, the last too."""
    ratio = chunk_ratio(block_size, logical_sector)
    blocks = -(-disk_size // block_size)
    if has_parent:
        return -(-blocks // ratio) * (ratio + 1)
    return blocks + (blocks - 1) // ratio
