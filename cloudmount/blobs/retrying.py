"""Try again: the wrapper that waits out a store's bad times.

Decided here and only here: what is worth another try (`StoreUnreachableError` and
its children, nothing else), how long to wait before it, when to give up, and
what a refused create means after an answer was lost.

Waits grow from `first` to `longest` seconds and are drawn from their upper half
(jitter, so that many readers don't return at once); a store that says how long
it wants (`Retry-After`) is given that. Listings go on behind the last object
they gave.

A create can succeed and its answer be lost; the next try then meets its own
object: 409 or 412, or under a write-once credential 403. So a refused create is
looked up in a listing: the same length and MD5 (or, where the store keeps no
MD5, the same bytes read back) means that it stands. Another object of that name
is a `BlobExistsError`, whatever the store called it.

Threading: as the store below; `close` wakes everyone who waits.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from cloudmount.blobs.store import BlobInfo, BlobStore, Data, Tier
from cloudmount.errors import (
    BlobExistsError,
    CloudMountError,
    StoreRefusedError,
    StoreTimeoutError,
    StoreUnreachableError,
)

_Result = TypeVar("_Result")
_LONGEST_RETRY_AFTER = 300.0
_STALE_LOOKUPS = 5


class StoreBusyError(StoreUnreachableError):
    """The store said "later" (429, 5xx); `retry_after` is the seconds it asked for, if it did."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to go on, in seconds. Wait `first`, doubled each time up to `longest`."""

    total: float | None
    """From the call's start (a listing: from the last object it gave) to giving up; None never
    gives up. A caller's earlier deadline goes before."""
    attempt: float | None = None
    """The most that one try may take; None leaves it to the store."""
    first: float = 0.25
    longest: float = 30.0

    def reading(self, io_timeout: float) -> RetryPolicy:
        """This policy for a reader who waits `io_timeout` seconds (a drive's `--io-timeout`)."""
        return replace(self, total=io_timeout, longest=min(self.longest, max(1.0, io_timeout / 10)))


STARTING = RetryPolicy(total=25.0, attempt=12.0, longest=4.0)
"""A command's first contact: a store that can't be reached is told within 30 s (`cli.md`)."""

TRANSFER = RetryPolicy(total=24 * 3600.0)
"""A backup or restore under way: a night without a line, or a router's reboot, is waited out."""


