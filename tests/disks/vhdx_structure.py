"""[MS-VHDX] checked from the specification's own words, byte by byte, sharing no code with cloudmount.

`Structure(source)` walks a VHDX that claims to be clean, dynamic and packed. It
asserts every MUST of sections 2.1 to 2.6 that such a file can break, and that
every byte which no structure owns is zero.
"""

from __future__ import annotations

import itertools
import struct
import uuid
from collections.abc import Iterator

from cloudmount.extents import BlockSource

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40
BAT = uuid.UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA = uuid.UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
FILE_PARAMETERS = uuid.UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
DISK_SIZE = uuid.UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
DISK_ID = uuid.UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR = uuid.UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR = uuid.UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
REQUIRED_SYSTEM, REQUIRED_VIRTUAL_DISK = 0b100, 0b110  # 2.6.1.2: IsRequired, with and without IsVirtualDisk

_CRC = []
for _byte in range(256):
    _value = _byte
    for _ in range(8):
        _value = _value >> 1 ^ (0x82F63B78 if _value & 1 else 0)
    _CRC.append(_value)


def crc32c(data: bytes) -> int:
    """RFC 3720 B.4's Castagnoli CRC, bit-reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def guid(data: bytes) -> uuid.UUID:
    """A GUID as Windows stores it."""
    return uuid.UUID(bytes_le=bytes(data))


class Structure:
    """What a VHDX says of itself, after all of it was checked but the BAT (`check_bat`)."""

    def __init__(self, file: BlockSource) -> None:
        self.file = file
        assert file.size % MIB == 0
        self._identifier()
        self._headers()
        self._regions()
        self._metadata()
        self._sizes()

    def _read(self, offset: int, length: int) -> bytes:
        return self.file.read_at(offset, length)

    def _zero(self, start: int, stop: int) -> None:
        for at in range(start, stop, MIB):
            data = self._read(at, min(MIB, stop - at))
            assert not any(data), f"bytes {start} to {stop} are not zero"

    def _identifier(self) -> None:  # 2.2.1
        data = self._read(0, 64 * KIB)
        assert data[:8] == b"vhdxfile"
        creator = data[8:520].decode("utf-16-le")
        self.creator = creator.rstrip("\0")
        assert "\0" not in self.creator
        assert not any(data[520:])

    def _headers(self) -> None:  # 2.2.2
        numbers, rest = [], []
        for at in (64 * KIB, 128 * KIB):
            data = self._read(at, 64 * KIB)
            signature, crc, number = struct.unpack_from("<4sIQ", data)
            assert signature == b"head"
            assert crc == crc32c(data[:4] + bytes(4) + data[8 : 4 * KIB])
            assert not any(data[80:])
            numbers.append(number)
            rest.append(data[16:80])
        assert numbers[0] != numbers[1], "neither header is the current one"
        assert rest[0] == rest[1]
        self.file_write_guid, self.data_write_guid, log_guid = (
            guid(rest[0][i : i + 16]) for i in range(0, 48, 16)
        )
        assert log_guid.int == 0, "a log to replay"
        log_version, version, log_length, log_offset = struct.unpack_from("<HHIQ", rest[0], 48)
        assert (log_version, version) == (0, 1)
        assert log_length % MIB == 0
        assert log_length > 0
        self._owned = [(0, MIB), (log_offset, log_length)]
        self._zero(log_offset, log_offset + log_length)

    def _regions(self) -> None:  # 2.2.3
        one, two = self._read(192 * KIB, 64 * KIB), self._read(256 * KIB, 64 * KIB)
        assert one == two
        signature, crc, count, reserved = struct.unpack_from("<4sIII", one)
        assert (signature, reserved) == (b"regi", 0)
        assert crc == crc32c(one[:4] + bytes(4) + one[8:])
        assert count <= 2047
        assert not any(one[16 + 32 * count :])
        regions = {}
        for i in range(count):
            kind, offset, length, flags = struct.unpack_from("<16sQII", one, 16 + 32 * i)
            assert flags == 1, "not required, or reserved bits set"
            regions[guid(kind)] = offset, length
        assert set(regions) == {BAT, METADATA}
        assert len(regions) == count
        self._owned += regions.values()
        self.bat_offset, self.bat_length = regions[BAT]
        self.metadata_offset, self.metadata_length = regions[METADATA]
        self._zero(320 * KIB, MIB)
        end = 0
        for offset, length in sorted(self._owned):
            assert offset % MIB == length % MIB == 0
            assert offset == end, "regions overlap, or leave a gap"
            end = offset + length
        self.payload_offset = end
        assert self.payload_offset <= self.file.size

    def _metadata(self) -> None:  # 2.6.1
        data = self._read(self.metadata_offset, self.metadata_length)
        signature, reserved, count = struct.unpack_from("<8sHH", data)
        assert (signature, reserved) == (b"metadata", 0)
        assert not any(data[12:32])
        assert count <= 2047
        unowned = bytearray(data)
        unowned[: 32 + 32 * count] = bytes(32 + 32 * count)
        self.items: dict[uuid.UUID, bytes] = {}
        spans = []
        for i in range(count):
            kind, offset, length, flags, reserved = struct.unpack_from("<16sIIII", data, 32 + 32 * i)
            wanted = REQUIRED_SYSTEM if guid(kind) == FILE_PARAMETERS else REQUIRED_VIRTUAL_DISK
            assert (flags, reserved) == (wanted, 0)
            assert offset >= 64 * KIB
            assert 0 < length <= MIB
            assert offset + length <= self.metadata_length
            self.items[guid(kind)] = data[offset : offset + length]
            spans.append((offset, offset + length))
            unowned[offset : offset + length] = bytes(length)
        assert len(self.items) == count
        spans.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), "items overlap"
        assert not any(unowned)

    def _sizes(self) -> None:  # 2.6.2, 2.5
        items = self.items
        assert set(items) == {FILE_PARAMETERS, DISK_SIZE, DISK_ID, LOGICAL_SECTOR, PHYSICAL_SECTOR}
        self.block_size, flags = struct.unpack("<II", items[FILE_PARAMETERS])
        assert flags == 0, "LeaveBlockAllocated, HasParent or reserved bits"
        assert self.block_size.bit_count() == 1
        assert MIB <= self.block_size <= 256 * MIB
        (self.disk_size,) = struct.unpack("<Q", items[DISK_SIZE])
        self.disk_id = guid(items[DISK_ID])
        (self.logical_sector,) = struct.unpack("<I", items[LOGICAL_SECTOR])
        (self.physical_sector,) = struct.unpack("<I", items[PHYSICAL_SECTOR])
        assert self.logical_sector in (512, 4096)
        assert self.physical_sector in (512, 4096)
        assert 0 < self.disk_size <= 64 * TIB
        assert self.disk_size % self.logical_sector == 0
        self.chunk_ratio = 2**23 * self.logical_sector // self.block_size
        self.blocks = -(-self.disk_size // self.block_size)
        self.entries = self.blocks + (self.blocks - 1) // self.chunk_ratio
        assert self.entries * 8 <= self.bat_length

    def bat(self) -> Iterator[tuple[int | None, int, int]]:
        """(block or None for a sector bitmap, state, file offset) of each entry; 2.5.1 checked."""
        for first in range(0, self.entries, 65536):
            n = min(65536, self.entries - first)
            data = struct.unpack(f"<{n}Q", self._read(self.bat_offset + 8 * first, 8 * n))
            for i, entry in enumerate(data, first):
                chunk, slot = divmod(i, self.chunk_ratio + 1)
                assert entry & 0xFFFF8 == 0, "reserved bits"
                block = None if slot == self.chunk_ratio else chunk * self.chunk_ratio + slot
                yield block, entry & 7, entry >> 20 << 20

    def check_bat(self) -> set[int]:
        """Walk the whole BAT; the payload blocks that are present."""
        present = set()
        expected = self.payload_offset
        for block, state, offset in self.bat():
            if block is None:
                assert (state, offset) == (0, 0), "a sector bitmap in a dynamic disk"
            elif state == 6:
                assert offset == expected, "not packed in disk order"
                expected += self.block_size
                present.add(block)
            else:
                assert (state, offset) == (2, 0), "neither FULLY_PRESENT nor ZERO without an offset"
        assert expected == self.file.size, "the last block is not stored at full length"
        self._zero(self.bat_offset + 8 * self.entries, self.bat_offset + self.bat_length)
        return present

    def layout_bytes(self) -> Iterator[bytes]:
        """Everything before the payload, in pieces."""
        for at in range(0, self.payload_offset, MIB):
            yield self._read(at, MIB)
