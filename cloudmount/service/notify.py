"""Telling who started a drive that it is up.

Decided here and only here: systemd's protocol (sd_notify(3)), and what a Windows service is told by. Any
thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable

_listeners: list[Callable[[], None]] = []


def when_ready(call: Callable[[], None]) -> None:
    """Have `call` called when the drive of this process is up."""
    _listeners.append(call)


def ready() -> None:
    """The drive is up."""
    for call in _listeners:
        call()
    where = os.environ.get("NOTIFY_SOCKET", "")
    if where[:1] not in ("/", "@") or not hasattr(socket, "AF_UNIX"):
        return
    address = os.fsencode(where.replace("@", "\0", 1) if where.startswith("@") else where)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
        notifying.connect(address)
        notifying.sendall(b"READY=1")
