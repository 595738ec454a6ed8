"""VHD on disk: every structure of the "Virtual Hard Disk Image Format Specification" 1.0, declared once.

Decided here and only here: the layout of the format's structures, its constants,
and how a structure gets its checksum. Reader and synthesis import these. All
integers are big-endian; offsets and lengths are bytes unless said. A unique id's
16 bytes are kept as they stand (`uuid.UUID.bytes_le`, as for VHDX), so a disk
keeps its bytes when its container changes. Pure; safe on any thread.
"""

from __future__ import annotations

from typing import Annotated

from cloudmount.records import Record, record

SECTOR = 512

FOOTER_COOKIE = b"conectix"
FOOTER_LENGTH = 512
FOOTER_LENGTH_OLD = 511  # before Virtual PC 2004
FEATURES_RESERVED = 2  # this bit is always set
FILE_FORMAT_VERSION = 0x00010000
NO_DATA_OFFSET = 0xFFFFFFFFFFFFFFFF  # data_offset of a fixed disk's footer, and of the dynamic header
EPOCH = 946684800  # time stamps count seconds from 2000-01-01T00:00:00Z; this is it in Unix time

DISK_FIXED = 2
DISK_DYNAMIC = 3
DISK_DIFFERENCING = 4

CREATOR_WINDOWS = b"win "  # Hyper-V: the size is `current_size`
CREATOR_QEMU = b"qemu"  # the size is what the geometry gives
CREATOR_QEMU_SIZE = b"qem2"  # QEMU with force_size: `current_size`
CREATOR_HOST_WINDOWS = b"Wi2k"
MAX_GEOMETRY = 65535 * 16 * 255  # sectors; a disk of that geometry may be larger

DYNAMIC_COOKIE = b"cxsparse"
DYNAMIC_LENGTH = 1024
DYNAMIC_VERSION = 0x00010000
DEFAULT_BLOCK = 2 * 1024 * 1024
BAT_ENTRY_LENGTH = 4
BAT_UNUSED = 0xFFFFFFFF  # else: the sector number of the block's bitmap, its data follow
MAX_DISK_SIZE = 2040 * 1024**3

LOCATOR_COUNT = 8
LOCATOR_NONE = bytes(4)
LOCATOR_RELATIVE = b"W2ru"  # UTF-16LE, relative to the child
LOCATOR_ABSOLUTE = b"W2ku"  # UTF-16LE
LOCATOR_MAC_URL = b"MacX"  # UTF-8 file URL


@record(size=512, spec='VHD 1.0, "Hard Disk Footer Format"', endian=">")
class Footer(Record):
    """At the end of every file; a dynamic or differencing one has a copy at its start."""

    cookie: Annotated[bytes, "8s"]
    features: Annotated[int, "I"]
    file_format_version: Annotated[int, "I"]
    data_offset: Annotated[int, "Q"]
    time_stamp: Annotated[int, "I"]
    creator_application: Annotated[bytes, "4s"]
    creator_version: Annotated[int, "I"]
    creator_host_os: Annotated[bytes, "4s"]
    original_size: Annotated[int, "Q"]
    current_size: Annotated[int, "Q"]
    cylinders: Annotated[int, "H"]
    heads: Annotated[int, "B"]
    sectors_per_track: Annotated[int, "B"]
    disk_type: Annotated[int, "I"]
    checksum: Annotated[int, "I"]
    unique_id: Annotated[bytes, "16s"]
    saved_state: Annotated[int, "B"]
    reserved: Annotated[bytes, "427s"]


@record(size=1024, spec='VHD 1.0, "Dynamic Disk Header Format"', endian=">")
class DynamicHeader(Record):
    """At the footer's `data_offset`. `parent_name` is UTF-16BE; `locators` are 8 `ParentLocator`s."""

    cookie: Annotated[bytes, "8s"]
    data_offset: Annotated[int, "Q"]
    table_offset: Annotated[int, "Q"]
    header_version: Annotated[int, "I"]
    max_table_entries: Annotated[int, "I"]
    block_size: Annotated[int, "I"]
    checksum: Annotated[int, "I"]
    parent_unique_id: Annotated[bytes, "16s"]
    parent_time_stamp: Annotated[int, "I"]
    reserved: Annotated[int, "I"]
    parent_name: Annotated[bytes, "512s"]
    locators: Annotated[bytes, "192s"]
    reserved2: Annotated[bytes, "256s"]


@record(size=24, spec='VHD 1.0, "Parent Locator Entry"', endian=">")
class ParentLocator(Record):
    """Where one spelling of the parent's path lies. `data_space`: sectors by the spec, bytes by Hyper-V."""

    platform_code: Annotated[bytes, "4s"]
    data_space: Annotated[int, "I"]
    data_length: Annotated[int, "I"]
    reserved: Annotated[int, "I"]
    data_offset: Annotated[int, "Q"]


def checksum(structure: Footer | DynamicHeader) -> int:
    """One's complement of the sum of its bytes, the checksum field taken as zero."""
    return ~sum(structure.replace(checksum=0).pack()) & 0xFFFFFFFF


def bitmap_length(block_size: int) -> int:
    """Bytes of the sector bitmap before a block's data: a bit a sector, highest bit first, whole sectors."""
    return -(-block_size // (SECTOR * 8 * SECTOR)) * SECTOR
