"""A program that reads a file past the page cache for some seconds and prints how many reads it did.

    mount_reader.py FILE random|sequential FIRST LENGTH SECONDS SEED

Decided here and only here: what one reader does. Random reads are of 4 KiB within LENGTH bytes from
FIRST on, sequential ones of 1 MiB through them, again and again. Starts when its input ends.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time


def main() -> None:
    """The program of the module docstring."""
    path, how, first, length, seconds, seed = sys.argv[1:]
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size = 4096 if how == "random" else 1 << 20
    base, count = int(first), int(length) // size
    rng = random.Random(int(seed))
    order = [rng.randrange(count) for _ in range(1 << 14)] if how == "random" else list(range(count))
    buffer = mmap.mmap(-1, size)  # aligned, as O_DIRECT demands
    sys.stdin.read()
    done = 0
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        for number in order[done % len(order) :][:64]:
            if os.preadv(fd, [buffer], base + number * size) != size:
                raise SystemExit(f"too few bytes at {base + number * size}")
            done += 1
    print(done)


if __name__ == "__main__":
    main()
