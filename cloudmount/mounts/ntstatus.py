"""What a failure in the tree becomes for Windows: the one error tree as NTSTATUS.

Decided here and only here. Windows' own words for each (net helpmsg) are beside it, because they are what
people read. Values: [MS-ERREF] 2.3.1. Stateless; safe on any thread.
"""

from __future__ import annotations

from cloudmount import errors

ACCESS_DENIED = 0xC0000022
"""Access is denied."""
CANCELLED = 0xC0000120
"""The I/O operation has been aborted: the drive ended while it was at work."""
DATA_ERROR = 0xC000003E
"""Data error (cyclic redundancy check)."""
DISK_FULL = 0xC000007F
"""There is not enough space on the disk."""
END_OF_FILE = 0xC0000011
FILE_IS_A_DIRECTORY = 0xC00000BA
INVALID_PARAMETER = 0xC000000D
"""The parameter is incorrect."""
IO_TIMEOUT = 0xC00000B5
"""The semaphore timeout period has expired: Windows' words for any I/O that took too long."""
MEDIA_WRITE_PROTECTED = 0xC00000A2
"""The media is write protected."""
NOT_A_DIRECTORY = 0xC0000103
NOT_A_REPARSE_POINT = 0xC0000275
OBJECT_NAME_COLLISION = 0xC0000035
"""Cannot create a file when that file already exists."""
OBJECT_NAME_NOT_FOUND = 0xC0000034
"""The system cannot find the file specified."""
OBJECT_PATH_NOT_FOUND = 0xC000003A
"""The system cannot find the path specified."""
UNEXPECTED_IO_ERROR = 0xC00000E9
"""The request could not be performed because of an I/O device error."""
UNEXPECTED_NETWORK_ERROR = 0xC00000C4
"""An unexpected network error occurred."""

TABLE: dict[type[BaseException], int] = {
    errors.CloudMountError: UNEXPECTED_IO_ERROR,
    errors.UsageError: INVALID_PARAMETER,
    errors.NotFoundError: OBJECT_NAME_NOT_FOUND,
    errors.DamagedError: DATA_ERROR,
    errors.StoreError: UNEXPECTED_NETWORK_ERROR,
    errors.StoreUnreachableError: UNEXPECTED_NETWORK_ERROR,
    errors.StoreTimeoutError: IO_TIMEOUT,
    errors.StoreRefusedError: ACCESS_DENIED,
    errors.BlobMissingError: OBJECT_NAME_NOT_FOUND,
    errors.BlobExistsError: OBJECT_NAME_COLLISION,
    errors.NoRepositoryError: UNEXPECTED_NETWORK_ERROR,
    errors.WrongPassphraseError: ACCESS_DENIED,
    errors.UnreadableInputError: UNEXPECTED_IO_ERROR,
    errors.NoRoomError: DISK_FULL,
    errors.TargetExistsError: OBJECT_NAME_COLLISION,
    errors.ReadOnlyError: MEDIA_WRITE_PROTECTED,
}


def ntstatus(failure: BaseException) -> int:
    """What to answer: that of its class or the nearest one above, an I/O error for what nobody foresaw."""
    return next((TABLE[c] for c in type(failure).__mro__ if c in TABLE), UNEXPECTED_IO_ERROR)
