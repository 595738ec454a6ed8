"""The QEMU guest agent: asked whether it is there, nothing else.

Decided here and only here: how often (its program may start at any time), and that an answer counts only if
it carries the number of a question of ours: what the channel still holds of earlier ones is no proof.
Belongs to one thread; never waits.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Callable

AGAIN_SECONDS = 2.0
_LONGEST = 64 << 10


class Agent:
    """The agent behind a socket, connected to by `connect`."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._connection: socket.socket | None = None
        self._asked = float("-inf")
        self._numbers: set[int] = set()
        self._text = b""

    def answers(self) -> bool:
        """Whether it answered since this was asked last."""
        try:
            if self._connection is None:
                self._connection = self._connect()
                self._connection.setblocking(False)
            if time.monotonic() - self._asked >= AGAIN_SECONDS:
                self._ask(self._connection)
            with contextlib.suppress(BlockingIOError):
                while more := self._connection.recv(4096):
                    self._text = (self._text + more)[-_LONGEST:]
                raise ConnectionError("closed")
        except OSError:
            self.close()
        *lines, self._text = self._text.split(b"\n")
        return any(self._is_answer(line) for line in lines)

    def _ask(self, connection: socket.socket) -> None:
        self._asked = time.monotonic()
        if len(self._numbers) > 100:  # nobody there to read them
            self._numbers.clear()
        number = random.getrandbits(31)
        question = {"execute": "guest-sync", "arguments": {"id": number}}
        with contextlib.suppress(BlockingIOError):
            connection.send(json.dumps(question).encode() + b"\n")
            self._numbers.add(number)

    def _is_answer(self, line: bytes) -> bool:
        try:
            value = json.loads(line.lstrip(b"\xff"))
        except ValueError:
            return False
        told = value.get("return") if isinstance(value, dict) else None
        return isinstance(told, int) and told in self._numbers

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection, self._text = None, b""
