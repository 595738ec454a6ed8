"""An open file of a drive: closed when nobody needs it any more.

Decided here and only here: that a source is closed once, and never under a read that was answered before
it came back. Threading: any number of threads.
"""

from __future__ import annotations

import threading

from cloudmount.extents import BlockSource


class OpenFile:
    """An open file: its source, closed when it was released and no read given up is still at work."""

    __slots__ = ("_abandoned", "_lock", "_released", "size", "source")

    def __init__(self, source: BlockSource) -> None:
        self.source = source
        self.size = source.size
        self._lock = threading.Lock()
        self._abandoned = 0
        self._released = False

    def abandoned(self) -> None:
        """A read was answered while it is still at work."""
        with self._lock:
            self._abandoned += 1

    def came_back(self) -> None:
        """Such a read has ended."""
        with self._lock:
            self._abandoned -= 1
            if self._abandoned or not self._released:
                return
        self.source.close()

    def release(self) -> None:
        """The kernel is done with it."""
        with self._lock:
            self._released = True
            if self._abandoned:
                return
        self.source.close()
