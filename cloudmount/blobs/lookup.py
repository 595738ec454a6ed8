"""Host names to addresses, within a time limit.

Decided here and only here: `getaddrinfo` can't be interrupted and takes 20 s and more
when the line is dead, so it runs in a thread of its own, one for each name at a
time, and callers stop waiting for it. The thread is a daemon: it holds up no exit.

Threading: any number of threads.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

_STEP = 0.25
_Address = tuple[
    socket.AddressFamily,
    socket.SocketKind,
    int,
    str,
    tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes],
]


class _Lookup:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.found: list[_Address] = []
        self.failure: OSError | None = None


_lock = threading.Lock()
_running: dict[tuple[str, int], _Lookup] = {}


def addresses(host: str, port: int, until: float, stop: Callable[[], bool]) -> list[_Address]:
    """What to connect to, as `getaddrinfo` gives it; `socket.gaierror` when there is none.

    `TimeoutError` at `until` (`time.monotonic()` seconds), or soon after `stop()` is true.
    """
    with _lock:
        lookup = _running.get((host, port))
        if lookup is None:
            lookup = _running[host, port] = _Lookup()
            threading.Thread(
                target=_run, args=(host, port, lookup), name=f"look up {host}", daemon=True
            ).start()
    while not lookup.done.wait(max(0.0, min(_STEP, until - time.monotonic()))):
        if stop() or time.monotonic() >= until:
            raise TimeoutError(f"the look-up of {host} took too long")
    if lookup.failure:
        raise lookup.failure
    return lookup.found


def _run(host: str, port: int, lookup: _Lookup) -> None:
    try:
        lookup.found[:] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        lookup.failure = error
    except UnicodeError:  # a label too long for DNS
        lookup.failure = socket.gaierror(socket.EAI_NONAME, "not a host's name")
    finally:
        with _lock:
            _running.pop((host, port), None)
        lookup.done.set()
