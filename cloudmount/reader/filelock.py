"""A lock that processes share, and that ends with its process.

Decided here and only here: that a lock held by a stopped process is not waited for: `TimeoutError` after
`PATIENCE` seconds. What locks a file is `system.try_lock`.

Threading: threads of one process exclude each other too.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cloudmount.system import OPEN, try_lock, unlock

__all__ = ["PATIENCE", "FileLock", "locked_file", "try_lock", "unlock"]

PATIENCE = 0.5
_POLL = 0.001


def locked_file(path: str | os.PathLike[str]) -> int | None:
    """The file at `path`, made when it is missing, open and locked until it is closed; None when somebody
    else has it. Unlike `FileLock`'s it may be removed by who has it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | OPEN, 0o600)
        try:
            if not try_lock(fd):
                os.close(fd)
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # it was removed meanwhile


class FileLock:
    """The lock of the file at `path`, made when it is missing; `OSError` when that can't be."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | OPEN
        self._fd = os.open(path, flags, 0o600)
        self._mutex = threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold it."""
        until = time.monotonic() + PATIENCE
        if not self._mutex.acquire(timeout=PATIENCE):
            raise TimeoutError("another thread holds the lock")
        try:
            while not try_lock(self._fd):
                if time.monotonic() >= until:
                    raise TimeoutError("another process holds the lock")
                time.sleep(_POLL)
            try:
                yield
            finally:
                unlock(self._fd)
        finally:
            self._mutex.release()

    def close(self, then: Callable[[], None] | None = None) -> None:
        """Give up the file, once nobody in this process holds it, and call `then` before anybody could.
        Later tries to hold it are an `OSError`."""
        with self._mutex:
            os.close(self._fd)
            self._fd = -1  # never somebody else's file that got the number
            if then is not None:
                then()
