"""A VHDX's metadata region: the disk's parameters and its parent locator ([MS-VHDX] 2.6).

Decided here and only here: which items a disk must have, which values are
refused, and how a parent locator is read. Pure; safe on any thread.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from cloudmount.disks import vhdx_records as r
from cloudmount.disks.vhdx_header import Region, broken
from cloudmount.extents import BlockSource


@dataclass(frozen=True)
class Parameters:
    """What the metadata say of a disk; sizes in bytes. `locator`: keys and values, None without a parent."""

    disk_size: int
    block_size: int
    logical_sector: int
    physical_sector: int
    virtual_disk_id: UUID
    fixed: bool
    locator: dict[str, str] | None


_NAMES = {
    r.FILE_PARAMETERS_ITEM: "file parameters",
    r.VIRTUAL_DISK_SIZE_ITEM: "virtual disk size",
    r.PAGE_83_ITEM: "virtual disk id",
    r.LOGICAL_SECTOR_SIZE_ITEM: "logical sector size",
    r.PHYSICAL_SECTOR_SIZE_ITEM: "physical sector size",
    r.PARENT_LOCATOR_ITEM: "parent locator",
    r.CHS_PARAMETERS_ITEM: "CHS parameters",
    r.PMEM_LABELS_ITEM: "PMEM labels",
}


def read_parameters(path: Path, file: BlockSource, region: Region) -> Parameters:
    """The disk's parameters from the metadata region of `file` (its log replayed)."""
    items = _Items(path, file, region)
    logical = items.sector_size(r.LOGICAL_SECTOR_SIZE_ITEM)
    physical = items.sector_size(r.PHYSICAL_SECTOR_SIZE_ITEM)

    parameters = r.FileParameters.unpack(items.exactly(r.FILE_PARAMETERS_ITEM, 8, of_disk=False))
    block = parameters.block_size
    if block & (block - 1) or not r.MIN_BLOCK <= block <= r.MAX_BLOCK:
        raise broken(path, "block size", f"{block} is not a power of two from 1 to 256 MiB")
    if parameters.flags & ~(r.LEAVE_BLOCKS_ALLOCATED | r.HAS_PARENT):
        raise broken(path, "file parameters", f"their reserved flags are not 0 ({parameters.flags:#x})")

    size = int.from_bytes(items.exactly(r.VIRTUAL_DISK_SIZE_ITEM, 8), "little")
    if not 0 < size <= r.MAX_DISK_SIZE or size % logical:
        raise broken(
            path, "virtual disk size", f"{size} is not 1 to 64 TiB in whole sectors of {logical} bytes"
        )

    has_parent = bool(parameters.flags & r.HAS_PARENT)
    if has_parent != (r.PARENT_LOCATOR_ITEM in items.entries):
        raise broken(
            path,
            "parent locator",
            "missing, but the file parameters say there is a parent"
            if has_parent
            else "present, but the file parameters say there is no parent",
        )
    return Parameters(
        size,
        block,
        logical,
        physical,
        UUID(bytes_le=items.exactly(r.PAGE_83_ITEM, 16)),
        bool(parameters.flags & r.LEAVE_BLOCKS_ALLOCATED),
        _read_locator(path, items.read(r.PARENT_LOCATOR_ITEM)) if has_parent else None,
    )


