#!/usr/bin/env python3
"""A recorded boot's reads, replayed through the drive over slow lines, as fast as they are answered.

    .venv/bin/python benchmarks/replay.py [--repeat 3] [--aged] [--json]

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
from collections.abc import Iterator, Sequence
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
FRAME = 128 << 10
TRIPS = 10
DAYS, SHARE = 60, 0.01
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


def age(way: Cloudmount, work: Path, disk: Path, days: int, share: float) -> None:
    """Back the disk up day after day, while a share of what it holds changes."""
    rng = random.Random(5)
    with disk.open("r+b", buffering=0) as file:
        held = [n for n in range(DISK_BYTES // FRAME) if any(os.pread(file.fileno(), FRAME, n * FRAME))]
        for day in range(days):
            for n in rng.sample(held, int(len(held) * share)):
                os.pwrite(file.fileno(), rng.randbytes(64), n * FRAME)
            way.back_up(work)
            print(f"replay: day {day + 1}", file=sys.stderr)


class Bench:
    """The disk in a store, replayed over lines."""

    def __init__(self, work: Path, store: Azurite, repeat: int, lines: Sequence[tuple[float, float]]) -> None:
        self._work, self._store, self._repeat, self._over = work, store, repeat, lines
        self.reads = trace()
        self._image = work / "server.img"
        make_disk(self._image, self.reads)
        self._way = Cloudmount(self._image)
        self._target, self._listen = ("127.0.0.1", store.port), ("127.0.0.1", LINK_PORT)

    def run(self, days: int, share: float) -> Iterator[dict[str, float | str]]:
        """Every way over every line, in the end after so many days, if any."""
        with self._quick():
            self._way.prepare(self._work, set())
        yield from self._lines("first")
        self._way.learns = True
        with self._quick(), tempfile.TemporaryDirectory(dir=self._work) as folder:
            self._once(Path(folder))
        yield from self._lines("booted before")
        with self._quick(), tempfile.TemporaryDirectory(dir=self._work) as folder:
            self._way.leave_boot_pack(Path(folder))
        yield from self._lines("after a drill")
        if days:
            with self._quick():
                age(self._way, self._work, self._image, days, share)
            yield from self._lines(f"{days} days after a drill")

    def _quick(self) -> WanLink:
        return WanLink(self._target, rtt=0, down_mbit=0, up_mbit=0, listen=self._listen)

    def _once(self, folder: Path) -> float:
        with self._way.opened(folder) as disk:
            return replay(Path(disk.name).with_suffix(".img"), self.reads)

    def _lines(self, name: str) -> Iterator[dict[str, float | str]]:
        with self._quick():
            sealed = working_set(self._way, self._work / "look", self.reads)
        for mbit, rtt in self._over:
            seconds, down, requests = [], [], []
            for _ in range(self._repeat):
                before = self._store.requests()
                with (
                    tempfile.TemporaryDirectory(dir=self._work) as folder,
                    WanLink(self._target, rtt=rtt, down_mbit=mbit, up_mbit=20, listen=self._listen) as link,
                ):
                    seconds.append(self._once(Path(folder)))
                    down.append(link.traffic().down_bytes)
                requests.append(self._store.requests() - before)
            least = sealed * 8 / mbit / 1e6 + TRIPS * rtt
            print(f"replay: {name}, {mbit:.0f} Mbit/s: {median(seconds) / least:.2f}", file=sys.stderr)
            yield {
                "way": name,
                "mbit": mbit,
                "rtt_seconds": rtt,
                "seconds": median(seconds),
                "down_bytes": median(down),
                "requests": median(requests),
                "working_set_bytes": sealed,
                "least_seconds": least,
                "ratio": median(seconds) / least,
            }


def main() -> int:
    """The program of the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (default 3)")
    parser.add_argument("--aged", action="store_true", help="also after many backups of a changing disk")
    parser.add_argument("--days", type=int, default=DAYS, help=f"how many, for --aged (default {DAYS})")
    parser.add_argument(
        "--share", type=float, default=SHARE * 100, metavar="PERCENT", help="changed each day (default 1)"
    )
    parser.add_argument("--only", type=float, metavar="MBIT", help="over this line only")
    parser.add_argument("--work", type=Path, help="make the temporary folder here (needs 3 GB)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    given = parser.parse_args()
    end_cleanly()
    try:
        with tempfile.TemporaryDirectory(prefix="cloudmount-bench-", dir=given.work) as place:
            work = Path(place).resolve()
            with Azurite(work) as store:
                lines = [line for line in LINES if given.only in (None, line[0])]
                bench = Bench(work, store, given.repeat, lines)
                rows = list(bench.run(given.days if given.aged else 0, given.share / 100))
    except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 1
    if given.json:
        told = {"benchmark": "replay", "machine": machine(), "reads": len(bench.reads), "lines": rows}
        print(json.dumps(told, indent=1))
        return 0
    cells = [["", "line", "replay", "least", "ratio", "down", "requests", "working set"]]
    for row in rows:
        cells.append(
            [
                f"{row['way']}",
                f"{row['mbit']:.0f} Mbit/s, {float(row['rtt_seconds']) * 1000:.0f} ms",
                f"{row['seconds']:.1f} s",
                f"{row['least_seconds']:.1f} s",
                f"{row['ratio']:.2f}",
                f"{float(row['down_bytes']) / 1e6:.1f} MB",
                f"{row['requests']:.0f}",
                f"{float(row['working_set_bytes']) / 1e6:.1f} MB",
            ]
        )
    print(table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
