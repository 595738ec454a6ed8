"""A VHD writer for tests, to the specification by hand: it shares no structure with the code under test."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from tests.disks.disk_model import Model

FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
EPOCH = 946684800
NO_GUID = UUID(int=0)


def sealed(data: bytes, at: int) -> bytes:
    """With the one's complement sum at byte `at`."""
    blank = data[:at] + bytes(4) + data[at + 4 :]
    return blank[:at] + struct.pack(">I", ~sum(blank) & 0xFFFFFFFF) + blank[at + 4 :]


def geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads, sectors a track by the specification's appendix."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    track, rest = 17, sectors // 17
    heads = max((rest + 1023) // 1024, 4)
    if rest >= heads * 1024 or heads > 16:
        track, heads, rest = 31, 16, sectors // 31
    if rest >= heads * 1024:
        track, heads, rest = 63, 16, sectors // 63
    return rest // heads, heads, track


@dataclass
class VhdFile:
    """One VHD to be written; sizes in bytes.

    `model`: what the disk reads as, the whole chain. `own`: of stored blocks,
    the sectors whose bit is set; None: all of them.
    """

    model: Model
    kind: int = DYNAMIC
    block: int = 2 << 20
    creator: bytes = b"win "
    unique_id: UUID = field(default_factory=uuid4)
    time_stamp: int = 700000000
    parent_id: UUID = NO_GUID
    parent_time: int = 0
    parent_name: str = ""
    locators: list[tuple[bytes, bytes]] = field(default_factory=list)
    own: dict[int, set[int] | None] = field(default_factory=dict)
    order: random.Random | None = None
    header_at: int = 512
    bat_at: int = 0
    payload: dict[int, int] = field(default_factory=dict)
    end: int = 0

    @property
    def bitmap(self) -> int:
        """Bytes of a block's bitmap."""
        return -(-(self.block // 512) // 4096) * 512

    @property
    def blocks(self) -> int:
        """Blocks of the disk."""
        return -(-self.model.size // self.block)

    def child(self, path: str, **changes: object) -> VhdFile:
        """A differencing file on this one, which lies at the relative Windows path `path`."""
        values: dict[str, object] = {
            "model": self.model.copy(),
            "kind": DIFFERENCING,
            "block": self.block,
            "parent_id": self.unique_id,
            "parent_time": self.time_stamp,
            "parent_name": path.rpartition("\\")[2],
            "locators": [
                (b"W2ru", path.encode("utf-16-le")),
                (b"W2ku", ("C:\\VMs\\" + path.rpartition("\\")[2]).encode("utf-16-le")),
            ],
        }
        return VhdFile(**(values | changes))  # type: ignore[arg-type]  # tests pass fields by name

    def fill(self, block: int, rng: random.Random, *, whole: bool) -> None:
        """Store a block: all of it, or some sectors; `model` follows."""
        start = block * self.block
        length = min(self.block, self.model.size - start)
        if whole:
            self.own[block] = None
            self.model.scribble(rng, start, length)
            return
        mine: set[int] = set()
        self.own[block] = mine
        sectors = length // 512
        for _ in range(rng.randrange(1, 6)):
            first = rng.randrange(sectors)
            for sector in range(first, min(sectors, first + rng.choice((1, 2, 7, 8, 9, 64)))):
                mine.add(sector)
                self.model.write(start + sector * 512, rng.randbytes(512))

    def footer(self) -> bytes:
        """The 512 bytes."""
        c, h, s = geometry(self.model.size // 512)
        data = struct.pack(
            ">8sIIQI4sI4sQQHBBII16sB427s",
            b"conectix",
            2,
            0x10000,
            0xFFFFFFFFFFFFFFFF if self.kind == FIXED else self.header_at,
            self.time_stamp,
            self.creator,
            0xA0000,
            b"Wi2k",
            self.model.size,
            self.model.size,
            c,
            h,
            s,
            self.kind,
            0,
            self.unique_id.bytes_le,
            0,
            bytes(427),
        )
        return sealed(data, 64)

    def write(self, path: Path) -> Path:
        """The file, every structure in place."""
        with path.open("wb") as f:
            for offset, data in self._fixed() if self.kind == FIXED else self._dynamic():
                os.pwrite(f.fileno(), data, offset)
        return path

    def _fixed(self) -> Iterable[tuple[int, bytes]]:
        yield from self.model.written(0, self.model.size)
        yield self.model.size, self.footer()

    def _dynamic(self) -> Iterable[tuple[int, bytes]]:
        at = self.header_at + 1024
        entries = b""
        for code, text in self.locators:
            space = -(-len(text) // 512) * 512
            entries += struct.pack(">4sIIIQ", code, space, len(text), 0, at)
            yield at, text.ljust(space, b"\0")
            at += space
        self.bat_at = at
        table = -(-self.blocks * 4 // 512) * 512
        at += table
        numbers = sorted(self.own)
        if self.order is not None:
            self.order.shuffle(numbers)
        bat = bytearray(b"\xff" * table)
        for block in numbers:
            self.payload[block] = at
            bat[block * 4 : block * 4 + 4] = struct.pack(">I", at // 512)
            yield from self._stored(block, at)
            at += self.bitmap + self.block
        yield self.bat_at, bytes(bat)
        header = struct.pack(
            ">8sQQIIII16sII512s192s256s",
            b"cxsparse",
            0xFFFFFFFFFFFFFFFF,
            self.bat_at,
            0x10000,
            self.blocks,
            self.block,
            0,
            self.parent_id.bytes_le,
            self.parent_time,
            0,
            self.parent_name.encode("utf-16-be"),
            entries,
            bytes(256),
        )
        yield self.header_at, sealed(header, 36)
        yield 0, self.footer()
        yield at, self.footer()
        self.end = at

    def _stored(self, block: int, at: int) -> Iterable[tuple[int, bytes]]:
        start = block * self.block
        length = min(self.block, self.model.size - start)
        mine = self.own[block]
        bits = bytearray(self.bitmap)
        data = at + self.bitmap
        if mine is None:
            bits[:] = b"\xff" * self.bitmap
            for offset, piece in self.model.written(start, length):
                yield data + offset - start, piece
        else:
            # What the bitmap does not claim is garbage: a reader that takes it is wrong.
            for sector in range(0, length // 512, max(5, length // 512 // 400)):
                yield data + sector * 512, b"\xee" * 512
            for sector in mine:
                bits[sector // 8] |= 0x80 >> (sector % 8)
                yield data + sector * 512, self.model.read(start + sector * 512, 512)
        yield at, bytes(bits)
