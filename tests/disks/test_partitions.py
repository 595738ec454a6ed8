"""GPT and MBR: what sgdisk makes, 4 KiB sectors, backups, logical partitions, and damage of every kind."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path

import pytest

from cloudmount.disks.partitions import Partition, PartitionTable, read_partitions
from cloudmount.disks.raw import RawDisk
from cloudmount.extents import Bytes, Zeros
from tests.disks.oracles import run
from tests.disks.partition_writer import BASIC_DATA, ESP, LINUX, boot_record, write_gpt
from tests.disks.vhdx_writer import patch

MIB, GIB = 1 << 20, 1 << 30


def table(path: Path, sector: int | None = None) -> PartitionTable:
    """Of a file."""
    disk = RawDisk(path)
    try:
        return read_partitions(disk, sector)
    finally:
        disk.close()


def test_sgdisk(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    with path.open("wb") as f:
        f.truncate(3 * GIB)
    run("sgdisk", "-n", "1:2048:+100M", "-t", "1:ef00", "-c", "1:EFI", path)
    run("sgdisk", "-n", "3:0:+1G", "-t", "3:0700", "-c", "3:Daten äöü", path)
    run("sgdisk", "-n", "7:0:6291422", "-t", "7:8300", path)
    found = table(path)
    assert (found.kind, found.sector, found.problem) == ("gpt", 512, None)
    assert [(p.number, p.start, p.length, p.type_name, p.name) for p in found.partitions] == [
        (1, MIB, 100 * MIB, "EFI system partition", "EFI"),
        (3, 101 * MIB, GIB, "Basic data", "Daten äöü"),
        (7, 1125 * MIB, 3 * GIB - 1125 * MIB - 33 * 512, "Linux filesystem", ""),
    ]
    assert found.partitions[1].type == "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"
    os.truncate(path, 3 * GIB - 512)
    patch(path, 512 + 16, b"x")
    assert table(path).kind == "gpt"
    assert table(path).partitions == ()


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("entry_size", [128, 256])
def test_gpt(tmp_path: Path, sector: int, entry_size: int) -> None:
    parts = [(ESP, 64, 127, "boot"), (BASIC_DATA, 128, 128, "x" * 36)]
    path = write_gpt(tmp_path / "a.raw", 8 * MIB, parts, sector=sector, entry_size=entry_size)
    expected = (
        Partition(1, 64 * sector, 64 * sector, str(ESP), "boot"),
        Partition(2, 128 * sector, sector, str(BASIC_DATA), "x" * 36),
    )
    for known in (None, sector):
        found = table(path, known)
        assert (found.kind, found.sector, found.problem) == ("gpt", sector, None)
        assert found.partitions == expected
    # Each header alone, and the entries of the first.
    for damage in ((sector, "primary missing"), (2 * sector, "primary entries' checksum wrong")):
        write_gpt(path, 8 * MIB, parts, sector=sector, entry_size=entry_size)
        patch(path, damage[0], b"xxxx")
        found = table(path)
        assert found.partitions == expected
        assert found.problem == f"GPT: {damage[1]}; its backup is used"
    patch(path, 8 * MIB - sector, b"xxxx")
    found = table(path)
    assert (found.kind, found.partitions) == ("gpt", ())
    assert found.problem is not None
    assert "backup missing" in found.problem


def test_gpt_without_its_protective_mbr(tmp_path: Path) -> None:
    """Overwritten or empty: the GPT still counts. In use for something else: the MBR does."""
    parts = [(LINUX, 64, 127, "")]
    for mbr in (bytes(512), boot_record()):
        found = table(write_gpt(tmp_path / "a.raw", MIB, parts, mbr=mbr))
        assert (found.kind, len(found.partitions)) == ("gpt", 1)
    old = table(write_gpt(tmp_path / "a.raw", MIB, parts, mbr=boot_record((0x80, 7, 63, 100))))
    assert old.kind == "mbr"
    hybrid = boot_record((0, 0xEE, 1, 62), (0x80, 7, 64, 64))
    assert table(write_gpt(tmp_path / "a.raw", MIB, parts, mbr=hybrid)).kind == "gpt"


def test_partitions_beyond_the_disk(tmp_path: Path) -> None:
    found = table(write_gpt(tmp_path / "a.raw", MIB, [(LINUX, 64, 1 << 40, ""), (LINUX, 9, 3, "")]))
    assert found.problem == "GPT: partition 1 reaches beyond the disk"
    assert [p.number for p in found.partitions] == [1]


def test_overlapping_partitions_are_told(tmp_path: Path) -> None:
    found = table(
        write_gpt(tmp_path / "a.raw", MIB, [(LINUX, 64, 127, ""), (LINUX, 200, 300, ""), (ESP, 127, 128, "")])
    )
    assert found.problem == "GPT: partitions 1 and 3 overlap"
    assert [p.number for p in found.partitions] == [1, 2, 3]
    path = tmp_path / "b.raw"
    path.write_bytes(boot_record((0, 7, 1, 9), (0, 0x05, 10, 900)).ljust(MIB, b"\0"))
    patch(path, 10 * 512, boot_record((0, 0x83, 1, 50), (0, 0x05, 40, 100)))
    patch(path, 50 * 512, boot_record((0, 0x83, 1, 50)))
    assert table(path).problem == "partitions 5 and 6 overlap"


def test_overlapping_entries_of_an_mbr(tmp_path: Path) -> None:
    """Told where they lead to something; else they are a boot sector's code."""
    path = tmp_path / "a.raw"
    path.write_bytes(
        boot_record((0, 7, 64, 900), (0, 0x83, 512, 1000), (0, 0x05, 1000, 500)).ljust(MIB, b"\0")
    )
    assert table(path, 512).kind == "none"
    patch(path, 64 * 512 + 3, b"NTFS    ")
    for sector in (512, None):
        found = table(path, sector)
        assert found.problem == "no extended boot record at sector 1000"
        assert [p.number for p in found.partitions] == [1, 2, 3]
    patch(path, 1000 * 512, boot_record((0, 0x83, 1, 9)))
    assert table(path).problem == "partitions 1 and 2 overlap"
    patch(path, 3, b"NTFS    ")
    assert table(path).kind == "none"


