"""Tables by sgdisk after what happens to disks: damage, growth, cuts; and how sgdisk reads an MBR."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloudmount.disks.partitions import BIOS_BOOT, ESP, PartitionTable, read_partitions
from cloudmount.disks.raw import RawDisk
from tests.disks.oracles import run
from tests.disks.partition_writer import boot_record

MIB = 1 << 20


def table(path: Path) -> PartitionTable:
    """What is read from an image."""
    disk = RawDisk(path)
    try:
        return read_partitions(disk)
    finally:
        disk.close()


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Bytes of an image; a negative offset counts from its end."""
    with path.open("r+b") as f:
        f.seek(offset, 0 if offset >= 0 else 2)
        f.write(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ESP, a partition for a BIOS, and one numbered 7 with a name beyond the first plane of Unicode."""
    path = tmp_path_factory.mktemp("made") / "disk.img"
    with path.open("wb") as f:
        f.truncate(64 * MIB)
    options = ["-n", "1:1M:+8M", "-t", "1:ef00", "-c", "1:EFI system"]
    options += ["-n", "7:20M:+16M", "-c", "7:Büro Ω 😀", "-A", "7:set:2"]
    run("sgdisk", *options, "-n", "3:10M:+1M", "-t", "3:ef02", path)  # takes 1 s
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    return Path(shutil.copy(made, tmp_path))


def check(found: PartitionTable) -> None:
    """All three, in the order of their numbers."""
    assert (found.kind, found.sector) == ("gpt", 512)
    ranges = [(p.number, p.start, p.length) for p in found.partitions]
    assert ranges == [(1, MIB, 8 * MIB), (3, 10 * MIB, MIB), (7, 20 * MIB, 16 * MIB)]
    assert [p.type for p in found.partitions[:2]] == [ESP, BIOS_BOOT]
    assert found.partitions[2].type_name == "Linux filesystem"
    assert [p.name for p in found.partitions] == ["EFI system", "", "Büro Ω 😀"]
    assert [p.active for p in found.partitions] == [False, False, True]


@pytest.mark.parametrize("at", [512, 512 + 16, 512 + 40, 1024, 1024 + 128 * 6 + 56])
def test_broken_primary(path: Path, at: int) -> None:
    overwrite(path, at, b"\xa5\x5a\xa5")
    found = table(path)
    check(found)
    assert found.problem is not None
    assert "backup is used" in found.problem


def test_broken_backup_harms_nothing(path: Path) -> None:
    overwrite(path, -33 * 512, bytes(33 * 512))
    check(table(path))
    assert table(path).problem is None


def test_both_broken(path: Path) -> None:
    overwrite(path, 512, b"X")
    overwrite(path, -512, b"X")
    assert table(path) == PartitionTable("gpt", 512, (), "GPT: primary missing, backup missing")


@pytest.mark.parametrize("size", [64 * MIB + 512, 100 * MIB, 4096 * MIB])
def test_grown_disk(path: Path, size: int) -> None:
    """The backup is no longer at the end."""
    with path.open("r+b") as f:
        f.truncate(size)
    check(table(path))


def test_cut_disk(path: Path) -> None:
    with path.open("r+b") as f:
        f.truncate(30 * MIB)
    check(table(path))
    assert table(path).problem == "GPT: partition 7 reaches beyond the disk"


def test_hybrid_mbr(path: Path) -> None:
    """Partitions in both: the GPT counts, as for every system that knows it."""
    run("sgdisk", "-h", "1:7", path)
    check(table(path))


def test_mbr(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as f:
        f.truncate(64 * MIB)
    run("sgdisk", *(word for n in range(1, 5) for word in ("-n", f"{n}:{n * 9}M:+8M")), path)
    run("sgdisk", "-m", "1:2:3:4", path)
    found = table(path)
    assert (found.kind, found.problem) == ("mbr", None)
    assert [(p.number, p.start, p.length) for p in found.partitions] == [
        (n, n * 9 * MIB, 8 * MIB) for n in range(1, 5)
    ]


def test_logical_ones_as_sgdisk_numbers_them(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as f:
        f.truncate(64 * MIB)
    overwrite(path, 0, boot_record((0, 0x83, 2048, 2048), (0, 5, 8192, 60000)))
    overwrite(path, 8192 * 512, boot_record((0, 0x83, 2048, 2048), (0, 5, 8191, 4097)))
    overwrite(path, 16383 * 512, boot_record((0, 0x83, 1, 4096), (0, 5, 24575, 101)))
    overwrite(path, 32767 * 512, boot_record((0, 0x83, 1, 100)))
    lines = [line.split() for line in run("sgdisk", "-p", path).splitlines()]
    listed = [[int(word) for word in line[:3]] for line in lines if line and line[0].isdigit()]
    ours = [p for p in table(path).partitions if p.type == "0x83"]
    assert [[p.number, p.start // 512, (p.start + p.length) // 512 - 1] for p in ours] == listed
    assert len(ours) == 4
