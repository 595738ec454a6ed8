"""Doing one thing ahead of another, in order and in bounded memory.

Decided here and only here: that results come in the order of the items, that only a few
are under way, and that a failure ends the rest. The generator belongs to one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(workers: int, do: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`do(item)` of each item, in order, on `workers` threads, at most twice as many begun and not taken."""
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        for item in items:
            waiting.append(pool.submit(do, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
