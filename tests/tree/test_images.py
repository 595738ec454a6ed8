"""Reads of a VM's disks that fail, and are tried again."""

from __future__ import annotations

import pytest

from cloudmount.errors import DamagedError, StoreRefusedError, StoreTimeoutError
from cloudmount.extents import Bytes, LocalCopy
from cloudmount.tree.images import FailedReads, _Image


class Flaky(Bytes):
    """Fails as long as it has an error."""

    error: Exception | None = None
    reads = 0

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return super().read_at(offset, length)


class Local(Flaky):
    """With a copy on this machine."""

    def local_path(self) -> str | None:
        return "/copy"


def test_what_failed_is_read_again_until_it_can_be() -> None:
    failed, source = FailedReads(), Flaky(b"0123456789")
    image = _Image(source, failed)
    assert image.read_at(2, 3) == b"234" and failed.retry() and failed.why() == "a disk can't be read"
    source.error = StoreTimeoutError("no answer")
    for offset in (0, 4, 4):
        with pytest.raises(StoreTimeoutError):
            image.read_at(offset, 2)
    assert failed.why() == "repository unreachable" and not failed.retry()
    source.error, source.reads = None, 0
    assert failed.retry() and source.reads == 2 and failed.retry() and source.reads == 2


def test_the_reason_is_told() -> None:
    failed, source = FailedReads(), Flaky(b"0123")
    for error, why in (
        (StoreRefusedError("403"), "refuses (403)"),
        (DamagedError("pack 7 is altered"), "pack 7"),
    ):
        source.error = error
        with pytest.raises(type(error)):
            _Image(source, failed).read_at(0, 1)
        assert why in failed.why()
    source.error = ValueError("this source is closed")
    assert failed.retry()  # nobody waits for it


def test_a_local_copy_stays_one() -> None:
    assert isinstance(_Image(Local(b""), FailedReads()), LocalCopy)
    assert not isinstance(_Image(Flaky(b""), FailedReads()), LocalCopy)
