"""An open repository: its machines, its snapshots, and the sealed pieces they name.

Decided here and only here: which requests finding and opening a snapshot takes
(FORMAT.md section 10), and that a snapshot that doesn't open is skipped. Safe on any thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cloudmount.blobs.store import BlobInfo, BlobStore, Tier
from cloudmount.crypto.keyring import ID_BYTES, Keyring
from cloudmount.crypto.slots import KdfCost
from cloudmount.errors import BlobMissingError, DamagedError, NotFoundError
from cloudmount.repo.config import Config, Geometry, create_config, open_config
from cloudmount.repo.dictionaries import Dictionaries
from cloudmount.repo.loading import LoadingCache
from cloudmount.repo.mapobjects import open_item
from cloudmount.repo.names import SNAPSHOTS, SnapshotKey, map_name, parse_snapshot_name
from cloudmount.repo.objects import SectionReader
from cloudmount.repo.pages import ItemRef, Page, decode_page
from cloudmount.repo.payload import METADATA_LIMIT
from cloudmount.repo.snapshots import Section, Snapshot, open_snapshot
from cloudmount.repo.structures import HEADER_BYTES, ITEM_PAGE, KIND_SNAPSHOT

WHOLE_BYTES, HEAD_BYTES = 384 << 10, 96 << 10
"""Up to how many bytes a snapshot object is read whole, and how many of a larger one are read first
(FORMAT.md section 10)."""
NEWEST_BYTES = 512 << 10
"""The same of a machine's newest, which is likely to be read: the page of a disk of 4 TiB is among them."""
FIRST_NAMES = 100
"""How many names the listing asks for that looks for the newest snapshot."""

T = TypeVar("T")


class SealedCache(Protocol):
    """A place that keeps sealed pieces between runs. Never trusted: what it gives is opened as if it
    came from the store, and dropped when it does not open."""

    def get(self, key: str) -> bytes | None:
        """What was kept under `key`."""

    def put(self, key: str, sealed: bytes) -> None:
        """Keep it, if there is room."""

    def drop(self, key: str) -> None:
        """Forget it."""


