"""Faults on demand, for tests and campaigns: an ordinary wrapper that misbehaves by plan.

Decided here and only here: what can go wrong with a store, and that the same seed
gives the same faults whatever the threads' order: what befalls an operation
depends on its kind, its name and how often that was asked before, not on the clock
or on other threads. A plan is any function of an `Operation`; `at` and `randomly`
make the common ones.

Threading: any number of threads.
"""

from __future__ import annotations

import enum
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from cloudmount.blobs.retrying import StoreBusyError
from cloudmount.blobs.store import BlobInfo, BlobStore, Data, Tier
from cloudmount.errors import StoreRefusedError, StoreTimeoutError, StoreUnreachableError

_Item = TypeVar("_Item")
_STALE_SPAN = 8


class Fault(enum.Enum):
    """What befalls an operation. A listing that fails "after" breaks in its middle."""

    RESET = "the connection breaks, nothing was done"
    LOST = "it is done, and the answer is lost"
    BUSY = "the store says 'later'"
    STALL = "silence until the deadline, nothing was done"
    STALL_LOST = "it is done, then silence until the deadline"
    REFUSED = "the store says no"
    SHORT = "a read gives fewer bytes than it says"
    FLIP = "a read gives one wrong bit"
    STALE = "a listing lacks what was created last"
    KILLED = "the process ends before it is done"
    KILLED_AFTER = "the process ends right after it is done"


HONEST = (Fault.RESET, Fault.LOST, Fault.BUSY, Fault.STALL, Fault.STALL_LOST)
"""What a good store over a bad line does: all of it is worth retrying."""


class Killed(BaseException):
    """The process ends here; no `except Exception` keeps it from it. Every later operation raises it."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: `kind` is the method's name, `name` the object or prefix, `index` counts all calls from
    0, `nth` those of this kind and name."""

    index: int
    kind: str
    name: str
    nth: int


Plan = Callable[[Operation], "Fault | None"]


def at(faults: Mapping[int, Fault]) -> Plan:
    """These faults at these operations, counted from 0 (with one thread: at the same places always)."""
    return lambda operation: faults.get(operation.index)


def randomly(
    seed: int,
    rate: float,
    faults: Collection[Fault] = HONEST,
    kinds: Collection[str] = ("create", "put", "read", "list", "list_folders", "delete"),
) -> Plan:
    """Each operation of these `kinds` fails with probability `rate`, by one of `faults`."""
    chosen = list(faults)

    def plan(operation: Operation) -> Fault | None:
        if operation.kind not in kinds:
            return None
        draw = random.Random(f"{seed}/{operation.kind}/{operation.name}/{operation.nth}")
        return draw.choice(chosen) if draw.random() < rate else None

    return plan


