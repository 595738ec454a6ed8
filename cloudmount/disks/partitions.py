"""Partition tables: GPT (UEFI 2.10, chapter 5) and MBR with its logical partitions.

Decided here and only here: which table a disk has, which copy of a GPT counts,
and how partitions are numbered: as Linux does, GPT entries and MBR slots by
their place from 1, logical ones from 5. A damaged table is told in `problem`
and never an error: the disk's content is still content.

Everything read is bounded: a GPT of at most 1 MiB, 1,024 logical partitions.
Pure; safe on any thread.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal
from uuid import UUID

from cloudmount.disks.signatures import file_system
from cloudmount.extents import BlockSource, Layout, Piece
from cloudmount.records import Record, record

_BOOT_SIGNATURE = b"\x55\xaa"
_MBR_LENGTH = 512
_GPT_SIGNATURE = b"EFI PART"
_GPT_PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)
_SLOTS = 4
_MAX_LOGICAL = 1024
_MAX_ARRAY = 1024 * 1024  # bytes of GPT entries; 128 entries of 128 bytes are usual
SECTOR_SIZES = (512, 4096)

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LINUX_BOOT = "bc13c2ff-59e6-4262-a352-b275fd6f7172"
BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"

_TYPE_NAMES = {
    ESP: "EFI system partition",
    BIOS_BOOT: "BIOS boot partition",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Basic data",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "Windows LDM metadata",
    "af9b60a0-1431-4f62-bc68-3311714a69ad": "Windows LDM data",
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": "Windows storage spaces",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux filesystem",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root",
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915": "Linux home",
    LINUX_BOOT: "Linux extended boot",
    "0x01": "FAT12",
    "0x04": "FAT16",
    "0x06": "FAT16",
    "0x07": "NTFS or exFAT",
    "0x0b": "FAT32",
    "0x0c": "FAT32",
    "0x0e": "FAT16",
    "0x27": "Windows recovery",
    "0x42": "Windows LDM",
    "0x82": "Linux swap",
    "0x83": "Linux filesystem",
    "0x8e": "Linux LVM",
    "0xee": "GPT protective",
    "0xef": "EFI system partition",
    "0xfd": "Linux RAID",
}


@record(size=16, spec="UEFI 2.10 table 5.2")
class MbrEntry(Record):
    """One of four at byte 446 of an MBR or extended boot record."""

    status: Annotated[int, "B"]
    first_chs: Annotated[bytes, "3s"]
    type: Annotated[int, "B"]
    last_chs: Annotated[bytes, "3s"]
    start: Annotated[int, "I"]
    sectors: Annotated[int, "I"]


@record(size=92, spec="UEFI 2.10 table 5.5")
class GptHeader(Record):
    """At the second and the last sector of the disk."""

    signature: Annotated[bytes, "8s"]
    revision: Annotated[int, "I"]
    header_size: Annotated[int, "I"]
    checksum: Annotated[int, "I"]
    reserved: Annotated[int, "I"]
    my_lba: Annotated[int, "Q"]
    alternate_lba: Annotated[int, "Q"]
    first_usable: Annotated[int, "Q"]
    last_usable: Annotated[int, "Q"]
    disk_guid: Annotated[bytes, "16s"]
    entries_lba: Annotated[int, "Q"]
    entry_count: Annotated[int, "I"]
    entry_size: Annotated[int, "I"]
    entries_checksum: Annotated[int, "I"]


@record(size=128, spec="UEFI 2.10 table 5.6")
class GptEntry(Record):
    """One partition; `name` is UTF-16LE."""

    type: Annotated[bytes, "16s"]
    unique_id: Annotated[bytes, "16s"]
    first: Annotated[int, "Q"]
    last: Annotated[int, "Q"]
    attributes: Annotated[int, "Q"]
    name: Annotated[bytes, "72s"]


@dataclass(frozen=True, slots=True)
class Partition:
    """`length` bytes of the disk at `start`.

    `type` is a GUID in lower case or two hex digits ("0x07"); `name` the GPT's
    own, else empty. `active`: an MBR's boot flag.
    """

    number: int
    start: int
    length: int
    type: str
    name: str = ""
    active: bool = False

    @property
    def type_name(self) -> str:
        """The type in words, as far as it is known; else the type itself."""
        return _TYPE_NAMES.get(self.type, self.type)


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A disk's partitions in the order of their numbers.

    `sector`: bytes the table counts in. `problem`: what is damaged in it, or None.
    """

    kind: Literal["gpt", "mbr", "none"]
    sector: int = 512
    partitions: tuple[Partition, ...] = ()
    problem: str | None = None


