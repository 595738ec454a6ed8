"""What the synthesis makes, opened by our own readers: content, identity and holes come back."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.disks.detect import open_disk
from cloudmount.disks.presence import BLOCK_SIZE
from cloudmount.disks.synthesis import Identity, synthesise_vhdx
from cloudmount.disks.vhd_synthesis import synthesise_fixed_vhd, synthesise_vhd
from cloudmount.disks.vhdx import VhdxImage
from tests.disks.oracles import sha256
from tests.disks.sparse_disk import SparseDisk, disks, write_file

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def identity(size: int, logical: int = 512) -> Identity:
    """Of some disk of some snapshot."""
    return Identity(size, logical, 4096, UUID("01234567-89ab-cdef-0123-456789abcdef"), b"snapshot", "disk")


@settings(max_examples=60, deadline=None)
@given(disks(13 * MIB), st.sampled_from(["vhdx", "vhdx 4096", "vhd", "fixed vhd"]))
def test_any_disk(disk: SparseDisk, container: str) -> None:
    logical = 4096 if container == "vhdx 4096" else 512
    made = identity(disk.size, logical)
    if container == "vhd":
        file = synthesise_vhd(disk, disk.presence, made)
    elif container == "fixed vhd":
        file = synthesise_fixed_vhd(disk, made)
    else:
        file = synthesise_vhdx(disk, disk.presence, made)
    with TemporaryDirectory() as folder, open_disk(write_file(file, Path(folder) / "disk")) as opened:
        assert opened.source.size == made.sectors_size
        assert sha256(opened.source, made.sectors_size) == sha256(disk, made.sectors_size)
        assert opened.identity.source_format == ("vhdx" if "vhdx" in container else "vhd")
        assert opened.identity.virtual_disk_id == made.disk_id
        assert opened.identity.logical_sector == logical


@pytest.mark.parametrize(
    ("size", "logical"),
    [(5 * GIB + 512, 512), (2 * TIB, 512), (2 * TIB + 2 * MIB, 512), (3 * TIB, 4096), (64 * TIB, 512)],
)
def test_large_disks(size: int, logical: int, tmp_path: Path) -> None:
    ends = [0, 4 * GIB - KIB, size // 2 // 512 * 512 - KIB, size - 3 * KIB]
    disk = SparseDisk(size, {at: bytes([65 + i]) * (3 * KIB) for i, at in enumerate(sorted(ends))})
    made = identity(size, logical)
    path = write_file(synthesise_vhdx(disk, disk.presence, made), tmp_path / "disk.vhdx")
    with open_disk(path) as opened:
        assert opened.source.size == size
        for at, data in disk.runs:
            before = min(at, 4 * KIB)
            assert opened.source.read_at(at - before, before + len(data)) == bytes(before) + data
        data_bytes = sum(e.length for e in opened.source.extents(0, size) if e.data)
        assert data_bytes < 16 * BLOCK_SIZE  # the holes are seen through the container
    image = VhdxImage(path)
    assert image.data_write_guid == made.derived("vhdx-data-write").bytes_le
    image.verify()
    image.close()
