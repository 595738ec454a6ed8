"""The drive while its store is silent: it waits as long as it was told, and shows what it knows."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.store import BlobInfo, BlobStore
from cloudmount.errors import StoreTimeoutError
from cloudmount.tree.refreshed import PATIENCE, Refreshed
from tests.backup.lab import Lab
from tests.mounts.drivers import each_driver
from tests.mounts.mounting import within
from tests.tree.drives import MIB, mounted_drive, names, raw_disk

IO_TIMEOUT = 3.0


class SilentStore(CountingStore):
    """A store that can be made silent: then every call takes `IO_TIMEOUT`, unless the store comes back."""

    def __init__(self, inner: BlobStore) -> None:
        super().__init__(inner)
        self.answers = threading.Event()
        self.answers.set()

    def _wait(self, deadline: float | None) -> None:
        seconds = IO_TIMEOUT if deadline is None else max(0.0, min(IO_TIMEOUT, deadline - time.monotonic()))
        if not self.answers.wait(seconds):
            raise StoreTimeoutError("the store does not answer")

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        self._wait(deadline)
        return super().read(name, offset, length, deadline=deadline)

    def list(
        self, prefix: str, *, after: str = "", limit: int | None = None, deadline: float | None = None
    ) -> Iterator[BlobInfo]:
        self._wait(deadline)
        yield from super().list(prefix, after=after, limit=limit, deadline=deadline)

    def list_folders(self, prefix: str, *, deadline: float | None = None) -> Iterator[str]:
        self._wait(deadline)
        yield from super().list_folders(prefix, deadline=deadline)


def _failed(path: Path) -> float:
    """Seconds until reading ends with EIO."""
    began = time.monotonic()
    with pytest.raises(OSError, match="Input/output error") as caught:
        path.read_bytes()
    assert caught.value.errno == errno.EIO
    return time.monotonic() - began


@pytest.mark.mount
@each_driver
def test_a_silent_store_and_its_return(tmp_path: Path, driver: str) -> None:
    lab = Lab(tmp_path / "lab")
    raw = raw_disk(tmp_path / "disk.img", 64 * MIB)
    content = raw.read_bytes()
    (tmp_path / "file").write_bytes(os.urandom(MIB))
    first = lab.backup(raw, tmp_path / "file")
    store = SilentStore(lab.store)
    with mounted_drive(lab, tmp_path / "drive", driver, store, IO_TIMEOUT) as mount:
        at = mount.path / "srv"
        listed = names(at)
        fd = os.open(at / "latest" / "disk.img", os.O_RDONLY)
        try:
            assert os.pread(fd, 4096, 0) == content[:4096]
            store.answers.clear()
            time.sleep(3.2)  # what was listed is no longer fresh
            began = time.monotonic()
            assert names(at) == listed
            assert os.readlink(at / "latest") == first.key.folder
            assert os.stat(at / "latest" / "disk.img").st_size == 64 * MIB
            assert os.pread(fd, 4096, 0) == content[:4096]
            assert time.monotonic() - began < 2 * PATIENCE + 10
            with ThreadPoolExecutor(8) as pool:  # who waits, waits together
                began = time.monotonic()
                stats = list(pool.map(lambda _: os.stat(at / first.key.folder).st_ino, range(8)))
                assert len(set(stats)) == 1
                assert time.monotonic() - began < PATIENCE + 10
            seconds = _failed(at / "latest" / "file")
            assert IO_TIMEOUT - 0.5 < seconds < IO_TIMEOUT + 20
            began = time.monotonic()
            with pytest.raises(OSError, match="Input/output error"):
                (mount.path / "unknown" / "x").stat()
            assert time.monotonic() - began < IO_TIMEOUT + 20

            raw.write_bytes(content[:MIB] + b"new" + content[MIB + 3 :])
            second = lab.backup(raw, force_read=True)
            store.answers.set()
            assert within(8, lambda: _moved(at, second.key.folder))
            assert (at / "latest" / "disk.img").read_bytes() == raw.read_bytes()
            assert (at / first.key.folder / "file").read_bytes() == (tmp_path / "file").read_bytes()
            assert os.pread(fd, 4096, 63 * MIB) == content[63 * MIB : 63 * MIB + 4096]
        finally:
            os.close(fd)


def _moved(at: Path, folder: str) -> bool:
    return os.readlink(at / "latest").startswith(folder)


def test_refreshed() -> None:
    calls: list[float] = []
    hang = threading.Event()
    hang.set()
    failure: list[Exception] = []
    told: list[str] = []

    def load() -> int:
        calls.append(time.monotonic())
        hang.wait()
        if failure:
            raise failure[0]
        return len(calls)

    value = Refreshed(load, 0.2, told.append)
    assert value.known is None
    failure.append(StoreTimeoutError("silent"))
    for _ in range(2):
        with pytest.raises(StoreTimeoutError, match="silent"):
            value.get()
    failure.clear()
    assert value.get() == value.get() == 3
    time.sleep(0.25)
    assert value.get() == 4
    time.sleep(0.25)
    failure.append(StoreTimeoutError("silent"))
    assert value.get() == 4
    assert told == ["silent; what was listed before is shown"]
    assert value.get() == 4
    assert len(calls) == 5, "a failure isn't asked for again at once"
    failure.clear()
    time.sleep(0.25)
    hang.clear()
    with ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        assert list(pool.map(lambda _: value.get(), range(4))) == [4] * 4
        assert PATIENCE - 0.1 < time.monotonic() - began < 2 * PATIENCE
        began = time.monotonic()
        assert value.get() == 4
        assert time.monotonic() - began < PATIENCE / 2, "waited for it once already"
    assert len(calls) == 6, "one load at a time"
    hang.set()
    assert within(2, lambda: value.known == 6)


def test_refreshed_tells_a_fault() -> None:
    def load() -> int:
        raise ZeroDivisionError

    value = Refreshed(load, 1.0, lambda _: None)
    with pytest.raises(ZeroDivisionError):
        value.get()
