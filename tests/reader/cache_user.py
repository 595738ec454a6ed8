"""A process that uses a disk cache as hard as it can, for tests: `python -m tests.reader.cache_user
FOLDER LIMIT SEED SECONDS`. Prints "ready" once, then a line for each thing that must not be."""

from __future__ import annotations

import random
import sys
import threading
import time

from cloudmount.reader.diskcache import DiskCache

KEYS = 400


def content(key: int) -> bytes:
    """What is kept under a key: of any size up to 20 KB, and told by the key."""
    rng = random.Random(key)
    return rng.randbytes(rng.randrange(20000))


def use(cache: DiskCache, seed: int, until: float) -> list[str]:
    """Put, get and drop until the time is up; what was wrong."""
    rng = random.Random(seed)
    wrong = []
    while time.monotonic() < until:
        key = rng.randrange(KEYS)
        action = rng.random()
        if action < 0.6:
            cache.put(f"key {key}", content(key))
        elif action < 0.95:
            found = cache.get(f"key {key}")
            if found is not None and found != content(key):
                wrong.append(f"key {key} gave {len(found)} other bytes")
        else:
            cache.drop(f"key {key}")
    return wrong


def main() -> None:
    folder, limit, seed, seconds = sys.argv[1], *map(float, sys.argv[2:])
    cache = DiskCache(folder, int(limit), lambda message: print("told", message, flush=True))
    print("ready", flush=True)
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=lambda s=s: [print(w) for w in use(cache, s, until)])
        for s in (int(seed), int(seed) + 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
