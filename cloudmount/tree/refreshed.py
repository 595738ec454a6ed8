"""A value that is asked for again when it has aged, by one thread at a time.

Decided here and only here: what a drive shows while the store is slow or silent. Who has an older
value waits `PATIENCE` for the new one and goes on with the old; who has none waits as long as
the store takes, and shares its failure. So a dead link never hides what was seen before.

Threading: any number of threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Generic, TypeVar

from cloudmount.errors import StoreError

PATIENCE = 2.0
"""Seconds that a look at a folder waits for news."""

T = TypeVar("T")


class Refreshed(Generic[T]):
    """What `load` gave, at most `fresh` seconds ago if the store answers. `warn` is told of failures."""

    def __init__(self, load: Callable[[], T], fresh: float, warn: Callable[[str], None]) -> None:
        self._load, self._fresh, self._warn = load, fresh, warn
        self._lock = threading.Lock()
        self._value: T | None = None
        self._asked_at = float("-inf")
        self._flight: Future[T] | None = None

    @property
    def known(self) -> T | None:
        """What was loaded last, however old; asks nothing."""
        return self._value

    def get(self) -> T:
        """The value. A load's own error when there never was one."""
        with self._lock:
            now = time.monotonic()
            value = self._value
            if value is not None and now - self._asked_at <= self._fresh:
                return value
            flight = self._flight
            patience = None if value is None else max(0.0, self._asked_at + PATIENCE - now)
            if flight is None:
                flight = self._flight = Future()
                self._asked_at = now
                patience = None if value is None else PATIENCE
                threading.Thread(
                    target=self._run, args=(flight,), name="cloudmount-list", daemon=True
                ).start()
        try:
            return flight.result(patience)
        except (StoreError, FutureTimeoutError) as error:
            if value is None:
                raise
            if isinstance(error, StoreError):
                self._warn(f"{error}; what was listed before is shown")
            return value

    def _run(self, flight: Future[T]) -> None:
        try:
            value = self._load()
        except BaseException as error:
            with self._lock:
                self._flight = None
            flight.set_exception(error)
            return
        with self._lock:
            self._value, self._flight = value, None
        flight.set_result(value)