def test_an_mbr_that_counts_in_4096(tmp_path: Path) -> None:
    """An image of a 4Kn disk: by what lies where it says."""
    path = tmp_path / "a.raw"
    path.write_bytes(boot_record((0, 7, 16, 64), (0, 0x0F, 80, 100)).ljust(MIB, b"\0"))
    assert table(path).sector == 512
    patch(path, 16 * 4096 + 3, b"NTFS    ")
    patch(path, 80 * 4096, boot_record((0, 0x83, 1, 9)))
    for known, sector in ((None, 4096), (4096, 4096), (512, 512)):
        assert table(path, known).sector == sector
    found = table(path)
    assert [(p.number, p.start, p.length) for p in found.partitions] == [
        (1, 16 * 4096, 64 * 4096), (2, 80 * 4096, 100 * 4096), (5, 81 * 4096, 9 * 4096)]  # fmt: skip
    assert found.problem is None
    patch(path, 16 * 512 + 3, b"NTFS    ")
    assert table(path).sector == 512, "the usual, where both may be"


@pytest.mark.parametrize("damage", [(512, b"x"), (512 + 40, b"x"), (1024, b"x")])
def test_a_disk_that_grew(tmp_path: Path, damage: tuple[int, bytes]) -> None:
    """Its backup GPT lies where the disk ended before."""
    path = write_gpt(tmp_path / "a.raw", MIB, [(LINUX, 64, 127, "x")])
    os.truncate(path, 3 * MIB)
    assert (table(path).problem, len(table(path).partitions)) == (None, 1)
    patch(path, *damage)
    found = table(path)
    assert len(found.partitions) == 1
    assert found.problem is not None
    assert found.problem.endswith("its backup is used, from where the disk ended before it grew")
    patch(path, MIB - 512, b"x")
    assert table(path).partitions == ()


@pytest.mark.parametrize(
    ("offset", "value"),
    [(12, 91), (12, 4096), (80, 1 << 31), (84, 64), (84, 129), (84, 0), (72, 1 << 40), (24, 5)],
)
def test_absurd_headers(tmp_path: Path, offset: int, value: int) -> None:
    """Checksums right, numbers absurd: nothing large is read."""
    path = write_gpt(tmp_path / "a.raw", MIB, [(LINUX, 64, 127, "")])
    data = bytearray(path.read_bytes())
    for at in (512, MIB - 512):
        width = 8 if offset in (24, 72) else 4
        data[at + offset : at + offset + width] = value.to_bytes(width, "little")
        data[at + 16 : at + 20] = bytes(4)
        data[at + 16 : at + 20] = struct.pack("<I", zlib.crc32(data[at : at + 92]))
    path.write_bytes(data)
    found = table(path)
    assert (found.kind, found.partitions) == ("gpt", ())
    assert found.problem


