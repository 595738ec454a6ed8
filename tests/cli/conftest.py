"""A fresh repository for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.console import Console


@pytest.fixture
def console(tmp_path: Path) -> Console:
    """Commands against a repository in a folder, made already."""
    made = Console(tmp_path / "home", str(tmp_path / "repo"))
    made.run("init")
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with something in it."""
    folder = tmp_path / "docs"
    (folder / "inner").mkdir(parents=True)
    (folder / "plan.txt").write_text("plan\n")
    (folder / "inner" / "data.bin").write_bytes(bytes(range(256)) * 2000)
    (folder / "link").symlink_to("plan.txt")
    return folder
