"""A VHDX writer for tests, to [MS-VHDX] by hand: it shares no structure with the code under test.

`VhdxFile` builds one file: any block states, sector bitmaps, parent locators,
4 KiB sectors, blocks in any order. `Log` builds a log ring. Both write sparsely.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from cloudmount.disks.crc32c import crc32c  # proved by test_crc32c; bytewise it takes 10 ms a region table
from tests.disks.disk_model import Model

KIB, MIB = 1 << 10, 1 << 20
NO_GUID = UUID(int=0)
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULL, PARTIAL = 0, 1, 2, 3, 6, 7

BAT_GUID = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_GUID = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
ITEMS = {
    "file parameters": UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B"),
    "virtual disk size": UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8"),
    "page 83": UUID("BECA12AB-B2E6-4523-93EF-C309E000C746"),
    "logical sector size": UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F"),
    "physical sector size": UUID("CDA348C7-445D-4471-9CC9-E9885251C556"),
    "parent locator": UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C"),
}
LOCATOR_TYPE = UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")


def sealed(data: bytes) -> bytes:
    """With the checksum at byte 4."""
    blank = data[:4] + bytes(4) + data[8:]
    return blank[:4] + struct.pack("<I", crc32c(blank)) + blank[8:]


def reseal(path: Path, offset: int, length: int) -> None:
    """Make the checksum of the structure there right again."""
    with path.open("r+b") as f:
        f.seek(offset)
        data = f.read(length)
        f.seek(offset)
        f.write(sealed(data))


def patch(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as f:
        f.seek(offset)
        f.write(data)


def locator(values: dict[str, str], kind: UUID = LOCATOR_TYPE) -> bytes:
    """A parent locator item (2.6.2.6)."""
    head = kind.bytes_le + struct.pack("<HH", 0, len(values))
    at = 20 + 12 * len(values)
    entries, texts = b"", b""
    for key, value in values.items():
        k, v = key.encode("utf-16-le"), value.encode("utf-16-le")
        entries += struct.pack("<IIHH", at, at + len(k), len(k), len(v))
        texts += k + v
        at += len(k) + len(v)
    return head + entries + texts


@dataclass
class Layout:
    """Where things lie in a file that was written; bytes."""

    headers: tuple[int, int] = (64 * KIB, 128 * KIB)
    region_tables: tuple[int, int] = (192 * KIB, 256 * KIB)
    log: int = 0
    log_length: int = 0
    metadata: int = 0
    bat: int = 0
    bat_entries: int = 0
    items: dict[str, tuple[int, int]] = field(default_factory=dict)
    payload: dict[int, int] = field(default_factory=dict)
    bitmaps: dict[int, int] = field(default_factory=dict)
    end: int = 0


@dataclass
class VhdxFile:
    """One VHDX to be written; sizes in bytes.

    `model`: what the disk reads as, the whole chain. `states`: of each block,
    absent ones NOT_PRESENT. `own`: of partially present blocks, the sectors that
    lie in this file.
    """

    model: Model
    block: int = MIB
    logical: int = 512
    physical: int = 512
    disk_id: UUID = field(default_factory=uuid4)
    data_write_guid: UUID = field(default_factory=uuid4)
    log_guid: UUID = NO_GUID
    log_length: int = MIB
    log_offset: int = MIB
    sequence: tuple[int, int] = (7, 8)
    flags: int = 0
    parent: dict[str, str] | None = None
    states: dict[int, int] = field(default_factory=dict)
    own: dict[int, set[int]] = field(default_factory=dict)
    order: random.Random | None = None
    extra_regions: list[tuple[UUID, int, int]] = field(default_factory=list)
    extra_items: list[tuple[UUID, int, bytes]] = field(default_factory=list)
    layout: Layout = field(default_factory=Layout)

    @property
    def ratio(self) -> int:
        """Payload blocks a chunk."""
        return (1 << 23) * self.logical // self.block

    @property
    def blocks(self) -> int:
        """Payload blocks of the disk."""
        return -(-self.model.size // self.block)

    def child(self, path: str, **changes: object) -> VhdxFile:
        """A differencing file on this one, which lies at the Windows path `path`."""
        values: dict[str, object] = {
            "model": self.model.copy(),
            "block": self.block,
            "logical": self.logical,
            "physical": self.physical,
            "disk_id": self.disk_id,
            "parent": {
                "parent_linkage": "{" + str(self.data_write_guid) + "}",
                "parent_linkage2": "{00000000-0000-0000-0000-000000000000}",
                "relative_path": path,
                "absolute_win32_path": "C:\\VMs\\" + path.rpartition("\\")[2],
            },
        }
        return VhdxFile(**(values | changes))  # type: ignore[arg-type]  # tests pass fields by name

    def fill(self, block: int, rng: random.Random, state: int) -> None:
        """Give a block a state and content of its own to match; `model` follows."""
        start = block * self.block
        length = min(self.block, self.model.size - start)
        self.states[block] = state
        if state in (UNDEFINED, ZERO, UNMAPPED):
            self.model.zero(start, length)
        elif state == FULL:
            if rng.random() < 0.5:
                self.model.zero(start, length)
            self.model.scribble(rng, start, length)
        elif state == PARTIAL:
            sectors = length // self.logical
            mine = self.own.setdefault(block, set())
            for _ in range(rng.randrange(1, 6)):
                first = rng.randrange(sectors)
                for sector in range(first, min(sectors, first + rng.choice((1, 2, 7, 8, 9, 64)))):
                    mine.add(sector)
                    self.model.write(start + sector * self.logical, rng.randbytes(self.logical))

    def write(self, path: Path) -> Path:
        """The file, every structure in place."""
        lay = self.layout
        lay.log, lay.log_length = self.log_offset, self.log_length
        at = max(MIB, self.log_offset + self.log_length)
        lay.metadata = at
        lay.bat = lay.metadata + MIB
        chunks = -(-self.blocks // self.ratio)
        lay.bat_entries = (
            chunks * (self.ratio + 1)
            if self.parent is not None
            else self.blocks + (self.blocks - 1) // self.ratio
        )
        bat_length = -(-lay.bat_entries * 8 // MIB) * MIB
        at = lay.bat + bat_length
        for _, _, length in self.extra_regions:
            at += length
        places: list[tuple[str, int, int]] = [
            ("payload", b, self.block) for b, s in sorted(self.states.items()) if s in (FULL, PARTIAL)
        ]
        partial = sorted({b // self.ratio for b, s in self.states.items() if s == PARTIAL})
        places += [("bitmap", c, MIB) for c in partial]
        if self.order is not None:
            self.order.shuffle(places)
        for kind, number, length in places:
            (lay.payload if kind == "payload" else lay.bitmaps)[number] = at
            at += length
        lay.end = at
        with path.open("wb") as f:
            f.truncate(lay.end)
            for offset, data in self._pieces(bat_length):
                os.pwrite(f.fileno(), data, offset)
        return path

    def _pieces(self, bat_length: int) -> Iterable[tuple[int, bytes]]:
        lay = self.layout
        yield 0, b"vhdxfile" + "tests".encode("utf-16-le").ljust(512, b"\0")
        for number, offset in zip(self.sequence, lay.headers, strict=True):
            header = struct.pack(
                "<4sIQ16s16s16sHHIQ",
                b"head",
                0,
                number,
                uuid4().bytes_le,
                self.data_write_guid.bytes_le,
                self.log_guid.bytes_le,
                0,
                1,
                self.log_length,
                self.log_offset if self.log_length else 0,
            )
            yield offset, sealed(header.ljust(4096, b"\0"))
        regions = [(BAT_GUID, lay.bat, bat_length, 1), (METADATA_GUID, lay.metadata, MIB, 1)]
        at = lay.bat + bat_length
        for guid, flags, length in self.extra_regions:
            regions.append((guid, at, length, flags))
            at += length
        table = struct.pack("<4sIII", b"regi", 0, len(regions), 0)
        for guid, offset, length, flags in regions:
            table += struct.pack("<16sQII", guid.bytes_le, offset, length, flags)
        for offset in lay.region_tables:
            yield offset, sealed(table.ljust(64 * KIB, b"\0"))
        yield from self._metadata()
        yield from self._bat()
        for block, at in lay.payload.items():
            yield from self._payload(block, at)
        for chunk, at in lay.bitmaps.items():
            yield at, self._bitmap(chunk)

    def _metadata(self) -> Iterable[tuple[int, bytes]]:
        lay = self.layout
        flags = self.flags | (2 if self.parent is not None else 0)
        items = [
            ("file parameters", 4, struct.pack("<II", self.block, flags)),
            ("virtual disk size", 6, struct.pack("<Q", self.model.size)),
            ("page 83", 6, self.disk_id.bytes_le),
            ("logical sector size", 6, struct.pack("<I", self.logical)),
            ("physical sector size", 6, struct.pack("<I", self.physical)),
        ]
        if self.parent is not None:
            items.append(("parent locator", 4, locator(self.parent)))
        all_items = [(name, ITEMS[name], f, data) for name, f, data in items]
        all_items += [(str(guid), guid, f, data) for guid, f, data in self.extra_items]
        table = struct.pack("<8sHH20s", b"metadata", 0, len(all_items), bytes(20))
        at = 64 * KIB
        for name, guid, item_flags, data in all_items:
            table += struct.pack("<16sIIII", guid.bytes_le, at if data else 0, len(data), item_flags, 0)
            lay.items[name] = (lay.metadata + at, len(data))
            yield lay.metadata + at, data
            at += len(data)
        yield lay.metadata, table

    def _bat(self) -> Iterable[tuple[int, bytes]]:
        lay = self.layout
        for block, state in self.states.items():
            entry = lay.payload.get(block, 0) | state
            yield lay.bat + 8 * (block + block // self.ratio), struct.pack("<Q", entry)
        for chunk, at in lay.bitmaps.items():
            yield lay.bat + 8 * ((chunk + 1) * (self.ratio + 1) - 1), struct.pack("<Q", at | FULL)

    def _payload(self, block: int, at: int) -> Iterable[tuple[int, bytes]]:
        start = block * self.block
        length = min(self.block, self.model.size - start)
        if self.states[block] == FULL:
            for offset, data in self.model.written(start, length):
                yield at + offset - start, data
            return
        # What the bitmap does not claim is garbage: a reader that takes it is wrong.
        for sector in range(0, length // self.logical, max(5, length // self.logical // 400)):
            yield at + sector * self.logical, b"\xee" * self.logical
        for sector in self.own.get(block, ()):
            yield (
                at + sector * self.logical,
                self.model.read(start + sector * self.logical, self.logical),
            )

    def _bitmap(self, chunk: int) -> bytes:
        bits = bytearray(MIB)
        per_block = self.block // self.logical
        for block, state in self.states.items():
            if block // self.ratio == chunk and state == PARTIAL:
                for sector in self.own.get(block, ()):
                    bit = (block % self.ratio) * per_block + sector
                    bits[bit // 8] |= 1 << (bit % 8)
            elif block // self.ratio == chunk and block % 2:
                # Bits of blocks that are not partially present mean nothing.
                first = (block % self.ratio) * per_block // 8
                bits[first : first + per_block // 8] = b"\xff" * (per_block // 8)
        return bytes(bits)


@dataclass
class Log:
    """A log ring (2.3): entries put one after another from `head` on."""

    guid: UUID
    length: int = MIB
    head: int = 0
    sequence: int = 100
    tail: int | None = None
    ring: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.ring = self.ring or bytearray(self.length)

    def entry(
        self,
        writes: Iterable[tuple[int, bytes | int]],
        *,
        flushed: int = 0,
        last: int = 0,
        torn: int = 0,
        sequence: int | None = None,
        guid: UUID | None = None,
    ) -> int:
        """Append an entry: 4 KiB of data, or a length of zeros, at file offsets.

        `torn`: this many of its last bytes never reached the disk. Returns its position.
        """
        number = self.sequence if sequence is None else sequence
        tail = self.head if self.tail is None else self.tail
        descriptors, sectors = b"", b""
        count = 0
        for offset, what in writes:
            count += 1
            if isinstance(what, int):
                descriptors += struct.pack("<4sIQQQ", b"zero", 0, what, offset, number)
            else:
                assert len(what) == 4096
                descriptors += struct.pack("<4s4s8sQQ", b"desc", what[-4:], what[:8], offset, number)
                sectors += b"data" + struct.pack("<I", number >> 32) + what[8:-4]
                sectors += struct.pack("<I", number & 0xFFFFFFFF)
        first = -(-(64 + len(descriptors)) // 4096) * 4096
        length = first + len(sectors)
        head = struct.pack(
            "<4sIIIQII16sQQ",
            b"loge",
            0,
            length,
            tail,
            number,
            count,
            0,
            (guid or self.guid).bytes_le,
            flushed,
            last,
        )
        data = sealed((head + descriptors).ljust(first, b"\0") + sectors)
        position = self.head
        for at in range(0, length - torn, 4096):
            where = (position + at) % self.length
            self.ring[where : where + 4096] = data[at : at + min(4096, length - torn - at)].ljust(
                4096, b"\x5a"
            )
        self.head = (position + length) % self.length
        self.tail = tail
        self.sequence = number + 1
        return position

    def put(self, path: Path, offset: int) -> None:
        """Write the ring into the file."""
        patch(path, offset, bytes(self.ring))