def read_partitions(source: BlockSource, logical_sector: int | None = None) -> PartitionTable:
    """The disk's partition table; kind "none" when there is none.

    `logical_sector` in bytes; when it isn't known, a GPT is looked for at both
    sizes, and an MBR is taken to count in 512, unless file systems lie only where
    it says when it counts in 4096.
    """
    sectors = SECTOR_SIZES if logical_sector is None else (logical_sector,)
    mbr = _mbr_entries(source)
    protective = mbr is not None and any(e.type == _GPT_PROTECTIVE for e in mbr)
    if mbr is None or protective or not _in_use(mbr):
        problems = []
        for sector in sectors:
            table, problem = _read_gpt(source, sector)
            if table is not None:
                return table
            problems.append(problem)
        if mbr is not None and any(_is_protective(e) for e in mbr):
            return PartitionTable("gpt", sectors[0], (), problems[0])
    if (
        mbr is None
        or not _plausible(mbr)
        or (_overlapping(mbr) and not _are_partitions(source, mbr, sectors))
    ):
        return PartitionTable("none", sectors[0])
    counts = sectors[0]
    if len(sectors) > 1:
        counts = next((s for s in sectors if _found(source, mbr, s)), counts)
    return _read_mbr(source, counts, mbr)


def _mbr_entries(source: BlockSource, at: int = 0) -> list[MbrEntry] | None:
    """The four entries of the boot record at byte `at`; None when there is none."""
    if at + _MBR_LENGTH > source.size:
        return None
    raw = source.read_at(at, _MBR_LENGTH)
    if raw[510:] != _BOOT_SIGNATURE:
        return None
    return [MbrEntry.unpack(raw, 446 + i * MbrEntry.SIZE) for i in range(4)]


def _in_use(entries: list[MbrEntry]) -> bool:
    return any(e.type for e in entries)


def _is_protective(entry: MbrEntry) -> bool:
    """Whether it stands for a GPT by the book; else 0xEE may be a byte of anything."""
    return entry.type == _GPT_PROTECTIVE and entry.start == 1 and entry.status in (0, 0x80)


def _plausible(entries: list[MbrEntry]) -> bool:
    """Whether these may be partitions, not a boot sector's code (both end in 55 AA)."""
    used = [e for e in entries if e.type]
    return (
        bool(used)
        and all(e.status in (0, 0x80) for e in entries)
        and all(e.start and e.sectors for e in used)
    )


def _overlapping(entries: list[MbrEntry]) -> bool:
    ranges = sorted((e.start, e.start + e.sectors) for e in entries if e.type)
    return any(a[1] > b[0] for a, b in pairwise(ranges))


def _are_partitions(source: BlockSource, entries: list[MbrEntry], sectors: tuple[int, ...]) -> bool:
    """Whether entries that overlap are partitions all the same: something lies where they say, and no file
    system fills the whole disk."""
    return file_system(source) is None and any(_found(source, entries, s) for s in sectors)


def _found(source: BlockSource, entries: list[MbrEntry], sector: int) -> bool:
    """Whether one of these, counted in sectors of this size, begins with something that is known."""
    for e in entries:
        at = e.start * sector
        if not e.type or at >= source.size:
            continue
        if e.type in _EXTENDED:
            if _mbr_entries(source, at) is not None:
                return True
            continue
        length = min(e.sectors * sector, source.size - at)
        if file_system(Layout([Piece(length, source, at)])) is not None:
            return True
    return False


def _read_mbr(source: BlockSource, sector: int, entries: list[MbrEntry]) -> PartitionTable:
    found = []
    problem = None
    for number, e in enumerate(entries, 1):
        if not e.type:
            continue
        part = Partition(
            number, e.start * sector, e.sectors * sector, f"0x{e.type:02x}", active=e.status == 0x80
        )
        if part.start + part.length > source.size:
            problem = problem or f"partition {number} reaches beyond the disk"
        found.append(part)
    for e in entries:
        if e.type in _EXTENDED:
            logical, why = _logical(source, sector, e)
            found += [Partition(n, start, length, kind) for n, (start, length, kind) in enumerate(logical, 5)]
            problem = problem or why
            break  # Linux reads the first extended partition only, and there should be no other
    problem = problem or _overlap([p for p in found if p.number <= _SLOTS])
    problem = problem or _overlap([p for p in found if int(p.type, 16) not in _EXTENDED])
    return PartitionTable("mbr", sector, tuple(found), problem)


