"""Partition tables: made by sgdisk, by hand with 4 KiB sectors and logical ones, broken in many ways."""

from __future__ import annotations

import random
import shutil
import struct
import zlib
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.disks.partitions import BIOS_BOOT, ESP, PartitionTable, read_partitions
from cloudmount.disks.raw import RawDisk
from cloudmount.extents import Bytes
from tests.disks.disk_model import Model
from tests.disks.oracles import run
from tests.disks.partition_writer import LINUX, boot_record, write_gpt, write_logical, write_mbr

MIB = 1 << 20


def table(content: Model | Path, logical_sector: int | None = None) -> PartitionTable:
    """What is read from a disk, a model's or a file's."""
    if isinstance(content, Path):
        disk = RawDisk(content)
        try:
            return read_partitions(disk, logical_sector)
        finally:
            disk.close()
    return read_partitions(Bytes(content.read(0, content.size)), logical_sector)


def ranges(found: PartitionTable) -> list[tuple[int, int, int]]:
    """(number, start, length) of each."""
    return [(p.number, p.start, p.length) for p in found.partitions]


def sgdisk_image(path: Path, *options: str, size: int = 64 * MIB) -> Path:
    """A disk image that sgdisk worked on."""
    with path.open("wb") as f:
        f.truncate(size)
    run("sgdisk", *options, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three partitions: an ESP, one for a BIOS, and one numbered 7 with a name beyond ASCII."""
    options = ["-n", "1:1M:+8M", "-t", "1:ef00", "-c", "1:EFI system"]
    options += ["-n", "7:20M:+16M", "-c", "7:Büro Ω 😀", "-A", "7:set:2"]
    options += ["-n", "3:10M:+1M", "-t", "3:ef02"]
    return sgdisk_image(tmp_path_factory.mktemp("made") / "disk.img", *options)  # sgdisk takes 1 s


class TestSgdisk:
    """Tables that others wrote."""

    @pytest.fixture
    def path(self, made: Path, tmp_path: Path) -> Path:
        """A copy of its own."""
        return Path(shutil.copy(made, tmp_path))

    def check(self, found: PartitionTable) -> None:
        """They are all there, in the order of their numbers."""
        assert found.kind == "gpt"
        assert found.sector == 512
        assert ranges(found) == [(1, MIB, 8 * MIB), (3, 10 * MIB, MIB), (7, 20 * MIB, 16 * MIB)]
        assert [p.type for p in found.partitions] == [ESP, BIOS_BOOT, str(LINUX)]
        assert [p.name for p in found.partitions] == ["EFI system", "", "Büro Ω 😀"]
        assert [p.active for p in found.partitions] == [False, False, True]
        assert found.partitions[2].type_name == "Linux filesystem"

    def test_gpt(self, path: Path) -> None:
        for sector in (None, 512):
            found = table(path, sector)
            self.check(found)
            assert found.problem is None

    @pytest.mark.parametrize("at", [512, 512 + 16, 512 + 40, 1024, 1024 + 128 * 6 + 56])
    def test_broken_primary(self, path: Path, at: int) -> None:
        with path.open("r+b") as f:
            f.seek(at)
            f.write(b"\xa5\x5a\xa5")
        found = table(path)
        self.check(found)
        assert found.problem is not None
        assert "backup is used" in found.problem

    def test_broken_backup_harms_nothing(self, path: Path) -> None:
        with path.open("r+b") as f:
            f.seek(-33 * 512, 2)
            f.write(bytes(33 * 512))
        self.check(table(path))

    def test_both_broken(self, path: Path) -> None:
        with path.open("r+b") as f:
            for at, whence in ((512, 0), (-512, 2)):
                f.seek(at, whence)
                f.write(b"X")
        found = table(path)
        assert found.kind == "gpt"
        assert not found.partitions
        assert found.problem == "GPT: primary missing, backup missing"

    def test_no_mbr(self, path: Path) -> None:
        """Wiped, or never there: a GPT alone counts too."""
        with path.open("r+b") as f:
            f.write(bytes(512))
        self.check(table(path))

    def test_grown_disk(self, path: Path) -> None:
        """The backup is no longer at the end."""
        with path.open("r+b") as f:
            f.truncate(100 * MIB)
        self.check(table(path))

    def test_cut_disk(self, path: Path) -> None:
        with path.open("r+b") as f:
            f.truncate(30 * MIB)
        found = table(path)
        self.check(found)
        assert found.problem == "GPT: partition 7 reaches beyond the disk"

    def test_hybrid_mbr(self, path: Path) -> None:
        """Partitions in both: the GPT counts, as for every system that knows it."""
        run("sgdisk", "-h", "1:7", path)
        self.check(table(path))

    def test_mbr(self, tmp_path: Path) -> None:
        options = [word for n in range(1, 5) for word in ("-n", f"{n}:{n * 9}M:+8M")]
        path = sgdisk_image(tmp_path / "disk.img", *options)
        run("sgdisk", "-m", "1:2:3:4", path)
        found = table(path)
        assert (found.kind, found.problem) == ("mbr", None)
        assert ranges(found) == [(n, n * 9 * MIB, 8 * MIB) for n in range(1, 5)]
        assert {p.type for p in found.partitions} == {"0x83"}

    def test_logical_as_sgdisk_sees_them(self, tmp_path: Path) -> None:
        model = Model(64 * MIB)
        write_mbr(model, (0, 0x83, 2048, 2048), (0, 5, 8192, 60000))
        write_logical(model, 8192, [(0x83, 10240, 2048), (0x83, 16384, 4096), (0x83, 32768, 100)])
        path = tmp_path / "disk.img"
        path.write_bytes(model.read(0, model.size))
        lines = [line.split() for line in run("sgdisk", "-p", path).splitlines()]
        listed = [[int(word) for word in line[:3]] for line in lines if line and line[0].isdigit()]
        ours = [
            [p.number, p.start // 512, (p.start + p.length) // 512 - 1]
            for p in table(path).partitions
            if p.type == "0x83"
        ]
        assert ours == listed
        assert len(ours) == 4

    def test_the_hand_written_one_is_right(self, tmp_path: Path) -> None:
        """sgdisk finds nothing wrong with what the tests below read."""
        model = Model(8 * MIB)
        write_gpt(model, [(LINUX, 2048, 4095, "a"), (LINUX, 4096, 8191, "b")])
        path = tmp_path / "disk.img"
        path.write_bytes(model.read(0, model.size))
        assert "No problems found" in run("sgdisk", "-v", path)


class TestFourKib:
    """GPT in sectors of 4 KiB."""

    def model(self) -> Model:
        model = Model(32 * MIB)
        write_gpt(
            model, [(LINUX, 256, 511, "a"), (UUID(int=0), 0, 0, ""), (LINUX, 512, 1023, "b")], sector=4096
        )
        return model

    @pytest.mark.parametrize("told", [None, 4096])
    def test_found(self, told: int | None) -> None:
        found = table(self.model(), told)
        assert (found.kind, found.sector, found.problem) == ("gpt", 4096, None)
        assert ranges(found) == [(1, MIB, MIB), (3, 2 * MIB, 2 * MIB)]

    def test_backup(self) -> None:
        model = self.model()
        model.write(4096, b"\0")
        found = table(model)
        assert found.sector == 4096
        assert ranges(found) == [(1, MIB, MIB), (3, 2 * MIB, 2 * MIB)]
        assert found.problem == "GPT: primary missing; its backup is used"

    def test_not_at_another_size(self) -> None:
        """A disk that says its sectors are 512 bytes has no 4 KiB table: Windows sees none either."""
        assert table(self.model(), 512).partitions == ()

    def test_mbr(self) -> None:
        model = Model(64 * MIB)
        write_mbr(model, (0x80, 7, 256, 256), (0, 0x0F, 1024, 8192), sector=4096)
        write_logical(model, 1024, [(0x83, 1280, 256), (0x82, 2048, 512)], sector=4096)
        found = table(model, 4096)
        assert ranges(found) == [
            (1, MIB, MIB),
            (2, 4 * MIB, 32 * MIB),
            (5, 5 * MIB, MIB),
            (6, 8 * MIB, 2 * MIB),
        ]
        assert found.partitions[0].active


def test_other_entry_sizes() -> None:
    for size, count in ((128, 1), (256, 64), (512, 4), (4096, 128), (128, 8192)):
        model = Model(8 * MIB)
        write_gpt(model, [(LINUX, 8000, 8191, "x")], entry_size=size, count=count)
        assert ranges(table(model)) == [(1, 8000 * 512, 192 * 512)], (size, count)


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (12, struct.pack("<I", 91), "header size"),
        (12, struct.pack("<I", 513), "header size"),
        (24, struct.pack("<Q", 5), "another sector"),
        (72, struct.pack("<Q", 1 << 40), "beyond the disk"),
        (72, struct.pack("<Q", (1 << 64) - 1), "beyond the disk"),
        (80, struct.pack("<I", 0xFFFFFFFF), "entry count or size"),
        (84, struct.pack("<I", 0), "entry count or size"),
        (84, struct.pack("<I", 132), "entry count or size"),
        (84, struct.pack("<I", 0xFFFFFFF8), "entry count or size"),
        (88, b"\1\1\1\1", "entries' checksum"),
    ],
)
def test_lies_with_a_right_checksum(offset: int, value: bytes, why: str) -> None:
    """A header that says nonsense and is sealed again: its backup is used, and the reason told."""
    model = Model(8 * MIB)
    write_gpt(model, [(LINUX, 2048, 4095, "a")])
    head = bytearray(model.read(512, 92))
    head[offset : offset + len(value)] = value
    head[16:20] = bytes(4)
    length = int.from_bytes(head[12:16], "little")
    sealed = bytes(head) + model.read(512 + 92, 512)
    head[16:20] = struct.pack("<I", zlib.crc32(sealed[: min(length, 600)]))
    model.write(512, bytes(head))
    found = table(model)
    assert ranges(found) == [(1, MIB, MIB)]
    assert found.problem is not None
    assert why in found.problem


def test_entries_that_lie() -> None:
    """One that ends before it starts is left out, one that goes on beyond the end is told."""
    model = Model(8 * MIB)
    write_gpt(model, [(LINUX, 4095, 2048, "back"), (LINUX, 4096, 1 << 50, "far"), (LINUX, 4096, 4096, "one")])
    found = table(model)
    assert [(p.number, p.name) for p in found.partitions] == [(2, "far"), (3, "one")]
    assert found.problem == "GPT: partition 1 reaches beyond the disk"


class TestMbr:
    """By hand."""

    def test_logical(self) -> None:
        model = Model(64 * MIB)
        write_mbr(model, (0, 0x83, 2048, 2048), (0, 5, 8192, 60000), (0x80, 7, 4096, 1000))
        write_logical(model, 8192, [(0x83, 10240, 2048), (0x0B, 16384, 4096), (0x82, 32768, 100)])
        found = table(model)
        assert found.kind == "mbr"
        assert found.problem is None
        assert [p.number for p in found.partitions] == [1, 2, 3, 5, 6, 7]
        assert [(p.start // 512, p.length // 512) for p in found.partitions[3:]] == [
            (10240, 2048),
            (16384, 4096),
            (32768, 100),
        ]
        assert [p.type_name for p in found.partitions[3:]] == ["Linux filesystem", "FAT32", "Linux swap"]

    def test_circle_of_logical_ones(self) -> None:
        model = Model(64 * MIB)
        write_mbr(model, (0, 5, 8192, 60000))
        model.write(8192 * 512, boot_record((0, 0x83, 100, 100), (0, 5, 1000, 1000)))
        model.write(9192 * 512, boot_record((0, 0x83, 100, 100), (0, 5, 0, 1000)))
        found = table(model)
        assert [p.number for p in found.partitions] == [1, 5, 6]
        assert found.problem is not None
        assert "circle" in found.problem

    def test_far_too_many_logical_ones(self) -> None:
        model = Model(64 * MIB)
        write_mbr(model, (0, 5, 2, 100000))
        write_logical(model, 2, [(0x83, 4 + 4 * i, 2) for i in range(2000)])
        found = table(model)
        assert len(found.partitions) == 1 + 1024
        assert found.problem is not None

    def test_chain_that_breaks_off(self) -> None:
        model = Model(16 * MIB)
        write_mbr(model, (0, 5, 8192, 24000))
        model.write(8192 * 512, boot_record((0, 0x83, 100, 100), (0, 5, 1000, 1000)))
        found = table(model)
        assert [p.number for p in found.partitions] == [1, 5]
        assert found.problem == "no extended boot record at sector 9192"
        model.write(8192 * 512, boot_record((0, 0x83, 100, 1 << 20), (0, 5, 1 << 31, 1000)))
        assert table(model).problem is not None

    def test_beyond_the_end(self) -> None:
        model = Model(MIB)
        write_mbr(model, (0, 0x83, 1, 4096))
        assert table(model).problem == "partition 1 reaches beyond the disk"

    @pytest.mark.parametrize(
        "slots",
        [
            [(1, 0x83, 1, 10)],  # a status that is none
            [(0, 0x83, 0, 10)],  # over the record itself
            [(0, 0x83, 1, 0)],
            [(0, 0x83, 1, 10), (0, 0x83, 5, 10)],
            [],
        ],
    )
    def test_boot_sectors_are_no_tables(self, slots: list[tuple[int, int, int, int]]) -> None:
        model = Model(MIB)
        write_mbr(model, *slots)
        assert table(model).kind == "none"


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1023, 1024, 4096, 8191, 17 * 1024])
def test_small_disks(size: int) -> None:
    for fill in (b"\0", b"\xff", b"\x55\xaa", b"EFI PART"):
        content = (fill * size)[:size]
        assert read_partitions(Bytes(content)).kind == "none"
        with_mbr = (boot_record((0, 0xEE, 1, 100)) + content)[:size]
        assert read_partitions(Bytes(with_mbr)).partitions == ()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([512, 4096]))
def test_any_damage(seed: int, sector: int) -> None:
    """Random bytes over tables: an answer always, and partitions of positive length from 1 on."""
    rng = random.Random(seed)
    model = Model(4 * MIB)
    if seed % 2:
        write_gpt(model, [(LINUX, 40, 60, "a"), (LINUX, 70, 90, "b")], sector=sector)
        places = [0, sector, 2 * sector, model.size - sector, model.size - sector - 128 * 128]
    else:
        write_mbr(model, (0, 0x83, 1, 10), (0, 5, 100, 700), sector=sector)
        write_logical(model, 100, [(0x83, 110, 20), (0x83, 150, 20)], sector=sector)
        places = [446, 100 * sector + 446, 149 * sector + 446]
    for _ in range(rng.randrange(1, 5)):
        place = rng.choice(places) + rng.randrange(64)
        model.write(place, rng.randbytes(rng.choice((1, 4, 8))))
    for told in (None, 512, 4096):
        found = table(model, told)
        assert all(p.number > 0 and p.start > 0 and p.length > 0 for p in found.partitions)
        assert len({p.number for p in found.partitions}) == len(found.partitions)
        assert [p.number for p in found.partitions] == sorted(p.number for p in found.partitions)
