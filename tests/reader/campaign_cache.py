"""Processes killed while they use a disk cache, alone or with another, at random and at each call that
changes its files; after each the account is right and what is kept is whole."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.reader.test_diskcache import kill_users


def campaign(seed: int, count: int) -> str:
    """`count` times one process, or two."""
    with tempfile.TemporaryDirectory(prefix="cache-campaign-") as folder:
        kill_users(Path(folder), seed, count)
    return (
        f"{count} kills, {count // 2} of them with another process beside, killed then; every account right"
    )
