"""Sockets that keep a request's deadline, and a line's bandwidth limit.

Decided here and only here: how long a socket operation may take. The limits are
checked at every read and write, so also within headers, TLS records and a body
that trickles a byte a second (a socket's own time-out starts anew with each).
While the kernel still drains a finished upload into a slow line, that counts as
moving: 4 MiB of it take half a minute at 1 Mbit/s.

Threading: a socket and its `Line` belong to one thread at a time.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloudmount.blobs import pacing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_SEND_PIECE = 256 * 1024
_KERNEL_QUEUE = 4 * 1024 * 1024  # Linux's largest send buffer as it comes


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a store is waited for, in seconds; see the module docstring."""

    connect: float = 10.0
    quiet: float = 20.0
    answer: float = 60.0
    slowest: float = 16 * 1024
    """Bytes a second that a line must carry on the whole when no deadline is given."""


class Line:
    """The limits of the request that a connection is serving, applied at each socket operation."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.begin(None)

    def begin(self, deadline: float | None) -> None:
        """A request starts: it ends at `deadline`, or without one when its bytes took too long."""
        self.given = deadline
        self.allowed = time.monotonic() + self.patience.answer
        self.meter = pacing.meter()
        self.waited = self.meter.waited if self.meter else 0.0
        self.unsent = 0
        self.drained = 0.0

    def left(self) -> float:
        """Seconds until the deadline; waiting for a bandwidth limit doesn't use up our own."""
        now = time.monotonic()
        if self.given is not None:
            return self.given - now
        return self.allowed - now + (self.meter.waited - self.waited if self.meter else 0.0)

    def arm(self, sock: socket.socket) -> None:
        """Give `sock` the time that its next operation has; `TimeoutError` when there is none left."""
        left = self.left()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(min(left, self.patience.quiet))

    def send(self, sock: socket.socket, send: Callable[[memoryview], int], data: ReadableBuffer) -> None:
        """All of `data` through `send`, piece by piece."""
        view = memoryview(data).cast("B")
        up = self.meter.up if self.meter else None
        step = up.piece if up else _SEND_PIECE
        for start in range(0, len(view), step):
            piece = view[start : start + step]
            pacing.sent(len(piece), self.given)
            while piece:
                self.arm(sock)
                done = send(piece)
                self.allowed += done / self.patience.slowest
                piece = piece[done:]
        self.unsent = _unsent(sock, len(view))
        self.drained = time.monotonic() + min(len(view), _KERNEL_QUEUE) / self.patience.slowest

    def receive(
        self, sock: socket.socket, receive: Callable[[WriteableBuffer, int], int], buffer: WriteableBuffer
    ) -> int:
        """Some bytes through `receive` into `buffer`; their number, 0 at the end."""
        down = self.meter.down if self.meter else None
        most = min(len(memoryview(buffer)), down.piece) if down else 0
        count = None
        while count is None:
            self.arm(sock)
            try:
                count = receive(buffer, most)
            except TimeoutError:
                if not self._draining(sock):
                    raise
        self.allowed += count / self.patience.slowest
        pacing.received(count, self.given)
        return count

    def _draining(self, sock: socket.socket) -> bool:
        """Whether the kernel got rid of some of what we sent since this was last asked."""
        before, self.unsent = self.unsent, _unsent(sock, -1)
        if self.unsent < 0:  # this system doesn't tell
            self.unsent = before
            return before > 0 and time.monotonic() < self.drained
        return self.unsent < before


def _unsent(sock: socket.socket, unknown: int) -> int:
    """Bytes sent into `sock` that the other side has not acknowledged; `unknown` where nothing tells."""
    try:
        import fcntl
        import termios

        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), "little")
    except (ImportError, AttributeError, OSError):
        return unknown


class PlainSocket(socket.socket):
    """A TCP socket that obeys its `line`."""

    line: Line

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        return self.line.receive(self, super().recv_into, buffer)

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        self.line.send(self, super().send, data)


class TLSSocket(ssl.SSLSocket):
    """A TLS socket that obeys its `line`."""

    line: Line

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        return self.line.receive(self, super().recv_into, buffer)

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        self.line.send(self, super().send, data)