class RetryingStore(BlobStore):
    """`inner`, tried again as `policy` says; until its first answer, as `starting` says.

    With `starting` a command needs one store object: an unreachable store fails it within 25 s,
    and an outage later is waited out. Every answer counts as one, also "no such object".
    """

    def __init__(
        self,
        inner: BlobStore,
        policy: RetryPolicy = TRANSFER,
        *,
        starting: RetryPolicy | None = STARTING,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.inner = inner
        self.policy = policy
        self.starting = starting
        self._clock = clock
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._random = rng or random.Random()
        self._answered = starting is None

    def with_policy(self, policy: RetryPolicy) -> RetryingStore:
        """The same store, tried as `policy` says; closing either closes both."""
        other = RetryingStore(self.inner, policy, starting=None, clock=self._clock, rng=self._random)
        other._closed, other._sleep = self._closed, self._sleep
        return other

    @property
    def address(self) -> str:
        return self.inner.address

    def prepare(self, *, deadline: float | None = None) -> None:
        self._try(lambda until: self.inner.prepare(deadline=until), deadline)

    def create(
        self, name: str, data: Data, *, tier: Tier | None = None, deadline: float | None = None
    ) -> None:
        lost = False  # whether an earlier try may have stored it

        def create(until: float | None) -> None:
            nonlocal lost
            try:
                self.inner.create(name, data, tier=tier, deadline=until)
            except StoreUnreachableError:
                lost = True
                raise
            except (BlobExistsError, StoreRefusedError) as refusal:
                looks = _STALE_LOOKUPS if lost or isinstance(refusal, BlobExistsError) else 1
                if not self._stands(name, data, looks, until):
                    raise

        self._try(create, deadline)

    def put(self, name: str, data: Data, *, deadline: float | None = None) -> None:
        self._try(lambda until: self.inner.put(name, data, deadline=until), deadline)

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        def read(until: float | None) -> bytes:
            data = self.inner.read(name, offset, length, deadline=until)
            if length is not None and len(data) != length:
                raise StoreUnreachableError(f"{len(data)} bytes of {name} came where {length} were asked for")
            return data

        return self._try(read, deadline)

    def list(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int | None = None,
        deadline: float | None = None,
    ) -> Iterator[BlobInfo]:
        given = 0

        def items(until: float | None) -> Iterator[BlobInfo]:
            left = None if limit is None else limit - given
            return self.inner.list(prefix, after=after, limit=left, deadline=until)

        for item in self._resumed(items, deadline):
            given += 1
            after = item.name
            yield item

    def list_folders(self, prefix: str, *, deadline: float | None = None) -> Iterator[str]:
        last = ""
        for folder in self._resumed(lambda until: self.inner.list_folders(prefix, deadline=until), deadline):
            if folder > last:  # a listing that was begun again
                last = folder
                yield folder

    def delete(self, name: str, *, deadline: float | None = None) -> None:
        self._try(lambda until: self.inner.delete(name, deadline=until), deadline)

    def close(self) -> None:
        self._closed.set()
        self.inner.close()

    def _try(self, operation: Callable[[float | None], _Result], deadline: float | None) -> _Result:
        """`operation(deadline of this try)` until it answers; its last error when time is up."""
        effort = self._effort(deadline)
        while True:
            try:
                result = operation(effort.until())
            except StoreUnreachableError as error:
                effort.wait(error)
            except CloudMountError:
                self._answered = True
                raise
            else:
                self._answered = True
                return result

    def _resumed(
        self, items: Callable[[float | None], Iterator[_Result]], deadline: float | None
    ) -> Iterator[_Result]:
        """What `items` gives, begun again when it breaks; the time to give up counts from progress."""
        effort = self._effort(deadline)
        while True:
            try:
                for item in items(effort.until()):
                    self._answered = True
                    yield item
                    effort = self._effort(deadline)
                self._answered = True
                return
            except StoreUnreachableError as error:
                effort.wait(error)

    def _effort(self, deadline: float | None) -> _Effort:
        policy = self.policy if self._answered or self.starting is None else self.starting
        end = None if policy.total is None else self._clock() + policy.total
        if deadline is not None:
            end = deadline if end is None else min(end, deadline)
        return _Effort(policy, end, self._clock, self._sleep, self._random, self._closed)

    def _stands(self, name: str, data: Data, looks: int, until: float | None) -> bool:
        """Whether `name` holds `data`, so that a refused create is one that an earlier try did.

        `BlobExistsError` when it holds something else; False when it holds nothing, so that the
        refusal was about something else. Looks several times where it must be there: a listing
        may be one of a moment ago.
        """
        for look in range(looks):
            if look:
                self._sleep(self.policy.first)
            try:
                found = next(self.inner.list(name, limit=1, deadline=until), None)
            except StoreRefusedError:
                return False  # may not look: the refusal stands as it is
            if found and found.name == name:
                if found.size == len(data) and self._same(found, data, until):
                    return True
                raise BlobExistsError(name)
        return False

    def _same(self, found: BlobInfo, data: Data, until: float | None) -> bool:
        if found.md5 is not None:
            return found.md5 == hashlib.md5(data, usedforsecurity=False).digest()
        try:
            return self.inner.read(found.name, 0, len(data), deadline=until) == data
        except StoreRefusedError:
            return False


class _Effort:
    """One call's tries: how long the next may take, and the waits between them."""

    def __init__(
        self,
        policy: RetryPolicy,
        end: float | None,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
        rng: random.Random,
        closed: threading.Event,
    ) -> None:
        self._policy, self._end, self._clock, self._sleep = policy, end, clock, sleep
        self._random, self._closed = rng, closed
        self._pause = policy.first
        self._told: StoreUnreachableError | None = None

    def until(self) -> float | None:
        """The deadline of a try begun now."""
        if self._policy.attempt is None:
            return self._end
        own = self._clock() + self._policy.attempt
        return own if self._end is None else min(own, self._end)

    def wait(self, error: StoreUnreachableError) -> None:
        """Sleep before the next try; when there is no time for one, raises what was wrong."""
        if self._told is None or not isinstance(error, StoreTimeoutError):
            self._told = error  # "connection refused" says more than the time-out of a last short try
        pause = self._pause * self._random.uniform(0.5, 1.0)
        if isinstance(error, StoreBusyError):
            pause = max(pause, min(error.retry_after or 0.0, _LONGEST_RETRY_AFTER))
        self._pause = min(self._pause * 2, self._policy.longest)
        if self._end is not None:
            left = self._end - self._clock()
            if left < self._policy.first:
                raise self._told
            pause = min(pause, left / 2)
        if not self._closed.is_set():
            self._sleep(pause)
        if self._closed.is_set():
            raise self._told
