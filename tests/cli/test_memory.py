"""The memory of what moves data is bounded: 300 MB for disks of any size, whatever the speed of the store."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.console import PROGRAM, Console

LIMIT = 300_000_000
PIECE = 1 << 20
_NOISE = os.urandom(PIECE)


def noise(number: int) -> bytes:
    """A MiB that no compression shortens, and whose frames are no other's."""
    stamp = number.to_bytes(8, "little")
    return b"".join(stamp + _NOISE[at + 8 : at + 65536] for at in range(0, PIECE, 65536))


def peak(console: Console, *arguments: str) -> int:
    """Run a command; the most memory it had, in bytes."""
    process = subprocess.Popen(
        [PROGRAM, *arguments, "--quiet"],
        env=console.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    most = 0
    try:
        end = time.monotonic() + 100
        while process.poll() is None:
            assert time.monotonic() < end
            # Not the kernel's account at the end: it begins with what the process was forked from.
            with contextlib.suppress(OSError):
                told = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
                most = max(most, int(told[1]) * 1024 if told else 0)
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 0
    assert most > 20_000_000
    return most


@pytest.mark.parametrize("bandwidth", [[], ["--bandwidth", "60M"]], ids=["quick store", "slow store"])
def test_a_disk_full_of_noise(console: Console, tmp_path: Path, bandwidth: list[str]) -> None:
    disk = tmp_path / "noise.img"
    with disk.open("wb") as file:
        for number in range(400):
            file.write(noise(number))
    assert peak(console, "backup", "--name", "m", str(disk), *bandwidth) < LIMIT
    if not bandwidth:
        assert peak(console, "hydrate", "m", "--to", str(tmp_path / "copies")) < LIMIT


def test_a_disk_of_16_tib(console: Console, tmp_path: Path) -> None:
    """400 pieces in 16 TiB: a segment's map for each."""
    disk = tmp_path / "large.img"
    with disk.open("wb") as file:
        file.truncate((16 << 40) - (1 << 30))  # ext4 holds no larger file
        for number in range(300):
            file.seek(number * (54 << 30))
            file.write(noise(number))
    assert peak(console, "backup", "--name", "m", str(disk)) < LIMIT
    assert peak(console, "restore", "m", str(tmp_path / "back"), "--format", "raw") < LIMIT
    assert peak(console, "check", "--read-data") < LIMIT
    back = tmp_path / "back" / "large.raw"
    assert back.stat().st_size == disk.stat().st_size
    with back.open("rb") as file:
        for number in range(0, 300, 37):
            file.seek(number * (54 << 30))
            assert file.read(PIECE) == noise(number)
