"""Partition tables for tests, by hand: sgdisk writes neither 4 KiB sectors into files nor damaged tables."""

from __future__ import annotations

import struct
import zlib
from uuid import UUID, uuid4

from tests.disks.disk_model import Model

LINUX = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")

Slot = tuple[int, int, int, int]  # status, type, first sector, sectors


def boot_record(*slots: Slot) -> bytes:
    """An MBR or extended boot record with these slots."""
    raw = b"".join(struct.pack("<B3xB3xII", *slot) for slot in slots)
    return bytes(446) + raw.ljust(64, b"\0") + b"\x55\xaa"


def write_mbr(model: Model, *slots: Slot, sector: int = 512) -> None:
    """An MBR at the start of the disk, in a sector of its own."""
    model.write(0, boot_record(*slots).ljust(sector, b"\0"))


def write_logical(model: Model, start: int, parts: list[tuple[int, int, int]], sector: int = 512) -> None:
    """A chain of extended boot records from sector `start`; parts: type, absolute first sector, sectors.

    Each partition's record lies one sector before it, but the first at `start`.
    """
    places = [start, *(first - 1 for _, first, _ in parts[1:])]
    for i, (kind, first, sectors) in enumerate(parts):
        slots: list[Slot] = [(0, kind, first - places[i], sectors)]
        if i + 1 < len(parts):
            slots.append((0, 5, places[i + 1] - start, parts[i + 1][2] + 1))
        model.write(places[i] * sector, boot_record(*slots))


def write_gpt(
    model: Model,
    parts: list[tuple[UUID, int, int, str]],
    *,
    sector: int = 512,
    entry_size: int = 128,
    count: int = 128,
    protective: bool = True,
) -> None:
    """Both copies of a GPT; parts: type, first and last sector, name. A type of zeros: unused."""
    last = model.size // sector - 1
    array = b""
    for kind, first, end, name in parts:
        text = name.encode("utf-16-le").ljust(72, b"\0")
        entry = kind.bytes_le + uuid4().bytes_le + struct.pack("<QQQ", first, end, 0) + text
        array += entry.ljust(entry_size, b"\0")
    array = array.ljust(entry_size * count, b"\0")
    space = -(-len(array) // sector)
    if protective:
        write_mbr(model, (0, 0xEE, 1, min(last, 0xFFFFFFFF)), sector=sector)
    guid = uuid4().bytes_le
    for mine, other, entries in ((1, last, 2), (last, 1, last - space)):
        head = struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, 0, 0, mine, other),
            *(2 + space, last - space - 1, guid, entries, count, entry_size, zlib.crc32(array)),
        )
        head = head[:16] + struct.pack("<I", zlib.crc32(head)) + head[20:]
        model.write(mine * sector, head)
        model.write(entries * sector, array)