class FaultyStore(BlobStore):
    """`inner`, with the faults of `plan`.

    A silence lasts until the caller's deadline, or `stall` seconds when there is none.
    `faults` lists what befell whom, in the order it happened.
    """

    def __init__(
        self,
        inner: BlobStore,
        plan: Plan,
        *,
        stall: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.inner = inner
        self.plan = plan
        self.faults: list[tuple[Operation, Fault]] = []
        self._stall, self._clock, self._sleep = stall, clock, sleep
        self._lock = threading.Lock()
        self._index = 0
        self._asked: Counter[tuple[str, str]] = Counter()
        self._created: list[str] = []
        self._killed = False

    @property
    def address(self) -> str:
        return self.inner.address

    @property
    def operations(self) -> int:
        """How many operations were asked so far: the places where a plan can strike."""
        return self._index

    def prepare(self, *, deadline: float | None = None) -> None:
        self._do("prepare", "", deadline, lambda: self.inner.prepare(deadline=deadline))

    def create(
        self, name: str, data: Data, *, tier: Tier | None = None, deadline: float | None = None
    ) -> None:
        def create() -> None:
            self.inner.create(name, data, tier=tier, deadline=deadline)
            with self._lock:
                self._created.append(name)

        self._do("create", name, deadline, create)

    def put(self, name: str, data: Data, *, deadline: float | None = None) -> None:
        self._do("put", name, deadline, lambda: self.inner.put(name, data, deadline=deadline))

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        found: list[bytes] = []

        def read() -> None:
            found.append(self.inner.read(name, offset, length, deadline=deadline))

        fault = self._do("read", name, deadline, read)
        data = found[0]
        if fault is Fault.SHORT:
            return data[: len(data) // 2]
        if fault is Fault.FLIP and data:
            at = random.Random(f"{name}/{offset}/{len(data)}").randrange(len(data) * 8)
            wrong = bytearray(data)
            wrong[at // 8] ^= 1 << at % 8
            return bytes(wrong)
        return data

    def list(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int | None = None,
        deadline: float | None = None,
    ) -> Iterator[BlobInfo]:
        fault = self._fault("list", prefix)
        hidden: set[str] = set()
        if fault is Fault.STALE:
            with self._lock:
                hidden = set(self._created[-_STALE_SPAN:])
        items = self.inner.list(prefix, after=after, limit=None if hidden else limit, deadline=deadline)
        given = 0
        for item in self._broken(items, fault, "list", deadline):
            if item.name not in hidden and (limit is None or given < limit):
                given += 1
                yield item

    def list_folders(self, prefix: str, *, deadline: float | None = None) -> Iterator[str]:
        fault = self._fault("list_folders", prefix)
        items = self.inner.list_folders(prefix, deadline=deadline)
        yield from self._broken(items, fault, "list_folders", deadline)

    def delete(self, name: str, *, deadline: float | None = None) -> None:
        self._do("delete", name, deadline, lambda: self.inner.delete(name, deadline=deadline))

    def close(self) -> None:
        self.inner.close()

    def _fault(self, kind: str, name: str) -> Fault | None:
        with self._lock:
            if self._killed:
                raise Killed
            nth = self._asked[kind, name]
            self._asked[kind, name] += 1
            operation = Operation(self._index, kind, name, nth)
            self._index += 1
        fault = self.plan(operation)
        if fault:
            with self._lock:
                self.faults.append((operation, fault))
        return fault

    def _do(self, kind: str, name: str, deadline: float | None, act: Callable[[], None]) -> Fault | None:
        fault = self._fault(kind, name)
        self._before(fault, kind, deadline)
        act()
        self._after(fault, kind, deadline)
        return fault

    def _broken(
        self, items: Iterator[_Item], fault: Fault | None, kind: str, deadline: float | None
    ) -> Iterator[_Item]:
        self._before(fault, kind, deadline)
        if fault not in (Fault.LOST, Fault.STALL_LOST, Fault.KILLED_AFTER):
            yield from items
            return
        found = [*items]
        yield from found[: len(found) // 2]
        self._after(fault, kind, deadline)

    def _before(self, fault: Fault | None, kind: str, deadline: float | None) -> None:
        if fault is Fault.RESET:
            raise StoreUnreachableError(f"a planned fault: {kind} was reset")
        if fault is Fault.BUSY:
            raise StoreBusyError(f"a planned fault: too busy for {kind}")
        if fault is Fault.REFUSED:
            raise StoreRefusedError(f"a planned fault: {kind} was refused")
        if fault is Fault.STALL:
            self._silence(kind, deadline)
        if fault is Fault.KILLED:
            self._kill()

    def _after(self, fault: Fault | None, kind: str, deadline: float | None) -> None:
        if fault is Fault.LOST:
            raise StoreUnreachableError(f"a planned fault: the answer to {kind} was lost")
        if fault is Fault.STALL_LOST:
            self._silence(kind, deadline)
        if fault is Fault.KILLED_AFTER:
            self._kill()

    def _silence(self, kind: str, deadline: float | None) -> NoReturn:
        left = self._stall if deadline is None else min(self._stall, deadline - self._clock())
        self._sleep(max(0.0, left))
        raise StoreTimeoutError(f"a planned fault: silence after {kind}")

    def _kill(self) -> NoReturn:
        self._killed = True
        raise Killed
