"""The loading cache is bounded and single-flight; doing things ahead keeps order and bounds."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudmount.errors import DamagedError
from cloudmount.repo.ahead import in_order
from cloudmount.repo.loading import LoadingCache


def test_loads_once() -> None:
    cache: LoadingCache[str, bytes] = LoadingCache(100, len)
    loads: list[str] = []
    gate = threading.Event()

    def load() -> bytes:
        loads.append("x")
        gate.wait(5)
        return b"value"

    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(cache.get("k", load))) for _ in range(8)]
    for t in threads:
        t.start()
    time.sleep(0.05)
    gate.set()
    for t in threads:
        t.join()
    assert loads == ["x"]
    assert found == [b"value"] * 8


def test_bounded() -> None:
    cache: LoadingCache[int, bytes] = LoadingCache(100, len)
    for n in range(50):
        assert cache.get(n, lambda: bytes(30)) == bytes(30)
        assert cache.used <= 100
    assert cache.peek(49) == bytes(30)
    assert cache.peek(0) is None
    assert cache.get(99, lambda: bytes(101)) == bytes(101)
    assert cache.peek(99) is None
    cache.put(7, bytes(500))
    assert cache.peek(7) is None
    cache.put(7, bytes(5))
    assert cache.peek(7) == bytes(5)


def test_failures_are_not_kept() -> None:
    cache: LoadingCache[str, bytes] = LoadingCache(100, len)

    def fail() -> bytes:
        raise DamagedError("no")

    for _ in range(2):
        with pytest.raises(DamagedError):
            cache.get("k", fail)
    assert cache.get("k", lambda: b"yes") == b"yes"


def test_ahead_in_order() -> None:
    running = peak = 0
    lock = threading.Lock()

    def work(n: int) -> int:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.002 * (n % 3))
        with lock:
            running -= 1
        return n * n

    begun: list[int] = []

    def items() -> object:
        for n in range(60):
            begun.append(n)
            yield n

    taken = 0
    pool = ThreadPoolExecutor(3)
    for n, result in enumerate(in_order(pool, 6, work, items())):  # type: ignore[arg-type]  # a generator of int
        assert result == n * n
        taken += 1
        assert len(begun) <= taken + 6
    assert taken == 60
    assert peak <= 3


def test_ahead_fails_and_ends() -> None:
    done: list[int] = []

    def work(n: int) -> int:
        if n == 5:
            raise DamagedError("five")
        done.append(n)
        return n

    with pytest.raises(DamagedError, match="five"):
        [*in_order(ThreadPoolExecutor(2), 4, work, range(1000))]
    assert len(done) < 15
    begun: list[int] = []
    for n in in_order(ThreadPoolExecutor(2), 4, lambda n: begun.append(n) or n, range(100)):
        if n == 3:
            break
    assert len(begun) <= 8
    here = threading.get_ident()
    assert [*in_order(ThreadPoolExecutor(2), 4, lambda n: threading.get_ident(), [1])] == [here]
    assert [*in_order(ThreadPoolExecutor(2), 4, work, [])] == []
