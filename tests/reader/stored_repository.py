"""Repositories for the readers' tests, made by the project's own writers, placed as a test wants.

`StoredRepository.disk` seals a stream's frames in any order into packs of any size and
gives its map; `model` contents are zeros, text and noise so that frames are absent,
compressed and stored.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.store import BlobStore
from cloudmount.crypto.slots import KdfCost
from cloudmount.repo.config import Geometry
from cloudmount.repo.locations import Location
from cloudmount.repo.mapset import MapSet
from cloudmount.repo.names import SnapshotKey
from cloudmount.repo.packs import PACK_SLACK, PackWriter
from cloudmount.repo.payload import Dictionary, encode_frame
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import Snapshot
from cloudmount.repo.streams import MapCache, StreamMap
from cloudmount.repo.streamwriter import StreamBuilder
from cloudmount.repo.trust import Trust

SMALL = Geometry(frame=4 << 10, pack=64 << 10, segment=2 << 20, page=32 << 20)
QUICK = KdfCost(memory_kib=8, passes=1, lanes=1)
PHRASE = (
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon "
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon art"
)


def model(size: int, seed: int, frame: int = 4 << 10) -> bytes:
    """`size` bytes: about a third each of absent frames, text, and noise; frames all differ."""
    rng = random.Random(seed)
    parts = []
    for number in range(-(-size // frame)):
        kind = rng.randrange(3)
        if kind == 0:
            parts.append(bytes(frame))
        elif kind == 1:
            parts.append((f"frame {number} of {seed}, ".encode() * frame)[:frame])
        else:
            parts.append(rng.randbytes(frame))
    return b"".join(parts)[:size]


def noise(size: int, seed: int = 0) -> bytes:
    """`size` bytes that no compression shortens: sealed frames are 16 bytes longer than plain ones."""
    return random.Random(seed).randbytes(size)


class StoredRepository:
    """A new repository in `store`. Reads go through `through(store)` when given. What `disk` stores is
    compressed with the dictionary `trained`, when given (in zstd's form)."""

    def __init__(
        self, geometry: Geometry = SMALL, store: BlobStore | None = None, trained: bytes | None = None
    ) -> None:
        self.store = store if store is not None else MemoryStore()
        self.geometry = geometry
        self.repository = Repository.init(self.store, "secret", PHRASE, geometry=geometry, cost=QUICK)
        self.dictionary: Dictionary | None = None
        if trained is not None:
            self.dictionary = self.repository.dictionaries.add(trained, {}, self.store.create)

    def behind(self, store: BlobStore) -> Repository:
        """The same repository, read through another store."""
        return Repository(store, self.repository.config)

    def disk(
        self,
        content: bytes,
        *,
        order: Sequence[int] | None = None,
        pack_bytes: int | None = None,
        repository: Repository | None = None,
        map_cache: int = 48 << 20,
    ) -> StreamMap:
        """Store `content` as a stream and give its map, read through `repository`.

        `order` are the frames' numbers in the order they are sealed; absent ones may be among them.
        """
        keys, frame = self.repository.keys, self.geometry.frame
        plains = {n // frame: content[n : n + frame] for n in range(0, len(content), frame)}
        places: dict[int, tuple[bytes, Location]] = {}
        pack: PackWriter | None = None
        limit = pack_bytes or self.geometry.pack

        def send() -> None:
            nonlocal pack
            if pack is not None:
                done = pack.finish()
                done.prove(keys)
                self.store.create(done.name, bytes(done.data))
                pack = None

        for n in order if order is not None else sorted(plains):
            if not any(plains[n]):
                continue
            if pack is None:
                pack = PackWriter(keys, memoryview(bytearray(limit + PACK_SLACK)))
            places[n] = (
                keys.content_id(plains[n]),
                pack.add(keys.content_id(plains[n]), encode_frame(plains[n], self.dictionary)),
            )
            if pack.size >= limit:
                send()
        send()
        maps = MapSet(keys, lambda name, data: self.store.create(name, bytes(data)))
        builder = StreamBuilder(keys, self.geometry, maps, Trust(), len(content))
        for n in sorted(places):
            content_id, at = places[n]
            builder.add(n, [content_id], [at])
        built = builder.finish()
        root = built.root_in_items(maps)
        maps.close()
        name = f"snapshots/{os.urandom(16).hex()}"
        snapshot = Snapshot(name, "", SnapshotKey(1, 0, ""), {}, [root], None, [], 0)
        return StreamMap(
            MapCache(repository or self.repository, map_cache), snapshot, len(content), root, built.content
        )

    def packs(self) -> list[str]:
        """Names of the packs there are."""
        return [info.name for info in self.store.list("packs/")]
