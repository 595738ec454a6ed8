"""Proving the maps of a repository: all that says what snapshots hold, and where it lies.

Decided here and only here: what of a snapshot must agree with what (FORMAT.md section 10),
and that an item shared by many snapshots is read once. Frames are not read: each
distinct segment's are handed to a `FrameTaker`. Belongs to one thread, reads on several.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from cloudmount.crypto.keyring import ZERO_ID
from cloudmount.errors import DamagedError
from cloudmount.repo.ahead import in_order
from cloudmount.repo.damage import Damage
from cloudmount.repo.entries import Entry
from cloudmount.repo.findings import Findings, Spot
from cloudmount.repo.frames import content_digest, segment_digest
from cloudmount.repo.holders import disk_streams
from cloudmount.repo.listings import Listing, Part
from cloudmount.repo.loading import LoadingCache
from cloudmount.repo.locations import Location, Segment, decode_segment
from cloudmount.repo.names import map_name, pack_name
from cloudmount.repo.pages import ItemRef, Page, SegmentRef, decode_page, large_blocks
from cloudmount.repo.repository import Repository, split_ids
from cloudmount.repo.snapshots import MapRows, PageRef, Section, Snapshot, StreamRoot
from cloudmount.repo.streams import MapCache
from cloudmount.repo.structures import (
    BLOCK_BYTES,
    HEADER_BYTES,
    ITEM_DIGESTS,
    ITEM_ENTRIES,
    ITEM_IDS,
    ITEM_LOCATIONS,
    ITEM_PAGE,
    ITEM_ROOTS,
)
from cloudmount.repo.trust import Trust

AHEAD = 16
"""Segments begun at once: two requests each of 20 to 170 KiB."""
FACTS_BYTES = 64 << 20

ITEM_FAILED = "item does not open"

T = TypeVar("T")


class Reference(NamedTuple):
    """A frame as a snapshot's maps tell of it: where it lies, its content id, its plain length."""

    at: Location
    content: bytes
    length: int


class FrameTaker(Protocol):
    """What takes the references of distinct segments. On any thread."""

    def take(self, references: Iterable[Reference]) -> None:
        """A segment's frames; the same ones may come again."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a segment was found to be. `blocks` is the presence of its 2 MiB blocks; `bad` holds
    (first frame, frames, why)."""

    digest: bytes
    sealed: int
    blocks: int
    bad: tuple[tuple[int, int, str], ...]


