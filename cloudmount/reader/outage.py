"""What a read that timed out leaves behind: its range fails at once until the store answers.

Decided here and only here: that rule (`cli.md`, --io-timeout: the kernel asks twice for what
failed, and a program's read must not wait twice), and how a drive finds its way back by
itself: while anything is remembered, a thread asks the store for one byte every few
seconds; any answer, also to any other request, clears everything.

Threading: any number of threads; a daemon thread while something is remembered.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from cloudmount.errors import CloudMountError, StoreUnreachableError
from cloudmount.reader.flights import Key

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0
MOST = 4096
"""Frames remembered; what is forgotten merely waits again."""


class Outage:
    """Frames whose reads timed out. `probe` asks the store anything and returns within seconds."""

    def __init__(self, probe: Callable[[], object]) -> None:
        self._probe = probe
        self._lost: OrderedDict[Key, None] = OrderedDict()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __bool__(self) -> bool:
        return bool(self._lost)

    def covers(self, keys: Iterable[Key]) -> bool:
        """Whether one of these frames timed out and the store has not answered since."""
        if not self._lost:
            return False
        with self._lock:
            return any(key in self._lost for key in keys)

    def timed_out(self, keys: Iterable[Key]) -> None:
        """A read gave up on these frames."""
        with self._lock:
            for key in keys:
                self._lost[key] = None
            while len(self._lost) > MOST:
                self._lost.popitem(last=False)
            if self._thread is None and self._lost and not self._ended.is_set():
                self._thread = threading.Thread(target=self._look, name="reader-probe", daemon=True)
                self._thread.start()

    def answered(self) -> None:
        """The store gave an answer, whatever it was."""
        if self._lost:
            with self._lock:
                self._lost.clear()

    def close(self) -> None:
        """Forget, and ask no more."""
        self._ended.set()
        self.answered()

    def _look(self) -> None:
        pause = FIRST_PAUSE
        while not self._ended.wait(pause):
            with self._lock:
                if not self._lost:
                    self._thread = None
                    return
            try:
                self._probe()
                self.answered()
            except StoreUnreachableError:
                pass
            except CloudMountError:
                self.answered()  # no such object, no permission: it is there
            pause = min(pause * 2, LONGEST_PAUSE)
