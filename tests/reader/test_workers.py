"""Threads for the store: bounded, urgent first, replaced when lost, never in the way of the end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from cloudmount.reader import workers as workers_module
from cloudmount.reader.workers import Workers


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def far() -> float:
    return time.monotonic() + 1000


def test_no_more_threads_than_told_and_all_jobs_are_done() -> None:
    pool = Workers(3)
    running, most, done = [0], [0], [0]
    lock = threading.Lock()

    def job() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002)
        with lock:
            running[0] -= 1
            done[0] += 1

    for _ in range(60):
        assert pool.submit(job, far())
    until(lambda: done[0] == 60)
    assert most[0] == 3
    assert pool.threads == 3
    pool.close()
    until(lambda: pool.threads == 0)
    assert not pool.submit(job, far())


def test_urgent_jobs_go_first_and_two_threads_are_left_to_them() -> None:
    pool = Workers(4)
    gate = threading.Event()
    order: list[str] = []

    def later() -> None:
        order.append("later")
        gate.wait(10)

    for _ in range(16):
        pool.submit(later, far(), urgent=False)
    until(lambda: len(order) == 2)
    for _ in range(5):
        pool.submit(lambda: order.append("urgent"), far())
    until(lambda: order.count("urgent") == 5)
    assert order.count("later") == 2
    gate.set()
    until(lambda: order.count("later") == 16)
    pool.close()


def test_the_queue_for_readahead_refuses_when_it_is_full() -> None:
    pool = Workers(1)
    gate = threading.Event()
    taken = [pool.submit(lambda: gate.wait(10) and None, far(), urgent=False) for _ in range(20)]
    assert 4 <= sum(taken) <= 5
    gate.set()
    pool.close()


def test_lost_threads_are_replaced_and_leave_when_they_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "GRACE", 0.05)
    pool = Workers(2, spare=3)
    gate = threading.Event()
    stuck = [0]

    def silent() -> None:
        stuck[0] += 1
        gate.wait(20)

    for _ in range(2):
        pool.submit(silent, time.monotonic())
    until(lambda: stuck[0] == 2)
    done = threading.Event()
    pool.submit(done.set, far())

    def relieved(condition: Callable[[], bool]) -> Callable[[], bool]:
        def look() -> bool:
            pool.relieve()
            return condition()

        return look

    until(relieved(done.is_set))
    for _ in range(5):  # no more than the spare ones, though
        pool.submit(silent, time.monotonic())
    until(relieved(lambda: stuck[0] == 5))
    time.sleep(0.1)
    pool.relieve()
    assert pool.threads == 5
    gate.set()
    until(lambda: pool.threads <= 2)
    pool.close()


def test_a_process_ends_though_its_store_is_silent() -> None:
    code = (
        "import threading, time\n"
        "from cloudmount.reader.workers import Workers\n"
        "pool = Workers(2)\n"
        "begun = threading.Event()\n"
        "def silent():\n"
        "    begun.set()\n"
        "    threading.Event().wait()\n"
        "pool.submit(silent, time.monotonic() + 60)\n"
        "begun.wait()\n"
        "pool.close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_at_least_one_worker() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Workers(0)