def _overlap(partitions: list[Partition]) -> str | None:
    """What is wrong when two of them share bytes."""
    for a, b in pairwise(sorted(partitions, key=lambda p: (p.start, p.number))):
        if b.start < a.start + a.length:
            return f"partitions {a.number} and {b.number} overlap"
    return None


def _logical(
    source: BlockSource, sector: int, extended: MbrEntry
) -> tuple[list[tuple[int, int, str]], str | None]:
    """(start, length, type) of each logical partition along the chain of extended boot records."""
    found: list[tuple[int, int, str]] = []
    seen: set[int] = set()
    lba: int | None = extended.start
    while lba is not None:
        if lba in seen or len(seen) == _MAX_LOGICAL:
            return found, f"the chain of logical partitions runs in a circle at sector {lba}"
        seen.add(lba)
        entries = _mbr_entries(source, lba * sector)
        if entries is None:
            return found, f"no extended boot record at sector {lba}"
        following = None
        for e in entries:
            if not e.type or not e.sectors:
                continue
            if e.type in _EXTENDED:
                if following is None:
                    following = extended.start + e.start  # counted from the outermost
            else:
                found.append(((lba + e.start) * sector, e.sectors * sector, f"0x{e.type:02x}"))
        lba = following
    if any(start + length > source.size for start, length, _ in found):
        return found, "a logical partition reaches beyond the disk"
    return found, None


def _read_gpt(source: BlockSource, sector: int) -> tuple[PartitionTable | None, str]:
    """The GPT from its primary header, else its backup at the disk's end; else None and why."""
    table, why = _gpt_at(source, sector, 1)
    if table is not None:
        return table, ""
    backup, why_backup = _gpt_at(source, sector, source.size // sector - 1)
    where = ""
    for lba in _former_ends(source, sector) if backup is None else ():
        backup, _ = _gpt_at(source, sector, lba)
        if backup is not None:
            where = ", from where the disk ended before it grew"
            break
    if backup is None:
        return None, f"GPT: primary {why}, backup {why_backup}"
    problem = f"GPT: primary {why}; its backup is used{where}"
    if backup.problem is not None:
        problem += f"; {backup.problem.removeprefix('GPT: ')}"
    return PartitionTable("gpt", sector, backup.partitions, problem), ""


def _former_ends(source: BlockSource, sector: int) -> list[int]:
    """Where the backup may be of a disk that has grown: as the damaged header says, or the protective MBR."""
    found = []
    if 2 * sector <= source.size:
        header = GptHeader.unpack(source.read_at(sector, sector))
        if header.signature == _GPT_SIGNATURE:
            found.append(header.alternate_lba)
    found += [e.start + e.sectors - 1 for e in _mbr_entries(source) or () if _is_protective(e)]
    return found


def _gpt_at(source: BlockSource, sector: int, lba: int) -> tuple[PartitionTable | None, str]:
    if lba < 1 or (lba + 1) * sector > source.size:
        return None, "beyond the disk"
    raw = source.read_at(lba * sector, sector)
    header = GptHeader.unpack(raw)
    if header.signature != _GPT_SIGNATURE:
        return None, "missing"
    if not GptHeader.SIZE <= header.header_size <= sector:
        return None, "header size wrong"
    checked = raw[:16] + bytes(4) + raw[20 : header.header_size]
    if zlib.crc32(checked) != header.checksum:
        return None, "header checksum wrong"
    if header.my_lba != lba:
        return None, "header made for another sector"
    length = header.entry_count * header.entry_size
    if header.entry_size < GptEntry.SIZE or header.entry_size % 8 or length > _MAX_ARRAY:
        return None, "entry count or size wrong"
    if header.entries_lba * sector + length > source.size:
        return None, "entries beyond the disk"
    array = source.read_at(header.entries_lba * sector, length)
    if zlib.crc32(array) != header.entries_checksum:
        return None, "entries' checksum wrong"
    found = []
    problem = None
    for i in range(header.entry_count):
        entry = GptEntry.unpack(array, i * header.entry_size)
        if not any(entry.type):
            continue
        if entry.last < entry.first or (entry.last + 1) * sector > source.size:
            problem = problem or f"GPT: partition {i + 1} reaches beyond the disk"
            if entry.last < entry.first:
                continue
        found.append(
            Partition(
                i + 1,
                entry.first * sector,
                (entry.last - entry.first + 1) * sector,
                str(UUID(bytes_le=entry.type)),
                entry.name.decode("utf-16-le", "replace").split("\0")[0],
                bool(entry.attributes & 4),
            )
        )
    overlap = _overlap(found)
    problem = problem or (overlap and f"GPT: {overlap}")
    return PartitionTable("gpt", sector, tuple(found), problem), ""
