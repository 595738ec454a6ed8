"""Bandwidth and concurrency limits, with a clock of our own and over a real socket."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudmount.blobs.limited import LimitedStore
from cloudmount.blobs.local import LocalStore
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.pacing import Bucket, meter
from cloudmount.errors import BlobMissingError, StoreTimeoutError
from tests.blobs.fake_azure import Connection, FakeAzure, Request, head, serving, within

MIB = 1024 * 1024


class Time:
    """A clock that only sleeping moves; deadlines of stores below are beyond it."""

    def __init__(self) -> None:
        self.now = 1e9

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def limited(time: Time, **limits: float) -> LimitedStore:
    return LimitedStore(
        MemoryStore(), up=limits.get("up"), down=limits.get("down"), clock=time.clock, sleep=time.sleep
    )


def test_one_object_larger_than_the_bucket_takes_its_time() -> None:
    time = Time()
    store = limited(time, up=MIB, down=4 * MIB)
    store.create("x", bytes(32 * MIB))
    assert time.now - 1e9 == pytest.approx(32, abs=0.5)
    time.now = 1e9
    store.read("x")
    assert time.now - 1e9 == pytest.approx(8, abs=0.5)


def test_many_small_objects_take_as_long_as_a_large_one() -> None:
    time = Time()
    store = limited(time, up=1000.0)
    for number in range(100):
        store.create(f"x{number}", bytes(100))
    assert time.now - 1e9 == pytest.approx(10, abs=0.5)


def test_unused_time_gives_a_short_burst_only() -> None:
    time = Time()
    store = limited(time, up=1000.0)
    time.now += 3600
    start = time.now
    store.create("x", bytes(10_000))
    assert time.now - start == pytest.approx(10, abs=0.5)


def test_up_and_down_do_not_share() -> None:
    time = Time()
    store = limited(time, up=1000.0)
    store.create("x", bytes(1000))
    before = time.now
    store.read("x")
    assert time.now == before


def test_a_deadline_ends_the_waiting_but_done_is_done() -> None:
    time = Time()
    store = limited(time, up=1000.0)
    store.create("x", bytes(100_000), deadline=time.now + 5)
    assert time.now - 1e9 <= 5
    assert store.read("x") == bytes(100_000)
    time.now += 1
    store.create("y", bytes(1))  # which pays the debt of the first
    assert time.now - 1e9 == pytest.approx(100, abs=1)


def test_a_rate_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Bucket(0)
    with pytest.raises(ValueError, match="at least 1"):
        LimitedStore(MemoryStore(), concurrency=0)


def test_a_bucket_shared_by_threads_gives_its_rate() -> None:
    bucket = Bucket(1_000_000, burst=0)

    def work(_: int) -> None:
        for _ in range(10):
            bucket.wait(bucket.charge(10_000), None)

    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        [*pool.map(work, range(4))]
    assert 0.38 <= time.monotonic() - start < 20


def test_an_upload_is_spread_over_its_time() -> None:
    """Not at line speed first and a pause after: a call over the same line must stay possible."""
    arrivals: list[tuple[float, int]] = []
    size = 400_000

    def handle(request: Request, connection: Connection) -> bool:
        taken = 0
        while taken < size - 8192:  # so much may be in the buffer that read the head
            got = len(connection.sock.recv(65536))
            taken += got
            arrivals.append((time.monotonic(), got))
        connection.send(head(201, 0))
        return True

    with FakeAzure(handle, read_body=False) as fake, fake.store(quiet=0.5) as inner:
        store = LimitedStore(inner, up=400_000)
        start = time.monotonic()
        store.create("x", bytes(size))
        took = time.monotonic() - start
    assert 0.6 < took < 20  # a quarter second's worth passes at once
    for second in (0.2, 0.4, 0.6):
        arrived = sum(count for at, count in arrivals if at < start + second)
        assert arrived <= (second + 0.25) * 400_000 + 80_000


def test_a_download_is_spread_over_its_time_and_its_default_deadline_waits() -> None:
    data = bytes(range(256)) * 2000
    with FakeAzure(serving(data)) as fake, fake.store(answer=0.6, slowest=1e9) as inner:
        store = LimitedStore(inner, down=len(data))
        start = time.monotonic()
        assert store.read("x", 0, len(data)) == data
        assert 0.6 < time.monotonic() - start < 20


def test_a_limited_transfer_keeps_its_deadline() -> None:
    with FakeAzure(serving(bytes(1_000_000))) as fake, fake.store() as inner:
        store = LimitedStore(inner, up=10_000, down=10_000)
        with within(1.3), pytest.raises(StoreTimeoutError):
            store.read("x", 0, 1_000_000, deadline=time.monotonic() + 0.3)
        with within(1.3), pytest.raises(StoreTimeoutError):
            store.create("y", bytes(1_000_000), deadline=time.monotonic() + 0.3)


def test_a_folder_is_paced_too(tmp_path: Path) -> None:
    store = LimitedStore(LocalStore(tmp_path), up=1_000_000)
    store.prepare()
    start = time.monotonic()
    store.create("x", bytes(700_000))
    assert 0.4 < time.monotonic() - start < 20


def test_closing_ends_the_waiting() -> None:
    store = LimitedStore(MemoryStore(), up=10)
    thread = threading.Thread(target=store.create, args=("x", bytes(10_000)))
    thread.start()
    time.sleep(0.1)
    with within(1):
        store.close()
        thread.join(5)
    assert not thread.is_alive()


class Gate(MemoryStore):
    """Holds readers until it is opened; counts how many are in it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.inside = self.most = 0
        self.count = threading.Lock()

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        with self.count:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.open.wait(10)
        with self.count:
            self.inside -= 1
        return super().read(name, offset, length, deadline=deadline)


def test_no_more_at_once_than_allowed() -> None:
    gate = Gate()
    gate.create("x", b"1")
    store = LimitedStore(gate, concurrency=3)
    with ThreadPoolExecutor(10) as pool:
        reads = [pool.submit(store.read, "x") for _ in range(10)]
        time.sleep(0.1)
        assert gate.inside == 3
        with within(1), pytest.raises(StoreTimeoutError, match="other operations"):
            store.read("x", deadline=time.monotonic() + 0.1)
        gate.open.set()
        assert [read.result() for read in reads] == [b"1"] * 10
    assert gate.most == 3


def test_places_come_back_after_failures_and_abandoned_listings() -> None:
    store = LimitedStore(MemoryStore(), concurrency=1)
    for _ in range(3):
        with pytest.raises(BlobMissingError):
            store.read("x")
    store.create("a", b"")
    store.create("b", b"")
    listing = store.list("")
    assert next(listing).name == "a"
    assert store.read("a") == b""  # a listing that waits for its reader holds no place
    assert next(listing).name == "b"
    assert meter() is None
