"""What used up a parser's processor time is not tried again.

Decided here and only here: that a file or folder on which a parser span once fails at once from then on, as
its bytes never change; each try would cost as many seconds again, and one parser. Silence counts when it was
met twice, crashes never: a machine short of time or memory, or one that slept, causes them too. Any number of
threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

MOST = 4096


class Wedged:
    """Calls that are refused, and why."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._why: OrderedDict[Hashable, str] = OrderedDict()
        self._silent: OrderedDict[Hashable, None] = OrderedDict()
        self._lock = threading.Lock()

    def why(self, call: Hashable) -> str | None:
        """Why a call is refused; None when it isn't."""
        with self._lock:
            return self._why.get(call)

    def silent(self, call: Hashable, why: str) -> None:
        """A parser said nothing for too long; the second time the call is refused from now on."""
        with self._lock:
            again = call in self._silent
            self._silent[call] = None
            if len(self._silent) > self._most:
                self._silent.popitem(last=False)
        if again:
            self.remember(call, why)

    def remember(self, call: Hashable, why: str) -> None:
        """It is refused from now on."""
        with self._lock:
            self._why[call] = why
            if len(self._why) > self._most:
                self._why.popitem(last=False)
