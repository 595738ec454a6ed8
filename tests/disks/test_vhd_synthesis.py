"""Synthesised VHDs: the structure by the specification, the content by QEMU and libvhdi."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.disks.presence import BitmapPresence
from cloudmount.disks.synthesis import Identity
from cloudmount.disks.vhd_synthesis import _geometry, synthesise_fixed_vhd, synthesise_vhd
from cloudmount.errors import UsageError
from cloudmount.extents import BlockSource, Zeros
from tests.disks.oracles import Libvhdi, qemu_agrees, qemu_reads, qemu_sha256, run, sha256
from tests.disks.sparse_disk import SparseDisk, disks, write_file

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MAX = 2040 * GIB
DISK_ID = UUID("01234567-89ab-cdef-0123-456789abcdef")


def identity(size: int, logical: int = 512, snapshot: bytes = b"snapshot") -> Identity:
    """Of some disk of some snapshot."""
    return Identity(size, logical, 512, DISK_ID, snapshot, "disk")


def letters(size: int, *offsets: int) -> SparseDisk:
    """A run of `A`s at the first offset, of `B`s at the second, ..., cut off at the end."""
    found = sorted({*offsets})
    return SparseDisk(size, {at: bytes([65 + i]) * min(3 * KIB, size - at) for i, at in enumerate(found)})


def check_footer(footer: bytes, size: int, disk_type: int, data_offset: int) -> None:
    """Every field of "Hard Disk Footer Format"."""
    names = struct.unpack(">8sIIQI4sI4sQQHBBII16sB427s", footer)
    assert names[0:4] == (b"conectix", 2, 0x10000, data_offset)
    assert (names[5], names[7]) == (b"win ", b"Wi2k")
    assert names[8] == names[9] == size
    cylinders, heads, sectors = names[10:13]
    assert cylinders * heads * sectors * 512 <= size
    assert names[13] == disk_type
    assert names[14] == ~sum(footer[:64] + footer[68:]) & 0xFFFFFFFF
    assert names[15] == DISK_ID.bytes_le
    assert names[16] == 0
    assert not any(names[17])


def check_dynamic(vhd: BlockSource, size: int) -> list[int]:
    """Every byte but the blocks' data, by the specification; the present blocks."""
    footer, header = vhd.read_at(0, 512), vhd.read_at(512, 1024)
    assert vhd.size % 512 == 0
    assert vhd.read_at(vhd.size - 512, 512) == footer
    check_footer(footer, size, 3, 512)
    cookie, data, table, version, entries, block, crc = struct.unpack_from(">8sQQIIII", header)
    assert (cookie, data, table, version, block) == (b"cxsparse", 2**64 - 1, 1536, 0x10000, 2 * MIB)
    assert entries == -(-size // block)
    assert crc == ~sum(header[:36] + header[40:]) & 0xFFFFFFFF
    assert not any(header[40:])
    room = -(-entries * 4 // 512) * 512
    bat = struct.unpack(f">{room // 4}I", vhd.read_at(table, room))
    assert set(bat[entries:]) <= {0xFFFFFFFF}
    at, present = table + room, []
    for i, sector in enumerate(bat):
        if sector != 0xFFFFFFFF:
            assert sector * 512 == at
            assert vhd.read_at(at, 512) == b"\xff" * 512
            at += 512 + block
            present.append(i)
    assert at == vhd.size - 512
    return present


def judge(vhd: BlockSource, disk: SparseDisk, folder: Path) -> None:
    """QEMU and libvhdi read every byte of `disk` back."""
    image = write_file(vhd, folder / "disk.vhd")
    size = -(-disk.size // 512) * 512
    assert f'"virtual-size": {size}' in run("qemu-img", "info", "--output=json", "-f", "vpc", image)
    qemu_agrees(image, "vpc", write_file(disk, folder / "disk.img"))
    theirs = Libvhdi(image)
    assert theirs.size == size
    assert qemu_sha256(image, "vpc") == theirs.sha256() == sha256(disk, size)
    theirs.close()


FIXED = {
    "1 sector": letters(512, 0),
    "1 byte": letters(1, 0),
    "no whole sector": letters(5 * MIB + 1, 0, 5 * MIB),
    "a cylinder and a sector": letters(17 * 4 * 512 + 512, 0, 17 * 4 * 512),
    "odd number of sectors": letters(4 * MIB + 3 * 512, 0, 4 * MIB + 512),
    "1 block": letters(2 * MIB, 2 * MIB - 1),
    "blocks, a gap": letters(6 * MIB, 100, 5 * MIB),
    "nothing but zeros": letters(7 * MIB),
    "a prime number of sectors": letters(104729 * 512, 0, 104728 * 512),
}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_every_byte_is_read_back(name: str, kind: str, tmp_path: Path) -> None:
    disk = FIXED[name]
    made = identity(disk.size)
    if kind == "dynamic":
        judge(synthesise_vhd(disk, disk.presence, made), disk, tmp_path)
    else:
        judge(synthesise_fixed_vhd(disk, made), disk, tmp_path)


@settings(max_examples=30, deadline=None)
@given(disks(13 * MIB), st.booleans())
def test_any_disk(tmp_path_factory: pytest.TempPathFactory, disk: SparseDisk, dynamic: bool) -> None:
    made, size = identity(disk.size), -(-disk.size // 512) * 512
    if dynamic:
        vhd = synthesise_vhd(disk, disk.presence, made)
        present = check_dynamic(vhd, size)
        assert present == [disk.presence.select(k) for k in range(disk.presence.count)]
    else:
        vhd = synthesise_fixed_vhd(disk, made)
        assert vhd.size == size + 512
        check_footer(vhd.read_at(size, 512), size, 2, 2**64 - 1)
    judge(vhd, disk, tmp_path_factory.mktemp("vhd"))


@pytest.mark.parametrize("size", [130 * GIB, MAX])
def test_large_disks(size: int, tmp_path: Path) -> None:
    disk = letters(size, 0, 4 * GIB - KIB, size // 2, size - 3 * KIB)
    vhd = synthesise_vhd(disk, disk.presence, identity(size))
    check_dynamic(vhd, size)
    image = write_file(vhd, tmp_path / "disk.vhd")
    fixed = write_file(synthesise_fixed_vhd(disk, identity(size)), tmp_path / "fixed.vhd")
    for at in (image, fixed):
        theirs = Libvhdi(at)
        assert theirs.size == size
        for i, (offset, data) in enumerate(disk.runs):
            qemu_reads(at, "vpc", 65 + i, offset, len(data))
            assert theirs.read_at(offset, len(data)) == data
            before = min(offset, 4 * KIB)
            assert theirs.read_at(offset - before, before) == bytes(before)
        theirs.close()


def test_extents_are_sparse() -> None:
    disk = letters(9 * MIB, 5 * MIB)
    vhd = synthesise_vhd(disk, disk.presence, identity(disk.size))
    found = [(e.offset, e.length) for e in vhd.extents(0, vhd.size) if e.data]
    payload = 1536 + 512
    assert found == [(0, payload + 512), (payload + 512 + MIB, 3 * KIB), (payload + 512 + 2 * MIB, 512)]
    assert disk.reads == []


def test_a_child_of_another_snapshot_does_not_fit() -> None:
    """The id is the disk's; the time stamp, which a child compares too, is the snapshot's."""
    one, two = (
        synthesise_fixed_vhd(Zeros(512), identity(512, snapshot=s)).read_at(512, 512)
        for s in (b"one", b"two")
    )
    assert one[68:84] == two[68:84] == DISK_ID.bytes_le
    assert one[24:28] != two[24:28]


@given(st.integers(0, MAX // 512))
def test_geometry_is_within_the_disk_and_the_fields(sectors: int) -> None:
    cylinders, heads, per_track = _geometry(sectors)
    assert cylinders * heads * per_track <= sectors
    assert cylinders <= 65535
    assert 4 <= heads <= 16
    assert per_track in (17, 31, 63, 255)
    assert min(sectors, 65535 * 16 * 255) - cylinders * heads * per_track < heads * per_track


@pytest.mark.parametrize("size", [MIB, 9 * MIB, 100 * MIB, 300 * MIB, GIB, 31 * GIB, 32 * GIB, 126 * GIB])
def test_geometry_is_qemus(size: int, tmp_path: Path) -> None:
    """QEMU takes the first geometry, by the specification's algorithm, that holds the whole size."""
    image = tmp_path / "empty.vhd"
    run("qemu-img", "create", "-q", "-f", "vpc", image, str(size))
    theirs = struct.unpack_from(">HBB", image.read_bytes(), 56)
    sectors = size // 512
    while math.prod(_geometry(sectors)) < size // 512:
        sectors += 1
    assert _geometry(sectors) == theirs


def test_geometry_is_virtual_pcs() -> None:
    """Of its 127 GiB image in QEMU's own tests; and the largest there is."""
    assert _geometry(127 * GIB // 512) == (65278, 16, 255)
    assert _geometry(MAX // 512) == (65535, 16, 255)


def test_a_disk_no_vhd_can_hold() -> None:
    for size, logical, why in [
        (MAX + 512, 512, "2040 GiB"),
        (0, 512, "holds 1 byte"),
        (8192, 4096, "sectors of 4096 bytes"),
    ]:
        presence = BitmapPresence(bytes(-(-size // (16 * MIB))), -(-size // (2 * MIB)))
        with pytest.raises(UsageError, match=f"disk has .*{why}.*--format"):
            synthesise_vhd(Zeros(size), presence, identity(size, logical))
        with pytest.raises(UsageError, match=why):
            synthesise_fixed_vhd(Zeros(size), identity(size, logical))


def test_what_does_not_belong_together() -> None:
    disk = letters(3 * MIB, 0)
    with pytest.raises(ValueError, match="its identity says"):
        synthesise_fixed_vhd(disk, identity(2 * MIB))
    with pytest.raises(ValueError, match="presence of 1 blocks"):
        synthesise_vhd(disk, BitmapPresence(b"\1", 1), identity(3 * MIB))


def test_content_is_closed_once() -> None:
    disk = letters(512, 0)
    synthesise_vhd(disk, disk.presence, identity(512)).close()
    assert disk.closed == 1
    synthesise_fixed_vhd(disk, identity(512)).close()
    assert disk.closed == 2
