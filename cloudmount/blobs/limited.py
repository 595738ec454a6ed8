"""Limits how much is asked of a store at once, and how fast bytes move.

Decided here and only here: an operation holds one of `concurrency` places while it
runs, waiting for tokens included, so a slow line is not shared by more transfers
than can get on. How a limit is kept within a transfer is in pacing.py. `--bandwidth
UP[:DOWN]` is one `LimitedStore` for all of a process.

Put it under `retrying`, so that a try which waits between tries holds no place.

Threading: any number of threads; places are given in no particular order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cloudmount.blobs.pacing import Bucket, Meter, metered
from cloudmount.blobs.store import BlobInfo, BlobStore, Data, Tier
from cloudmount.errors import StoreTimeoutError

_Item = TypeVar("_Item")
_LONGEST_SLEEP = 0.5


class LimitedStore(BlobStore):
    """`inner` with at most `concurrency` operations at once and `up` and `down` bytes a second.

    None is no limit. What is listed counts no bytes but those that the store itself tells
    (Azure's do). `close` ends waiting for tokens.
    """

    def __init__(
        self,
        inner: BlobStore,
        *,
        concurrency: int | None = None,
        up: float | None = None,
        down: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        self.inner = inner
        self._places = None if concurrency is None else threading.BoundedSemaphore(concurrency)
        self._clock = clock
        self._closed = threading.Event()
        sleep = sleep or self._closed.wait
        self._up = None if up is None else Bucket(up, clock=clock, sleep=sleep)
        self._down = None if down is None else Bucket(down, clock=clock, sleep=sleep)

    @property
    def address(self) -> str:
        return self.inner.address

    def prepare(self, *, deadline: float | None = None) -> None:
        with self._limits(deadline):
            self.inner.prepare(deadline=deadline)

    def create(
        self, name: str, data: Data, *, tier: Tier | None = None, deadline: float | None = None
    ) -> None:
        with self._limits(deadline) as meter:
            self.inner.create(name, data, tier=tier, deadline=deadline)
            self._settle(self._up, len(data) - meter.sent, deadline)

    def put(self, name: str, data: Data, *, deadline: float | None = None) -> None:
        with self._limits(deadline) as meter:
            self.inner.put(name, data, deadline=deadline)
            self._settle(self._up, len(data) - meter.sent, deadline)

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        with self._limits(deadline) as meter:
            data = self.inner.read(name, offset, length, deadline=deadline)
            self._settle(self._down, len(data) - meter.received, deadline)
            return data

    def list(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int | None = None,
        deadline: float | None = None,
    ) -> Iterator[BlobInfo]:
        yield from self._each(self.inner.list(prefix, after=after, limit=limit, deadline=deadline), deadline)

    def list_folders(self, prefix: str, *, deadline: float | None = None) -> Iterator[str]:
        yield from self._each(self.inner.list_folders(prefix, deadline=deadline), deadline)

    def delete(self, name: str, *, deadline: float | None = None) -> None:
        with self._limits(deadline):
            self.inner.delete(name, deadline=deadline)

    def close(self) -> None:
        self._closed.set()
        self.inner.close()

    @contextmanager
    def _limits(self, deadline: float | None) -> Iterator[Meter]:
        places = self._places
        if places:
            wait = None if deadline is None else max(0.0, deadline - self._clock())
            if not places.acquire(timeout=wait):
                raise StoreTimeoutError("the deadline passed while other operations were under way")
        try:
            with metered(Meter(self._up, self._down)) as meter:
                yield meter
        finally:
            if places:
                places.release()

    def _each(self, items: Iterator[_Item], deadline: float | None) -> Iterator[_Item]:
        """`items`, holding a place only while the store is asked for the next."""
        end = object()
        while True:
            with self._limits(deadline):
                item = next(items, end)
            if item is end:
                return
            yield item  # type: ignore[misc] # not `end`, so an item

    def _settle(self, bucket: Bucket | None, count: int, deadline: float | None) -> None:
        """Charge what the store did not; done is done, so a deadline only ends the waiting."""
        if bucket and count > 0:
            left = bucket.charge(count)
            while left > 0 and not self._closed.is_set():
                step = min(left, _LONGEST_SLEEP)
                if not bucket.wait(step, deadline):
                    return
                left -= step
