"""How much the drive asks of the store."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cloudmount.blobs.counting import CountingStore
from cloudmount.repo.config import Geometry
from tests.backup.lab import Lab
from tests.tree.drives import MIB, drive, raw_disk, read


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("requests")
    made = Lab(folder, geometry=Geometry())
    with raw_disk(folder / "disk.img", 64 * MIB).open("r+b") as f:  # full frames, so that bytes count
        f.write(random.Random(3).randbytes(8 * MIB))
        f.seek(510)
        f.write(b"\x55\xaa")
    return made


@pytest.mark.parametrize("snapshots", [1, 200])
def test_the_first_byte_of_latest(lab: Lab, snapshots: int) -> None:
    disk = lab.folder / "disk.img"
    while len(lab.repository.listed(lab.repository.keys.tag("srv"))) < snapshots:
        lab.backup(disk)
    store = CountingStore(lab.store)
    with drive(lab, store) as tree:
        assert read(tree, "srv/latest/disk.img", 510, 2) == b"\x55\xaa"
        asked = store.snapshot()
    assert asked.requests <= 6, asked
    assert asked.bytes_down <= MIB, asked


def test_the_first_byte_of_the_vhdx(lab: Lab) -> None:
    if not lab.repository.listed(lab.repository.keys.tag("srv")):
        lab.backup(lab.folder / "disk.img")
    store = CountingStore(lab.store)
    with drive(lab, store) as tree:
        assert read(tree, "srv/latest/disk.vhdx", 0, 8) == b"vhdxfile"
        asked = store.snapshot()
    assert asked.requests <= 6, asked
    assert asked.bytes_down <= MIB, asked


def test_names_that_are_not_there_are_not_remembered(lab: Lab, tmp_path: Path) -> None:
    if not lab.repository.listed(lab.repository.keys.tag("srv")):
        lab.backup(lab.folder / "disk.img")
    with drive(lab) as tree:
        for i in range(100):
            assert tree.lookup(f"no machine {i}") is None
        assert len(tree._machines) == 0
