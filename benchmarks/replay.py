#!/usr/bin/env python3
"""A recorded boot's reads, replayed through the drive over slow lines, as fast as they are answered.

    .venv/bin/python benchmarks/replay.py [--repeat 3] [--json]

Decided here and only here: what is replayed and what it is held against. The reads are those of
boot_trace.txt, in their order, one at a time, past the kernel's cache and without the time that a guest
thinks in between; the disk is made up: noise and text in turn wherever the trace reads, and around, so
that it compresses 2 to 1. It needs no QEMU, and is the same on every machine. Each replay has empty
caches. Beside its seconds stands the least there could be: the sealed bytes of what is read, at the
line's rate, and ten round trips. One thread, beside those of the line.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from benchmarks.azurite import LINK_PORT, Azurite
from benchmarks.commands import BenchmarkError, end_cleanly, machine, median, table
from benchmarks.drives import PASSWORD, Cloudmount
from tests.wanlink import WanLink

TRACE = Path(__file__).with_name("boot_trace.txt")
DISK_BYTES = 8 << 30
AROUND = 4 << 20
"""Bytes around each read that hold data too: a reader that fetches ahead meets some."""
PIECE = 64 << 10
TRIPS = 10
LINES = ((100.0, 0.04), (25.0, 0.06))
"""Mbit/s down and round trip in seconds."""


def trace() -> list[tuple[int, int]]:
    """(offset, length) of each read."""
    lines = [line for line in TRACE.read_text().splitlines() if not line.startswith("#")]
    return [(int(a), int(b)) for a, b in (line.split() for line in lines)]


def make_disk(path: Path, reads: Sequence[tuple[int, int]]) -> None:
    """A raw disk with data wherever `reads` go."""
    pieces: set[int] = set()
    for offset, length in reads:
        low, high = max(0, offset - AROUND), min(DISK_BYTES, offset + length + AROUND)
        pieces.update(range(low // PIECE, high // PIECE))
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
        for piece in sorted(pieces):
            file.seek(piece * PIECE)
            rng = random.Random(piece)
            if piece % 2:
                file.write((f"piece {piece}, ".encode() * PIECE)[:PIECE])
            else:
                file.write(rng.randbytes(PIECE))


def replay(disk: Path, reads: Sequence[tuple[int, int]]) -> float:
    """Seconds that the reads take."""
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        room = memoryview(mmap.mmap(-1, 1 << 20))  # aligned, as such reads want it
        began = time.monotonic()
        for offset, length in reads:
            if os.preadv(fd, [room[:length]], offset) != length:
                raise BenchmarkError(f"{disk} gave less than {length} bytes at {offset}")
        return time.monotonic() - began
    finally:
        os.close(fd)


def working_set(way: Cloudmount, folder: Path, reads: Sequence[tuple[int, int]]) -> int:
    """Sealed bytes of the frames that `reads` touch."""
    from cloudmount.app.opening import open_repository
    from cloudmount.tree.drive import Drive
    from cloudmount.tree.snapshotdir import OpenedSnapshot

    environ = way.environ(folder)
    repository = open_repository(way.repository, PASSWORD, environ=environ, tell=print)
    with repository.store:
        newest = repository.newest(repository.keys.tag("server"))
        assert newest is not None
        (disk,) = OpenedSnapshot(Drive(repository, None), newest[0]).disks
        frame = disk.map.frame_bytes
        touched = {n for a, b in reads for n in range(a // frame, (a + b - 1) // frame + 1)}
        return sum(at.length for n in touched if (at := disk.map.locate(n)) is not None)


def main() -> int:
    """The program of the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (default 3)")
    parser.add_argument("--work", type=Path, help="make the temporary folder here (needs 3 GB)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    given = parser.parse_args()
    end_cleanly()
    reads = trace()
    rows: list[dict[str, float]] = []
    try:
        with tempfile.TemporaryDirectory(prefix="cloudmount-bench-", dir=given.work) as place:
            work = Path(place).resolve()
            image = work / "server.img"
            make_disk(image, reads)
            way = Cloudmount(image)
            with Azurite(work) as store:
                target, listen = ("127.0.0.1", store.port), ("127.0.0.1", LINK_PORT)
                with WanLink(target, rtt=0, down_mbit=0, up_mbit=0, listen=listen):
                    way.prepare(work, set())
                    sealed = working_set(way, work / "look", reads)
                for mbit, rtt in LINES:
                    seconds, down = [], []
                    for _ in range(given.repeat):
                        with (
                            tempfile.TemporaryDirectory(dir=work) as folder,
                            WanLink(target, rtt=rtt, down_mbit=mbit, up_mbit=20, listen=listen) as link,
                            way.opened(Path(folder)) as disk,
                        ):
                            seconds.append(replay(Path(disk.name).with_suffix(".img"), reads))
                            down.append(link.traffic().down_bytes)
                    least = sealed * 8 / mbit / 1e6 + TRIPS * rtt
                    rows.append(
                        {
                            "mbit": mbit,
                            "rtt_seconds": rtt,
                            "seconds": median(seconds),
                            "down_bytes": median(down),
                            "working_set_bytes": sealed,
                            "least_seconds": least,
                            "ratio": median(seconds) / least,
                        }
                    )
    except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 1
    if given.json:
        print(
            json.dumps(
                {"benchmark": "replay", "machine": machine(), "reads": len(reads), "lines": rows}, indent=1
            )
        )
        return 0
    cells = [["line", "replay", "least", "ratio", "down", "working set"]]
    for row in rows:
        cells.append(
            [
                f"{row['mbit']:.0f} Mbit/s, {row['rtt_seconds'] * 1000:.0f} ms",
                f"{row['seconds']:.1f} s",
                f"{row['least_seconds']:.1f} s",
                f"{row['ratio']:.2f}",
                f"{row['down_bytes'] / 1e6:.1f} MB",
                f"{row['working_set_bytes'] / 1e6:.1f} MB",
            ]
        )
    print(table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
