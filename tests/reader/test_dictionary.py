"""Reading frames that need a dictionary: by many at once, from caches, and while it does not come."""

from __future__ import annotations

import threading
import time

import pytest

from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.faulty import Fault, FaultyStore, Operation
from cloudmount.errors import DamagedError, StoreTimeoutError
from cloudmount.reader.bulk import read_frames
from cloudmount.reader.stored import FrameReader, StoredSource
from cloudmount.repo import dictionaries
from cloudmount.repo.names import dictionary_names
from tests.reader.stored_repository import StoredRepository
from tests.trained import text, trained

SIZE = 512 << 10
CONTENT = text(7, SIZE)


class Kept(dict[str, bytes]):
    """A `SealedCache`."""

    def put(self, key: str, sealed: bytes) -> None:
        self[key] = sealed

    def drop(self, key: str) -> None:
        self.pop(key, None)


class Bench:
    """A disk of compressed frames, read through a store in which something befalls dictionaries."""

    def __init__(
        self, *, timeout: float = 20.0, cache: Kept | None = None, whole: Kept | None = None
    ) -> None:
        self.made = StoredRepository(trained=trained())
        self.fault: Fault | None = None
        self.counting = CountingStore(FaultyStore(self.made.store, self._plan, stall=1.0))
        self.repository = self.made.behind(self.counting)
        self.repository.cache = whole
        self.map = self.made.disk(CONTENT, repository=self.repository)
        self.reader = FrameReader(self.repository, io_timeout=timeout, workers=4, cache=cache)
        self.source = StoredSource(self.reader, self.map, "disk")
        assert self.made.dictionary is not None
        self.names = dictionary_names(self.made.dictionary.id)
        self.asked = 0

    def _plan(self, operation: Operation) -> Fault | None:
        if operation.name.startswith("dictionaries/"):
            self.asked += 1
            return self.fault
        return None

    def read(self, offset: int = 0, length: int = SIZE) -> None:
        assert self.source.read_at(offset, length) == CONTENT[offset : offset + length]


def test_asked_for_once() -> None:
    b = Bench()
    threads = [threading.Thread(target=b.read, args=(n * 32768, 32768)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    b.read()
    assert b.asked == 1
    b.reader.close()


def test_in_bulk() -> None:
    b = Bench()
    assert b"".join(plain for _, plain in read_frames(b.repository, b.map)) == CONTENT
    assert b.asked == 1
    b.reader.close()


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.RESET, Fault.BUSY, Fault.LOST])
def test_it_does_not_come(fault: Fault) -> None:
    """As for any frame: one clear error in time, and nothing of it is remembered."""
    b = Bench(timeout=0.6)
    b.fault = fault
    begun = time.monotonic()
    with pytest.raises(StoreTimeoutError):
        b.read(0, 100)
    assert time.monotonic() - begun < 20
    b.fault = None
    end = time.monotonic() + 20
    while True:
        try:
            b.read(0, 100)
            break
        except StoreTimeoutError:
            assert time.monotonic() < end
            time.sleep(0.05)
    b.reader.close()


def test_readers_behind_a_silent_one() -> None:
    """More readers than workers wait for a dictionary that does not come: none waits longer than its time."""
    b = Bench(timeout=1.0)
    b.fault = Fault.STALL
    failed: list[StoreTimeoutError] = []

    def read(n: int) -> None:
        try:
            b.read(n * 32768, 100)
        except StoreTimeoutError as error:
            failed.append(error)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(failed) == 16
    b.reader.close()


def test_from_caches_without_a_store() -> None:
    """Frames and dictionary are kept: what was read once is read without a request."""
    cache, whole = Kept(), Kept()
    b = Bench(cache=cache, whole=whole)
    b.read()
    b.reader.settle(10)
    b.reader.close()
    assert b.names[0] in whole
    before = b.counting.snapshot().requests
    repository = b.made.behind(b.counting)
    repository.cache = whole
    frames = FrameReader(repository, cache=cache)
    assert StoredSource(frames, b.map, "disk").read_at(0, SIZE) == CONTENT
    assert b.counting.snapshot().requests == before
    frames.close()


def test_from_a_cache_that_lost_the_dictionary() -> None:
    """Frames that can't be inflated without asking are fetched; the kept ones are not taken for damaged."""
    cache = Kept()
    b = Bench(cache=cache)
    b.read()
    b.reader.settle(10)
    b.reader.close()
    kept = dict(cache)
    frames = FrameReader(b.made.behind(b.counting), cache=cache)
    source = StoredSource(frames, b.map, "disk")
    assert source.read_at(0, 100) == CONTENT[:100]
    requests = frames.fetched().requests
    assert requests
    assert source.read_at(0, SIZE) == CONTENT
    assert frames.fetched().cached > 50
    assert cache == kept
    frames.close()


def test_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "KEPT_WRONG", 0.0)
    b = Bench()
    kept = {name: b.made.store.read(name) for name in b.names}
    for name in b.names:
        b.made.store.delete(name)
    with pytest.raises(DamagedError, match=rf"{b.names[0]}, the dictionary"):
        b.read(0, 100)
    with pytest.raises(DamagedError, match=r"bring back either"):
        list(read_frames(b.repository, b.map))
    b.made.store.create(b.names[1], kept[b.names[1]])
    b.read()
    b.reader.close()
