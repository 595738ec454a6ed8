"""What used up a parser's processor time is not tried again.

Decided here and only here: that a file or folder on which a parser span once fails at once from then on, as
its bytes never change; each try would cost as many seconds again, and one parser. Crashes and silence are not
remembered: a machine short of memory or time causes them too. Any number of threads.
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
        self._lock = threading.Lock()

    def why(self, call: Hashable) -> str | None:
        """Why a call is refused; None when it isn't."""
        with self._lock:
            return self._why.get(call)

    def remember(self, call: Hashable, why: str) -> None:
        """It is refused from now on."""
        with self._lock:
            self._why[call] = why
            if len(self._why) > self._most:
                self._why.popitem(last=False)
