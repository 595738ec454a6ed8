"""A process that uses a disk cache as hard as it can, for tests (`tests.warm`), or `python -m
tests.reader.cache_user FOLDER LIMIT SEED SECONDS [STEP]`. Prints "ready" once, then a line for each thing
that must not be. At the step STEP, if any, it dies: steps are the calls by which the cache changes files."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

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


def die_at(step: int) -> None:
    """Have the process die after so many calls that change files."""
    left = [step]
    for name in ("ftruncate", "write", "rename", "unlink", "utime"):
        real = getattr(os, name)

        def counted(*given: Any, real: Callable[..., Any] = real) -> Any:
            value = real(*given)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return value

        setattr(os, name, counted)


def main(folder: str, limit: str, seed: str, seconds: str, step: str = "0") -> None:
    """Use it."""
    if int(step):
        die_at(int(step))
    cache = DiskCache(folder, int(limit), lambda message: print("told", message, flush=True))
    print("ready", flush=True)
    until = time.monotonic() + float(seconds)
    threads = [
        threading.Thread(target=lambda s=s: [print(w) for w in use(cache, s, until)])
        for s in (int(seed), int(seed) + 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
