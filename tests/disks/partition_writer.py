"""Partition tables for tests, made by hand: GPT and MBR, 512- and 4096-byte sectors."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from uuid import UUID, uuid4

BASIC_DATA = UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
LINUX = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")

MbrPart = tuple[int, int, int, int]  # status, type, first sector, sectors


def boot_record(*parts: MbrPart) -> bytes:
    """512 bytes with up to four partitions."""
    data = bytearray(512)
    for i, (status, kind, first, count) in enumerate(parts):
        data[446 + 16 * i : 462 + 16 * i] = struct.pack(
            "<B3sB3sII", status, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", first, count
        )
    data[510:] = b"\x55\xaa"
    return bytes(data)


def gpt_header(sector: int, at: int, other: int, last: int, entries: int, array: bytes, size: int) -> bytes:
    """A header for sector `at`, its entries at sector `entries`."""
    head = struct.pack(
        "<8sIIIIQQQQ16sQIII",
        b"EFI PART",
        0x10000,
        92,
        0,
        0,
        at,
        other,
        34,
        last,
        uuid4().bytes_le,
        entries,
        len(array) // size,
        size,
        zlib.crc32(array),
    )
    head = head[:16] + struct.pack("<I", zlib.crc32(head)) + head[20:]
    return head.ljust(sector, b"\0")


def write_gpt(
    path: Path,
    size: int,
    parts: list[tuple[UUID, int, int, str]],
    *,
    sector: int = 512,
    entry_size: int = 128,
    count: int = 128,
    mbr: bytes | None = None,
) -> Path:
    """A sparse disk of `size` bytes with these partitions: type, first and last sector, name."""
    last = size // sector - 1
    array = b""
    for kind, first, end, name in parts:
        entry = struct.pack(
            "<16s16sQQQ72s", kind.bytes_le, uuid4().bytes_le, first, end, 0, name.encode("utf-16-le")
        )
        array += entry.ljust(entry_size, b"\0")
    array = array.ljust(entry_size * count, b"\0")
    sectors = -(-len(array) // sector)
    with path.open("wb") as f:
        f.truncate(size)
        f.write(mbr if mbr is not None else boot_record((0, 0xEE, 1, min(last, 0xFFFFFFFF))))
        for at, other, entries in ((1, last, 2), (last, 1, last - sectors)):
            f.seek(at * sector)
            f.write(gpt_header(sector, at, other, last - sectors - 1, entries, array, entry_size))
            f.seek(entries * sector)
            f.write(array)
    return path
