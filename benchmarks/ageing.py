"""A disk that changes day by day, ending as the disk it was made from.

Decided here and only here: what "a share of the disk changed each day" is. The disk is looked at in
pieces of 128 KiB that hold data; each day a random share of them changes. A changed piece has 64 bytes
in it that day's own; on the last day of its changing it gets what the original has there. So the last
day's disk is the original, and boots, while every piece was stored on the day of its last change: the
pieces needed for a boot are as scattered as any others, as on a server where files are rewritten in
place. What it is not: a real server's changes cluster. The same every time. One thread.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from benchmarks.commands import BenchmarkError, program

PIECE = 128 << 10
MARK = 64


class Ageing:
    """`disk`, a raw image in `work`, made to change by `run`; a context manager that removes it."""

    def __init__(self, image: Path, work: Path, days: int, share: float) -> None:
        self.disk = work / f"{image.stem}.raw"
        self._days = days
        convert = [program("qemu-img", "qemu-utils"), "convert", "-O", "raw", str(image), str(self.disk)]
        done = subprocess.run(convert, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"qemu-img can't read {image}: {done.stderr.strip()}")
        rng = random.Random(5)
        with self.disk.open("rb") as disk:
            pieces = list(_pieces(disk.fileno()))
        self._changed = [rng.sample(pieces, max(1, int(len(pieces) * share))) for _ in range(days)]
        self._last = {piece: day for day, changed in enumerate(self._changed, 1) for piece in changed}
        self._original: dict[int, bytes] = {}

    def run(self) -> Iterator[int]:
        """Day 0 to the last; each day's changes are in `disk` when its number comes."""
        with self.disk.open("r+b", buffering=0) as disk:
            fd = disk.fileno()
            for piece in self._last:
                self._original[piece] = os.pread(fd, MARK, piece * PIECE)
                self._change(fd, piece, 0)
            os.fsync(fd)
            yield 0
            for day, changed in enumerate(self._changed, 1):
                for piece in changed:
                    self._change(fd, piece, day)
                os.fsync(fd)
                yield day

    def _change(self, fd: int, piece: int, day: int) -> None:
        last = self._last[piece] == day
        mark = self._original[piece] if last else random.Random(piece << 10 | day).randbytes(MARK)
        os.pwrite(fd, mark, piece * PIECE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disk.unlink()


def _pieces(fd: int) -> Iterator[int]:
    """The whole pieces that are not zeros."""
    zeros = bytes(PIECE)
    for piece in range(os.fstat(fd).st_size // PIECE):
        if os.pread(fd, PIECE, piece * PIECE) != zeros:
            yield piece
