"""File systems of other disks: those that open, those that don't, and what has none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cloudmount.app.drilldisks import open_volumes
from tests.backup.lab import Lab
from tests.guest.images import MIB, make_ext, make_ntfs
from tests.tree.drives import drive

pytestmark = pytest.mark.oracle


def test_what_opens_and_what_does_not(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "file").write_text("x")
    lab = Lab(tmp_path)
    make_ext(tmp_path / "a.img", 4 * MIB, source, "ext4")
    broken = make_ext(tmp_path / "b.img", 4 * MIB, source, "ext4")
    with broken.open("r+b") as file:
        file.seek(4096)  # the superblock stays
        file.write(random.Random(1).randbytes(broken.stat().st_size - 4096))
    make_ntfs(tmp_path / "c.img", 8 * MIB)
    (tmp_path / "d.img").write_bytes(random.Random(2).randbytes(MIB))
    disks = [tmp_path / f"{name}.img" for name in "abcd"]
    result = lab.backup(*disks, machine="srv")
    with drive(lab) as tree:
        opened = tree.opened(lab.snapshot(result.key))
        found = {v.disk: (v.opens, v.problem is None) for v in open_volumes(opened.disks)}
    assert found == {"a": (True, True), "b": (False, False), "c": (True, True), "d": (False, True)}
