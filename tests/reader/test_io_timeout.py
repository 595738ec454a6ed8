"""A store that goes silent, resets, or comes back: waiting, one clear error in time, and recovery."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from cloudmount.blobs.faulty import Fault, FaultyStore, Operation
from cloudmount.blobs.retrying import RetryingStore, RetryPolicy
from cloudmount.blobs.store import BlobStore
from cloudmount.errors import (
    BlobMissingError,
    CloudMountError,
    StoreRefusedError,
    StoreTimeoutError,
    StoreUnreachableError,
)
from cloudmount.reader import outage as outage_module
from cloudmount.reader import workers as workers_module
from cloudmount.reader.outage import Outage
from cloudmount.reader.stored import FrameReader, StoredSource
from tests.reader.stored_repository import SMALL, StoredRepository, noise

FRAME = SMALL.frame
SIZE = 2 << 20
CONTENT = noise(SIZE)


class Weather:
    """A fault plan that can be changed: what befalls reads of packs, of maps, and of the rest."""

    def __init__(self) -> None:
        self.packs: Fault | None = None
        self.maps: Fault | None = None
        self.rest: Fault | None = None

    def all(self, fault: Fault | None) -> None:
        self.packs = self.maps = self.rest = fault

    def __call__(self, operation: Operation) -> Fault | None:
        if operation.name.startswith("packs/"):
            return self.packs
        return self.maps if operation.name.startswith("maps/") else self.rest


class Bench:
    """A stored disk behind a store with weather."""

    def __init__(self, *, timeout: float, retrying: bool = False, stall: float = 1.0) -> None:
        self.made = StoredRepository()
        self.weather = Weather()
        self.store: BlobStore = FaultyStore(self.made.store, self.weather, stall=stall)
        if retrying:
            policy = RetryPolicy(total=timeout, first=0.02, longest=0.1)
            self.store = RetryingStore(self.store, policy, starting=None)
        repository = self.made.behind(self.store)
        self.map = self.made.disk(CONTENT, repository=repository)
        self.reader = FrameReader(repository, io_timeout=timeout, workers=4)
        self.source = StoredSource(self.reader, self.map, "disk")

    def read(self, offset: int, length: int = 100) -> None:
        assert self.source.read_at(offset, length) == CONTENT[offset : offset + length]

    def fails(self, offset: int, length: int = 100) -> float:
        """Seconds until the read of the range timed out."""
        begun = time.monotonic()
        with pytest.raises(StoreTimeoutError):
            self.source.read_at(offset, length)
        return time.monotonic() - begun

    def comes_back(self, offset: int) -> None:
        """The range can be read again before long."""
        end = time.monotonic() + 10
        while True:
            try:
                return self.read(offset)
            except StoreTimeoutError:
                assert time.monotonic() < end
                time.sleep(0.02)


WEATHERS = [Fault.STALL, Fault.RESET, Fault.BUSY, Fault.LOST, Fault.SHORT]


@pytest.mark.parametrize("fault", WEATHERS)
@pytest.mark.parametrize("retrying", [False, True])
def test_a_read_times_out_once_and_then_fails_at_once_until_the_store_answers(
    fault: Fault, retrying: bool
) -> None:
    b = Bench(timeout=0.6, retrying=retrying)
    b.read(0)
    b.weather.all(fault)
    if fault is Fault.SHORT:
        b.weather.maps = b.weather.rest = Fault.RESET  # a short answer is an answer too
    assert 0.5 < b.fails(100 * FRAME) < 3
    assert b.fails(100 * FRAME) < 0.4  # the kernel asks twice
    assert b.fails(100 * FRAME + 5, 10) < 0.4
    b.read(0)  # what is in memory can be read
    assert 0.5 < b.fails(300 * FRAME) < 3  # others wait for themselves
    b.weather.all(None)
    b.comes_back(100 * FRAME)
    b.read(300 * FRAME)
    assert not b.reader.outage
    b.reader.close()


def test_the_map_may_be_what_does_not_come() -> None:
    b = Bench(timeout=0.5, stall=0.4)
    b.weather.all(Fault.STALL)
    assert 0.4 < b.fails(0) < 2.5
    assert b.fails(0) < 0.4
    with pytest.raises(StoreTimeoutError):
        list(b.source.extents(0, SIZE))
    b.weather.all(None)
    b.comes_back(0)
    assert [e.data for e in b.source.extents(0, SIZE)] == [True]
    b.reader.close()


def test_a_short_outage_is_waited_out() -> None:
    b = Bench(timeout=20)
    for fault in WEATHERS:
        b.weather.all(fault)
        threading.Timer(0.3, b.weather.all, [None]).start()
        b.read(WEATHERS.index(fault) * 50 * FRAME)
    b.reader.close()


def test_the_message_says_who_did_not_answer_what_and_why() -> None:
    b = Bench(timeout=0.3)
    b.weather.packs = Fault.RESET
    with pytest.raises(StoreTimeoutError, match=r"memory did not give bytes 0 to 4096 within 0.3 s: .*reset"):
        b.source.read_at(10, 100)
    with pytest.raises(StoreTimeoutError, match=r"memory did not answer for these bytes before"):
        b.source.read_at(10, 100)
    b.reader.close()


def test_no_permission_is_told_at_once_and_not_waited_for() -> None:
    b = Bench(timeout=30)
    b.weather.packs = Fault.REFUSED
    begun = time.monotonic()
    with pytest.raises(StoreRefusedError):
        b.source.read_at(0, 100)
    assert time.monotonic() - begun < 20
    b.weather.packs = None
    b.read(0)
    b.reader.close()


def test_who_joins_a_flight_waits_his_own_time() -> None:
    b = Bench(timeout=1.2, stall=100)
    b.weather.packs = Fault.STALL
    took: list[float] = []
    threads = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: took.append(b.fails(50 * FRAME)))
        thread.start()
        threads.append(thread)
        time.sleep(0.3)
    for thread in threads:
        thread.join()
    assert all(1.0 < seconds < 20 for seconds in took)
    b.reader.close()


class Deaf(FaultyStore):
    """A store that keeps no deadline: calls for packs end when the gate opens, and not before."""

    def __init__(self, inner: BlobStore) -> None:
        super().__init__(inner, lambda _: None)
        self.gate = threading.Event()
        self.gate.set()
        self.held = 0

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        if name.startswith("packs/") and not self.gate.is_set():
            self.held += 1
            self.gate.wait(60)
        return super().read(name, offset, length, deadline=deadline)


def test_threads_that_a_store_never_gives_back_do_not_starve_other_readers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "GRACE", 0.1)
    made = StoredRepository()
    deaf = Deaf(made.store)
    repository = made.behind(deaf)
    reader = FrameReader(repository, io_timeout=0.4, workers=2)
    source = StoredSource(reader, made.disk(CONTENT, repository=repository), "disk")
    assert source.read_at(0, 10) == CONTENT[:10]
    deaf.gate.clear()
    for n in (100, 200, 300, 400):
        with pytest.raises(StoreTimeoutError):
            source.read_at(n * FRAME, 10)
    assert deaf.held >= 2
    deaf.gate = threading.Event()  # the link is back, but those threads are gone for good
    deaf.gate.set()
    end = time.monotonic() + 15
    for n in (100, 200, 300, 400, 250, 350):
        while True:
            try:
                assert source.read_at(n * FRAME, 10) == CONTENT[n * FRAME : n * FRAME + 10]
                break
            except StoreTimeoutError:
                assert time.monotonic() < end
    assert reader.workers.threads <= 2 + 16
    reader.close()


def test_readahead_stops_while_the_store_is_silent() -> None:
    b = Bench(timeout=0.3)
    for n in range(20):
        b.read(n * FRAME)
    b.weather.all(Fault.STALL)
    b.fails(400 * FRAME)
    assert isinstance(b.store, FaultyStore)
    time.sleep(0.1)
    before = b.store._asked.copy()
    for n in range(20):
        b.read(n * FRAME)
    asked = {key: count - before[key] for key, count in b.store._asked.items() if count > before[key]}
    assert not [key for key in asked if key[1].startswith("packs/")]
    b.reader.close()


def test_a_process_with_a_read_in_a_silent_store_ends() -> None:
    code = (
        "import threading, time\n"
        "from tests.reader.test_io_timeout import *\n"
        "b = Bench(timeout=600, stall=600)\n"
        "b.weather.all(Fault.STALL)\n"
        "threading.Thread(target=lambda: b.source.read_at(0, 10), daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "b.reader.close()\n"
    )
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    assert time.monotonic() - begun < 15


# The rule alone


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage_module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(outage_module, "LONGEST_PAUSE", 0.05)


def probing(answers: list[CloudMountError | None]) -> tuple[Outage, Callable[[], int]]:
    calls = [0]

    def probe() -> None:
        calls[0] += 1
        answer = answers.pop(0) if answers else None
        if answer is not None:
            raise answer

    return Outage(probe), lambda: calls[0]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("last", [None, BlobMissingError("config"), StoreRefusedError("no")])
def test_it_asks_until_there_is_any_answer(last: CloudMountError | None) -> None:
    outage, calls = probing([StoreUnreachableError("x"), StoreTimeoutError("y"), last])
    outage.timed_out([("d", 1), ("d", 2)])
    assert outage.covers([("d", 2), ("d", 3)])
    assert not outage.covers([("d", 3), ("e", 1)])
    end = time.monotonic() + 10
    while outage:
        assert time.monotonic() < end
        time.sleep(0.005)
    assert calls() == 3
    time.sleep(0.2)
    assert calls() == 3  # and no longer
    outage.timed_out([("d", 1)])  # and begins again
    while outage:
        assert time.monotonic() < end
        time.sleep(0.005)
    assert calls() == 4
    outage.close()


@pytest.mark.usefixtures("quick")
def test_any_answer_clears_it_and_what_it_remembers_is_bounded() -> None:
    outage, calls = probing([StoreUnreachableError("x")] * 1000)
    outage.timed_out(("d", n) for n in range(10000))
    assert outage.covers([("d", 9999)])
    assert not outage.covers([("d", 0)])
    outage.answered()
    assert not outage
    outage.timed_out([("d", 1)])
    outage.close()
    assert not outage
    before = calls()
    time.sleep(0.2)
    assert calls() <= before + 1
