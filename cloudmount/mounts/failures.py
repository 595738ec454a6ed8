"""What a failure in the tree becomes for the kernel, and what is logged of it.

Decided here and only here: the error tree's own errno, EIO for what nobody foresaw, and one log
line for a failure however often it is met (a VM asks for the same sector for as long as it
lives). Threading: any number of threads.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import OrderedDict

from cloudmount.errors import CloudMountError
from cloudmount.mounts.inodes import Gone

REPEAT = 600.0
"""Seconds after which a failure that goes on is logged again."""
_KEPT = 256

log = logging.getLogger("cloudmount.mounts")


class Failures:
    """Those met by one drive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: OrderedDict[str, float] = OrderedDict()

    def errno(self, failure: BaseException, doing: str) -> int:
        """What to answer; logs `failure` unless it was lately."""
        if isinstance(failure, Gone):
            return failure.errno or errno.ESTALE
        self.told(failure, doing)
        return failure.errno if isinstance(failure, CloudMountError) else errno.EIO

    def told(self, failure: BaseException, doing: str) -> None:
        """Log `failure` unless it was lately."""
        if isinstance(failure, CloudMountError):
            if self._is_new(f"{type(failure).__name__} {failure}"):
                log.warning("%s: %s", doing, failure)
        elif self._is_new(f"{doing} {type(failure).__name__} {failure}"):
            log.error(
                "%s failed in a way nobody foresaw; the program sees an I/O error", doing, exc_info=failure
            )

    def _is_new(self, text: str) -> bool:
        now = time.monotonic()
        with self._lock:
            last = self._told.get(text)
            if last is not None and now - last < REPEAT:
                return False
            self._told[text] = now
            self._told.move_to_end(text)
            if len(self._told) > _KEPT:
                self._told.popitem(last=False)
            return True