class MapCheck:
    """Proves snapshots, one after another. `trust` tells what objects there are; unsound items enter
    `damage`, and what is wrong with objects `findings`. `pool` reads."""

    def __init__(
        self,
        repository: Repository,
        trust: Trust,
        damage: Damage,
        findings: Findings,
        frames: FrameTaker,
        pool: Executor,
    ) -> None:
        self._repository, self._trust, self._damage, self._frames = repository, trust, damage, frames
        self._findings, self._pool = findings, pool
        self._maps = MapCache(repository)
        self._facts: LoadingCache[tuple[ItemRef, ItemRef, int], _Facts] = LoadingCache(
            FACTS_BYTES, lambda f: 400 + f.blocks.bit_length() // 8 + 100 * len(f.bad)
        )
        self._parts: dict[Part, tuple[Spot, ...]] = {}
        self.wrong_once = 0
        """Items that came wrong and, read again, right."""
        self.used_packs: set[bytes] = set()
        self.used_maps: set[bytes] = set()

    # Snapshots

    def snapshot(self, snapshot: Snapshot) -> Iterator[Spot]:
        """Everything wrong with a snapshot that opened, but for its frames' content."""
        for number in range(1, len(snapshot.section_lengths) + 1):
            try:
                self._repository.section(snapshot, number)
            except DamagedError as error:
                yield Spot("", 0, 0, str(error))
        for path, root, size, content in disk_streams(snapshot):
            for spot in self._stream(snapshot, root, size, content):
                yield spot._replace(path=path)
        try:
            listing = Listing(self._maps, snapshot)
        except DamagedError as error:
            yield Spot("", 0, 0, str(error))
            return
        for number, part in enumerate(listing.parts):
            if part not in self._parts:
                self._parts[part] = tuple(self._part(listing, number, part))
            yield from self._parts[part]

    # Items

    def _item(self, kind: int, ref: ItemRef, decode: Callable[[bytes], T]) -> T:
        """An item's decoded content; one that does not open, twice, is entered as damage."""
        self.used_maps.add(ref.map)
        size = self._trust.maps.get(ref.map)
        if size is None or ref.offset + ref.length > size:
            why = "missing from the store" if size is None else "cut short"
            self._findings.add("", Spot(map_name(ref.map), size or 0, 0, why))
            raise DamagedError(f"a map object is {why}")
        try:
            try:
                return decode(self._repository.item(kind, ref))
            except DamagedError:  # perhaps the line's doing, and what is entered as damage stays so
                value = decode(self._repository.item(kind, ref))
                self.wrong_once += 1
                return value
        except DamagedError:
            self._damage.add_item(ref)
            self._findings.add("", Spot(map_name(ref.map), ref.offset, ref.length, ITEM_FAILED))
            raise DamagedError(f"a map object's {ITEM_FAILED}") from None

    def _section_or_item(
        self, snapshot: Snapshot, kind: int, ref: Section | ItemRef, decode: Callable[[bytes], T]
    ) -> T:
        if isinstance(ref, ItemRef):
            return self._item(kind, ref, decode)
        return decode(self._repository.section(snapshot, ref))

    # Streams

    def _stream(self, snapshot: Snapshot, root: StreamRoot, size: int, content: str) -> Iterator[Spot]:
        """Spots of a stream; their path is left to the caller."""
        geometry = self._repository.geometry
        pages = -(-size // geometry.page)
        if len(root.pages) != pages:
            yield Spot("", 0, size, f"it has {len(root.pages)} pages where {pages} belong")
            return
        every: list[bytes] = []
        whole = True
        sealed = stored = 0
        per_page = geometry.page // geometry.segment
        segments = -(-size // geometry.segment)
        for number, ref in enumerate(root.pages):
            count = min(per_page, segments - number * per_page)
            here = number * geometry.page
            page, digests = self._page(snapshot, ref, number, min(geometry.page, size - here))
            if isinstance(page, str):
                yield Spot("", here, min(geometry.page, size - here), page)
            else:
                sealed += page.sealed
                stored += sum(s.stored for s in page.segments.values())
                yield from self._segments(page, digests if not isinstance(digests, str) else None, size)
            if isinstance(digests, str):
                yield Spot("", here, min(geometry.page, size - here), digests)
            if isinstance(page, str) or isinstance(digests, str):
                whole = False
            else:
                first = number * per_page
                every += [digests.get(n, ZERO_ID) for n in range(first, first + count)]
        if not whole:
            return
        keys = self._repository.keys
        if content_digest(keys, size, geometry.frame, every).hex() != content:
            yield Spot("", 0, size, "its digests are not those of its content")
        if (sealed, stored) != (root.sealed, root.frames):
            yield Spot("", 0, size, "the counts in its root are not those of its pages")

    def _page(
        self, snapshot: Snapshot, ref: PageRef, number: int, covered: int
    ) -> tuple[Page | str, dict[int, bytes] | str]:
        """A page and its segments' digests, or what is wrong with them."""
        geometry = self._repository.geometry
        first = number * (geometry.page // geometry.segment)
        if ref.page is None or ref.digests is None:
            if (ref.page, ref.digests, ref.blocks, ref.large_blocks) != (None, None, 0, 0):
                return "a page is half there", "a page is half there"
            return Page(first, 0, 0, b"", 0, {}), {}

        def proved(data: bytes) -> Page:
            page = decode_page(data, geometry.segment_blocks)
            bits = int.from_bytes(page.presence, "little")
            if page.first_segment != first or page.blocks != -(-covered // BLOCK_BYTES):
                raise DamagedError("a page is another's")
            if (bits.bit_count(), large_blocks(page.presence)) != (ref.blocks, ref.large_blocks):
                raise DamagedError("a page's presence is not what its root says")
            return page

        try:
            page = self._section_or_item(snapshot, ITEM_PAGE, ref.page, proved)
        except DamagedError as error:
            return str(error), "a page's digests can't be told apart without it"
        numbers = list(page.segments)
        try:
            digests = self._section_or_item(
                snapshot, ITEM_DIGESTS, ref.digests, lambda data: split_ids(data, len(numbers))
            )
        except DamagedError as error:
            return page, str(error)
        return page, dict(zip(numbers, digests, strict=True))

    def _segments(self, page: Page, digests: dict[int, bytes] | None, size: int) -> Iterator[Spot]:
        geometry = self._repository.geometry
        frame, per_block = geometry.frame, geometry.segment_blocks
        bits = int.from_bytes(page.presence, "little")
        sealed = 0

        def prove(item: tuple[int, SegmentRef]) -> _Facts | str:
            number, ref = item
            covered = min(geometry.segment, size - number * geometry.segment)
            key = (ref.locations, ref.ids, covered)
            try:
                return self._facts.get(key, lambda: self._segment(ref, covered))
            except DamagedError as error:
                return str(error)

        known: int | None = 0
        for (number, _), facts in zip(
            page.segments.items(), in_order(self._pool, AHEAD, prove, page.segments.items()), strict=True
        ):
            here = number * geometry.segment
            covered = min(geometry.segment, size - here)
            if isinstance(facts, str):
                known = None
                yield Spot("", here, covered, facts)
                continue
            sealed += facts.sealed
            at = (number - page.first_segment) * per_block
            if (bits >> at) & ((1 << per_block) - 1) != facts.blocks:
                yield Spot("", here, covered, "the presence of its blocks is not that of its frames")
            if digests is not None and digests[number] != facts.digest:
                yield Spot("", here, covered, "a segment's ids are not those of its content")
            for first, count, why in facts.bad:
                begin = here + first * frame
                yield Spot("", begin, min(begin + count * frame, size) - begin, why)
        if known is not None and sealed != page.sealed:
            yield Spot("", page.first_segment * geometry.segment, 0, "a page's count of bytes is wrong")

    def _segment(self, ref: SegmentRef, covered: int) -> _Facts:
        frame = self._repository.geometry.frame
        frames = -(-covered // frame)
        segment = self._item(ITEM_LOCATIONS, ref.locations, decode_segment)
        ids = self._item(ITEM_IDS, ref.ids, lambda data: split_ids(data, ref.stored))
        if segment.frames != frames or segment.stored != ref.stored:
            raise DamagedError("a segment is another's")
        return self._facts_of(segment, ids, lambda i: min(frame, covered - i * frame))

    def _facts_of(self, segment: Segment, ids: Sequence[bytes], length: Callable[[int], int]) -> _Facts:
        """The facts of a segment, whose frames are handed on."""
        frame = self._repository.geometry.frame
        every = [ZERO_ID] * segment.frames
        found: list[Reference] = []
        bad: list[tuple[int, int, str]] = []
        blocks = sealed = 0
        self.used_packs.update(segment.packs)
        for i in range(segment.frames):
            at = segment.locate(i)
            if at is None:
                continue
            every[i] = content = ids[segment.row(i)]
            sealed += at.counted
            blocks |= 1 << (i * frame // BLOCK_BYTES)
            why = self._misplaced(at, length(i))
            if why is None:
                found.append(Reference(at, content, length(i)))
            elif bad and bad[-1][2] == why and sum(bad[-1][:2]) == i:
                bad[-1] = (bad[-1][0], bad[-1][1] + 1, why)
            else:
                bad.append((i, 1, why))
        self._frames.take(found)
        digest = segment_digest(self._repository.keys, every)
        return _Facts(digest, sealed, blocks, tuple(bad))

    def _misplaced(self, at: Location, length: int) -> str | None:
        """Why a frame of `length` bytes can't lie there; None when it may."""
        if at.cut and not (length == self._repository.geometry.frame > at.skip):
            return "a frame's place makes no sense"
        size = self._trust.packs.get(at.pack)
        if size is not None and at.offset + at.length <= size:
            return "a frame's place makes no sense" if at.offset < HEADER_BYTES else None
        why = "missing from the store" if size is None else "cut short"
        self._findings.add("", Spot(pack_name(at.pack), size or 0, 0, why))
        return f"a pack is {why}"

    # Ordinary files

    def _part(self, listing: Listing, number: int, part: Part) -> Iterator[Spot]:
        try:
            entries = self._entries(listing, number, part)
        except DamagedError as error:
            first = "/".join(p for p in part.first if p)
            yield Spot(first, 0, 0, f"the listing of {part.count} names from here on is lost: {error}")
            return
        files = [(i, e) for i, e in enumerate(entries) if e.type == "file" and e.hardlink is None]
        yield from self._small(part, [e for _, e in files if e.first is not None])
        large = [(i, e) for i, e in files if e.first is None]
        if large:
            yield from self._large(listing.snapshot, part, large)

    def _entries(self, listing: Listing, number: int, part: Part) -> list[Entry]:
        self.used_maps.add(part.entries.map)
        try:
            entries = listing.entries(number)
        except DamagedError:
            self._item(ITEM_ENTRIES, part.entries, lambda data: data)  # enters what is wrong with the item
            entries = listing.entries(number)
        if len(entries) != part.count:
            raise DamagedError("it has another count of names")
        return entries

    def _large(self, snapshot: Snapshot, part: Part, files: Sequence[tuple[int, Entry]]) -> Iterator[Spot]:
        """The large files of a part, given with their places in it."""

        def decode(data: bytes) -> dict[int, StreamRoot]:
            try:
                value = json.loads(data)
                rows = MapRows(value["maps"])
                return {place: rows.root(value["files"][str(place)]) for place, _ in files}
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedError(f"roots that make no sense: {error!r}") from None

        try:
            if part.roots is None:
                raise DamagedError("its map is not named")
            roots = self._item(ITEM_ROOTS, part.roots, decode)
        except DamagedError as error:
            for _, entry in files:
                yield Spot(entry.path, 0, entry.size, str(error))
            return
        for place, entry in files:
            for spot in self._stream(snapshot, roots[place], entry.size, entry.content or ""):
                yield spot._replace(path=entry.path)

    def _small(self, part: Part, files: Sequence[Entry]) -> Iterator[Spot]:
        """The small files of a part: their frames adjoin in its segment."""
        geometry, keys = self._repository.geometry, self._repository.keys
        frame, per = geometry.frame, geometry.segment_frames
        counts = [-(-e.size // frame) for e in files]
        total = sum(counts)
        if part.locations is None or part.ids is None:
            every, facts = [ZERO_ID] * total, None
        else:
            lengths = [
                min(frame, e.size - i * frame) for e, n in zip(files, counts, strict=True) for i in range(n)
            ]
            try:
                segment = self._item(ITEM_LOCATIONS, part.locations, decode_segment)
                ids = self._item(ITEM_IDS, part.ids, lambda data: split_ids(data, segment.stored))
                if segment.frames != total:
                    raise DamagedError("a part's segment is another's")
            except DamagedError as error:
                for entry in files:
                    if entry.size:
                        yield Spot(entry.path, 0, entry.size, str(error))
                return
            facts = self._facts_of(segment, ids, lengths.__getitem__)
            rows = [segment.row(i) for i in range(total)]
            every = [ids[row] if row >= 0 else ZERO_ID for row in rows]
        first = 0
        for entry, n in zip(files, counts, strict=True):
            mine = every[first : first + n]
            digests = [segment_digest(keys, mine[i : i + per]) for i in range(0, n, per)]
            digest = content_digest(keys, entry.size, frame, digests).hex()
            if entry.first != first or digest != entry.content:
                yield Spot(entry.path, 0, entry.size, "its ids are not those of its content")
            for bad, count, why in facts.bad if facts is not None else ():
                begin, end = max(bad, first), min(bad + count, first + n)
                if begin < end:
                    at = (begin - first) * frame
                    yield Spot(entry.path, at, min((end - first) * frame, entry.size) - at, why)
            first += n
