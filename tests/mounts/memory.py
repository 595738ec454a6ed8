"""A mount's process, read at random: the most memory that it ever had.

The kernel's account in /proc: what a process hands its parent at its end begins with what it was forked from.
"""

from __future__ import annotations

import mmap
import os
import random
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

from cloudmount.app.places import connect
from cloudmount.repo.repository import Repository
from tests.cli.console import PASSPHRASE, PROGRAM, Console
from tests.mounts.full_disk import MACHINE, NAME, FullDisk

READERS = 16
UP_SECONDS = 30.0
TIB = 1 << 40


class Peak(NamedTuple):
    """The most bytes of memory the process had at once, what it had at the end, and how many reads it did."""

    most: int
    last: int
    reads: int


def full_disk(folder: Path, *, packs: int, noise: int) -> tuple[Console, FullDisk]:
    """A repository in `folder` with a disk of a TiB, all of it written."""
    console = Console(folder / "home", str(folder / "repo"))
    console.run("init")
    repository = Repository.open(connect(console.repo, console.environment), PASSPHRASE)
    disk = FullDisk(repository, TIB, packs, noise)
    disk.store()
    return console, disk


def peak(console: Console, disk: FullDisk, at: Path, seconds: float, *, seed: int = 0) -> Peak:
    """Mount as a user does, read 4 KiB at random for `seconds`, half of it past the page cache; every read is
    compared."""
    process = subprocess.Popen(
        [PROGRAM, "mount", str(at), "--quiet"], env=console.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + UP_SECONDS
        while not os.path.ismount(at):
            assert process.poll() is None and time.monotonic() < until, "the drive does not come up"
            time.sleep(0.05)
        reads = _read(at / MACHINE / "latest" / f"{NAME}.img", disk, seconds, seed)
        told = Path(f"/proc/{process.pid}/status").read_text()
        most, last = (_bytes(told, name) for name in ("VmHWM", "VmRSS"))
    finally:
        subprocess.run(
            [PROGRAM, "umount", str(at)], env=console.environment, check=False, capture_output=True
        )
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return Peak(most, last, reads)


def _bytes(status: str, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def _read(file: Path, disk: FullDisk, seconds: float, seed: int) -> int:
    until = time.monotonic() + seconds
    done, failures = [0] * READERS, list[BaseException]()

    def reader(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        buffer = mmap.mmap(-1, 4096)
        fd = os.open(file, os.O_RDONLY | (os.O_DIRECT if number % 2 else 0))
        try:
            while time.monotonic() < until and not failures:
                offset = rng.randrange(disk.size // 4096) * 4096
                assert os.preadv(fd, [buffer], offset) == 4096
                assert buffer[:] == disk.read(offset, 4096), f"wrong bytes at {offset}"
                done[number] += 1
        except BaseException as error:
            failures.append(error)
        finally:
            os.close(fd)

    threads = [threading.Thread(target=reader, args=(n,)) for n in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(done)
