"""Counts what is asked of a store: for progress, `status`, and tests of how little is asked.

Decided here and only here: what counts as one request. Each call does, failed ones
too, but for reads of no bytes; a listing counts one for each `LIST_PAGE` objects it
gave, at least one. Put it under `retrying` to count tries, above it to count
operations.

Threading: any number of threads; a snapshot is of one moment.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import astuple, dataclass

from cloudmount.blobs.store import LIST_PAGE, BlobInfo, BlobStore, Data, Tier


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests by kind, and bytes of objects sent and received. Subtract an earlier one for a difference."""

    prepare: int = 0
    create: int = 0
    put: int = 0
    read: int = 0
    list: int = 0
    list_folders: int = 0
    delete: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def requests(self) -> int:
        """All requests."""
        return self.prepare + self.writes + self.reads + self.delete

    @property
    def reads(self) -> int:
        """Reads and listings."""
        return self.read + self.list + self.list_folders

    @property
    def writes(self) -> int:
        """Objects sent."""
        return self.create + self.put

    def __sub__(self, before: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(astuple(self), astuple(before), strict=True)))

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class CountingStore(BlobStore):
    """`inner`, counted."""

    def __init__(self, inner: BlobStore) -> None:
        self.inner = inner
        self._counts = Counts()
        self._lock = threading.Lock()

    def snapshot(self) -> Counts:
        """What was counted so far; frozen."""
        return self._counts

    def _add(self, more: Counts) -> None:
        with self._lock:
            self._counts += more

    @property
    def address(self) -> str:
        return self.inner.address

    def prepare(self, *, deadline: float | None = None) -> None:
        self._add(Counts(prepare=1))
        self.inner.prepare(deadline=deadline)

    def create(
        self, name: str, data: Data, *, tier: Tier | None = None, deadline: float | None = None
    ) -> None:
        self._add(Counts(create=1, bytes_up=len(data)))
        self.inner.create(name, data, tier=tier, deadline=deadline)

    def put(self, name: str, data: Data, *, deadline: float | None = None) -> None:
        self._add(Counts(put=1, bytes_up=len(data)))
        self.inner.put(name, data, deadline=deadline)

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        if length != 0:
            self._add(Counts(read=1))
        data = self.inner.read(name, offset, length, deadline=deadline)
        self._add(Counts(bytes_down=len(data)))
        return data

    def list(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int | None = None,
        deadline: float | None = None,
    ) -> Iterator[BlobInfo]:
        if limit is not None and limit <= 0:
            return
        self._add(Counts(list=1))
        items = self.inner.list(prefix, after=after, limit=limit, deadline=deadline)
        for number, item in enumerate(items):
            if number and number % LIST_PAGE == 0:
                self._add(Counts(list=1))
            yield item

    def list_folders(self, prefix: str, *, deadline: float | None = None) -> Iterator[str]:
        self._add(Counts(list_folders=1))
        yield from self.inner.list_folders(prefix, deadline=deadline)

    def delete(self, name: str, *, deadline: float | None = None) -> None:
        self._add(Counts(delete=1))
        self.inner.delete(name, deadline=deadline)

    def close(self) -> None:
        self.inner.close()
