"""The long test of a drive's memory: random reads of a full disk of a TiB, as long as `count` says.

200, which is `make campaign`'s own, are five minutes. Every read is compared; the real mount must stay under
150 MB resident, all the time. Its maps are those of 8.4 million frames; the frames are 262,144, of 1,024
packs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.mounts.memory import full_disk, peak
from tests.mounts.test_memory import LIMIT


def campaign(seed: int, count: int) -> str:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="cloudmount-memory-") as folder:
        console, disk = full_disk(Path(folder), packs=1024, noise=1000)
        found = peak(console, disk, Path(folder) / "drive", 1.5 * count, seed=seed)
    if found.most >= LIMIT:
        raise AssertionError(f"the mount had {found.most / 1e6:.0f} MB, {LIMIT / 1e6:.0f} are the most")
    return f"{found.reads} reads, {found.most / 1e6:.0f} MB at most, {found.last / 1e6:.0f} at the end"
