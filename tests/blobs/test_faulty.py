"""The faulty wrapper does what it is told, and the same again with the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudmount.blobs.faulty import HONEST, Fault, FaultyStore, Killed, Operation, at, randomly
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.retrying import StoreBusyError
from cloudmount.errors import StoreRefusedError, StoreTimeoutError, StoreUnreachableError


def faulty(*faults: Fault | None) -> FaultyStore:
    """A store whose first operations meet these faults."""
    return FaultyStore(
        MemoryStore(),
        at({number: fault for number, fault in enumerate(faults) if fault}),
        sleep=lambda _: None,
    )


@pytest.mark.parametrize(
    ("fault", "error", "done"),
    [
        (Fault.RESET, StoreUnreachableError, False),
        (Fault.LOST, StoreUnreachableError, True),
        (Fault.BUSY, StoreBusyError, False),
        (Fault.STALL, StoreTimeoutError, False),
        (Fault.STALL_LOST, StoreTimeoutError, True),
        (Fault.REFUSED, StoreRefusedError, False),
        (Fault.KILLED, Killed, False),
        (Fault.KILLED_AFTER, Killed, True),
    ],
)
def test_before_and_after_the_effect(fault: Fault, error: type[BaseException], done: bool) -> None:
    for ask in ("create", "put"):
        store = faulty(fault)
        with pytest.raises(error):
            getattr(store, ask)("x", b"1")
        assert ("x" in store.inner.objects) == done  # type: ignore[attr-defined] # a MemoryStore
        assert [(op.kind, op.name, what) for op, what in store.faults] == [(ask, "x", fault)]
    store = faulty(None, fault)
    store.create("x", b"1")
    with pytest.raises(error):
        store.delete("x")
    assert ("x" in store.inner.objects) != done  # type: ignore[attr-defined] # a MemoryStore


@pytest.mark.parametrize("fault", [*HONEST, Fault.REFUSED])
def test_every_kind_can_fail(fault: Fault) -> None:
    asks: list[Callable[[FaultyStore], object]] = [
        lambda store: store.prepare(),
        lambda store: store.read("x"),
        lambda store: [*store.list("")],
        lambda store: [*store.list_folders("")],
    ]
    for ask in asks:
        store = faulty(None, fault)
        store.create("x", b"1")
        with pytest.raises((StoreUnreachableError, StoreRefusedError)):
            ask(store)
        ask(store)


def test_lies_of_reads() -> None:
    store = faulty(None, Fault.SHORT, Fault.FLIP)
    data = random.Random(1).randbytes(1000)
    store.create("x", data)
    assert store.read("x") == data[:500]
    wrong = store.read("x")
    assert sum((a ^ b).bit_count() for a, b in zip(wrong, data, strict=True)) == 1
    assert store.read("x") == data


def test_stale_listings_lack_the_newest() -> None:
    store = faulty(*[None] * 12, Fault.STALE, Fault.STALE)
    for number in range(12):
        store.create(f"x{number:02}", b"")
    assert [blob.name for blob in store.list("")] == ["x00", "x01", "x02", "x03"]
    assert [blob.name for blob in store.list("", limit=2)] == ["x00", "x01"]
    assert len([*store.list("")]) == 12


def test_a_listing_breaks_in_its_middle() -> None:
    store = faulty(*[None] * 4, Fault.LOST)
    for number in range(4):
        store.create(f"x{number}", b"")
    listing = store.list("")
    assert [next(listing).name, next(listing).name] == ["x0", "x1"]
    with pytest.raises(StoreUnreachableError):
        next(listing)


def test_silence_lasts_until_the_deadline() -> None:
    slept: list[float] = []
    store = FaultyStore(MemoryStore(), lambda _: Fault.STALL, stall=20, clock=lambda: 1e9, sleep=slept.append)
    for deadline in (None, 1e9 + 5, 1e9 + 60, 1e9 - 5):
        with pytest.raises(StoreTimeoutError):
            store.read("x", deadline=deadline)
    assert slept == [20, 5, 20, 0]


def test_the_dead_stay_dead() -> None:
    store = faulty(Fault.KILLED_AFTER)
    with pytest.raises(Killed):
        store.create("x", b"1")
    for ask in (lambda: store.read("x"), lambda: next(store.list("")), lambda: store.delete("x")):
        with pytest.raises(Killed):
            ask()
    assert store.inner.read("x") == b"1"


def test_killing_at_each_operation_in_turn_reaches_them_all() -> None:
    def work(store: FaultyStore) -> None:
        store.create("a", b"1")
        store.create("b", b"2")
        [*store.list("")]
        store.put("config", b"3")

    clean = faulty()
    work(clean)
    assert clean.operations == 4
    for number in range(clean.operations):
        store = FaultyStore(MemoryStore(), at({number: Fault.KILLED}))
        with pytest.raises(Killed):
            work(store)
        assert store.operations == number + 1


def test_random_faults_depend_on_nothing_but_the_seed_and_what_is_asked() -> None:
    def run(seed: int, threads: int) -> list[tuple[str, str, int, Fault]]:
        store = FaultyStore(MemoryStore(), randomly(seed, 0.3), sleep=lambda _: None)

        def work(number: int) -> None:
            for _ in range(3):
                try:
                    store.read(f"x{number}")
                except Exception:
                    continue

        with ThreadPoolExecutor(threads) as pool:
            [*pool.map(work, range(40))]
        return sorted((op.kind, op.name, op.nth, fault) for op, fault in store.faults)

    assert run(1, 1) == run(1, 8)
    assert run(1, 1) != run(2, 1)
    assert 20 <= len(run(1, 1)) <= 55
    assert {fault for *_, fault in run(1, 1)} == set(HONEST)


def test_random_faults_of_some_kinds_only() -> None:
    plan = randomly(1, 1.0, [Fault.RESET], kinds=["read"])
    assert plan(Operation(0, "read", "x", 0)) is Fault.RESET
    assert plan(Operation(0, "create", "x", 0)) is None
