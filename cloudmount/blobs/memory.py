"""A store in memory, for tests: exact about the contract, and as bare as it can be.

Decided here and only here: nothing; it is the model that others are compared with.
`write_once` behaves as Azure under a SAS with `sp=rcl` does: what exists is refused
as if the permission were missing.

Threading: any number of threads; one lock.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator

from cloudmount.blobs.store import BlobInfo, BlobStore, Data, Tier, check_name, check_prefix
from cloudmount.errors import (
    BlobExistsError,
    BlobMissingError,
    DamagedError,
    NoRepositoryError,
    NoRoomError,
    StoreRefusedError,
    StoreTimeoutError,
)


class MemoryStore(BlobStore):
    """Objects in a dictionary; made `prepared` unless told otherwise.

    `capacity` is the bytes it holds before `NoRoomError`; `keeps_md5` False leaves digests out of
    listings, as a folder does; `clock` gives the times of objects.
    """

    def __init__(
        self,
        *,
        prepared: bool = True,
        write_once: bool = False,
        keeps_md5: bool = True,
        capacity: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.objects: dict[str, bytes] = {}
        self.tiers: dict[str, Tier | None] = {}
        self.write_once = write_once
        self._prepared = prepared
        self._keeps_md5 = keeps_md5
        self._capacity = capacity
        self._clock = clock
        self._infos: dict[str, BlobInfo] = {}
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return "memory"

    def prepare(self, *, deadline: float | None = None) -> None:
        _check_time("the memory", deadline)
        self._prepared = True

    def create(
        self, name: str, data: Data, *, tier: Tier | None = None, deadline: float | None = None
    ) -> None:
        self._check(check_name(name), deadline)
        with self._lock:
            if name in self.objects:
                if self.write_once:
                    raise StoreRefusedError(f"no permission to write {name}")
                raise BlobExistsError(name)
            self._store(name, data, tier)

    def put(self, name: str, data: Data, *, deadline: float | None = None) -> None:
        self._check(check_name(name), deadline)
        if self.write_once:
            raise StoreRefusedError(f"no permission to replace {name}")
        with self._lock:
            self._store(name, data, None)

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        check_name(name)
        if length == 0:
            return b""
        self._check(name, deadline)
        data = self.objects.get(name)
        if data is None:
            raise BlobMissingError(name)
        end = len(data) if length is None else offset + length
        if end > len(data) or (offset and offset >= len(data)):
            raise DamagedError(f"object {name} has {len(data)} bytes, but more are needed")
        return data[offset:end]

    def list(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int | None = None,
        deadline: float | None = None,
    ) -> Iterator[BlobInfo]:
        self._check(check_prefix(prefix), deadline)
        with self._lock:
            found = [info for name, info in self._infos.items() if name.startswith(prefix) and name > after]
        found.sort(key=lambda info: info.name)
        yield from found[:limit]

    def list_folders(self, prefix: str, *, deadline: float | None = None) -> Iterator[str]:
        self._check(check_prefix(prefix), deadline)
        with self._lock:
            below = [name[len(prefix) :] for name in self.objects if name.startswith(prefix)]
        yield from sorted({name.partition("/")[0] for name in below if "/" in name})

    def delete(self, name: str, *, deadline: float | None = None) -> None:
        self._check(check_name(name), deadline)
        if self.write_once:
            raise StoreRefusedError(f"no permission to delete {name}")
        with self._lock:
            self.objects.pop(name, None)
            self.tiers.pop(name, None)
            self._infos.pop(name, None)

    def close(self) -> None:
        """Nothing is open."""

    def _check(self, name: str, deadline: float | None) -> None:
        _check_time(name, deadline)
        if not self._prepared:
            raise NoRepositoryError("this memory was not prepared")

    def _store(self, name: str, data: Data, tier: Tier | None) -> None:
        if self._capacity is not None:
            held = sum(map(len, self.objects.values())) - len(self.objects.get(name, b""))
            if held + len(data) > self._capacity:
                raise NoRoomError(f"no room for {name}")
        data = bytes(data)
        digest = hashlib.md5(data, usedforsecurity=False).digest() if self._keeps_md5 else None
        self.objects[name] = data
        self.tiers[name] = tier
        self._infos[name] = BlobInfo(name, len(data), self._clock(), digest)


def _check_time(name: str, deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise StoreTimeoutError(f"the deadline passed before {name}")