@pytest.mark.parametrize("sector", [512, 4096])
def test_mbr_with_logical_partitions(tmp_path: Path, sector: int) -> None:
    path = tmp_path / "a.raw"
    with path.open("wb") as f:
        f.truncate(16 * MIB)
        f.write(boot_record((0x80, 7, 10, 20), (0, 0, 0, 0), (0, 0x0F, 100, 900), (0, 0x83, 2000, 48)))
        # Logical partitions count from their own record, the next record from the extended partition.
        for at, record in (
            (100, boot_record((0, 0x83, 2, 10), (0, 0x05, 200, 100))),
            (300, boot_record((0, 0x82, 3, 11), (0, 0x05, 400, 100))),
            (500, boot_record((0, 0x07, 4, 12))),
        ):
            f.seek(at * sector)
            f.write(record)
    found = table(path, sector)
    assert (found.kind, found.problem) == ("mbr", None)
    assert [(p.number, p.start // sector, p.length // sector, p.type) for p in found.partitions] == [
        (1, 10, 20, "0x07"),
        (3, 100, 900, "0x0f"),
        (4, 2000, 48, "0x83"),
        (5, 102, 10, "0x83"),
        (6, 303, 11, "0x82"),
        (7, 504, 12, "0x07"),
    ]
    assert [p.active for p in found.partitions][:2] == [True, False]
    assert found.partitions[0].type_name == "NTFS or exFAT"
    patch(path, 500 * sector, boot_record((0, 0x07, 4, 12), (0, 0x05, 200, 10)))
    assert table(path, sector).problem == "the chain of logical partitions runs in a circle at sector 300"
    patch(path, 300 * sector, bytes(512))
    assert table(path, sector).problem == "no extended boot record at sector 300"


def test_no_table() -> None:
    rng = random.Random(1)
    for source in (
        Zeros(0),
        Zeros(100),
        Zeros(MIB),
        Bytes(rng.randbytes(MIB)),
        Bytes((rng.randbytes(510) + b"\x55\xaa").ljust(MIB, b"\0")),  # a boot sector's code
        Bytes(boot_record().ljust(MIB, b"\0")),
        Bytes(boot_record((0, 7, 0, 100)).ljust(MIB, b"\0")),
        Bytes(boot_record((0, 7, 1, 100), (0, 7, 50, 100)).ljust(MIB, b"\0")),
        Bytes(boot_record((1, 7, 1, 100)).ljust(MIB, b"\0")),
    ):
        assert read_partitions(source).kind == "none"


@pytest.mark.parametrize("seed", range(200))
def test_any_garbage(tmp_path: Path, seed: int) -> None:
    """Damage anywhere: an answer, never an exception."""
    rng = random.Random(seed)
    path = write_gpt(tmp_path / "a.raw", 256 << 10, [(LINUX, 64, 127, "a"), (ESP, 128, 200, "b")])
    if seed % 2:
        patch(path, 0, boot_record((0, 0x05, 1, 300), (0, 7, 400, 10)))
        for at in range(1, 20):
            patch(path, at * 512, boot_record((0, 7, at, 3), (0, 5, rng.randrange(20), 9)))
    for _ in range(rng.randrange(1, 6)):
        patch(path, rng.randrange(0, 16 << 10), rng.randbytes(rng.randrange(1, 9)))
    os.truncate(path, rng.choice((256 << 10, rng.randrange(256 << 10))))
    found = table(path)
    assert len(found.partitions) < 1100


def test_far_too_many_logical_partitions(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    with path.open("wb") as f:
        f.truncate(8 * MIB)
        f.write(boot_record((0, 5, 2, 16000)))
        for i in range(1500):  # each record 4 sectors on, its partition right behind it
            f.seek((2 + 4 * i) * 512)
            f.write(boot_record((0, 0x83, 1, 2), (0, 5, 4 * (i + 1), 4)))
    found = table(path)
    assert len(found.partitions) == 1 + 1024
    assert found.problem is not None


def test_another_sector_size_is_another_table(tmp_path: Path) -> None:
    """A disk that says its sectors are 512 bytes has no 4 KiB table: Windows sees none either."""
    path = write_gpt(tmp_path / "a.raw", 8 * MIB, [(LINUX, 64, 127, "")], sector=4096)
    assert table(path, 512).partitions == ()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1023, 1024, 1025, 4096, 8192])
def test_small_disks(size: int) -> None:
    for fill in (b"\0", b"\xff", b"\x55\xaa", b"EFI PART"):
        content = (fill * size)[:size]
        assert read_partitions(Bytes(content)).kind == "none"
        with_mbr = (boot_record((0, 0xEE, 1, 100)) + content)[:size]
        assert read_partitions(Bytes(with_mbr)).partitions == ()
