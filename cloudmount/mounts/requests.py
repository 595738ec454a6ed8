"""Requests of the kernel that wait for the tree: each answered once, and given up for the dead.

Decided here and only here: that a killed program does not wait for a dead link. The kernel lets
a process die only when its request is answered, so a request older than `PATIENCE` whose caller
is dying (SIGKILL pending, which every fatal signal becomes) is answered EINTR at once, and the
late answer dropped. Signals that don't kill are not followed: programs take EINTR from a
regular file for an error. Linux only (/proc); elsewhere nothing is given up.

Threading: `begin` and `claim` on any thread; one thread of its own watches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from cloudmount.system import KILL

PATIENCE = 0.5
"""Seconds between looks; a killed program ends within two of them."""
_KILLED = 1 << (KILL - 1)


class Request:
    """One request. Whoever claims it first answers it; nobody else may touch its pointer again."""

    __slots__ = ("answered", "given_up", "lock", "pointer", "reading", "since")

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer
        self.since = time.monotonic()
        self.answered = self.given_up = False
        self.reading: Reading | None = None
        """Told when the request is given up while its work goes on, and when that has ended."""
        self.lock = threading.Lock()


class Reading(Protocol):
    """What a read uses and somebody else might close."""

    def abandoned(self) -> None:
        """A read of it was answered while it is still at work."""

    def came_back(self) -> None:
        """Such a read has ended."""


class Requests:
    """Those in work now."""

    def __init__(self, caller: Callable[[int], int], give_up: Callable[[int], None]) -> None:
        """`caller` tells a request's process id (0: unknown), `give_up` answers it EINTR."""
        self._caller, self._give_up = caller, give_up
        self._open: dict[int, Request] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cloudmount-requests", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()

    def begin(self, pointer: int) -> Request:
        """A request has arrived."""
        request = self._open[pointer] = Request(pointer)
        return request

    def claim(self, request: Request) -> bool:
        """True when the caller must answer it now, False when it was given up. Called once, by
        whoever worked on it, when the work has ended."""
        with request.lock:
            claimed = not request.answered
            request.answered = True
        if not claimed:
            if request.given_up and request.reading is not None:
                request.reading.came_back()
            return False
        # Still ours, so the kernel's next request can't have taken its address yet.
        del self._open[request.pointer]
        return True

    def waiting(self, seconds: float) -> int:
        """How many have waited that long."""
        oldest = time.monotonic() - seconds
        return sum(1 for request in self._now() if request.since <= oldest)

    def _now(self) -> list[Request]:
        while True:
            try:
                return list(self._open.values())
            except RuntimeError:  # others began or ended in the middle of it
                continue

    def _watch(self) -> None:
        while not self._ended.wait(PATIENCE):
            old = time.monotonic() - PATIENCE
            for request in self._now():
                if request.since <= old:
                    self._look(request)

    def _look(self, request: Request) -> None:
        with request.lock:  # keeps it from being answered, and so its pointer alive
            if request.answered or not _dying(self._caller(request.pointer)):
                return
            request.answered = request.given_up = True
            if request.reading is not None:
                request.reading.abandoned()
            del self._open[request.pointer]
        self._give_up(request.pointer)


def _dying(pid: int) -> bool:
    """Whether a thread has SIGKILL pending (or is gone)."""
    if not pid:
        return False
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) & _KILLED:
                    return True
    except (OSError, ValueError):
        return False
    return False
