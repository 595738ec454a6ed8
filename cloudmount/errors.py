"""The one error tree: every failure a user can meet, with its errno and exit code.

Decided here and only here: which exit code (``cli.md``) and which errno (for a
mounted drive) a failure has. Foreign errors (SDK, OSError) are translated into
these where they enter; adapters translate them to errno or NTSTATUS where they
leave. Messages name what is wrong and what to do; they end without a full stop
so that callers may add to them. Immutable, so threads may share them.
"""

from __future__ import annotations

import errno as _errno
from typing import ClassVar


class CloudMountError(Exception):
    """Base of all failures CloudMount reports. ``exit_code`` 1, errno EIO."""

    exit_code: ClassVar[int] = 1
    errno: ClassVar[int] = _errno.EIO


class UsageError(CloudMountError):
    """The command line is wrong (exit 2)."""

    exit_code = 2
    errno = _errno.EINVAL


class NotFoundError(CloudMountError):
    """No such snapshot, machine, disk or path (exit 3, ENOENT)."""

    exit_code = 3
    errno = _errno.ENOENT


class DamagedError(CloudMountError):
    """Stored bytes are missing, altered, or not what their parent names (exit 4, EIO)."""

    exit_code = 4


class StoreError(CloudMountError):
    """The store is not reachable, or it refused (exit 5, EIO)."""

    exit_code = 5


class StoreUnreachableError(StoreError):
    """No answer, a broken answer, or 'try later': worth retrying."""


class StoreTimeoutError(StoreUnreachableError):
    """Our own deadline for an operation passed (ETIMEDOUT is shown as EIO on drives)."""


class StoreRefusedError(StoreError):
    """The store answered no: credentials, permissions, no such container."""

    errno = _errno.EACCES


class BlobMissingError(StoreError):
    """A named object does not exist. Callers say what its absence means."""

    errno = _errno.ENOENT

    def __init__(self, name: str, message: str | None = None) -> None:
        super().__init__(message or f"object {name} is not in the store")
        self.name = name


class BlobExistsError(StoreError):
    """A create was refused because the name is taken."""

    errno = _errno.EEXIST

    def __init__(self, name: str, message: str | None = None) -> None:
        super().__init__(message or f"object {name} exists already")
        self.name = name


class NoRepositoryError(StoreError):
    """The address holds no repository (exit 5)."""


class WrongPassphraseError(CloudMountError):
    """Neither a slot's passphrase nor its recovery phrase (exit 6)."""

    exit_code = 6
    errno = _errno.EACCES


class UnreadableInputError(CloudMountError):
    """An input can't be read: what, where, why (exit 7)."""

    exit_code = 7


class NoRoomError(CloudMountError):
    """No room left, here or in the store (exit 8, ENOSPC)."""

    exit_code = 8
    errno = _errno.ENOSPC


class TargetExistsError(CloudMountError):
    """The target exists and is not overwritten (exit 8, EEXIST)."""

    exit_code = 8
    errno = _errno.EEXIST


class ReadOnlyError(CloudMountError):
    """The drive is read-only (EROFS)."""

    errno = _errno.EROFS
