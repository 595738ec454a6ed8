"""A cache that loads: bounded in bytes, and single-flight.

Decided here and only here: that readers of one thing wait for one load, that failures
reach all who waited and are not kept, and that the bound is hard (what is larger
than the whole cache is handed out and not kept). Safe on any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

import cachetools

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LoadingCache(Generic[K, V]):
    """An LRU cache of at most `limit` bytes, as told by `weigh`."""

    def __init__(self, limit: int, weigh: Callable[[V], int]) -> None:
        self._kept: cachetools.LRUCache[K, V] = cachetools.LRUCache(limit, getsizeof=weigh)
        self._weigh = weigh
        self._loading: dict[K, Future[V]] = {}
        self._lock = threading.Lock()

    def peek(self, key: K) -> V | None:
        """What is kept under `key`, now the most recently used; None when nothing is."""
        with self._lock:
            return self._kept.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep `value`, unless it is larger than the whole cache."""
        with self._lock:
            if self._weigh(value) <= self._kept.maxsize:
                self._kept[key] = value

    def get(self, key: K, load: Callable[[], V]) -> V:
        """What is kept under `key`, else what `load` gives; concurrent callers share one `load`."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                return kept
            flight = self._loading.get(key)
            mine = flight is None
            if flight is None:
                flight = self._loading[key] = Future()
        if not mine:
            return flight.result()
        try:
            value = load()
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            flight.set_exception(error)
            raise
        with self._lock:
            if self._weigh(value) <= self._kept.maxsize:
                self._kept[key] = value
            del self._loading[key]
        flight.set_result(value)
        return value

    @property
    def used(self) -> int:
        """Bytes kept now."""
        with self._lock:
            return int(self._kept.currsize)
