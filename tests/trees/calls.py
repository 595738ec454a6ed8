"""Calls on a mount that the suites of trees use."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounts.mounting import Mounted

Mount = Callable[..., Mounted]
"""Mounts a `Dir`, with `DriveOptions` if given, at a place of its own or at `path`."""
MIB, TIB = 1 << 20, 1 << 40


@contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A file descriptor."""
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def content(path: Path) -> bytes:
    """The whole file."""
    with open(path, "rb", buffering=0) as f:
        return f.readall()


def fails(number: int, call: Callable[[], object]) -> None:
    """`call` fails with exactly this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
        call()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


class Gate:
    """A `Watched` hook whose reads wait for ever until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.waiting = 0
        self._lock = threading.Lock()

    def __call__(self, offset: int, length: int) -> None:
        with self._lock:
            self.waiting += 1
        self.open.wait()
        with self._lock:
            self.waiting -= 1
