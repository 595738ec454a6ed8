"""One VHD file as an image: fixed, dynamic or differencing ("Virtual Hard Disk Image Format" 1.0).

Decided here and only here: which footer counts, what size the disk is, what a
block's sector bitmap means, and when a parent is the right one. The file is
never written.

The size is the footer's `current_size`, as Hyper-V reads it, but for images of
QEMU's own making (creator "qemu"): those are as large as their geometry says,
as qemu-img reads them. (qemu-img goes by geometry for unknown creators too,
which cuts off the tail of other programs' disks.)

A sector whose bit is clear reads as zeros in a dynamic disk, as the parent's in
a differencing one.

Threading: any number of threads may read at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from cloudmount.disks import vhd_records as r
from cloudmount.disks.bitmaps import bit_runs
from cloudmount.disks.chain import Image, ParentLink, Run, Where
from cloudmount.disks.paging import Pages, Table
from cloudmount.disks.parents import parent_paths
from cloudmount.disks.raw import RawDisk
from cloudmount.errors import UnreadableInputError
from cloudmount.extents import BlockSource

_MAX_BLOCKS = 1 << 22  # 2 TiB at 512 KiB; smaller blocks are only made for smaller disks
_MAX_LOCATOR = 64 * 1024  # bytes of one spelling of a path: Windows' limit twice


def broken(path: Path, field: str, why: str) -> UnreadableInputError:
    """The one error of a VHD that can't be read: `field` is the structure and field at fault."""
    return UnreadableInputError(f"{path}: broken VHD: {field}: {why}")


def find_footer(file: BlockSource) -> tuple[bytes, int] | None:
    """The footer's 512 bytes and how many it takes at the file's end; None when this is no VHD.

    A valid footer at the end counts (512 bytes, or 511 as before Virtual PC
    2004), then its copy at the start, which takes none; then one by its cookie
    alone, so that its reader can say what is wrong with it.
    """
    candidates = []
    if file.size >= r.FOOTER_LENGTH:
        last = file.read_at(file.size - r.FOOTER_LENGTH, r.FOOTER_LENGTH)
        candidates.append((last, r.FOOTER_LENGTH))
        candidates.append((last[1:] + b"\0", r.FOOTER_LENGTH_OLD))
        candidates.append((file.read_at(0, r.FOOTER_LENGTH), 0))
    candidates = [c for c in candidates if c[0].startswith(r.FOOTER_COOKIE)]
    valid = [c for c in candidates if _holds(r.Footer.unpack(c[0]))]
    return next(iter(valid or candidates), None)


def _holds(structure: r.Footer | r.DynamicHeader) -> bool:
    return structure.checksum == r.checksum(structure)