class _Items:
    """The metadata table (2.6.1), checked whole; items are read when asked for."""

    def __init__(self, path: Path, file: BlockSource, region: Region) -> None:
        self._path, self._file, self._region = path, file, region
        if region.length > r.METADATA_MAX_REGION:
            raise broken(path, "metadata region", f"{region.length} bytes, more than 128 MiB")
        table = file.read_at(region.offset, r.METADATA_TABLE_LENGTH)
        head = r.MetadataTableHeader.unpack(table)
        if head.signature != r.METADATA_SIGNATURE:
            raise broken(path, "metadata table", 'signature is not "metadata"')
        if head.entry_count > r.METADATA_MAX_ENTRIES:
            raise broken(
                path, "metadata entry count", f"{head.entry_count}, more than {r.METADATA_MAX_ENTRIES}"
            )
        if head.reserved or any(head.reserved2):
            raise broken(path, "metadata table", "its reserved fields are not 0")
        self.entries: dict[UUID, r.MetadataTableEntry] = {}  # of the system; users' own say nothing to us
        seen = set()
        ranges = []
        for i in range(head.entry_count):
            entry = r.MetadataTableEntry.unpack(
                table, r.MetadataTableHeader.SIZE + i * r.MetadataTableEntry.SIZE
            )
            guid = UUID(bytes_le=entry.item_id)
            user = bool(entry.flags & r.METADATA_IS_USER)
            self._check(entry, guid, user)
            if (guid, user) in seen:
                raise broken(path, self._name(guid), "listed twice")
            seen.add((guid, user))
            if entry.length:
                ranges.append((entry.offset, entry.offset + entry.length, self._name(guid)))
            if not user:
                self.entries[guid] = entry
        ranges.sort()
        for before, after in itertools.pairwise(ranges):
            if before[1] > after[0]:
                raise broken(path, after[2], f"overlaps the {before[2]}")

    def _name(self, guid: UUID) -> str:
        return _NAMES.get(guid, f"metadata item {guid}")

    def _check(self, entry: r.MetadataTableEntry, guid: UUID, user: bool) -> None:
        path, name = self._path, self._name(guid)
        supported = r.METADATA_IS_USER | r.METADATA_IS_VIRTUAL_DISK | r.METADATA_IS_REQUIRED
        if entry.reserved2 or entry.flags & ~supported:
            raise broken(path, name, "its reserved fields are not 0")
        if entry.item_id == r.ZERO_GUID:
            raise broken(path, name, "its id is zero")
        if guid == r.INCOMPLETE_FILE_ITEM and not user:
            raise broken(path, name, "the program that made this file never finished")
        if entry.flags & r.METADATA_IS_REQUIRED and (user or guid not in _NAMES):
            raise broken(path, name, "required, but not known; a newer program made this file")
        if entry.length > r.METADATA_MAX_ITEM:
            raise broken(path, name, f"{entry.length} bytes, more than 1 MiB")
        if entry.length == 0:
            if entry.offset:
                raise broken(path, name, f"has offset {entry.offset} but no length")
        elif entry.offset < r.METADATA_TABLE_LENGTH or entry.offset + entry.length > self._region.length:
            raise broken(path, name, f"{entry.length} bytes at {entry.offset} are outside the items' space")

    def read(self, guid: UUID) -> bytes:
        """An item's bytes; it must be there."""
        entry = self.entries.get(guid)
        if entry is None:
            raise broken(self._path, self._name(guid), "missing")
        return self._file.read_at(self._region.offset + entry.offset, entry.length)

    def exactly(self, guid: UUID, length: int, *, of_disk: bool = True) -> bytes:
        """An item that must be `length` bytes, and marked as the virtual disk's own or not."""
        value = self.read(guid)
        if len(value) != length:
            raise broken(self._path, self._name(guid), f"{len(value)} bytes, not {length}")
        if bool(self.entries[guid].flags & r.METADATA_IS_VIRTUAL_DISK) != of_disk:
            raise broken(self._path, self._name(guid), "its IsVirtualDisk flag is wrong")
        return value

    def sector_size(self, guid: UUID) -> int:
        """A sector size in bytes, 512 or 4096."""
        value = int.from_bytes(self.exactly(guid, 4), "little")
        if value not in r.SECTOR_SIZES:
            raise broken(self._path, self._name(guid), f"{value} is neither 512 nor 4096")
        return value


def _read_locator(path: Path, item: bytes) -> dict[str, str]:
    """The parent locator's keys and values (2.6.2.6)."""
    if len(item) < r.ParentLocatorHeader.SIZE:
        raise broken(path, "parent locator", f"{len(item)} bytes are too short")
    head = r.ParentLocatorHeader.unpack(item)
    if UUID(bytes_le=head.locator_type) != r.PARENT_LOCATOR_VHDX:
        raise broken(
            path, "parent locator", f"of unknown type {UUID(bytes_le=head.locator_type)}, not a VHDX parent"
        )
    count = head.key_value_count
    if not 0 < count <= r.PARENT_LOCATOR_MAX_ENTRIES:
        raise broken(path, "parent locator", f"{count} entries, not 1 to {r.PARENT_LOCATOR_MAX_ENTRIES}")
    if len(item) < r.ParentLocatorHeader.SIZE + count * r.ParentLocatorEntry.SIZE:
        raise broken(path, "parent locator", f"{len(item)} bytes are too short for {count} entries")
    values: dict[str, str] = {}
    for i in range(count):
        entry = r.ParentLocatorEntry.unpack(item, r.ParentLocatorHeader.SIZE + i * r.ParentLocatorEntry.SIZE)
        key = _text(path, item, "key", entry.key_offset, entry.key_length)
        if key in values:
            raise broken(path, "parent locator", f"{key!r} is there twice")
        values[key] = _text(path, item, f"value of {key!r}", entry.value_offset, entry.value_length)
    return values


def _text(path: Path, item: bytes, what: str, offset: int, length: int) -> str:
    """UTF-16LE text within the parent locator."""
    if not length or length % 2 or offset + length > len(item):
        raise broken(path, "parent locator", f"its {what} ({length} bytes at {offset}) is outside it or cut")
    try:
        text = item[offset : offset + length].decode("utf-16-le")
    except UnicodeDecodeError:
        raise broken(path, "parent locator", f"its {what} is not UTF-16") from None
    if "\0" in text:
        raise broken(path, "parent locator", f"its {what} holds a NUL")
    return text


def linkages(path: Path, locator: dict[str, str]) -> list[UUID]:
    """The parent's possible DataWriteGuids (2.6.2.6.3): parent_linkage, and parent_linkage2 when there."""
    found = []
    for key in (r.PARENT_LINKAGE, r.PARENT_LINKAGE2):
        text = locator.get(key)
        if text is None:
            if key == r.PARENT_LINKAGE:
                raise broken(path, "parent locator", "has no parent_linkage")
            continue
        if not re.fullmatch(r"\{?[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\}?", text):
            raise broken(path, "parent locator", f"{key} is no GUID: {text[:60]!r}")
        guid = UUID(text)
        if key == r.PARENT_LINKAGE or guid.int:  # an unused second one is all zeros
            found.append(guid)
    return found
