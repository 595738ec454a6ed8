"""How fast bytes may move: token buckets, and how a limit reaches the bytes on the wire.

Decided here and only here: a limit is a bucket that may go into debt and makes its
caller wait the debt off, so one object larger than the bucket passes too, in
its own time; and how the wrapper `limited` hands its buckets to the store
below. A wrapper sees whole objects, but a 32 MiB pack sent at line speed fills
a DSL line for a minute before any waiting after it starts. So the wrapper opens
a `Meter` for its thread (the core is synchronous: a call stays in its thread),
and a store that moves bytes piece by piece tells the meter of each piece with
`sent` and `received`. What the store did not tell, the wrapper settles at the
end. Without a meter both do nothing.

Threading: a bucket may be used by any number of threads; a meter belongs to one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cloudmount.errors import StoreTimeoutError

_SMALLEST_PIECE = 4096
_LARGEST_PIECE = 64 * 1024


class Bucket:
    """`rate` bytes a second, of which `burst` bytes (default: a quarter second's) may pass at once."""

    def __init__(
        self,
        rate: float,
        *,
        burst: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if rate <= 0:
            raise ValueError(f"a rate must be above 0 bytes a second, not {rate}")
        self.rate = rate
        self.burst = rate / 4 if burst is None else burst
        self.piece = int(min(_LARGEST_PIECE, max(_SMALLEST_PIECE, rate / 10)))
        """Bytes worth moving between two waits."""
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._tokens = float(self.burst)
        self._at = clock()

    def charge(self, count: int) -> float:
        """Take `count` bytes' tokens, into debt if need be; the seconds until the debt is paid."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate) - count
            self._at = now
            return max(0.0, -self._tokens / self.rate)

    def wait(self, seconds: float, deadline: float | None) -> bool:
        """Sleep so long, but not past `deadline`; False when that cut it short."""
        left = seconds if deadline is None else min(seconds, deadline - self._clock())
        if left > 0:
            self._sleep(left)
        return left >= seconds


class Meter:
    """The buckets that one thread's transfers are charged to, and what was charged so far."""

    def __init__(self, up: Bucket | None, down: Bucket | None) -> None:
        self.up, self.down = up, down
        self.sent = self.received = 0
        """Bytes already charged."""
        self.waited = 0.0
        """Seconds spent waiting for tokens; a default deadline does not count them."""

    def spend(self, bucket: Bucket, count: int, deadline: float | None) -> None:
        """Charge and wait; `StoreTimeoutError` when `deadline` comes first."""
        seconds = bucket.charge(count)
        if not bucket.wait(seconds, deadline):
            bucket.charge(-count)
            raise StoreTimeoutError(f"the deadline passed at {bucket.rate:.0f} bytes a second")
        self.waited += seconds


_thread = threading.local()


def meter() -> Meter | None:
    """The meter of this thread's current operation, if it has one."""
    return getattr(_thread, "meter", None)


@contextmanager
def metered(new: Meter) -> Iterator[Meter]:
    """Charge what this thread moves meanwhile to `new` (and not to a meter further out)."""
    outer = meter()
    _thread.meter = new
    try:
        yield new
    finally:
        _thread.meter = outer


def sent(count: int, deadline: float | None) -> None:
    """A store is about to send `count` more bytes: wait for their turn."""
    active = meter()
    if active and active.up:
        active.sent += count
        active.spend(active.up, count, deadline)


def received(count: int, deadline: float | None) -> None:
    """A store has received `count` more bytes: wait before asking for more."""
    active = meter()
    if active and active.down:
        active.received += count
        active.spend(active.down, count, deadline)