class VhdImage:
    """The VHD at `path`; sizes in bytes. `UnreadableInputError` names the structure that is broken."""

    def __init__(self, path: Path) -> None:
        raw = RawDisk(path)
        try:
            self._open(raw)
        except BaseException:
            raw.close()
            raise

    def _open(self, raw: RawDisk) -> None:
        self.path = path = raw.path
        self.identity = raw.identity
        self.modified = raw.modified
        self.file = raw
        self.link: ParentLink | None = None
        found = find_footer(raw)
        if found is None:
            raise broken(path, "footer", 'neither at the end nor at the start of the file is a "conectix"')
        self.footer = footer = r.Footer.unpack(found[0])
        if not _holds(footer):
            raise broken(path, "footer checksum", "wrong, and there is no good copy")
        if footer.file_format_version != r.FILE_FORMAT_VERSION:
            raise broken(path, "footer file format version", f"{footer.file_format_version:#x}, not 0x10000")
        self.size = self._disk_size(footer)
        if not 0 < self.size <= r.MAX_DISK_SIZE or self.size % r.SECTOR:
            raise broken(path, "footer current size", f"{self.size} is not 1 to 2040 GiB in whole sectors")
        self._end = raw.size - found[1]  # of what blocks may lie in
        self._table: Table | None = None
        if footer.disk_type == r.DISK_FIXED:
            if self.size > self._end:
                raise broken(
                    path,
                    "footer current size",
                    f"{self.size} bytes, but the file has {self._end} before its footer; it was cut short",
                )
        elif footer.disk_type in (r.DISK_DYNAMIC, r.DISK_DIFFERENCING):
            self._open_dynamic(footer)
        else:
            raise broken(path, "footer disk type", f"{footer.disk_type} is not 2, 3 or 4")

    def _disk_size(self, footer: r.Footer) -> int:
        """In bytes; see the module."""
        sectors = footer.cylinders * footer.heads * footer.sectors_per_track
        if footer.creator_application == r.CREATOR_QEMU and sectors != r.MAX_GEOMETRY:
            return sectors * r.SECTOR
        return footer.current_size

    def _open_dynamic(self, footer: r.Footer) -> None:
        path, at = self.path, footer.data_offset
        if at + r.DYNAMIC_LENGTH > self._end:
            raise broken(path, "footer data offset", f"{at} is beyond the file's {self.file.size} bytes")
        header = r.DynamicHeader.unpack(self.file.read_at(at, r.DYNAMIC_LENGTH))
        if header.cookie != r.DYNAMIC_COOKIE:
            raise broken(path, "dynamic header", 'its cookie is not "cxsparse"')
        if not _holds(header):
            raise broken(path, "dynamic header checksum", "wrong")
        if header.header_version != r.DYNAMIC_VERSION:
            raise broken(path, "dynamic header version", f"{header.header_version:#x}, not 0x10000")
        self._block = block = header.block_size
        if block < r.SECTOR or block & (block - 1):
            raise broken(path, "dynamic header block size", f"{block} is no power of two from 512 on")
        count = -(-self.size // block)
        if not count <= header.max_table_entries:
            raise broken(
                path,
                "dynamic header max table entries",
                f"{header.max_table_entries}, but {self.size} bytes are {count} blocks",
            )
        if count > _MAX_BLOCKS:
            raise broken(path, "dynamic header block size", f"{block} makes {count} blocks: too many")
        length = count * r.BAT_ENTRY_LENGTH
        if header.table_offset + length > self._end:
            raise broken(
                path,
                "dynamic header table offset",
                f"{length} bytes at {header.table_offset} are beyond the file's {self.file.size}",
            )
        self._taken = sorted(
            [
                (0, r.FOOTER_LENGTH, "copy of the footer"),
                (at, at + r.DYNAMIC_LENGTH, "dynamic header"),
                (header.table_offset, header.table_offset + length, "BAT"),
            ]
        )
        for before, after in pairwise(self._taken):
            if before[1] > after[0]:
                raise broken(path, after[2], f"overlaps the {before[2]} at {after[0]}")
        self._pages = Pages(self.file)
        self._table = Table(self._pages, header.table_offset, count, r.BAT_ENTRY_LENGTH, "big")
        self._bitmap = r.bitmap_length(block)
        self._absent = Where.ZERO
        if footer.disk_type == r.DISK_DIFFERENCING:
            self._absent = Where.PARENT
            self.link = self._parent_link(header)

    @property
    def unique_id(self) -> UUID:
        """The footer's unique id."""
        return UUID(bytes_le=self.footer.unique_id)

    def _parent_link(self, header: r.DynamicHeader) -> ParentLink:
        relative: list[str] = []
        absolute: list[str] = []
        for i in range(r.LOCATOR_COUNT):
            locator = r.ParentLocator.unpack(header.locators, i * r.ParentLocator.SIZE)
            if locator.platform_code in (r.LOCATOR_RELATIVE, r.LOCATOR_ABSOLUTE):
                text = self._locator_text(i, locator)
                (relative if locator.platform_code == r.LOCATOR_RELATIVE else absolute).append(text)
        try:
            name = header.parent_name.decode("utf-16-be").split("\0")[0]
        except UnicodeDecodeError:
            raise broken(self.path, "dynamic header parent name", "is not UTF-16") from None
        names = [name] if name else []

        def mismatch(parent: Image) -> str | None:
            if not isinstance(parent, VhdImage):
                return "it is no VHD"
            if parent.footer.unique_id != header.parent_unique_id:
                return f"its unique id is {parent.unique_id}"
            if parent.size != self.size:
                return f"it is {parent.size} bytes, the child {self.size}"
            # Writers differ in whether they record the parent's file time or its footer's. Zero: nothing.
            times = (parent.footer.time_stamp, int(parent.modified) - r.EPOCH)
            stamp = header.parent_time_stamp
            if stamp and all(abs(stamp - time) > 2 for time in times):  # 2 s: FAT's resolution
                return "its time stamp is another: it was written to, or copied without its time, since then"
            return None

        described = repr((relative + absolute + names or ["without a path"])[0])
        return ParentLink(parent_paths(self.path, relative, absolute + names), described, mismatch)

    def _locator_text(self, number: int, locator: r.ParentLocator) -> str:
        """The path a parent locator holds, UTF-16LE."""
        field = f"parent locator {number}"
        length, at = locator.data_length, locator.data_offset
        if not length or length % 2 or length > _MAX_LOCATOR or at + length > self._end:
            raise broken(
                self.path, field, f"{length} bytes at {at} are no path or beyond the file's {self.file.size}"
            )
        try:
            return self.file.read_at(at, length).decode("utf-16-le").rstrip("\0")
        except UnicodeDecodeError:
            raise broken(self.path, field, "is not UTF-16") from None

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """See `chain.Image`."""
        if self._table is None:
            yield Run(length, Where.HERE, offset)
            return
        end = offset + length
        while offset < end:
            block, within = divmod(offset, self._block)
            entry = self._table[block]
            if entry == r.BAT_UNUSED:
                blocks = self._table.repeats(block, -(-(end - offset + within) // self._block))
                n = min(blocks * self._block - within, end - offset)
                yield Run(n, self._absent)
            else:
                n = min(self._block - within, end - offset)
                yield from self._stored(self._position(entry, block), within, n)
            offset += n

    def _position(self, entry: int, block: int) -> int:
        """Where a stored block's bitmap lies, its data behind it."""
        at = entry * r.SECTOR
        end = at + self._bitmap + min(self._block, self.size - block * self._block)
        if end > self._end:
            raise broken(
                self.path,
                f"BAT entry {block}",
                f"{end - at} bytes at {at} are beyond the file's {self.file.size}; it was cut short",
            )
        for start, stop, name in self._taken:
            if at < stop and end > start:
                raise broken(self.path, f"BAT entry {block}", f"its block at {at} is inside the {name}")
        return at

    def _stored(self, position: int, within: int, length: int) -> Iterator[Run]:
        """A part of a block in the file, by its sector bitmap."""
        first = within // r.SECTOR
        count = -(-(within + length) // r.SECTOR) - first
        bits = self._pages.read(position + first // 8, (first + count - 1) // 8 - first // 8 + 1)
        data = position + self._bitmap
        at = within
        for n, present in bit_runs(bits, first % 8, count, "big"):
            first += n
            end = min(first * r.SECTOR, within + length)
            if present:
                yield Run(end - at, Where.HERE, data + at)
            else:
                yield Run(end - at, self._absent)
            at = end

    def verify(self) -> None:
        """See `chain.Image`. Sorts what is allocated: at most 2^22 blocks."""
        if self._table is None:
            return
        found = array("Q")  # sector number and block in one, so that a million take 8 MB
        for first, raw in self._table.slices():
            if raw == b"\xff" * len(raw):
                continue
            for block, entry in enumerate(self._table.values(raw), first):
                if entry != r.BAT_UNUSED:
                    self._position(entry, block)
                    found.append(entry * _MAX_BLOCKS * 2 + block)
        last = self._table.count - 1  # this block may be cut
        for one, other in pairwise(sorted(found)):
            (sector, block), (after, next_block) = (
                divmod(one, _MAX_BLOCKS * 2),
                divmod(other, _MAX_BLOCKS * 2),
            )
            length = self._bitmap + (self.size - last * self._block if block == last else self._block)
            if sector * r.SECTOR + length > after * r.SECTOR:
                raise broken(
                    self.path,
                    f"BAT entry {next_block}",
                    f"its block at {after * r.SECTOR} is also that of entry {block}",
                )

    def close(self) -> None:
        """See `chain.Image`."""
        self.file.close()
