"""Every failure of the error tree has its own answer for Windows."""

from __future__ import annotations

import errno
import inspect

import pytest

from cloudmount import errors
from cloudmount.mounts import ntstatus
from cloudmount.mounts.ntstatus import TABLE

EVERY = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.CloudMountError)]


@pytest.mark.parametrize("failure", EVERY)
def test_each_class_is_decided(failure: type[errors.CloudMountError]) -> None:
    assert failure in TABLE
    assert TABLE[failure] >> 30 == 3, "an error, not a warning"
    by_errno = {"ENOENT": ntstatus.OBJECT_NAME_NOT_FOUND, "EROFS": ntstatus.MEDIA_WRITE_PROTECTED}
    name = errno.errorcode[failure.errno]
    assert by_errno.get(name, TABLE[failure]) == TABLE[failure]


def test_of_others_the_nearest_and_an_io_error() -> None:
    class Odd(errors.StoreTimeoutError):
        pass

    assert ntstatus.ntstatus(Odd("x")) == ntstatus.IO_TIMEOUT
    assert ntstatus.ntstatus(ZeroDivisionError()) == ntstatus.UNEXPECTED_IO_ERROR
