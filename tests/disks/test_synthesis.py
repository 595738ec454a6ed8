"""`synthesise_vhdx`: the structure by the specification, the content by QEMU, libvhdi and itself."""

from __future__ import annotations

import hashlib
import re
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.disks.presence import BitmapPresence
from cloudmount.disks.synthesis import Identity, synthesise_vhdx, vhdx_block_size, vhdx_size
from cloudmount.errors import UsageError
from cloudmount.extents import Zeros
from tests.disks.oracles import Libvhdi, qemu_agrees, qemu_reads, qemu_sha256, run, sha256
from tests.disks.sparse_disk import SparseDisk, disks, write_file
from tests.disks.vhdx_structure import Structure

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
DISK_ID = UUID("01234567-89ab-cdef-0123-456789abcdef")


def identity(size: int, logical: int = 512, physical: int = 4096) -> Identity:
    """Of some disk of some snapshot."""
    return Identity(size, logical, physical, DISK_ID, bytes(range(32)), "disk")


def letters(size: int, *offsets: int, length: int = 3 * KIB) -> SparseDisk:
    """A run of `A`s at the first offset, of `B`s at the second, ..., cut off at the end."""
    return SparseDisk(
        size, {at: bytes([65 + i]) * min(length, size - at) for i, at in enumerate(sorted({*offsets}))}
    )


