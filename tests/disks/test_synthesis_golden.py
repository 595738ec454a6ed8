"""Digests of what the synthesis makes, pinned: A CHANGE HERE BREAKS EVERY DIFFERENCING CHILD EVER MADE.

If a test here fails, the code is wrong, never the digest. A new kind of disk
may add a line; no line may ever change.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from uuid import UUID

import pytest

from cloudmount.disks.presence import BitmapPresence
from cloudmount.disks.synthesis import Identity, synthesise_vhdx
from cloudmount.disks.vhd_synthesis import synthesise_fixed_vhd, synthesise_vhd
from cloudmount.extents import BlockSource, Zeros
from tests.disks.sparse_disk import SparseDisk
from tests.disks.vhdx_structure import Structure

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
ONE = Identity(
    size=5 * MIB + 512,
    logical_sector=512,
    physical_sector=4096,
    disk_id=UUID("6f5c1a3e-0d2b-4c8e-9a77-1b2c3d4e5f60"),
    snapshot_id=bytes(range(32)),
    name="disk",
)


def thirds(size: int) -> BitmapPresence:
    """Every third block of the VHDX of a disk of `size` bytes present."""
    blocks = -(-size // (2 * MIB))
    pattern = b"\x49\x92\x24" if size <= 2 * TIB else b"\x01\0\0\0\0\0"
    bits = bytearray((pattern * (blocks // 24 + 1))[: -(-blocks // 8)])
    if blocks % 8:
        bits[-1] &= (1 << blocks % 8) - 1
    return BitmapPresence(bytes(bits), blocks)


def sha256(source: BlockSource) -> str:
    digest = hashlib.sha256()
    for at in range(0, source.size, MIB):
        digest.update(source.read_at(at, min(MIB, source.size - at)))
    return digest.hexdigest()


LAYOUTS = {
    "small": (ONE, "b7b0b3c6191692d2a82a37d00040904f1de62fcdb325e1c7a73b95b7d2d256a1"),
    "another snapshot": (
        replace(ONE, snapshot_id=b"\xff" * 32),
        "4ef538b0deda16932217f0270652ecfae4ccf0b0847c3ba430b16ef1941aa67a",
    ),
    "another name": (
        replace(ONE, name="Größe 2"),
        "e053d5f985509b826c29a5d49f26af2fc16e0492e93ae237a727b90d07ee0997",
    ),
    "another id": (
        replace(ONE, disk_id=UUID(int=1)),
        "cc4506e4f33c2be0bb700cbb250b211e12b09a0647af4d3d4e67b2579d7e301b",
    ),
    "512e of 512": (
        replace(ONE, physical_sector=512),
        "16b2e86300c226469051e225dbb7d8011c7ccb716eac3f1db7bb4b41a099bb45",
    ),
    "4096-byte sectors": (
        replace(ONE, size=40 * GIB, logical_sector=4096),
        "227aa6c4de8afae9739c2ddeb44ece43c93b37c7b2d57801b136b85e11de6a7e",
    ),
    "1 byte": (replace(ONE, size=1), "a872e006a672b9256bebc65e8d2e062b5e27a030fb33108741cb96f672812719"),
    "40 GiB": (
        replace(ONE, size=40 * GIB),
        "e20665992bcbe40c85557710e86137024b7fee2da3087afa2b9d5fb0d9ef74a0",
    ),
    "2 TiB": (replace(ONE, size=2 * TIB), "a186ea41085d441596d35c3a389c2d4dd04a4434e37a6378f5740f6c53077072"),
    "2 TiB and a sector": (
        replace(ONE, size=2 * TIB + 512),
        "eebba1fe9d501e2dc2d4f5f40da587de0a03119bf0799715c1b1a27a734dba04",
    ),
    "3 TiB, 4096": (
        replace(ONE, size=3 * TIB, logical_sector=4096),
        "3be0af03e0358a979e4d8110a196de4f790c2b6629f1ccedddd5b2bdc055280e",
    ),
    "64 TiB": (
        replace(ONE, size=64 * TIB),
        "5f6edcc8a8c81f1265abcbe6ef2df34506df33e8016eccae93298d9a7821d06f",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_vhdx_layout(name: str) -> None:
    """Headers, region tables, log, metadata and BAT: every byte before the payload."""
    identity, wanted = LAYOUTS[name]
    vhdx = synthesise_vhdx(Zeros(identity.size), thirds(identity.size), identity)
    digest = hashlib.sha256(vhdx.size.to_bytes(8, "little"))
    for piece in Structure(vhdx).layout_bytes():
        digest.update(piece)
    assert digest.hexdigest() == wanted


def test_whole_files() -> None:
    disk = SparseDisk(ONE.size, {0: b"first" * 100_000, 5 * MIB + 500: b"the last one"})
    assert {
        "vhdx": sha256(synthesise_vhdx(disk, disk.presence, ONE)),
        "dynamic vhd": sha256(synthesise_vhd(disk, disk.presence, ONE)),
        "fixed vhd": sha256(synthesise_fixed_vhd(disk, ONE)),
    } == {
        "vhdx": "b21594d5f4e65cff012e043afbeb3a8ebdb941025a1a38b0018c0f0a6403a4e1",
        "dynamic vhd": "08e99ad5ed43d58640ffdeb7addc2ddebda71d1fb2dc84f5be9f5921b7cc8620",
        "fixed vhd": "eafe028c8a4a2d1f667a88fac2f05816a5cffcac2b211ef1a59d5ed96ed4050f",
    }


def test_guids() -> None:
    structure = Structure(synthesise_vhdx(Zeros(ONE.size), thirds(ONE.size), ONE))
    assert str(structure.data_write_guid) == "ce9192a1-8637-5ce7-a443-f873b644fecb"
    assert str(structure.file_write_guid) == "abf1e948-1ff6-5d48-8426-1a11a3d65141"
