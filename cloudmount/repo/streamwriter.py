"""Building the map of a stream while its frames are stored.

Decided here and only here: when a segment of the previous snapshot is shared
(same ids, same places), and when a segment that lies in too many packs is gathered.
A builder belongs to one thread; `PreviousSegment` is immutable.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

from cloudmount.crypto.keyring import ID_BYTES, ZERO_ID, Keyring
from cloudmount.errors import DamagedError, StoreError
from cloudmount.repo.config import Geometry
from cloudmount.repo.frames import content_digest, segment_digest
from cloudmount.repo.locations import Location, encode_segment
from cloudmount.repo.mapset import MapSet
from cloudmount.repo.pages import Page, SegmentRef, encode_page, large_blocks
from cloudmount.repo.snapshots import PageRef, Section, StreamRoot
from cloudmount.repo.streams import StreamMap
from cloudmount.repo.structures import BLOCK_BYTES, ITEM_DIGESTS, ITEM_IDS, ITEM_LOCATIONS, ITEM_PAGE
from cloudmount.repo.trust import Trust

MAX_SEGMENT_BIRTHS = 96
"""A segment lying in more packs than this is gathered: simulated at 1 % scattered change a day, 109 packs
need 45 KiB of locations, and 48 is the most that a segment should take (docs/architecture.md)."""
GATHER_TO = 64


class PreviousSegment:
    """A segment of the previous snapshot, as far as it may be used again."""

    def __init__(self, stream: StreamMap, number: int, trust: Trust) -> None:
        self.ref: SegmentRef | None = None
        self.avoid: frozenset[bytes] = frozenset()
        self._contents: list[bytes] = []
        self._places: list[Location | None] = []
        self._usable: list[Location | None] = []
        try:
            ref = stream.segment_ref(number) if number < stream.segments else None
            if ref is None or not (trust.item(ref.locations) and trust.item(ref.ids)):
                return
            segment, ids = stream.segment(number), stream.ids(number)
            self.ref = ref
        except (DamagedError, StoreError):
            return  # as if it were absent: what it told is stored anew
        if segment is None:
            return
        self._places = [segment.locate(i) for i in range(segment.frames)]
        rows = (segment.row(i) for i in range(segment.frames))
        self._contents = [ids[row] if row >= 0 else ZERO_ID for row in rows]
        if len(segment.births) > MAX_SEGMENT_BIRTHS:
            per_pack = Counter(at.pack for at in self._places if at is not None)
            keep = {pack for pack, _ in per_pack.most_common(GATHER_TO)}
            self.avoid = frozenset(per_pack) - keep
        self._usable = [
            at if at is not None and at.pack not in self.avoid and trust.location(at) else None
            for at in self._places
        ]

    def known(self, place: int, contents: list[bytes]) -> list[Location | None]:
        """Where frames with these content ids lie, from `place` on; None for those that were others, or
        may not be used again."""
        end = place + len(contents)
        there, found = self._contents[place:end], self._usable[place:end]
        if there == contents:
            return found
        found += [None] * (len(contents) - len(found))
        return [
            at if at is not None and was == content else None
            for was, content, at in zip_longest(there, contents, found)
        ]

    def same(self, ids: list[bytes], locations: list[Location | None]) -> bool:
        """Whether the segment is exactly this, so that its items can be shared."""
        return ids == self._contents and locations == self._places


@dataclass(frozen=True, slots=True)
class BuiltPage:
    """An encoded page and its digests, with its present blocks of 2 MiB and of 32 MiB."""

    page: bytes
    digests: bytes
    blocks: int
    large_blocks: int


@dataclass(frozen=True, slots=True)
class BuiltStream:
    """A stream's finished map. `content` is the content digest in hex."""

    pages: list[BuiltPage]
    content: str
    sealed: int
    frames: int

    def root_in_sections(self, page: Section, digests: Section) -> StreamRoot:
        """The root of a stream of one page that lies in these sections of the snapshot object."""
        return self._root([(page, digests)])

    def root_in_items(self, maps: MapSet) -> StreamRoot:
        """The root with its pages in map objects."""
        return self._root(
            [
                (maps.add(ITEM_PAGE, p.page), maps.add(ITEM_DIGESTS, p.digests)) if p.blocks else (None, None)
                for p in self.pages
            ]
        )

    def _root(self, refs: Iterable[tuple[object, object]]) -> StreamRoot:
        pages = [
            PageRef(page, digests, p.blocks, p.large_blocks)  # type: ignore[arg-type]  # pairs of one kind
            for (page, digests), p in zip(refs, self.pages, strict=True)
        ]
        return StreamRoot(pages, self.sealed, self.frames)


