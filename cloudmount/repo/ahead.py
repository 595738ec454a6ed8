"""Doing one thing ahead of another, in order and in bounded memory.

Decided here and only here: that results come in the order of the items, that only a few
are under way, and that a failure ends the rest. The generator belongs to one thread.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(pool: Executor, ahead: int, do: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`do(item)` of each item, in order, by `pool`, at most `ahead` of them begun and not taken.

    A single item is done here: it needs no other thread.
    """
    waiting: deque[Future[R]] = deque()
    source = iter(items)
    first = list(itertools.islice(source, 2))
    if len(first) < 2:
        yield from map(do, first)
        return
    try:
        for item in itertools.chain(first, source):
            waiting.append(pool.submit(do, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)
