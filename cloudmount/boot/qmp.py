"""QMP: the line to a running QEMU.

Decided here and only here: how commands, answers and events are told apart (QEMU's docs/interop/qmp-spec).
QEMU may keep silent while it waits for a disk, so answers are waited for a while. Belongs to one thread.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections import deque
from typing import Any

from cloudmount.errors import CloudMountError

ANSWER_SECONDS = 40.0
"""How long an answer may take: a read that is under way at a dead link ends first."""


class QmpError(CloudMountError):
    """QEMU refused a command, or the line is dead."""


class QmpRefusedError(QmpError):
    """QEMU refused a command: nothing has changed."""


class Qmp:
    """The line over a connected socket; owns it."""

    def __init__(self, connection: socket.socket, *, seconds: float = ANSWER_SECONDS) -> None:
        """Greets QEMU; `QmpError` when it doesn't answer within `seconds`."""
        self._connection, self._seconds = connection, seconds
        self._text = b""
        self._events: deque[dict[str, Any]] = deque()
        self._number = 0
        self.ended = False
        """Whether QEMU has closed the line."""
        if "QMP" not in self._next(time.monotonic() + seconds):
            raise QmpError("QEMU does not answer: no greeting")
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """What QEMU answers to a command; `QmpRefusedError` when it refuses, `QmpError` when none comes."""
        self._number += 1
        message = {"execute": command, "arguments": arguments, "id": self._number}
        try:
            self._connection.settimeout(self._seconds)
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"QEMU does not answer: {error}") from None
        until = time.monotonic() + self._seconds
        while answer := self._next(until):
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise QmpRefusedError(f"QEMU refused {command}: {answer['error'].get('desc')}")
                return answer["return"]
        raise QmpError(f"QEMU did not answer {command}" + (": it has ended" if self.ended else ""))

    def events(self, seconds: float) -> list[dict[str, Any]]:
        """The events that came since the last call; waits up to `seconds` for the first."""
        until = time.monotonic() + seconds
        while not self._events and not self.ended and self._next(until):
            pass
        found = list(self._events)
        self._events.clear()
        return found

    def close(self) -> None:
        """Hang up; QEMU goes on."""
        self._connection.close()

    def _is_ready(self, seconds: float) -> bool:
        with selectors.DefaultSelector() as ready:  # not select(): that can't take descriptors above 1023
            ready.register(self._connection, selectors.EVENT_READ)
            return bool(ready.select(seconds))

    def _next(self, until: float) -> dict[str, Any]:
        """The next message; events are put aside too. Empty when none came until then."""
        while b"\n" not in self._text:
            if self.ended or not self._is_ready(max(0.0, until - time.monotonic())):
                return {}
            try:
                more = self._connection.recv(65536)
            except OSError:
                more = b""
            self.ended = not more
            self._text += more
        line, _, self._text = self._text.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self._events.append(message)
        return message
