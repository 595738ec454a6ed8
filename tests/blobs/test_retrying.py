"""When the retrying wrapper tries again, how long it waits, and what it makes of a refused create."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cloudmount.blobs.faulty import Fault, FaultyStore, Operation, at
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.retrying import STARTING, TRANSFER, RetryingStore, RetryPolicy, StoreBusyError
from cloudmount.blobs.store import BlobInfo, BlobStore
from cloudmount.errors import (
    BlobExistsError,
    BlobMissingError,
    StoreRefusedError,
    StoreTimeoutError,
    StoreUnreachableError,
)
from tests.blobs.fake_azure import FakeAzure, answering, within

START = 1e9  # beyond any real clock, which stores below compare deadlines with


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = START
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


class Down(MemoryStore):
    """Not reachable until `up` seconds on the clock; remembers the deadlines it was given."""

    def __init__(self, time: Time, up: float = float("inf"), takes: float = 0.0) -> None:
        super().__init__()
        self.time, self.up, self.takes = time, up, takes
        self.error: StoreUnreachableError = StoreUnreachableError("nothing answers")
        self.deadlines: list[float | None] = []

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        self.deadlines.append(deadline)
        if self.time.now < self.up:
            self.time.now = min(self.time.now + self.takes, deadline or float("inf"))
            raise self.error
        return super().read(name, offset, length)


def retrying(
    inner: BlobStore, time: Time, policy: RetryPolicy, starting: RetryPolicy | None = None
) -> RetryingStore:
    return RetryingStore(
        inner, policy, starting=starting, clock=time.clock, sleep=time.sleep, rng=random.Random(1)
    )


def test_waits_grow_and_are_jittered() -> None:
    time = Time()
    store = retrying(Down(time), time, RetryPolicy(total=100.0, first=1.0, longest=8.0))
    with pytest.raises(StoreUnreachableError, match="nothing answers"):
        store.read("x")
    for wait, full in zip(time.sleeps, [1, 2, 4, 8, 8, 8], strict=False):
        assert full / 2 <= wait <= full
    assert len({round(wait / full, 3) for wait, full in zip(time.sleeps, [1, 2, 4, 8], strict=False)}) == 4
    assert 99 <= time.now - START <= 100


def test_a_store_that_comes_back_is_read() -> None:
    time = Time()
    down = Down(time, up=START + 5 * 3600)
    down.create("x", b"1")
    assert retrying(down, time, TRANSFER).read("x") == b"1"
    assert max(time.sleeps) <= 30


def test_no_policy_end_means_no_end() -> None:
    time = Time()
    down = Down(time, up=START + 40 * 86400)
    down.create("x", b"1")
    assert retrying(down, time, RetryPolicy(total=None)).read("x") == b"1"


def test_the_callers_deadline_goes_before() -> None:
    time = Time()
    down = Down(time)
    with pytest.raises(StoreUnreachableError):
        retrying(down, time, TRANSFER).read("x", deadline=START + 7)
    assert 6 <= time.now - START <= 7
    assert set(down.deadlines) == {START + 7}


def test_each_try_has_its_own_limit() -> None:
    time = Time()
    down = Down(time)
    policy = RetryPolicy(total=30.0, attempt=12.0)
    with pytest.raises(StoreUnreachableError):
        retrying(down, time, policy).read("x")
    assert down.deadlines[0] == START + 12
    assert max(deadline or 0 for deadline in down.deadlines) == START + 30


def test_an_unreachable_store_fails_a_starting_command_within_30_s() -> None:
    for takes in (0.0, 12.0):  # refused at once, or silent for as long as a try may take
        time = Time()
        with pytest.raises(StoreUnreachableError):
            retrying(Down(time, takes=takes), time, TRANSFER, STARTING).read("x")
        assert 20 <= time.now - START <= 26


def test_once_it_answered_outages_are_waited_out() -> None:
    time = Time()
    down = Down(time, up=0)
    store = retrying(down, time, TRANSFER, STARTING)
    with pytest.raises(BlobMissingError):
        store.read("x")  # an answer, too
    down.up = time.now + 7200
    down.create("x", b"1")
    assert store.read("x") == b"1"


def test_a_listing_counts_as_an_answer() -> None:
    time = Time()
    down = Down(time, up=START + 4000)
    store = retrying(down, time, TRANSFER, STARTING)
    assert [*store.list("")] == []
    down.create("x", b"1")
    assert store.read("x") == b"1"


def test_retry_after_is_kept() -> None:
    time = Time()
    down = Down(time, up=START + 40)
    down.create("x", b"1")
    down.error = StoreBusyError("later", retry_after=50)
    assert retrying(down, time, TRANSFER).read("x") == b"1"
    assert time.sleeps == [50]


def test_retry_after_of_a_year_is_not() -> None:
    time = Time()
    down = Down(time, up=START + 1)
    down.create("x", b"1")
    down.error = StoreBusyError("later", retry_after=3e7)
    assert retrying(down, time, TRANSFER).read("x") == b"1"
    assert time.sleeps == [300]


def test_what_was_wrong_is_told_not_the_last_time_out() -> None:
    time = Time()

    class Both(Down):
        def read(self, *_: object, **__: object) -> bytes:
            time.now += 3
            if time.now < START + 20:
                raise StoreUnreachableError("connection refused")
            raise StoreTimeoutError("the time was up")

    with pytest.raises(StoreUnreachableError, match="connection refused"):
        retrying(Both(time), time, RetryPolicy(total=25)).read("x")


@pytest.mark.parametrize("error", [StoreRefusedError("no"), ValueError("no"), BlobMissingError("x")])
def test_what_is_not_worth_retrying(error: Exception) -> None:
    class Refusing(MemoryStore):
        asked = 0

        def read(self, *_: object, **__: object) -> bytes:
            self.asked += 1
            raise error

    inner, time = Refusing(), Time()
    with pytest.raises(type(error)):
        retrying(inner, time, TRANSFER).read("x")
    assert inner.asked == 1


def test_a_short_read_is_tried_again() -> None:
    time = Time()
    faulty = FaultyStore(MemoryStore(), at({1: Fault.SHORT}))
    store = retrying(faulty, time, TRANSFER)
    store.create("x", b"1234")
    assert store.read("x", 0, 4) == b"1234"
    assert len(time.sleeps) == 1


def test_readers_wait_as_long_as_they_are_told_to() -> None:
    time = Time()
    with pytest.raises(StoreUnreachableError):
        retrying(Down(time), time, TRANSFER.reading(60)).read("x")
    assert 59 <= time.now - START <= 60
    assert max(time.sleeps) <= 6


def test_closing_wakes_who_waits() -> None:
    clock = Time()
    store = RetryingStore(Down(clock), RetryPolicy(total=None, first=60, longest=60), starting=None)
    failed: list[Exception] = []

    def read() -> None:
        try:
            store.read("x")
        except StoreUnreachableError as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    with within(2):
        time.sleep(0.1)
        store.close()
        thread.join(5)
    assert failed


def test_against_a_real_server_that_is_always_busy() -> None:
    with FakeAzure(answering(503)) as fake, fake.store() as inner:
        store = RetryingStore(inner, RetryPolicy(total=0.5, first=0.02, longest=0.1), starting=None)
        with within(1.5), pytest.raises(StoreUnreachableError, match="503"):
            store.read("x")
        assert len(fake.requests) > 4


# --- Refused creates -------------------------------------------------------------------


@pytest.fixture(params=["tells what exists", "write-once credential"])
def make(request: pytest.FixtureRequest) -> Callable[..., MemoryStore]:
    def make(keeps_md5: bool = True) -> MemoryStore:
        return MemoryStore(write_once=request.param == "write-once credential", keeps_md5=keeps_md5)

    return make


@pytest.mark.parametrize("keeps_md5", [True, False])
@pytest.mark.parametrize("fault", [Fault.LOST, Fault.STALL_LOST])
def test_a_lost_answer_is_a_success(make: Callable[..., MemoryStore], fault: Fault, keeps_md5: bool) -> None:
    time, memory = Time(), make(keeps_md5=keeps_md5)
    faulty = FaultyStore(memory, at({0: fault}), clock=time.clock, sleep=time.sleep)
    retrying(faulty, time, TRANSFER).create("x", b"mine")
    assert memory.objects == {"x": b"mine"}


def test_another_object_of_the_name_is_told(make: Callable[..., MemoryStore]) -> None:
    for theirs in (b"longer than ours", b"else"):
        time, memory = Time(), make()
        memory.create("x", theirs)
        with pytest.raises(BlobExistsError):
            retrying(memory, time, TRANSFER).create("x", b"mine")
        assert memory.objects == {"x": theirs}


def test_a_longer_name_is_another_object() -> None:
    time, memory = Time(), MemoryStore(write_once=True)
    memory.create("xy", b"mine")
    memory.create("x", b"else")
    with pytest.raises(BlobExistsError):
        retrying(memory, time, TRANSFER).create("x", b"mine")


def test_a_refusal_that_is_none_of_existing_stays_one() -> None:
    class Forbidden(MemoryStore):
        def create(self, *_: object, **__: object) -> None:
            raise StoreRefusedError("the account is disabled")

    time = Time()
    with pytest.raises(StoreRefusedError, match="disabled"):
        retrying(Forbidden(), time, TRANSFER).create("x", b"mine")
    assert time.sleeps == []


def test_a_refusal_stays_where_nothing_may_be_listed() -> None:
    class Blind(MemoryStore):
        def list(self, *_: object, **__: object) -> Iterator[BlobInfo]:
            raise StoreRefusedError("no permission to list")

    memory, time = Blind(write_once=True), Time()
    memory.create("x", b"mine")
    with pytest.raises(StoreRefusedError, match="no permission to write"):
        retrying(memory, time, TRANSFER).create("x", b"mine")


def test_without_digest_and_without_reading_a_refusal_is_another_object() -> None:
    class Unreadable(MemoryStore):
        def read(self, *_: object, **__: object) -> bytes:
            raise StoreRefusedError("no permission to read")

    memory, time = Unreadable(keeps_md5=False), Time()
    memory.create("x", b"mine")
    with pytest.raises(BlobExistsError):
        retrying(memory, time, TRANSFER).create("x", b"mine")


def test_the_look_up_is_retried_and_looks_past_stale_listings(make: Callable[..., MemoryStore]) -> None:
    """The answer is lost, the look-up reset, then a listing lacks what was created."""
    faults = iter([Fault.LOST, None, Fault.RESET, None, Fault.STALE, Fault.STALE, None])

    def plan(_: Operation) -> Fault | None:
        return next(faults, None)

    time, memory = Time(), make()
    faulty = FaultyStore(memory, plan, clock=time.clock, sleep=time.sleep)
    retrying(faulty, time, TRANSFER).create("x", b"mine")
    assert [fault.name for _, fault in faulty.faults] == ["LOST", "RESET", "STALE", "STALE"]


# --- Listings ----------------------------------------------------------------------------


def test_a_broken_listing_goes_on_where_it_was() -> None:
    time, memory = Time(), MemoryStore()
    names = [f"packs/{number:03}" for number in range(100)]
    for name in names:
        memory.create(name, b"")
    plan = at({0: Fault.LOST, 1: Fault.RESET, 2: Fault.LOST, 3: Fault.BUSY})
    faulty = FaultyStore(memory, plan)
    store = retrying(faulty, time, TRANSFER)
    assert [blob.name for blob in store.list("packs/", limit=90)] == names[:90]
    assert faulty.operations == 5


def test_broken_folders_are_given_once() -> None:
    time, memory = Time(), MemoryStore()
    for name in ("a/1", "b/1", "c/1", "d/1"):
        memory.create(name, b"")
    store = retrying(FaultyStore(memory, at({0: Fault.LOST, 1: Fault.LOST})), time, TRANSFER)
    assert [*store.list_folders("")] == ["a", "b", "c", "d"]


def test_a_listing_that_gets_nowhere_gives_up() -> None:
    time = Time()
    faulty = FaultyStore(MemoryStore(), lambda _: Fault.RESET)
    with pytest.raises(StoreUnreachableError):
        [*retrying(faulty, time, RetryPolicy(total=20)).list("")]
    assert 19 <= time.now - START <= 20


def test_with_policy_shares_the_store_below() -> None:
    time, memory = Time(), MemoryStore()
    store = retrying(memory, time, TRANSFER)
    store.create("x", b"1")
    other = store.with_policy(TRANSFER.reading(5))
    assert other.read("x") == b"1"
    assert other.policy.total == 5
