"""Work for Windows is answered within its bound, and when the drive ends."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudmount.errors import StoreTimeoutError
from cloudmount.mounts.bounded import Bounded, EndedError
from tests.mounts.mounting import within


def _raise(error: Exception) -> None:
    raise error


def test_results_and_failures_come_back() -> None:
    bounded = Bounded()
    try:
        assert bounded.call(lambda: 5) == 5
        with pytest.raises(KeyError, match="missing"):
            bounded.call(lambda: _raise(KeyError("missing")))
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(lambda n: bounded.call(lambda: n), range(500))) == list(range(500))
        assert bounded.waiting(0) == 0
    finally:
        bounded.end()
    with pytest.raises(EndedError):
        bounded.call(lambda: 6)


def test_threads_that_python_does_not_know_again_share_one_of_ours() -> None:
    bounded = Bounded()
    workers = set()

    def call() -> None:
        workers.add(bounded.call(threading.get_ident))

    try:
        for _ in range(50):
            caller = threading.Thread(target=call)
            caller.start()
            caller.join()
        assert len(workers) == 1
    finally:
        bounded.end()


def test_work_that_takes_too_long_is_given_up() -> None:
    go, late = threading.Event(), []
    bounded = Bounded(0.05)
    try:
        with pytest.raises(StoreTimeoutError, match=r"within 0\.05 s"):
            bounded.call(lambda: go.wait(60), late.append)
        assert bounded._idle == [], "who works on it still is not asked for more"
        go.set()
        assert within(60, lambda: late == [True]), "what it brought is handed over"
    finally:
        go.set()
        bounded.end()


def test_the_end_of_the_drive_ends_what_waits() -> None:
    go, late, began = threading.Event(), [], threading.Semaphore(0)
    bounded = Bounded()

    def stuck() -> str:
        began.release()
        go.wait(60)
        return "came"

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(bounded.call, stuck, late.append) for _ in range(8)]
        try:
            for _ in calls:
                assert began.acquire(timeout=60)
            assert bounded.waiting(0) == 8
            bounded.end()
            for call in calls:
                with pytest.raises(EndedError):
                    call.result(60)
        finally:
            go.set()
    assert within(60, lambda: late == ["came"] * 8)
