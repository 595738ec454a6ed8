"""Where a drive is put up: what the life of a drive (`lifecycle`) asks of the place.

Decided here and only here: that interface. `folders` has FUSE's, `letters` Windows'. Threading: on
the main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cloudmount.mounts.driver import Drive


class Site(Protocol):
    """One place for one drive."""

    path: str
    """What people call it, and what its record is found by."""
    made: bool
    """Whether a folder was made for it, which goes with it."""

    def take(self, tell: Callable[[str], None]) -> None:
        """Make it fit for a drive, or `CloudMountError`; what people should know is told."""

    def attached(self, drive: Drive) -> None:
        """The drive is there now."""

    def stays(self) -> bool:
        """False once somebody unmounted it from outside, or asked for that."""

    def there(self) -> bool:
        """Whether there is something to detach."""

    def detach(self, *, lazy: bool) -> str | None:
        """Unmount it; None when that worked, else why not. `lazy` also while it is in use."""

    def leave(self) -> None:
        """The drive has ended: take away what was made for it."""
