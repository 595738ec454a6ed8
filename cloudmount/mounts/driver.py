"""What a driver is: it shows one `Dir` at one mount point, and translates, nothing else.

Decided here and only here: what the life of a drive (`lifecycle`) asks of a driver, so that
`refuse`, the native one and WinFsp are exchanged for one another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cloudmount.nodes import Dir

FILESYSTEM = "cloudmount"
"""Subtype and source of our mounts: `fuse.cloudmount` and `cloudmount` in /proc/self/mountinfo."""


@dataclass(frozen=True, slots=True)
class Space:
    """What `df` shows: bytes and number of files of the whole tree. Nothing is ever free."""

    size: int = 0
    files: int = 0


@dataclass(frozen=True, slots=True)
class DriveOptions:
    """How a tree is shown."""

    allow_other: bool = False
    """Other users see it too; the permissions backed up then hold for them."""
    space: Callable[[], Space] = Space
    """Asked at each `df`; must answer from memory."""


class Drive(Protocol):
    """A tree at its mount point, from the moment it is made."""

    up: threading.Event
    """Set when the kernel's first request was answered."""

    @property
    def pass_through(self) -> str:
        """Whether the kernel reads complete local copies by itself: "yes", or "no: " and why."""

    def run(self) -> None:
        """Serve until unmounted, then until every request below has come back. Ends by itself
        when somebody unmounts; must be called exactly once."""

    def waiting(self, seconds: float) -> int:
        """How many requests have been waiting for the tree for at least `seconds`."""


class Driver(Protocol):
    """Makes drives."""

    def __call__(self, root: Dir, mountpoint: str, options: DriveOptions) -> Drive:
        """Mount `root` at `mountpoint`, an existing folder. `CloudMountError` when that fails."""
