"""Our VHDX reader on files by the test's own writer: every block state, chains, 4 KiB sectors, any order."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.disks.detect import open_disk
from cloudmount.errors import UnreadableInputError
from tests.disks.disk_model import Model, check_reads
from tests.disks.vhdx_writer import (
    FULL,
    MIB,
    NOT_PRESENT,
    PARTIAL,
    UNDEFINED,
    UNMAPPED,
    ZERO,
    VhdxFile,
    patch,
)

GIB, TIB = 1 << 30, 1 << 40


def filled(rng: random.Random, file: VhdxFile, blocks: list[int], states: tuple[int, ...]) -> VhdxFile:
    """The file with some of these blocks in these states."""
    for block in blocks:
        state = rng.choice((NOT_PRESENT, *states))
        if state != NOT_PRESENT:
            file.fill(block, rng, state)
    return file


def chain(rng: random.Random, folder: Path, length: int, **parameters: object) -> tuple[Path, Model]:
    """`length` files, each a child of the one before, and what the last reads as."""
    base = VhdxFile(order=rng, **parameters)  # type: ignore[arg-type]  # fields by name
    blocks = sorted({*range(min(base.blocks, 12)), *range(max(base.blocks - 3, 0), base.blocks)})
    if base.blocks > base.ratio:
        blocks += [b for b in (base.ratio - 1, base.ratio, base.ratio + 1) if b not in blocks]
    file = filled(rng, base, blocks, (UNDEFINED, ZERO, UNMAPPED, FULL))
    path = file.write(folder / "disk0.vhdx")
    for n in range(1, length):
        file = file.child(f".\\{path.name}", order=rng)
        filled(rng, file, blocks, (UNDEFINED, ZERO, UNMAPPED, FULL, PARTIAL, PARTIAL))
        path = file.write(folder / f"disk{n}.avhdx")
    return path, file.model


@pytest.mark.parametrize("length", [1, 2, 3, 6])
@pytest.mark.parametrize("logical", [512, 4096])
@pytest.mark.parametrize("block", [MIB, 2 * MIB, 32 * MIB, 256 * MIB])
def test_chain(tmp_path: Path, length: int, logical: int, block: int) -> None:
    rng = random.Random(f"{length} {logical} {block}")
    size = block * 9 + rng.randrange(1, block // logical) * logical
    path, model = chain(rng, tmp_path, length, model=Model(size), block=block, logical=logical, physical=4096)
    with open_disk(path) as disk:
        assert disk.identity.logical_sector == logical
        assert disk.identity.physical_sector == 4096
        assert disk.identity.source_format == "vhdx"
        assert [p.stem for p in disk.files] == [f"disk{n}" for n in reversed(range(length))]
        check_reads(disk.source, model, rng)


@pytest.mark.parametrize(("block", "size"), [(MIB, 5 * GIB), (256 * MIB, 9 * GIB + 512)])
def test_more_than_one_chunk(tmp_path: Path, block: int, size: int) -> None:
    """A sector bitmap entry lies in the BAT every 4 GiB."""
    rng = random.Random(block)
    path, model = chain(rng, tmp_path, 3, model=Model(size), block=block)
    with open_disk(path) as disk:
        check_reads(disk.source, model, rng)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    length=st.integers(1, 4),
    logical=st.sampled_from([512, 4096]),
    block=st.sampled_from([MIB, 2 * MIB, 4 * MIB]),
    data=st.data(),
)
def test_any_read(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    length: int,
    logical: int,
    block: int,
    data: st.DataObject,
) -> None:
    """Any range, unaligned, across blocks: what was written."""
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("chain")
    size = rng.randrange(1, 9 * MIB // logical) * logical
    path, model = chain(rng, folder, length, model=Model(size), block=block, logical=logical)
    with open_disk(path) as disk:
        for _ in range(10):
            at = data.draw(st.integers(0, size))
            n = data.draw(st.integers(0, size - at) | st.integers(0, min(size - at, 5000)))
            assert disk.source.read_at(at, n) == model.read(at, n)
        check_reads(disk.source, model, rng, reads=3)
        for bad in ((-1, 1), (0, size + 1), (size, 1), (0, -1)):
            with pytest.raises(ValueError, match="outside"):
                disk.source.read_at(*bad)


def test_a_fixed_disk_and_states_nobody_writes(tmp_path: Path) -> None:
    rng = random.Random(1)
    file = VhdxFile(Model(5 * MIB), flags=1)
    for block in range(5):
        file.fill(block, rng, FULL)
    path = file.write(tmp_path / "fixed.vhdx")
    # PARTIALLY_PRESENT without a parent: Microsoft's reader takes it for present.
    patch(path, file.layout.bat, bytes([PARTIAL]))
    with open_disk(path) as disk:
        check_reads(disk.source, file.model, rng)


def test_unused_offsets_mean_nothing(tmp_path: Path) -> None:
    """Hyper-V leaves the old offset in UNMAPPED and UNDEFINED entries."""
    rng = random.Random(2)
    file = VhdxFile(Model(4 * MIB))
    file.fill(0, rng, FULL)
    for block, state in ((1, UNMAPPED), (2, UNDEFINED), (3, ZERO)):
        file.states[block] = state
    path = file.write(tmp_path / "a.vhdx")
    for block, state in ((1, UNMAPPED), (2, UNDEFINED), (3, ZERO)):
        patch(path, file.layout.bat + 8 * block, (file.layout.payload[0] | state).to_bytes(8, "little"))
    with open_disk(path) as disk:
        check_reads(disk.source, file.model, rng)


def test_the_last_block_may_be_short(tmp_path: Path) -> None:
    rng = random.Random(3)
    file = VhdxFile(Model(MIB + 512 * 5), block=MIB)
    file.fill(0, rng, FULL)
    file.fill(1, rng, FULL)
    path = file.write(tmp_path / "a.vhdx")
    with path.open("r+b") as f:
        f.truncate(file.layout.payload[1] + 512 * 5)
    with open_disk(path) as disk:
        check_reads(disk.source, file.model, rng)
    with path.open("r+b") as f:
        f.truncate(file.layout.payload[1] + 512 * 5 - 1)
    with pytest.raises(UnreadableInputError, match=r"BAT entry 1: .*cut short"):
        open_disk(path)


def test_a_chunk_without_a_bitmap(tmp_path: Path) -> None:
    """libvhdi reads this wrong: nothing in the chunk is partially present, so no bitmap is needed."""
    rng = random.Random(4)
    base = VhdxFile(Model(4 * MIB))
    for block in range(4):
        base.fill(block, rng, FULL)
    base.write(tmp_path / "base.vhdx")
    child = base.child("base.vhdx")
    child.fill(1, rng, FULL)
    child.fill(2, rng, ZERO)
    path = child.write(tmp_path / "child.vhdx")
    assert not child.layout.bitmaps
    with open_disk(path) as disk:
        check_reads(disk.source, child.model, rng)
    patch(path, child.layout.bat + 8, (child.layout.payload[1] | PARTIAL).to_bytes(8, "little"))
    with pytest.raises(UnreadableInputError, match="no sector bitmap"):
        open_disk(path)


def test_equal_headers_and_the_newer_one(tmp_path: Path) -> None:
    file = VhdxFile(Model(MIB), sequence=(9, 8), data_write_guid=UUID(int=1))
    path = file.write(tmp_path / "a.vhdx")
    other = VhdxFile(Model(MIB), sequence=(9, 8), data_write_guid=UUID(int=2))
    other.write(tmp_path / "b.vhdx")
    second = (tmp_path / "b.vhdx").read_bytes()[128 << 10 :][:4096]
    patch(path, 128 << 10, second)
    from cloudmount.disks.vhdx import VhdxImage

    image = VhdxImage(path)
    assert image.data_write_guid == UUID(int=1).bytes_le
    image.close()
    patch(path, 64 << 10, b"HEAD")
    image = VhdxImage(path)
    assert image.data_write_guid == UUID(int=2).bytes_le
    image.close()


def test_64_tib_in_little_time_and_memory(tmp_path: Path) -> None:
    """A BAT of 513 MiB, 67 million entries, is never held."""
    rng = random.Random(5)
    file = VhdxFile(Model(64 * TIB), block=MIB)
    for block in (0, 1, 4095, 4096, file.blocks // 2, file.blocks - 1):
        file.fill(block, rng, FULL)
    path = file.write(tmp_path / "big.vhdx")
    tracemalloc.start()
    began = time.monotonic()
    with open_disk(path) as disk:
        opened = time.monotonic()
        extents = list(disk.source.extents(0, disk.source.size))
        told = time.monotonic()
        for e in extents:
            if e.data:
                assert disk.source.read_at(e.offset, e.length) == file.model.read(e.offset, e.length)
        assert {e.offset // MIB for e in extents if e.data} <= set(file.states)
        for number in file.model.pieces:
            assert disk.source.read_at(number << 16, 1 << 16) == file.model.read(number << 16, 1 << 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20
    assert opened - began < 10
    assert told - opened < 20


class TestChains:
    """How parents are found and proved."""

    def pair(self, folder: Path, spelled: str, **changes: object) -> tuple[VhdxFile, VhdxFile]:
        """A base at vms/Base.vhdx and a child of it, not written yet."""
        rng = random.Random(6)
        base = VhdxFile(Model(3 * MIB))
        base.fill(0, rng, FULL)
        child = base.child(spelled, **changes)
        child.fill(1, rng, FULL)
        (folder / "vms" / "snapshots").mkdir(parents=True)
        base.write(folder / "vms" / "Base.vhdx")
        return base, child

    @pytest.mark.parametrize(
        "spelled",
        [
            "..\\Base.vhdx",
            "..\\base.VHDX",
            "../Base.vhdx",
            "..\\snapshots\\..\\Base.vhdx",
            ".\\..\\Base.vhdx",
        ],
    )
    def test_relative_paths(self, tmp_path: Path, spelled: str) -> None:
        base, child = self.pair(tmp_path, spelled)
        path = child.write(tmp_path / "vms" / "snapshots" / "child.avhdx")
        with open_disk(path) as disk:
            check_reads(disk.source, child.model, random.Random(7))
            assert disk.files[1].samefile(tmp_path / "vms" / "Base.vhdx")
            assert disk.identity.virtual_disk_id == base.disk_id

    def test_beside_the_child(self, tmp_path: Path) -> None:
        """Moved together to another machine: the recorded folders are gone."""
        _, child = self.pair(tmp_path, "..\\elsewhere\\BASE.vhdx")
        path = child.write(tmp_path / "vms" / "child.avhdx")
        with open_disk(path) as disk:
            check_reads(disk.source, child.model, random.Random(8))

    def test_absolute_only(self, tmp_path: Path) -> None:
        base, child = self.pair(tmp_path, "x")
        assert child.parent is not None
        child.parent = {
            "parent_linkage": str(base.data_write_guid),
            "absolute_win32_path": "\\\\?\\D:\\Hyper-V\\Base.vhdx",
        }
        path = child.write(tmp_path / "vms" / "child.avhdx")
        with open_disk(path) as disk:
            check_reads(disk.source, child.model, random.Random(9))

    def test_second_linkage(self, tmp_path: Path) -> None:
        base, child = self.pair(tmp_path, "Base.vhdx")
        assert child.parent is not None
        child.parent["parent_linkage"] = str(uuid4())
        child.parent["parent_linkage2"] = "{" + str(base.data_write_guid).upper() + "}"
        path = child.write(tmp_path / "vms" / "child.avhdx")
        with open_disk(path) as disk:
            check_reads(disk.source, child.model, random.Random(10))

    def test_the_right_one_of_two(self, tmp_path: Path) -> None:
        """Another file has the parent's name where it is looked for first."""
        _, child = self.pair(tmp_path, "other\\Base.vhdx")
        (tmp_path / "vms" / "other").mkdir()
        VhdxFile(Model(3 * MIB)).write(tmp_path / "vms" / "other" / "Base.vhdx")
        path = child.write(tmp_path / "vms" / "child.avhdx")
        with open_disk(path) as disk:
            check_reads(disk.source, child.model, random.Random(11))

    def test_missing(self, tmp_path: Path) -> None:
        _, child = self.pair(tmp_path, "..\\Gone.vhdx")
        path = child.write(tmp_path / "vms" / "snapshots" / "child.avhdx")
        with pytest.raises(UnreadableInputError, match=r"child\.avhdx: its parent .*Gone.*missing.*Gone"):
            open_disk(path)

    def test_parent_written_to(self, tmp_path: Path) -> None:
        base, child = self.pair(tmp_path, "Base.vhdx")
        path = child.write(tmp_path / "vms" / "child.avhdx")
        base.data_write_guid = uuid4()
        base.write(tmp_path / "vms" / "Base.vhdx")
        with pytest.raises(UnreadableInputError, match="DataWriteGuid is another"):
            open_disk(path)

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"model": Model(4 * MIB)}, "3145728 bytes, the child 4194304"),
            ({"logical": 4096}, "sectors are 512 bytes, the child's 4096"),
            ({"disk_id": UUID(int=5)}, "virtual disk id is another"),
        ],
    )
    def test_another_disk(self, tmp_path: Path, change: dict[str, object], why: str) -> None:
        _, child = self.pair(tmp_path, "Base.vhdx", **change)
        path = child.write(tmp_path / "vms" / "child.avhdx")
        with pytest.raises(UnreadableInputError, match=why):
            open_disk(path)

    def test_broken_parent(self, tmp_path: Path) -> None:
        _, child = self.pair(tmp_path, "Base.vhdx")
        path = child.write(tmp_path / "vms" / "child.avhdx")
        patch(tmp_path / "vms" / "Base.vhdx", 0, b"xhdxfile")
        with pytest.raises(UnreadableInputError, match=r"child.avhdx: its parent can't be read: .*Base.vhdx"):
            open_disk(path)

    def test_circles(self, tmp_path: Path) -> None:
        """A child of itself, and two of each other: their linkage says so."""
        a = VhdxFile(Model(MIB), data_write_guid=UUID(int=1))
        a.parent = {"parent_linkage": str(UUID(int=1)), "relative_path": "a.vhdx"}
        path = a.write(tmp_path / "a.vhdx")
        with pytest.raises(UnreadableInputError, match="one of its own children"):
            open_disk(path)
        a.parent = {"parent_linkage": str(UUID(int=2)), "relative_path": "b.vhdx"}
        a.write(path)
        b = VhdxFile(Model(MIB), data_write_guid=UUID(int=2), disk_id=a.disk_id)
        b.parent = {"parent_linkage": str(UUID(int=1)), "relative_path": "a.vhdx"}
        b.write(tmp_path / "b.vhdx")
        with pytest.raises(UnreadableInputError, match="one of its own children"):
            open_disk(path)

    def test_too_long(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cloudmount.disks.chain.MAX_CHAIN", 3)
        rng = random.Random(12)
        path, _ = chain(rng, tmp_path, 4, model=Model(2 * MIB))
        with pytest.raises(UnreadableInputError, match="longer than 3 files"):
            open_disk(path)
