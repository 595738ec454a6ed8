"""Threads that talk to the store for those who may not wait for ever.

Decided here and only here: that every call to a store is made on a daemon thread (a
silent store never keeps the process from ending), that what a reader waits for goes
before readahead, and that a thread whose job is long past its end counts as lost and
is replaced. The queue for readahead is short and refuses; urgent jobs are as many as
their callers wait for, and each of them ends by its own deadline.

Threading: any number of threads; jobs must catch what they raise.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

GRACE = 3.0
"""Seconds after its end at which a job's thread counts as lost; stores end a call within one."""
IDLE = 20.0
"""Seconds after which a thread without work ends."""


class _Job(NamedTuple):
    run: Callable[[], None]
    ends: float
    urgent: bool


class Workers:
    """Up to `count` daemon threads, and up to `spare` more for those that are lost."""

    def __init__(self, count: int, *, spare: int = 16, name: str = "reader") -> None:
        if count < 1:
            raise ValueError(f"at least one worker is needed, not {count}")
        self.count = count
        self._spare, self._name = spare, name
        self._urgent: deque[_Job] = deque()
        self._later: deque[_Job] = deque()
        self._running: dict[int, _Job] = {}
        self._threads = 0
        self._idle = 0
        self._made = 0
        self._closed = False
        self._change = threading.Condition()

    def submit(self, run: Callable[[], None], ends: float, *, urgent: bool = True) -> bool:
        """Have `run` called, until about `ends` (`time.monotonic()` seconds).

        False when it won't be: the workers are closed, or it isn't urgent and enough such wait already.
        """
        with self._change:
            if self._closed or (not urgent and len(self._later) >= 4 * self.count):
                return False
            (self._urgent if urgent else self._later).append(_Job(run, ends, urgent))
            if self._idle:
                self._change.notify()
            self._grow()
        return True

    def relieve(self) -> None:
        """Replace lost threads, when there is work. Whoever waits calls this now and then."""
        with self._change:
            self._grow()

    def close(self) -> None:
        """Let threads end when they can; what waits is dropped, what runs is not waited for."""
        with self._change:
            self._closed = True
            self._urgent.clear()
            self._later.clear()
            self._change.notify_all()

    @property
    def threads(self) -> int:
        """Threads there are now, lost ones included."""
        with self._change:
            return self._threads

    def _allowed(self) -> int:
        late = time.monotonic() - GRACE
        lost = sum(1 for job in self._running.values() if job.ends < late)
        return self.count + min(lost, self._spare)

    def _grow(self) -> None:
        waiting = len(self._urgent) + (1 if self._later and self._may_run_later() else 0)
        while waiting > self._idle and self._threads < self._allowed():
            self._made += 1
            thread = threading.Thread(target=self._work, name=f"{self._name}-{self._made}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads to be had
                if not self._threads:
                    raise
                return
            self._threads += 1
            waiting -= 1

    def _may_run_later(self) -> bool:
        late = time.monotonic() - GRACE
        busy = sum(1 for job in self._running.values() if not job.urgent and job.ends >= late)
        return busy < max(1, self.count - 2)  # two are always left to what somebody waits for

    def _take(self) -> _Job | None:
        if self._urgent:
            return self._urgent.popleft()
        if self._later and self._may_run_later():
            return self._later.popleft()
        return None

    def _work(self) -> None:
        me = threading.get_ident()
        while True:
            with self._change:
                while True:
                    if self._closed or self._threads > self._allowed():
                        self._threads -= 1
                        return
                    job = self._take()
                    if job is not None:
                        break
                    self._idle += 1
                    called = self._change.wait(IDLE)
                    self._idle -= 1
                    if not called and not self._urgent and not self._later:
                        self._threads -= 1
                        return
                self._running[me] = job
            try:
                job.run()
            finally:
                with self._change:
                    del self._running[me]
                del job  # what it holds is not kept while waiting for the next
