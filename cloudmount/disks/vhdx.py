"""One VHDX file as an image: fixed, dynamic or differencing, its dirty log replayed ([MS-VHDX]).

Decided here and only here: what each block state reads as, what a BAT entry may
say, and how a sector bitmap divides a block between a child and its parent.
What the file leaves undefined (blocks NOT_PRESENT without a parent, UNDEFINED,
UNMAPPED) reads as zeros. The file is never written.

Threading: any number of threads may read at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from cloudmount.disks import vhdx_records as r
from cloudmount.disks.bitmaps import bit_runs
from cloudmount.disks.chain import Image, ParentLink, Run, Where
from cloudmount.disks.paging import Pages, Table
from cloudmount.disks.parents import parent_paths
from cloudmount.disks.raw import RawDisk
from cloudmount.disks.vhdx_header import broken, read_header, read_regions
from cloudmount.disks.vhdx_log import replayed
from cloudmount.disks.vhdx_metadata import linkages, read_parameters

_HERE = (r.BlockState.FULLY_PRESENT, r.BlockState.PARTIALLY_PRESENT)
_STATES = {int(state): state for state in r.BlockState}


class VhdxImage:
    """The VHDX at `path`; sizes in bytes. `UnreadableInputError` names the structure that is broken."""

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
        if raw.size > r.MAX_FILE_SIZE:
            raise broken(path, "file", f"{raw.size} bytes, more than any VHDX has")
        header = read_header(path, raw)
        self.data_write_guid = header.data_write_guid
        self.file = replayed(path, raw, header)
        self._regions = read_regions(path, self.file, header)
        self._starts = [region.offset for region in self._regions.taken]
        self.parameters = p = read_parameters(path, self.file, self._regions.metadata)
        self.size = p.disk_size
        self._block = p.block_size
        self._ratio = r.chunk_ratio(p.block_size, p.logical_sector)
        count = r.bat_entry_count(
            p.disk_size, p.block_size, p.logical_sector, has_parent=p.locator is not None
        )
        bat = self._regions.bat
        if count * r.BAT_ENTRY_LENGTH > bat.length:
            raise broken(path, "BAT region", f"{bat.length} bytes are too few for {count} entries")
        self._pages = Pages(self.file)
        self._bat = Table(self._pages, bat.offset, count, r.BAT_ENTRY_LENGTH, "little")
        self._absent = Where.ZERO if p.locator is None else Where.PARENT
        self.link = None if p.locator is None else self._parent_link(p.locator)

    def _parent_link(self, locator: dict[str, str]) -> ParentLink:
        wanted = linkages(self.path, locator)
        relative = [locator[k] for k in (r.PARENT_RELATIVE_PATH,) if k in locator]
        absolute = [locator[k] for k in (r.PARENT_VOLUME_PATH, r.PARENT_ABSOLUTE_PATH) if k in locator]

        def mismatch(parent: Image) -> str | None:
            if not isinstance(parent, VhdxImage):
                return "it is no VHDX"
            if parent.data_write_guid not in [guid.bytes_le for guid in wanted]:
                return "its DataWriteGuid is another: it was written to, or is another disk"
            mine, its = self.parameters, parent.parameters
            if its.disk_size != mine.disk_size:
                return f"it is {its.disk_size} bytes, the child {mine.disk_size}"
            if its.logical_sector != mine.logical_sector:
                return f"its sectors are {its.logical_sector} bytes, the child's {mine.logical_sector}"
            if its.virtual_disk_id != mine.virtual_disk_id:
                return "its virtual disk id is another"
            return None

        described = repr((relative + absolute[::-1] or ["without a path"])[0])
        return ParentLink(parent_paths(self.path, relative, absolute), described, mismatch)

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """See `chain.Image`."""
        end = offset + length
        while offset < end:
            block, within = divmod(offset, self._block)
            index = r.payload_index(block, self._ratio)
            entry = self._bat[index]
            state = self._state(entry, index)
            if state in _HERE:
                n = min(self._block - within, end - offset)
                position = self._position(entry, index, self._used(block)) + within
                if state is r.BlockState.PARTIALLY_PRESENT and self.link is not None:
                    yield from self._divided(block, within, n, position)
                else:
                    yield Run(n, Where.HERE, position)
            else:
                # Blocks of one chunk have entries side by side: skip equal ones together.
                most = min(self._ratio - block % self._ratio, -(-(end - offset + within) // self._block))
                blocks = self._bat.repeats(index, most)
                n = min(blocks * self._block - within, end - offset)
                yield Run(n, self._absent if state is r.BlockState.NOT_PRESENT else Where.ZERO)
            offset += n

    def _used(self, block: int) -> int:
        """Bytes of a block that are the disk's: all but at its end."""
        return min(self._block, self.size - block * self._block)

    def _state(self, entry: int, index: int) -> r.BlockState:
        """The state of a payload block's entry (2.5.1)."""
        state = _STATES.get(entry & (r.BAT_STATE_MASK | r.BAT_RESERVED_MASK))
        if state is not None:
            return state
        if entry & r.BAT_RESERVED_MASK:
            raise broken(self.path, f"BAT entry {index}", f"its reserved bits are not 0 ({entry:#x})")
        raise broken(self.path, f"BAT entry {index}", f"unknown state {entry & r.BAT_STATE_MASK}")

    def _position(self, entry: int, index: int, length: int) -> int:
        """Where the `length` bytes of a stored block lie."""
        at = entry & r.BAT_OFFSET_MASK
        if at + length > self.file.size:
            raise broken(
                self.path,
                f"BAT entry {index}",
                f"{length} bytes at {at} are beyond the file's {self.file.size}; it was cut short",
            )
        if at < self._regions.taken[-1].end:
            # The region before the block's end is the only one that can reach into it.
            region = self._regions.taken[bisect_right(self._starts, at + length - 1) - 1]
            if region.end > at:
                raise broken(
                    self.path, f"BAT entry {index}", f"its block at {at} is inside the {region.name}"
                )
        return at

    def _bitmap_position(self, chunk: int) -> int:
        """Where the sector bitmap of a chunk lies."""
        index = r.bitmap_index(chunk, self._ratio)
        entry = self._bat[index]
        if self._state(entry, index) not in _HERE:
            raise broken(
                self.path,
                f"BAT entry {index}",
                f"chunk {chunk} has blocks partially present but no sector bitmap",
            )
        return self._position(entry, index, r.SECTOR_BITMAP_LENGTH)

    def _divided(self, block: int, within: int, length: int, position: int) -> Iterator[Run]:
        """A part of a block that is partially present, by its sector bitmap (2.5.2)."""
        sector = self.parameters.logical_sector
        chunk, number = divmod(block, self._ratio)
        first = within // sector
        count = -(-(within + length) // sector) - first
        bit = number * (self._block // sector) + first
        bits = self._pages.read(
            self._bitmap_position(chunk) + bit // 8, (bit + count - 1) // 8 - bit // 8 + 1
        )
        at = within
        for n, present in bit_runs(bits, bit % 8, count, "little"):
            first += n
            end = min(first * sector, within + length)
            if present:
                yield Run(end - at, Where.HERE, position + at - within)
            else:
                yield Run(end - at, Where.PARENT)
            at = end

    def verify(self) -> None:
        """See `chain.Image`. Linear in the BAT: 1 s for a million blocks, as long for 64 TiB of nothing."""
        used = bytearray(-(-self.file.size // r.MIB))
        quiet = (0, int(r.BlockState.ZERO))
        for first, raw in self._bat.slices():
            if raw == raw[:8] * (len(raw) // 8) and self._bat.values(raw[:8])[0] in quiet:
                continue
            for index, entry in enumerate(self._bat.values(raw), first):
                if entry not in quiet:
                    self._verify_entry(index, entry, used)

    def _verify_entry(self, index: int, entry: int, used: bytearray) -> None:
        chunk, number = divmod(index, self._ratio + 1)
        bitmap = number == self._ratio
        if bitmap and self.link is None:
            return  # there for nothing: nobody reads it
        state = self._state(entry, index)
        if state not in _HERE:
            return
        if bitmap:
            length = r.SECTOR_BITMAP_LENGTH
        else:
            block = chunk * self._ratio + number
            if block * self._block >= self.size:
                return  # past the last block, where a differencing BAT fills up its chunk
            length = self._used(block)
            if state is r.BlockState.PARTIALLY_PRESENT and self.link is not None:
                self._bitmap_position(chunk)
        first = self._position(entry, index, length) // r.MIB
        last = first + -(-length // r.MIB)
        if used.find(1, first, last) >= 0:
            raise broken(
                self.path, f"BAT entry {index}", f"its block at {first * r.MIB} is another's as well"
            )
        used[first:last] = b"\1" * (last - first)

    def close(self) -> None:
        """See `chain.Image`."""
        self.file.close()
