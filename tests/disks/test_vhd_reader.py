"""Our VHD reader on files by the test's own writer: all types, chains, sector bitmaps, old footers."""

from __future__ import annotations

import os
import random
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.disks.detect import open_disk
from cloudmount.errors import UnreadableInputError
from tests.disks.disk_model import Model, check_reads
from tests.disks.vhd_writer import DIFFERENCING, DYNAMIC, EPOCH, FIXED, VhdFile, sealed
from tests.disks.vhdx_writer import patch

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def chain(rng: random.Random, folder: Path, length: int, size: int, block: int) -> tuple[Path, Model]:
    """`length` files, each a child of the one before, and what the last reads as."""
    file = VhdFile(Model(size), block=block, order=rng)
    blocks = sorted({*range(min(file.blocks, 8)), *range(max(file.blocks - 2, 0), file.blocks)})
    path = folder / "disk0.vhd"
    for n in range(length):
        if n:
            file = file.child(f".\\{path.name}", order=rng)
            path = folder / f"disk{n}.avhd"
        for block_number in rng.sample(blocks, max(1, len(blocks) // 2)):
            file.fill(block_number, rng, whole=n == 0 and rng.random() < 0.5)
        file.write(path)
    return path, file.model


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("block", [512, 4 * KIB, 512 * KIB, 2 * MIB, 16 * MIB])
def test_chain(tmp_path: Path, length: int, block: int) -> None:
    rng = random.Random(f"{length} {block}")
    path, model = chain(rng, tmp_path, length, block * 21 + 512 * rng.randrange(block // 512), block)
    with open_disk(path) as disk:
        assert disk.identity.source_format == "vhd"
        assert (disk.identity.logical_sector, disk.identity.generation) == (512, 1)
        assert [p.stem for p in disk.files] == [f"disk{n}" for n in reversed(range(length))]
        check_reads(disk.source, model, rng)


def test_a_large_disk_with_little_data(tmp_path: Path) -> None:
    rng = random.Random(1)
    path, model = chain(rng, tmp_path, 3, 2040 * GIB, 2 * MIB)
    with open_disk(path) as disk:
        check_reads(disk.source, model, rng)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    length=st.integers(1, 4),
    block=st.sampled_from([4 * KIB, 64 * KIB, 512 * KIB]),
    data=st.data(),
)
def test_any_read(
    tmp_path_factory: pytest.TempPathFactory, seed: int, length: int, block: int, data: st.DataObject
) -> None:
    rng = random.Random(seed)
    size = 512 * rng.randrange(1, 9 * block // 512)
    path, model = chain(rng, tmp_path_factory.mktemp("chain"), length, size, block)
    with open_disk(path) as disk:
        for _ in range(10):
            at = data.draw(st.integers(0, size))
            n = data.draw(st.integers(0, size - at))
            assert disk.source.read_at(at, n) == model.read(at, n)
        check_reads(disk.source, model, rng, reads=3)


class TestFooters:
    """Which footer counts, and how large the disk is."""

    def fixed(self, path: Path, **options: object) -> VhdFile:
        """A written fixed disk of 3 MiB and a bit."""
        file = VhdFile(Model(3 * MIB + 5 * 512), FIXED, **options)  # type: ignore[arg-type]  # fields by name
        file.model.scribble(random.Random(2), 0, file.model.size)
        file.model.write(file.model.size - 4, b"tail")
        file.write(path)
        return file

    def test_fixed(self, tmp_path: Path) -> None:
        file = self.fixed(tmp_path / "a.vhd")
        with open_disk(tmp_path / "a.vhd") as disk:
            check_reads(disk.source, file.model, random.Random(3))
            assert disk.identity.virtual_disk_id == file.unique_id

    @pytest.mark.parametrize(
        "creator", [b"win ", b"vbox", b"tap\0", b"d2v ", b"vpc ", b"wa\0\0", b"\0\0\0\0"]
    )
    def test_other_creators_keep_their_tail(self, tmp_path: Path, creator: bytes) -> None:
        file = self.fixed(tmp_path / "a.vhd", creator=creator)
        with open_disk(tmp_path / "a.vhd") as disk:
            assert disk.source.size == file.model.size
            assert disk.source.read_at(file.model.size - 4, 4) == b"tail"

    def test_511_bytes(self, tmp_path: Path) -> None:
        """As Virtual PC wrote before 2004."""
        path = tmp_path / "a.vhd"
        file = self.fixed(path)
        os.truncate(path, file.model.size + 511)
        with open_disk(path) as disk:
            check_reads(disk.source, file.model, random.Random(4))

    def test_the_copy_at_the_start(self, tmp_path: Path) -> None:
        rng = random.Random(5)
        file = VhdFile(Model(7 * MIB), order=rng)
        for block in range(3):
            file.fill(block, rng, whole=True)
        path = file.write(tmp_path / "a.vhd")
        patch(path, file.end + 20, b"x")
        with open_disk(path) as disk:
            check_reads(disk.source, file.model, rng)
        os.truncate(path, file.end)
        with open_disk(path) as disk:
            check_reads(disk.source, file.model, rng)
        patch(path, 20, b"x")
        with pytest.raises(UnreadableInputError, match="footer checksum"):
            open_disk(path)

    def test_cut_short(self, tmp_path: Path) -> None:
        file = self.fixed(tmp_path / "a.vhd")
        path = tmp_path / "a.vhd"
        os.truncate(path, file.model.size - 512)
        with path.open("ab") as f:
            f.write(file.footer())
        with pytest.raises(UnreadableInputError, match=r"footer current size: .*cut short"):
            open_disk(path)

    @pytest.mark.parametrize(
        ("offset", "value", "why"),
        [
            (12, b"\0\2\0\0", "file format version: 0x20000"),
            (60, b"\0\0\0\5", "disk type: 5 is not 2, 3 or 4"),
            (48, b"\0\0\xff\0\0\0\0\0", "current size: .*2040 GiB"),
            (48, bytes(8), "current size: 0"),
            (48, (3 * MIB + 1).to_bytes(8, "big"), "current size: 3145729 is not"),
        ],
    )
    def test_refused(self, tmp_path: Path, offset: int, value: bytes, why: str) -> None:
        path = tmp_path / "a.vhd"
        file = self.fixed(path)
        footer = bytearray(file.footer())
        footer[offset : offset + len(value)] = value
        patch(path, file.model.size, sealed(bytes(footer), 64))
        with pytest.raises(UnreadableInputError, match=rf"a\.vhd: broken VHD: footer {why}"):
            open_disk(path)


class TestDynamic:
    """Headers, tables and blocks."""

    @pytest.mark.parametrize(
        ("offset", "value", "why"),
        [
            (0, b"CXSPARSE", 'cookie is not "cxsparse"'),
            (24, b"\0\2\0\0", "version: 0x20000"),
            (28, b"\0\0\0\1", "max table entries: 1, but 7340032 bytes are 4 blocks"),
            (32, b"\0\x30\0\0", "block size: 3145728 is no power of two"),
            (32, b"\0\0\1\0", "block size: 256 is no power of two"),
            (16, b"\0\0\1\0\0\0\0\0", "table offset: 16 bytes at .* beyond the file"),
            (16, b"\0\0\0\0\0\0\2\0", "BAT: overlaps the dynamic header|dynamic header: overlaps the BAT"),
            (100, b"x", "dynamic header checksum"),
        ],
    )
    def test_header(self, tmp_path: Path, offset: int, value: bytes, why: str) -> None:
        file = VhdFile(Model(7 * MIB))
        file.fill(0, random.Random(6), whole=True)
        path = file.write(tmp_path / "a.vhd")
        header = bytearray(path.read_bytes()[512:1536])
        header[offset : offset + len(value)] = value
        patch(path, 512, bytes(header) if "checksum" in why else sealed(bytes(header), 36))
        with pytest.raises(UnreadableInputError, match=why):
            open_disk(path)

    def test_entries(self, tmp_path: Path) -> None:
        rng = random.Random(7)
        file = VhdFile(Model(7 * MIB))
        for block in range(4):
            file.fill(block, rng, whole=True)
        path = file.write(tmp_path / "a.vhd")
        whole = path.read_bytes()
        for at, why in (
            (file.payload[2], "also that of entry"),
            (file.payload[2] + MIB, "also that of entry"),
            (file.bat_at, "inside the BAT"),
            (512, "inside the dynamic header"),
            (0, "inside the copy of the footer"),
            (file.end - MIB, "beyond the file"),
            (1 << 40, "beyond the file"),
        ):
            patch(path, file.bat_at, (at // 512).to_bytes(4, "big"))
            with pytest.raises(UnreadableInputError, match=why):
                open_disk(path)
            path.write_bytes(whole)

    def test_too_many_blocks(self, tmp_path: Path) -> None:
        file = VhdFile(Model(2040 * GIB), block=512)
        file.bat_at = 1536
        header = bytearray(sealed(self.small_header(file), 36))
        path = tmp_path / "a.vhd"
        path.write_bytes(file.footer() + header)
        os.truncate(path, 20 * GIB)
        patch(path, 20 * GIB - 512, file.footer())
        with pytest.raises(UnreadableInputError, match="too many"):
            open_disk(path)

    def small_header(self, file: VhdFile) -> bytes:
        """A dynamic header with a table right behind it."""
        return (
            b"cxsparse"
            + b"\xff" * 8
            + file.bat_at.to_bytes(8, "big")
            + b"\0\1\0\0"
            + file.blocks.to_bytes(4, "big")
            + file.block.to_bytes(4, "big")
        ).ljust(1024, b"\0")


class TestChains:
    """How parents are found and proved."""

    def pair(self, folder: Path, spelled: str, **changes: object) -> tuple[VhdFile, VhdFile]:
        """A written base and a child of it that is not."""
        rng = random.Random(8)
        base = VhdFile(Model(5 * MIB))
        base.fill(0, rng, whole=True)
        base.write(folder / "base.vhd")
        child = base.child(spelled, **changes)
        child.fill(1, rng, whole=False)
        return base, child

    @pytest.mark.parametrize(
        "locators",
        [
            [(b"W2ru", "..\\up\\BASE.vhd")],
            [(b"W2ku", "D:\\somewhere\\base.vhd")],
            [(b"MacX", "file:///x"), (b"Wi2k", "x"), (b"W2ru", ".\\base.vhd\0")],
            [],
        ],
    )
    def test_paths(self, tmp_path: Path, locators: list[tuple[bytes, str]]) -> None:
        """Relative, absolute, moved here together, or by the name in the header alone."""
        _, child = self.pair(tmp_path, "base.vhd", locators=[(c, t.encode("utf-16-le")) for c, t in locators])
        path = child.write(tmp_path / "child.vhd")
        with open_disk(path) as disk:
            check_reads(disk.source, child.model, random.Random(9))

    def test_the_id_of_the_disk_is_its_base_s(self, tmp_path: Path) -> None:
        base, child = self.pair(tmp_path, "base.vhd")
        with open_disk(child.write(tmp_path / "child.vhd")) as disk:
            assert disk.identity.virtual_disk_id == base.unique_id

    @pytest.mark.parametrize("stamp", ["footer", "file", "none"])
    def test_time_stamps(self, tmp_path: Path, stamp: str) -> None:
        base, child = self.pair(tmp_path, "base.vhd")
        os.utime(tmp_path / "base.vhd", (EPOCH + 900000000,) * 2)
        child.parent_time = {"footer": base.time_stamp, "file": 900000000, "none": 0}[stamp]
        with open_disk(child.write(tmp_path / "child.vhd")) as disk:
            check_reads(disk.source, child.model, random.Random(10))

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"parent_time": 5}, "time stamp is another"),
            ({"parent_id": uuid4()}, "unique id is"),
            ({"model": Model(4 * MIB)}, "5242880 bytes, the child 4194304"),
            ({"locators": [(b"W2ru", b"x")]}, "parent locator 0: 1 bytes"),
            ({"locators": [(b"W2ru", b"\0\xd8")]}, "parent locator 0: is not UTF-16"),
        ],
    )
    def test_refused(self, tmp_path: Path, changes: dict[str, object], why: str) -> None:
        _, child = self.pair(tmp_path, "base.vhd", **changes)
        path = child.write(tmp_path / "child.vhd")
        with pytest.raises(UnreadableInputError, match=rf"child\.vhd: .*{why}"):
            open_disk(path)

    def test_missing_and_another_format(self, tmp_path: Path) -> None:
        _, child = self.pair(tmp_path, "gone.vhd")
        path = child.write(tmp_path / "child.vhd")
        with pytest.raises(UnreadableInputError, match=r"its parent .*gone\.vhd.* is missing"):
            open_disk(path)
        (tmp_path / "gone.vhd").write_bytes(b"vhdxfile" + bytes(4096))
        with pytest.raises(UnreadableInputError, match="its parent can't be read"):
            open_disk(path)

    def test_circle(self, tmp_path: Path) -> None:
        file = VhdFile(Model(MIB), DIFFERENCING, unique_id=UUID(int=7), parent_id=UUID(int=7))
        file.parent_name = "a.vhd"
        with pytest.raises(UnreadableInputError, match="one of its own children"):
            open_disk(file.write(tmp_path / "a.vhd"))


def test_sectors_never_written_are_zeros(tmp_path: Path) -> None:
    """A dynamic disk's clear bits, whatever lies under them."""
    rng = random.Random(11)
    file = VhdFile(Model(4 * MIB), DYNAMIC)
    file.fill(0, rng, whole=False)
    with open_disk(file.write(tmp_path / "a.vhd")) as disk:
        check_reads(disk.source, file.model, rng)
        assert any(not e.data for e in disk.source.extents(0, 2 * MIB))
