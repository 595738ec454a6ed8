"""A drive's memory is bounded, whatever the size of the disk; at length in `campaign_memory`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mounts.memory import full_disk, peak

LIMIT = 150_000_000


@pytest.mark.mount
def test_random_reads_of_a_full_tib(tmp_path: Path) -> None:
    console, disk = full_disk(tmp_path, packs=32, noise=1000)
    found = peak(console, disk, tmp_path / "drive", 6)
    assert 50_000_000 < found.most < LIMIT
    assert found.reads > 100
