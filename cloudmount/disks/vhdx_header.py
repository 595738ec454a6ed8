"""A VHDX's header section: which header counts, and where its regions lie ([MS-VHDX] 2.2).

Decided here and only here: which of the two headers and of the two region
tables is used, and what is refused in them. Where the specification leaves a
reader room, Microsoft's own open one decides. Pure; safe on any thread.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from cloudmount.disks import vhdx_records as r
from cloudmount.errors import UnreadableInputError
from cloudmount.extents import BlockSource


def broken(path: Path, field: str, why: str) -> UnreadableInputError:
    """The one error of a VHDX that can't be read: `field` is the structure and field at fault."""
    return UnreadableInputError(f"{path}: broken VHDX: {field}: {why}")


@dataclass(frozen=True)
class Region:
    """`length` bytes of the file at `offset`; `name` for messages."""

    name: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.offset + self.length


def read_header(path: Path, file: BlockSource) -> r.Header:
    """The current header (2.2.2.1): of those valid the one with the greater sequence number.

    The file type identifier, version and log fields are checked. `file` is the
    container as it lies there.
    """
    if file.size < r.HEADER_SECTION_LENGTH:
        raise broken(path, "file", f"{file.size} bytes, shorter than the header section of 1 MiB")
    if file.read_at(0, 8) != r.FILE_SIGNATURE:
        raise broken(path, "file type identifier", 'signature is not "vhdxfile"')
    raws = [file.read_at(at, r.HEADER_LENGTH) for at in r.HEADER_OFFSETS]
    valid = [r.Header.unpack(raw) for raw in raws if raw[:4] == r.HEADER_SIGNATURE and r.checksum_holds(raw)]
    if not valid:
        raise broken(path, "headers", "neither has its signature and a right checksum")
    header = max(valid, key=lambda h: h.sequence_number)
    if len(valid) == 2 and valid[0].sequence_number == valid[1].sequence_number and valid[0] != valid[1]:
        # Some writers (Disk2vhd) leave two that are the same, which harms nothing.
        raise broken(path, "headers", f"two that differ have sequence number {header.sequence_number}")
    if header.version != r.HEADER_VERSION:
        raise broken(path, "header version", f"{header.version}, not 1")
    _check_log(path, file, header)
    return header


def _check_log(path: Path, file: BlockSource, header: r.Header) -> None:
    dirty = header.log_guid != r.ZERO_GUID
    if dirty and header.log_version != r.LOG_VERSION:
        raise broken(path, "header log version", f"{header.log_version}, not 0")
    if header.log_offset % r.ALIGNMENT or header.log_length % r.ALIGNMENT:
        raise broken(
            path, "header log", f"{header.log_length} bytes at {header.log_offset} are not whole MiB"
        )
    if not header.log_length:
        if dirty:
            raise broken(path, "header log length", "0, but there is a log GUID")
        return
    if header.log_offset < r.HEADER_SECTION_LENGTH:
        raise broken(path, "header log offset", f"{header.log_offset} is inside the header section")
    if header.log_length > r.LOG_MAX_LENGTH:
        raise broken(path, "header log length", f"{header.log_length} bytes, more than 1 GiB")
    if header.log_offset + header.log_length > file.size:
        raise broken(
            path,
            "header log",
            f"{header.log_length} bytes at {header.log_offset} are beyond the file's {file.size}",
        )


@dataclass(frozen=True)
class Regions:
    """The two regions every VHDX has, and `taken`: all that no block may lie in, by offset."""

    bat: Region
    metadata: Region
    taken: tuple[Region, ...]


def read_regions(path: Path, file: BlockSource, header: r.Header) -> Regions:
    """The regions (2.2.3) from the first valid table. `file` is the container with its log replayed."""
    for at in r.REGION_TABLE_OFFSETS:
        table = file.read_at(at, r.REGION_TABLE_LENGTH)
        if table[:4] == r.REGION_TABLE_SIGNATURE and r.checksum_holds(table):
            break
    else:
        raise broken(path, "region tables", "neither has its signature and a right checksum")
    head = r.RegionTableHeader.unpack(table)
    if head.entry_count > r.REGION_TABLE_MAX_ENTRIES:
        raise broken(
            path, "region table entry count", f"{head.entry_count}, more than {r.REGION_TABLE_MAX_ENTRIES}"
        )
    if head.reserved:
        raise broken(path, "region table", "its reserved field is not 0")
    known = {r.BAT_REGION: "BAT region", r.METADATA_REGION: "metadata region"}
    regions: dict[UUID, Region] = {}
    for i in range(head.entry_count):
        entry = r.RegionTableEntry.unpack(table, r.RegionTableHeader.SIZE + i * r.RegionTableEntry.SIZE)
        guid = UUID(bytes_le=entry.guid)
        name = known.get(guid, f"region {guid}")
        if entry.flags & ~r.REGION_REQUIRED:
            raise broken(path, name, f"its reserved flags are not 0 ({entry.flags:#x})")
        if entry.flags & r.REGION_REQUIRED and guid not in known:
            raise broken(path, name, "required, but not known; a newer program made this file")
        if guid in regions:
            raise broken(path, name, "listed twice")
        if not entry.length or entry.length % r.ALIGNMENT or entry.file_offset % r.ALIGNMENT:
            raise broken(
                path, name, f"{entry.length} bytes at {entry.file_offset} are not one MiB or more, whole"
            )
        if entry.file_offset + entry.length > file.size:
            raise broken(
                path,
                name,
                f"{entry.length} bytes at {entry.file_offset} are beyond the file's {file.size}",
            )
        regions[guid] = Region(name, entry.file_offset, entry.length)
    for guid, name in known.items():
        if guid not in regions:
            raise broken(path, name, "missing")
    taken = [Region("header section", 0, r.HEADER_SECTION_LENGTH), *regions.values()]
    if header.log_length:
        taken.append(Region("log", header.log_offset, header.log_length))
    taken.sort(key=lambda region: region.offset)
    for before, after in itertools.pairwise(taken):
        if before.end > after.offset:
            raise broken(path, after.name, f"overlaps the {before.name} at {after.offset}")
    return Regions(regions[r.BAT_REGION], regions[r.METADATA_REGION], tuple(taken))
