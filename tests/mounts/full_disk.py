"""A disk of any size, every block of it written, in little room: its maps are real, and all its frames are
among a few packs of real ones.

Decided here and only here: which frame lies where. Segments are made of the same packs' frames again and
again; each has map items of its own, so that for a reader of maps it is a disk as large as it says.
"""

from __future__ import annotations

import itertools
import os
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from cloudmount.errors import DamagedError
from cloudmount.repo.frames import content_digest, segment_digest
from cloudmount.repo.locations import Location, encode_segment
from cloudmount.repo.mapset import MapSet
from cloudmount.repo.names import iso_time
from cloudmount.repo.packs import PACK_SLACK, PackWriter
from cloudmount.repo.pages import Page, SegmentRef, encode_page
from cloudmount.repo.payload import encode_frame
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import seal_snapshot
from cloudmount.repo.streamwriter import BuiltPage, BuiltStream
from cloudmount.repo.structures import BLOCK_BYTES, ITEM_IDS, ITEM_LOCATIONS

NAME, MACHINE = "disk", "srv"
WHEN = 1_700_000_000
_NOISE = random.Random(1).randbytes(1 << 20)


@dataclass(frozen=True, slots=True)
class FullDisk:
    """`size` bytes whose frames are those of `packs` packs, `noise` bytes of each not compressible."""

    repository: Repository
    size: int
    packs: int
    noise: int

    @property
    def _frame(self) -> int:
        return self.repository.geometry.frame

    @property
    def _per_pack(self) -> int:
        return self.repository.geometry.pack // self._frame

    def _plain(self, number: int) -> bytes:
        """Frame `number` of those that there are."""
        at = number * 4099 % (len(_NOISE) - self.noise)
        return (number.to_bytes(8, "little") + _NOISE[at : at + self.noise]).ljust(self._frame, b"\1")[
            : self._frame
        ]

    def read(self, offset: int, length: int) -> bytes:
        """What the disk holds, within one frame."""
        number, start = divmod(offset, self._frame)
        return self._plain(number % (self.packs * self._per_pack))[start : start + length]

    def store(self) -> None:
        """Write it, as the only disk of a snapshot of `MACHINE`."""
        repository = self.repository
        keys, geometry, store = repository.keys, repository.geometry, repository.store
        frames = list(self._frames())
        maps = MapSet(keys, lambda name, data: store.create(name, bytes(data)), 8 << 20)
        segments, per = self.size // geometry.segment, geometry.segment_frames
        if self.size % geometry.segment or len(frames) % per:
            raise DamagedError("whole segments only")
        layouts = []
        for first in range(0, len(frames), per):
            ids, places = zip(*frames[first : first + per], strict=True)
            named = maps.add(ITEM_IDS, b"".join(ids))  # which only backups and checks read
            layouts.append((segment_digest(keys, ids), encode_segment(places), named))
        refs, digests = {}, []
        for number, (digest, item, named) in zip(range(segments), itertools.cycle(layouts)):
            refs[number] = SegmentRef(per, maps.add(ITEM_LOCATIONS, item), named)
            digests.append(digest)
        sealed = sum(at.length for _, at in frames) * segments * per // len(frames)
        pages = []
        per_page = geometry.page // geometry.segment
        for first in range(0, segments, per_page):
            mine = {n: r for n, r in refs.items() if first <= n < first + per_page}
            blocks = len(mine) * geometry.segment_blocks
            page = Page(first, len(mine), blocks, b"\xff" * (blocks // 8), sealed, mine)
            pages.append(
                BuiltPage(
                    encode_page(page), b"".join(digests[first : first + per_page]), blocks, blocks // 16
                )
            )
        content = content_digest(keys, self.size, geometry.frame, digests).hex()
        root = BuiltStream(pages, content, sealed, segments * per).root_in_items(maps)
        maps.close()
        summary = {
            "version": 0,
            "machine": MACHINE,
            "sequence": 1,
            "previous": None,
            "time": iso_time(WHEN),
            "creation": os.urandom(8).hex(),
            "host": "host",
            "program": "tests",
            "consistent": True,
            "incomplete": False,
            "problems": [],
            "problem_count": 0,
            "disks": [
                {
                    "name": NAME,
                    "path": "",
                    "original": f"{NAME}.img",
                    "size": self.size,
                    "logical_sector": 512,
                    "physical_sector": 4096,
                    "disk_id": str(uuid.uuid4()),
                    "source_format": "raw",
                    "generation": 0,
                    "mtime_ns": WHEN * 10**9,
                    "sources": [],
                    "consistent": True,
                    "content": content,
                }
            ],
            "files": {"count": 0, "bytes": 0, "digest": keys.digest("files", []).hex()},
            "source_bytes": self.size,
            "read_bytes": self.size,
            "seconds": 0,
        }
        tag = keys.tag(MACHINE)
        name, data, _ = seal_snapshot(keys, tag, WHEN, summary, [root], None, [])
        store.create(name, data)

    def _frames(self) -> Iterator[tuple[bytes, Location]]:
        """Store the packs; content id and location of every frame."""
        keys = self.repository.keys
        room = memoryview(bytearray(self.repository.geometry.pack + PACK_SLACK))
        numbers = itertools.count()
        assert BLOCK_BYTES % self._frame == 0
        for _ in range(self.packs):
            pack = PackWriter(keys, room)
            for number in itertools.islice(numbers, self._per_pack):
                plain = self._plain(number)
                content = keys.content_id(plain)
                yield content, pack.add(content, encode_frame(plain))
            done = pack.finish()
            self.repository.store.create(done.name, bytes(done.data))
