"""What is known to be read is asked for in its order, and no more of it at once than the line carries."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from cloudmount.extents import Bytes
from cloudmount.reader import prefetch
from cloudmount.reader.prefetch import Plan, Prefetch, Request


class Reader:
    """Of a `FrameReader` what is asked here."""

    def __init__(self) -> None:
        self.outage, self.closed = False, threading.Event()

    def idle(self) -> float:
        return 0.0


class Source(Bytes):
    """Notes what is fetched, and how many bytes are under way at most."""

    def __init__(self, all: int) -> None:
        super().__init__(b"")
        self.order: list[int] = []
        self.under_way = self.most = 0
        self._left, self._lock, self.done = all, threading.Lock(), threading.Event()

    def fetch_ahead(self, ranges: Any, via: Any = None) -> None:
        ((number, size),) = ranges
        with self._lock:
            self.order.append(number)
            self.under_way += size
            self.most = max(self.most, self.under_way)
        time.sleep(0.002)  # so that others wait for room meanwhile
        with self._lock:
            self.under_way -= size
            self._left -= 1
            if not self._left:
                self.done.set()


def fetched(sizes: list[int]) -> Source:
    source, reader = Source(len(sizes)), Reader()
    requests = [Request([(number, size)], size) for number, size in enumerate(sizes)]
    Prefetch(reader, source, lambda: Plan(requests, eager=True)).start()  # type: ignore[arg-type]  # it is enough
    assert source.done.wait(60)
    return source


def test_large_ones_come_one_after_another_in_their_order() -> None:
    source = fetched([prefetch.MOST] * 100)
    assert source.order == list(range(100))
    assert source.most == prefetch.MOST


def test_small_ones_come_together_but_no_more_than_there_is_room() -> None:
    source = fetched([prefetch.LEAST // 4] * 300)
    assert sorted(source.order) == list(range(300))
    assert source.most <= prefetch.MOST


def test_one_that_is_larger_than_all_room_comes_alone() -> None:
    source = fetched([100, 3 * prefetch.MOST, 100])
    assert sorted(source.order) == [0, 1, 2]
    assert source.most == 3 * prefetch.MOST


def test_a_plan_that_fails_ends_it() -> None:
    def fails() -> Iterator[Request]:
        yield Request([(0, 1)], 1)
        raise ValueError("no more")

    source, reader = Source(1), Reader()
    Prefetch(reader, source, lambda: Plan(fails(), eager=True)).start()  # type: ignore[arg-type]  # it is enough
    assert source.done.wait(60)