class StreamBuilder:
    """Takes a stream's frames in order and makes its map; absent ones may be left out."""

    def __init__(
        self,
        keys: Keyring,
        geometry: Geometry,
        maps: MapSet,
        trust: Trust,
        size: int,
        previous: StreamMap | None = None,
    ) -> None:
        self._keys, self._geometry, self._maps, self._trust = keys, geometry, maps, trust
        self.size = size
        self._previous = previous
        self._frames = -(-size // geometry.frame)
        self._open: dict[int, PreviousSegment] = {}
        self._loading = threading.Lock()
        self._current = -1
        self._ids: list[bytes] = []
        self._locations: list[Location | None] = []
        self._refs: dict[int, SegmentRef] = {}
        self._digests: dict[int, bytes] = {}
        self._sealed: dict[int, int] = {}
        self._present = bytearray((-(-size // BLOCK_BYTES) + 7) // 8)
        self.stored = 0
        """Frames present so far."""

    def previous_segment(self, number: int) -> PreviousSegment | None:
        """The segment of the previous snapshot's stream, loaded once; kept until the segment is done.

        On any thread.
        """
        if self._previous is None:
            return None
        with self._loading:
            if number not in self._open:
                self._open[number] = PreviousSegment(self._previous, number, self._trust)
            return self._open[number]

    def known(self, first: int, contents: list[bytes]) -> list[Location | None]:
        """Where the previous snapshot keeps the frames from `first` on, if with these content ids. On any
        thread."""
        found: list[Location | None] = []
        for number, place, part in self._parts(first, len(contents)):
            ids = contents[part]
            empty = ids.count(ZERO_ID) == len(ids)  # whose segment needn't be loaded
            previous = None if empty else self.previous_segment(number)
            found += [None] * len(ids) if previous is None else previous.known(place, ids)
        return found

    def usable(self, frame: int, at: Location) -> bool:
        """Whether the frame may use what is stored at `at`: not when its segment is being gathered
        out of that pack. On any thread."""
        previous = self.previous_segment(frame // self._geometry.segment_frames)
        return previous is None or at.pack not in previous.avoid

    def _segment_frames(self, number: int) -> int:
        per = self._geometry.segment_frames
        return min(per, self._frames - number * per)

    def _parts(self, first: int, count: int) -> Iterator[tuple[int, int, slice]]:
        """`count` frames from `first` on by segment: its number, where they begin in it, which they are."""
        per = self._geometry.segment_frames
        begin = 0
        while begin < count:
            number, place = divmod(first + begin, per)
            end = min(count, begin + per - place)
            yield number, place, slice(begin, end)
            begin = end

    def add(self, first: int, contents: list[bytes], places: list[Location | None]) -> None:
        """The next frames: their content ids, `ZERO_ID` for those that are absent, and where they lie."""
        for number, place, part in self._parts(first, len(contents)):
            self._add(number, place, contents[part], places[part])

    def _add(self, number: int, place: int, ids: list[bytes], at: list[Location | None]) -> None:
        present = [i for i, there in enumerate(at, place) if there is not None]
        if not present:
            return
        if number != self._current:
            assert number > self._current
            self._finish_segment()
            self._current = number
            count = self._segment_frames(number)
            self._ids, self._locations, self._sealed[number] = [ZERO_ID] * count, [None] * count, 0
        end = place + len(ids)
        assert not any(self._locations[place:end])
        self._ids[place:end], self._locations[place:end] = ids, at
        base = number * self._geometry.segment_frames
        for block in {(base + i) * self._geometry.frame // BLOCK_BYTES for i in present}:
            self._present[block >> 3] |= 1 << (block & 7)
        self._sealed[number] += sum(there.counted for there in at if there is not None)
        self.stored += len(present)

    def _finish_segment(self) -> None:
        number = self._current
        if number < 0:
            return
        previous = self.previous_segment(number)
        with self._loading:
            self._open = {n: p for n, p in self._open.items() if n > number}
        self._digests[number] = segment_digest(self._keys, self._ids)
        if previous is not None and previous.ref is not None and previous.same(self._ids, self._locations):
            self._refs[number] = previous.ref
            return
        locations = self._maps.add(ITEM_LOCATIONS, encode_segment(self._locations))
        ids = self._maps.add(ITEM_IDS, b"".join(i for i in self._ids if i != ZERO_ID))
        stored = sum(at is not None for at in self._locations)
        self._refs[number] = SegmentRef(stored, locations, ids)

    def finish(self) -> BuiltStream:
        """The whole map."""
        self._finish_segment()
        self._current = 1 << 62
        per_page = self._geometry.page // self._geometry.segment
        segments = -(-self._frames // self._geometry.segment_frames)
        pages = [self._page(n, per_page) for n in range(-(-segments // per_page))]
        every = (self._digests.get(n, ZERO_ID) for n in range(segments))
        content = content_digest(self._keys, self.size, self._geometry.frame, every).hex()
        return BuiltStream(pages, content, sum(self._sealed.values()), self.stored)

    def _page(self, number: int, per_page: int) -> BuiltPage:
        first = number * per_page
        first_block = first * self._geometry.segment_blocks
        blocks = min(per_page * self._geometry.segment_blocks, -(-self.size // BLOCK_BYTES) - first_block)
        count = -(-blocks // self._geometry.segment_blocks)
        # A page's first block is a multiple of 16, so its bits begin at a byte.
        presence = bytes(self._present[first_block // 8 : first_block // 8 + (blocks + 7) // 8])
        mine = {n: self._refs[n] for n in range(first, first + count) if n in self._refs}
        sealed = sum(self._sealed[n] for n in mine)
        page = Page(first, count, blocks, presence, sealed, mine)
        present = sum(byte.bit_count() for byte in presence)
        digests = b"".join(self._digests[n] for n in mine)
        assert len(digests) == ID_BYTES * len(mine)
        return BuiltPage(encode_page(page), digests, present, large_blocks(presence))
