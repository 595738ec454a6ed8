"""The contract of a blob store, and what it demands of implementers.

Decided here and only here: the few operations CloudMount asks of any object
store. A store is a flat namespace of immutable objects; names are ASCII,
`/`-separated, at most 200 characters, no empty, `.` or `..` parts. Stores and
wrappers (retrying, limited, counting, faulty) share this interface, so they
stack in any order.

Threading: every method may be called from any number of threads at once.

Demanded of every store:
- Durability: when `create` or `put` returns, the object survives a power cut.
- Atomicity: a reader sees the whole object or none; a failed or killed write
  leaves nothing under the name.
- Read-after-write: after `create` returns, `read` and `list` anywhere see it.
- One try: a store does not retry; it raises `StoreUnreachableError` (worth
  retrying), `StoreRefusedError` (not), `StoreTimeoutError` (its deadline
  passed), and the wrapper `retrying` decides.
- Deadlines are absolute `time.monotonic()` seconds, None for the store's own
  default; passing one must end the call within a second, also when the other
  side goes silent in the middle of an answer. One already past fails at once.
  A listing's deadline is that of the whole iteration.
- `NoRepositoryError` from any method but `prepare` when the folder or container
  itself is missing.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

LIST_PAGE = 5000
"""Objects in one request of an unlimited listing (Azure's most)."""

_NAME = re.compile(r"(?!.{201})(?:(?!\.)[A-Za-z0-9_.=~+-]+(?<!\.)(?:/(?!$)|$))+\Z")
_PREFIX = re.compile(r"(?!.{201})[A-Za-z0-9_.=~+/-]*\Z")


def check_name(name: str) -> str:
    """`name` as it is; `ValueError` when it is not one that every store can hold."""
    if not _NAME.match(name):
        raise ValueError(f"not an object's name: {name!r}")
    return name


def check_prefix(prefix: str) -> str:
    """`prefix` as it is; `ValueError` when no object's name can start with it."""
    if not _PREFIX.match(prefix):
        raise ValueError(f"not the start of an object's name: {prefix!r}")
    return prefix


Tier = str
"""Where an object is kept: "hot", "cool" or "cold"; stores without tiers ignore it."""


Data = bytes | memoryview
"""What an object is made of. A view's memory is used again by the caller once the call returned."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What a listing tells of an object: `size` in bytes, `modified` in seconds since 1970 by
    the store's clock, `md5` (16 bytes) where the store keeps one."""

    name: str
    size: int
    modified: float
    md5: bytes | None = None


class BlobStore(abc.ABC):
    """A place for objects. See the module docstring for what is demanded."""

    @abc.abstractmethod
    def prepare(self, *, deadline: float | None = None) -> None:
        """Make the folder or container when it is missing (used by `init` only)."""

    @abc.abstractmethod
    def create(
        self, name: str, data: Data, *, tier: Tier | None = None, deadline: float | None = None
    ) -> None:
        """Store a new object in one request. `BlobExistsError` when the name is taken (or, where a
        store can't tell that from a missing permission, `StoreRefusedError`)."""

    @abc.abstractmethod
    def put(self, name: str, data: Data, *, deadline: float | None = None) -> None:
        """Store an object, replacing one of that name. Only for `config`."""

    @abc.abstractmethod
    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        """Bytes of an object, in one request: exactly `length` at `offset`, or all from `offset` on.

        `BlobMissingError` when there is no such object; `DamagedError` when it ends before the
        range does, or before or at an `offset` above 0; never fewer bytes than asked. A `length`
        of 0 is answered without asking the store.
        """

    @abc.abstractmethod
    def list(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int | None = None,
        deadline: float | None = None,
    ) -> Iterator[BlobInfo]:
        """Objects whose name starts with `prefix` and is greater than `after`, sorted by name
        (bytewise), at most `limit`. One request per page; a `limit` of up to 1000 is one request."""

    @abc.abstractmethod
    def list_folders(self, prefix: str, *, deadline: float | None = None) -> Iterator[str]:
        """The distinct next name parts below `prefix` (which ends in `/` or is empty) that have
        objects below them, sorted, without slashes."""

    @abc.abstractmethod
    def delete(self, name: str, *, deadline: float | None = None) -> None:
        """Remove an object; no error when there is none."""

    @abc.abstractmethod
    def close(self) -> None:
        """End connections. May be called twice."""

    @property
    @abc.abstractmethod
    def address(self) -> str:
        """How people name this store, without secrets (no SAS, no key)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
