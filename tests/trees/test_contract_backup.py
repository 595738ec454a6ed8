"""The drive of a real repository keeps the contract of trees, and is shown as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.backup.lab import Lab
from tests.mounts.drivers import DRIVERS, each_driver
from tests.mounts.mounting import mounted
from tests.tree.drives import drive, raw_disk
from tests.trees.contract import check_shown, check_tree

pytestmark = pytest.mark.mount


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Two snapshots of a disk and of files with odd names and holes."""
    made = Lab(tmp_path / "lab")
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "plan.docx").write_bytes(os.urandom(70_001))
    (source / "empty").touch()
    (source / os.fsdecode(b"raw \xff\n")).write_bytes(b"x")
    (source / "link").symlink_to("deep/er")
    os.link(source / "empty", source / "deep" / "hard")
    with (source / "sparse").open("wb") as f:
        f.seek(5 << 20)
        f.write(b"end")
    raw_disk(source / "disk.raw")
    made.backup(source, source / "disk.raw")
    (source / "later").write_bytes(b"new")
    made.backup(source, source / "disk.raw")
    return made


@each_driver
def test_directly_then_mounted(lab: Lab, tmp_path: Path, driver: str) -> None:
    with drive(lab) as tree:
        count = check_tree(tree)
        assert count > 20
        # Folders' times are known once their snapshots have been looked at: by now they are.
        with mounted(DRIVERS[driver], tree, tmp_path / "drive") as mount:
            assert check_shown(tree, mount.path) == count
