"""A short run of the campaign over mutated volumes, and some of them through a real mount."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from cloudmount.guest import children as processes
from cloudmount.guest.children import Children
from cloudmount.guest.volume import Volume
from cloudmount.tree.inside import Guest, GuestDir
from cloudmount.tree.placed import PlacedFiles
from tests.guest.campaign_guest import START, MutantSource, bases, campaign, mutate
from tests.mounts.drivers import DRIVERS, each_driver
from tests.mounts.mounting import mounted
from tests.trees.memory_tree import MemoryDir


def test_a_few_volumes() -> None:
    told = campaign(seed=2, count=108)
    assert "108 mutated volumes" in told
    assert "errors" in told and "same" in told


_LOOK = 'cd "$1" && find . -type f -print0 | xargs -0 head -qc 300000 >/dev/null; find . -ls | wc -l'


def no_map() -> PlacedFiles:
    raise AssertionError("a drive asks no map of files inside disks")


@each_driver
@pytest.mark.mount
def test_through_a_mount(tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that walk mutated volumes come to an end, and the drive goes down at once afterwards."""
    monkeypatch.setattr(processes, "_START", START)
    rng = random.Random(5)
    children = Children(thinking=8.0)
    made = bases(tmp_path)
    try:
        for base in made:
            base.learn(children)
        folders = {}
        for n, base in enumerate(made * 2):
            source = MutantSource(base.source.sound)
            mutate(source, base.places, rng)
            volume = Volume(children, source, base.parser, base.name)

            def inode(number: int, n: int = n) -> int:
                return n << 56 | number % (1 << 56)

            guest = Guest(volume, inode, 0, lambda at, length: None, lambda: 0, no_map)
            folders[f"{n} {base.name}"] = GuestDir(guest, (), None)
        with mounted(DRIVERS[driver], MemoryDir(folders), tmp_path / "drive") as mount:
            done = subprocess.run(
                ["sh", "-c", _LOOK, "sh", mount.path],
                capture_output=True,
                text=True,
                check=False,
                timeout=100,
            )
            assert int(done.stdout) > 10 * len(made)
    finally:
        children.close()
