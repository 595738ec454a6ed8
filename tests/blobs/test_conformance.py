"""The conformance suite on every store and wrapper, Azure's on Azurite."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmount.blobs.azure import AzureStore
from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.faulty import HONEST, FaultyStore, randomly
from cloudmount.blobs.limited import LimitedStore
from cloudmount.blobs.local import LocalStore
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.retrying import RetryingStore, RetryPolicy
from cloudmount.blobs.store import BlobStore
from tests.azurite_server import AzuriteServer
from tests.blobs.conformance import StoreConformance

QUICK = RetryPolicy(total=30, first=0.001, longest=0.002)


class TestMemory(StoreConformance):
    keeps_md5 = True

    @pytest.fixture
    def store(self) -> BlobStore:
        return MemoryStore()

    @pytest.fixture
    def unprepared(self) -> BlobStore:
        return MemoryStore(prepared=False)


class TestMemoryWriteOnce(TestMemory):
    """What Azure's `sp=rcl` allows."""

    tells_existing = may_replace = may_delete = False

    @pytest.fixture
    def store(self) -> BlobStore:
        return MemoryStore(write_once=True)

    @pytest.fixture
    def unprepared(self) -> None:
        return None


class TestFolder(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        store = LocalStore(tmp_path / "repository")
        store.prepare()
        return store

    @pytest.fixture
    def unprepared(self, tmp_path: Path) -> BlobStore:
        return LocalStore(tmp_path / "deep" / "repository")


class TestRetrying(TestMemory):
    @pytest.fixture
    def store(self) -> BlobStore:
        return RetryingStore(MemoryStore())

    @pytest.fixture
    def unprepared(self) -> BlobStore:
        return RetryingStore(MemoryStore(prepared=False))


class TestRetryingFaults(TestMemory):
    """A third of all operations fail, before or after their effect, and nobody notices."""

    @pytest.fixture
    def store(self) -> BlobStore:
        return _retried(MemoryStore())

    @pytest.fixture
    def unprepared(self) -> BlobStore:
        return _retried(MemoryStore(prepared=False))


class TestRetryingFaultsWriteOnce(TestRetryingFaults):
    """The same under a credential that can't tell what exists from what is not allowed."""

    may_replace = may_delete = False  # but what exists is told, after a look

    @pytest.fixture
    def store(self) -> BlobStore:
        return _retried(MemoryStore(write_once=True))


class TestRetryingFaultsWithoutMD5(TestRetryingFaults):
    """The same on a store whose listings tell no digests: bytes are read back."""

    keeps_md5 = False

    @pytest.fixture
    def store(self) -> BlobStore:
        return _retried(MemoryStore(keeps_md5=False))


class TestLimited(TestMemory):
    @pytest.fixture
    def store(self) -> BlobStore:
        return LimitedStore(MemoryStore(), concurrency=2, up=1e9, down=1e9)

    @pytest.fixture
    def unprepared(self) -> BlobStore:
        return LimitedStore(MemoryStore(prepared=False), concurrency=1)


class TestLimitedFolder(TestFolder):
    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        store = LimitedStore(LocalStore(tmp_path), concurrency=2, up=1e9, down=1e9)
        store.prepare()
        return store


class TestCounting(TestMemory):
    @pytest.fixture
    def store(self) -> BlobStore:
        return CountingStore(MemoryStore())

    @pytest.fixture
    def unprepared(self) -> BlobStore:
        return CountingStore(MemoryStore(prepared=False))


class TestFaultyWithoutFaults(TestMemory):
    @pytest.fixture
    def store(self) -> BlobStore:
        return FaultyStore(MemoryStore(), lambda _: None)

    @pytest.fixture
    def unprepared(self) -> BlobStore:
        return FaultyStore(MemoryStore(prepared=False), lambda _: None)


class TestAllWrappers(TestFolder):
    """In the order a command stacks them."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        limited = LimitedStore(CountingStore(LocalStore(tmp_path)), concurrency=4)
        store = CountingStore(RetryingStore(limited))
        store.prepare()
        return store


@pytest.mark.azurite
class TestAzureWithKey(StoreConformance):
    keeps_md5 = True

    @pytest.fixture
    def store(self, azurite: AzuriteServer) -> Iterator[BlobStore]:
        with AzureStore(azurite.place(azurite.new_container())) as store:
            yield store

    @pytest.fixture
    def unprepared(self, azurite: AzuriteServer) -> Iterator[BlobStore]:
        with AzureStore(azurite.place(azurite.new_container(make=False))) as store:
            yield store


@pytest.mark.azurite
class TestAzureFolderWithSAS(TestAzureWithKey):
    """A folder in a container; pages are small so that listings have many."""

    @pytest.fixture
    def store(self, azurite: AzuriteServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[BlobStore]:
        monkeypatch.setattr("cloudmount.blobs.azure.LIST_PAGE", 3)
        place = azurite.place(azurite.new_container(), permissions="racwdl", prefix="backups/office")
        with AzureStore(place) as store:
            yield store

    @pytest.fixture
    def unprepared(self) -> None:
        return None  # a container's SAS can't make it


@pytest.mark.azurite
class TestAzureWriteOnce(TestAzureFolderWithSAS):
    """Read, create and list; no write, no delete."""

    tells_existing = may_replace = may_delete = False

    @pytest.fixture
    def store(self, azurite: AzuriteServer) -> Iterator[BlobStore]:
        with AzureStore(azurite.place(azurite.new_container(), permissions="rcl")) as store:
            store.prepare()
            yield store


@pytest.mark.azurite
class TestAzureWriteOnceRetried(TestAzureWriteOnce):
    """As a backup uses it: with faults, acknowledgements lost after the write among them."""

    tells_existing = True

    @pytest.fixture
    def store(self, azurite: AzuriteServer) -> Iterator[BlobStore]:
        with _retried(AzureStore(azurite.place(azurite.new_container(), permissions="rcl"))) as store:
            yield store


def _retried(inner: BlobStore) -> RetryingStore:
    faulty = FaultyStore(inner, randomly(5, 0.3, HONEST), stall=0.001, sleep=lambda _: None)
    return RetryingStore(faulty, QUICK, starting=None, rng=random.Random(1))