def _silent(message: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that has snapshots; `tag` stands for its name in object names."""

    name: str
    tag: str


class Repository:
    """An open repository. `tell` gets one-line warnings that people should see."""

    def __init__(
        self,
        store: BlobStore,
        config: Config,
        *,
        cache: SealedCache | None = None,
        tell: Callable[[str], None] = _silent,
    ) -> None:
        self.store = store
        self.config = config
        self.cache = cache
        self.tell = tell
        self._heads: LoadingCache[str, tuple[Snapshot, SectionReader, bytes]] = LoadingCache(
            16 << 20, lambda opened: 2000 + 4 * len(opened[2])
        )
        self.dictionaries = Dictionaries(self)
        self._told: set[str] = set()

    @classmethod
    def init(
        cls,
        store: BlobStore,
        passphrase: str,
        phrase: str,
        *,
        geometry: Geometry | None = None,
        tier: Tier = "hot",
        cost: KdfCost | None = None,
    ) -> Repository:
        """A new repository in an empty `store`, opened by `passphrase` and by recovery `phrase`."""
        return cls(store, create_config(store, passphrase, phrase, geometry=geometry, tier=tier, cost=cost))

    @classmethod
    def open(
        cls,
        store: BlobStore,
        text: str,
        *,
        cache: SealedCache | None = None,
        tell: Callable[[str], None] = _silent,
    ) -> Repository:
        """The repository in `store`, by a passphrase or recovery phrase."""
        return cls(store, open_config(store, text, tell), cache=cache, tell=tell)

    @property
    def keys(self) -> Keyring:
        """The repository's keys."""
        return self.config.keys

    @property
    def geometry(self) -> Geometry:
        """The repository's sizes."""
        return self.config.geometry

    # Snapshots

    def listed(self, tag: str, *, limit: int | None = None) -> dict[SnapshotKey, BlobInfo]:
        """A machine's snapshots as their names tell, oldest first, each with the object of its newest
        layout; of the newest `limit` names only, when given. What doesn't open is among them."""
        found: dict[SnapshotKey, tuple[int, BlobInfo]] = {}
        for info in self.store.list(f"{SNAPSHOTS}{tag}/", limit=limit):
            told = parse_snapshot_name(info.name)
            if told is None:
                self.warn(f"{info.name}: not a snapshot's name; ignored")
            elif told.key not in found or found[told.key][0] < told.generation:
                found[told.key] = (told.generation, info)
        return {key: found[key][1] for key in sorted(found)}

    def newest(self, tag: str) -> tuple[Snapshot, int] | None:
        """The newest snapshot of a machine that opens, and how many newer ones do not; None without any.

        Two requests, when the newest opens.
        """
        skipped: set[SnapshotKey] = set()
        for limit in (FIRST_NAMES, None):
            found = self.listed(tag, limit=limit)
            for key, info in reversed(found.items()):
                if key in skipped:
                    continue
                try:
                    return self._open_head(info.name, info.size, NEWEST_BYTES)[0], len(skipped)
                except (DamagedError, BlobMissingError) as error:
                    self.warn(f"{error}; the next newest snapshot is taken as latest")
                    skipped.add(key)
            if len(found) < FIRST_NAMES // 2:
                break
        return None

    def load(self, info: BlobInfo) -> Snapshot:
        """Open the snapshot whose object a listing told of. One request, when it isn't very large."""
        return self._open_head(info.name, info.size)[0]

    def _open_head(
        self, name: str, size: int, head_bytes: int = HEAD_BYTES
    ) -> tuple[Snapshot, SectionReader, bytes]:
        def fetch() -> bytes:
            head = self.store.read(name, 0, size if size <= WHOLE_BYTES else min(size, head_bytes))
            lead = SectionReader(self.keys, KIND_SNAPSHOT, name, head).lead
            missing = HEADER_BYTES + lead - len(head)
            if lead > METADATA_LIMIT or HEADER_BYTES + lead > size:
                raise DamagedError(f"{name} claims more bytes than it has")
            return head + self.store.read(name, len(head), missing) if missing > 0 else head

        def opened(head: bytes) -> tuple[Snapshot, SectionReader, bytes]:
            snapshot, reader = open_snapshot(self.keys, name, head)
            if snapshot.total_length != size:
                raise DamagedError(f"{name} has {size} bytes where {snapshot.total_length} belong")
            return snapshot, reader, head

        return self._heads.get(name, lambda: self.sealed(f"{name}@head", fetch, opened))

    def machines(self) -> list[Machine]:
        """Every machine that has a snapshot that opens, sorted by name."""
        found = []
        for tag in self.store.list_folders(SNAPSHOTS):
            newest = self.newest(tag)
            if newest is not None:
                found.append(Machine(newest[0].machine, tag))
        return sorted(found, key=lambda m: m.name)

    def machine(self, name: str) -> Machine:
        """A machine by its name, without a request; it may have no snapshots."""
        return Machine(name, self.keys.tag(name))

    def latest(self, name: str) -> Snapshot:
        """The newest snapshot of the machine called `name`; `NotFoundError` without any."""
        found = self.newest(self.keys.tag(name))
        if found is None:
            raise NotFoundError(f"there is no snapshot of a machine called {name!r} in this repository")
        return found[0]

    # Sealed pieces

    def sealed(self, key: str, fetch: Callable[[], bytes], opened: Callable[[bytes], T]) -> T:
        """A sealed piece, from the cache when what it has opens, else from the store; then kept."""
        if self.cache is not None and (kept := self.cache.get(key)) is not None:
            try:
                return opened(kept)
            except DamagedError:
                self.cache.drop(key)
        data = fetch()
        value = opened(data)
        if self.cache is not None:
            self.cache.put(key, data)
        return value

    def item(self, kind: int, ref: ItemRef) -> bytes:
        """The content of an item of a map object."""
        name = map_name(ref.map)

        def fetch() -> bytes:
            try:
                return self.store.read(name, ref.offset, ref.length)
            except BlobMissingError:
                raise DamagedError(f"{name} is missing from the store") from None

        return self.sealed(
            f"{name}@{ref.offset}+{ref.length}", fetch, lambda s: open_item(self.keys, kind, ref, s)
        )

    def section(self, snapshot: Snapshot, number: Section) -> bytes:
        """The content of a section of a snapshot object."""
        _, reader, head = self._open_head(snapshot.name, snapshot.total_length)
        offset, length = snapshot.section_range(number)
        if offset + length <= len(head):
            # Of what is kept only section 0 was proved: another that came wrong is fetched alone.
            with contextlib.suppress(DamagedError):
                return reader.open(number, head[offset : offset + length])
        return self.sealed(
            f"{snapshot.name}@{offset}+{length}",
            lambda: self.store.read(snapshot.name, offset, length),
            lambda sealed: reader.open(number, sealed),
        )

    def section_or_item(self, snapshot: Snapshot, kind: int, ref: Section | ItemRef) -> bytes:
        """What a page or digests reference names."""
        return self.section(snapshot, ref) if isinstance(ref, int) else self.item(kind, ref)

    def page(self, snapshot: Snapshot, ref: Section | ItemRef) -> Page:
        """A stream's page."""
        return decode_page(self.section_or_item(snapshot, ITEM_PAGE, ref), self.geometry.segment_blocks)

    def warn(self, message: str) -> None:
        """Tell people, once for each message."""
        if message not in self._told:
            self._told.add(message)
            self.tell(message)


def split_ids(data: bytes, count: int) -> list[bytes]:
    """The content ids in an ids item; `DamagedError` unless there are `count`."""
    if len(data) != ID_BYTES * count:
        raise DamagedError("a segment's ids disagree with its locations")
    return [data[i : i + ID_BYTES] for i in range(0, len(data), ID_BYTES)]