@contextmanager
def vhdx_file(disk: SparseDisk, logical: int = 512) -> Iterator[tuple[Path, Structure]]:
    """The disk as a VHDX file, and its structure after the check."""
    vhdx = synthesise_vhdx(disk, disk.presence, identity(disk.size, logical))
    structure = Structure(vhdx)
    touched = {b for at, data in disk.runs for b in (at, at + len(data) - 1)}
    present = structure.check_bat()
    assert {b // structure.block_size for b in touched} <= present
    assert vhdx_block_size(disk.size) == structure.block_size
    assert vhdx_size(identity(disk.size, logical), len(present)) == vhdx.size
    with TemporaryDirectory() as folder:
        yield write_file(vhdx, Path(folder) / "disk.vhdx"), structure


FIXED = {
    "1 sector": letters(512, 0),
    "1 byte": letters(1, 0),
    "no whole sector": letters(5 * MIB + 1, 0, 5 * MIB),
    "odd number of sectors": letters(4 * MIB + 3 * 512, 0, 4 * MIB + 512),
    "3 MiB": letters(3 * MIB, 0, 2 * MIB - 1),
    "1 block": letters(2 * MIB, 2 * MIB - 1),
    "blocks, full": SparseDisk(6 * MIB, {0: bytes(range(256)) * (24 * KIB)}),
    "blocks, a gap": letters(6 * MIB, 100, 5 * MIB),
    "nothing but zeros": letters(7 * MIB),
    "over 4 GiB": letters(4 * GIB + 5 * MIB + 512, 0, 2 * GIB - 1, 4 * GIB - 1 * KIB, 4 * GIB + 5 * MIB),
}


@pytest.mark.parametrize("name", FIXED)
def test_qemu_and_libvhdi_agree(name: str) -> None:
    disk = FIXED[name]
    size = -(-disk.size // 512) * 512
    with vhdx_file(disk) as (vhdx, _):
        assert "No errors" in run("qemu-img", "check", "-f", "vhdx", vhdx)
        qemu_agrees(vhdx, "vhdx", write_file(disk, vhdx.with_suffix(".img")))
        theirs = Libvhdi(vhdx)
        assert theirs.size == size
        if size < GIB:  # beyond, `compare` has read it all, and the letters are enough for libvhdi
            assert qemu_sha256(vhdx, "vhdx") == theirs.sha256() == sha256(disk, size)
        for at, data in disk.runs:
            assert theirs.read_at(at, len(data)) == data
        theirs.close()


@settings(max_examples=40, deadline=None)
@given(disks(9 * 4096, unit=512))
def test_any_disk_by_qemu_and_libvhdi(disk: SparseDisk) -> None:
    with vhdx_file(disk) as (vhdx, structure):
        assert structure.disk_size == disk.size
        assert "No errors" in run("qemu-img", "check", "-f", "vhdx", vhdx)
        qemu_agrees(vhdx, "vhdx", write_file(disk, vhdx.with_suffix(".img")))
        theirs = Libvhdi(vhdx)
        assert theirs.sha256() == sha256(disk, disk.size)
        theirs.close()


@settings(max_examples=40, deadline=None)
@given(disks(13 * MIB))
def test_any_disk_of_4096_byte_sectors_by_libvhdi(disk: SparseDisk) -> None:
    with vhdx_file(disk, logical=4096) as (vhdx, structure):
        assert structure.logical_sector == structure.physical_sector == 4096
        theirs = Libvhdi(vhdx)
        assert theirs.sha256() == sha256(disk, -(-disk.size // 4096) * 4096)
        theirs.close()


def test_vhdiinfo_shows_the_identity() -> None:
    with vhdx_file(letters(3 * GIB, GIB)) as (vhdx, structure):
        out = run("vhdiinfo", vhdx)
        assert re.search(r"Disk type\s*: Dynamic", out)
        assert f"({3 * GIB} bytes)" in out
        assert str(structure.data_write_guid) in out


@pytest.mark.parametrize(
    ("size", "block", "payload"),
    [
        (40 * GIB, 2 * MIB, 4 * MIB),
        (2 * TIB, 2 * MIB, 12 * MIB),
        (2 * TIB + 2 * MIB, 32 * MIB, 4 * MIB),
        (64 * TIB, 32 * MIB, 20 * MIB),
    ],
)
def test_large_disks(size: int, block: int, payload: int) -> None:
    """Letters at both ends, around chunk borders (4 GiB and 8 GiB apart) and across blocks."""
    chunk = 2**23 * 512
    at = [0, chunk - 1 * KIB, 3 * chunk + block, size // 2 - 1 * KIB, size - 3 * KIB]
    disk = letters(size, *at)
    with vhdx_file(disk) as (vhdx, structure):
        assert (structure.block_size, structure.payload_offset) == (block, payload)
        assert "No errors" in run("qemu-img", "check", "-f", "vhdx", vhdx)
        assert f'"virtual-size": {size}' in run("qemu-img", "info", "--output=json", "-f", "vhdx", vhdx)
        theirs = Libvhdi(vhdx)
        assert theirs.size == size
        for i, (offset, data) in enumerate(disk.runs):
            qemu_reads(vhdx, "vhdx", 65 + i, offset, len(data))
            assert theirs.read_at(offset, len(data)) == data
            for start, stop in (
                (max(0, offset - 4 * KIB), offset),
                (offset + 3 * KIB, min(size, offset + 8 * KIB)),
            ):
                if start < stop:
                    qemu_reads(vhdx, "vhdx", 0, start, stop - start)
                    assert theirs.read_at(start, stop - start) == bytes(stop - start)
        theirs.close()


def test_4096_byte_sectors_above_2_tib_by_libvhdi() -> None:
    disk = letters(3 * TIB, 0, 32 * GIB - 1 * KIB, 2 * TIB, 3 * TIB - 3 * KIB)
    with vhdx_file(disk, logical=4096) as (vhdx, structure):
        assert structure.chunk_ratio == 1024
        theirs = Libvhdi(vhdx)
        for offset, data in disk.runs:
            assert theirs.read_at(offset - min(offset, 512), min(offset, 512)) == bytes(min(offset, 512))
            assert theirs.read_at(offset, len(data)) == data
        theirs.close()


@settings(deadline=None)
@given(disks(9 * MIB), st.data())
def test_any_read_and_extent_agrees_with_the_whole(disk: SparseDisk, data: st.DataObject) -> None:
    vhdx = synthesise_vhdx(disk, disk.presence, identity(disk.size))
    whole = vhdx.read_at(0, vhdx.size)
    for _ in range(5):
        start = data.draw(st.integers(0, vhdx.size))
        length = data.draw(st.integers(0, vhdx.size - start) | st.integers(0, min(9000, vhdx.size - start)))
        assert vhdx.read_at(start, length) == whole[start : start + length]
        at = start
        for e in vhdx.extents(start, length):
            assert e.offset == at
            assert e.data or not any(whole[e.offset : e.end])
            at = e.end
        assert at == start + length


def test_extents_are_the_structures_and_the_contents_own() -> None:
    disk = letters(9 * MIB, 5 * MIB, 8 * MIB)
    vhdx = synthesise_vhdx(disk, disk.presence, identity(disk.size))
    data = [(e.offset, e.length) for e in vhdx.extents(0, vhdx.size) if e.data]
    assert data == [
        (0, 520),
        (64 * KIB, 80),
        (128 * KIB, 80),
        (192 * KIB, 80),
        (256 * KIB, 80),
        (2 * MIB, 192),
        (2 * MIB + 64 * KIB, 40),
        (3 * MIB, 5 * 8),
        (4 * MIB + 1 * MIB, 3 * KIB),  # block 2 is packed first
        (6 * MIB, 3 * KIB),  # block 4
    ]
    assert disk.reads == [], "extents read the content"


def test_64_tib_in_flat_memory() -> None:
    """Every second block of 32 MiB present: the BAT, and a read in every 1,000th block."""
    blocks = 64 * TIB // (2 * MIB)
    presence = BitmapPresence(b"\x01\0\0\0" * (blocks // 32), blocks)
    tracemalloc.start()
    vhdx = synthesise_vhdx(Zeros(64 * TIB), presence, identity(64 * TIB))
    at_rest = tracemalloc.get_traced_memory()[0]
    assert vhdx.size == 20 * MIB + 32 * TIB
    for at in [*range(0, 20 * MIB, 128 * KIB), *range(20 * MIB, vhdx.size, 1000 * 32 * MIB)]:
        vhdx.read_at(at, 128 * KIB)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert at_rest < MIB
    assert after < at_rest + MIB
    assert peak < 5 * MIB
    assert Structure(vhdx).check_bat() == set(range(0, 2 * MIB, 2))


def test_bytes_depend_on_nothing_but_content_presence_and_identity() -> None:
    disk = letters(9 * MIB, 5 * MIB)
    one = synthesise_vhdx(disk, disk.presence, identity(disk.size))
    two = synthesise_vhdx(disk, disk.presence, identity(disk.size))
    assert one.read_at(0, one.size) == two.read_at(0, two.size)


def test_every_part_of_the_identity_shows() -> None:
    def structure(**changes: object) -> Structure:
        parts = {
            "size": 3 * MIB,
            "logical_sector": 512,
            "physical_sector": 512,
            "disk_id": DISK_ID,
            "snapshot_id": b"one",
            "name": "disk",
        }
        made = Identity(**{**parts, **changes})  # type: ignore[arg-type]  # the test's own names and types
        disk = letters(made.size, 0)
        return Structure(synthesise_vhdx(disk, disk.presence, made))

    first = structure()
    assert (first.creator, first.disk_id, first.physical_sector) == ("CloudMount", DISK_ID, 512)
    assert first.file_write_guid != first.data_write_guid
    assert first.data_write_guid.version == first.file_write_guid.version == 5
    guids = {first.data_write_guid, first.file_write_guid}
    for changes in (
        {"snapshot_id": b"two"},
        {"name": "disk2"},
        {"name": "d\udc80isk"},
        {"name": "d\ud800isk"},
    ):
        other = structure(**changes)
        assert not guids & {other.data_write_guid, other.file_write_guid}
        guids |= {other.data_write_guid, other.file_write_guid}
    other = structure(disk_id=UUID(int=5), physical_sector=4096, size=4 * MIB)
    assert (other.disk_id, other.physical_sector, other.disk_size) == (UUID(int=5), 4096, 4 * MIB)
    assert other.data_write_guid == first.data_write_guid
    assert structure(physical_sector=16384).physical_sector == 4096  # VHDX knows no larger one
    assert structure(logical_sector=4096, physical_sector=512).physical_sector == 4096


def test_the_guids_are_what_is_documented() -> None:
    """RFC 9562 5.5 by hand: SHA-1 of the namespace and the text, its version and variant set."""
    made = Identity(1, 512, 512, DISK_ID, b"\x01\xff", "Büro")
    namespace = UUID("d50ee634-eae5-456a-aefd-4731268e72e5").bytes
    text = b"vhdx-data-write/01ff/42c3bc726f"
    digest = bytearray(hashlib.sha1(namespace + text, usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    assert made.derived("vhdx-data-write") == UUID(bytes=bytes(digest))
    assert made.derived("vhdx-data-write") == UUID("1a5e0037-d550-58e4-803b-21ffa3c58e27")


def test_content_is_closed_even_if_no_block_is_present() -> None:
    disk = letters(3 * MIB)
    vhdx = synthesise_vhdx(disk, disk.presence, identity(disk.size))
    vhdx.close()
    assert disk.closed == 1


@pytest.mark.parametrize("size", [0, 64 * TIB + 512])
def test_a_disk_no_vhdx_can_hold(size: int) -> None:
    presence = BitmapPresence(bytes(-(-size // (16 * MIB))), -(-size // (2 * MIB)))
    for call in (
        lambda: vhdx_size(identity(size), 0),
        lambda: synthesise_vhdx(Zeros(size), presence, identity(size)),
    ):
        with pytest.raises(UsageError, match=f"disk has {size} bytes.*raw"):
            call()


def test_what_does_not_belong_together() -> None:
    disk = letters(3 * MIB, 0)
    with pytest.raises(ValueError, match="its identity says"):
        synthesise_vhdx(disk, disk.presence, identity(2 * MIB))
    with pytest.raises(ValueError, match="presence of 1 blocks"):
        synthesise_vhdx(disk, BitmapPresence(b"\1", 1), identity(3 * MIB))
    for present in (-1, 3):
        with pytest.raises(ValueError, match="of its 2 blocks present"):
            vhdx_size(identity(3 * MIB), present)
    for size, logical, physical in ((-1, 512, 512), (1, 1024, 512), (1, 512, 0)):
        with pytest.raises(ValueError, match=r"can't have|512 or 4096"):
            identity(size, logical, physical)
