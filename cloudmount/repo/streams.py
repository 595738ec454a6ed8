"""The map of a stored stream, as readers walk it: page, segment, frame.

Decided here and only here: how a frame's number finds its location, and how maps are
kept in memory (decoded segments and pages under one byte bound per `MapCache`).
Safe on any thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from cloudmount.crypto.keyring import ZERO_ID
from cloudmount.errors import DamagedError
from cloudmount.repo.frames import Frame, content_digest, segment_digest
from cloudmount.repo.loading import LoadingCache
from cloudmount.repo.locations import Location, Segment, decode_segment
from cloudmount.repo.pages import ItemRef, Page, SegmentRef
from cloudmount.repo.repository import Repository, split_ids
from cloudmount.repo.snapshots import Section, Snapshot, StreamRoot
from cloudmount.repo.structures import ITEM_DIGESTS, ITEM_IDS, ITEM_LOCATIONS

MAP_CACHE_BYTES = 48 << 20


class MapCache:
    """Decoded pages and segments of one repository, bounded in bytes."""

    def __init__(self, repository: Repository, limit: int = MAP_CACHE_BYTES) -> None:
        self.repository = repository
        self._segments: LoadingCache[ItemRef, Segment] = LoadingCache(limit, lambda s: s.memory)
        self._pages: LoadingCache[tuple[str, Section | ItemRef], Page] = LoadingCache(
            limit, lambda p: 500 + len(p.presence) + 700 * len(p.segments)
        )

    def segment(self, ref: ItemRef) -> Segment:
        """A segment's locations."""

        def load() -> Segment:
            return decode_segment(self.repository.item(ITEM_LOCATIONS, ref))

        return self._segments.get(ref, load)

    def page(self, snapshot: Snapshot, ref: Section | ItemRef) -> Page:
        """A stream's page."""
        at = (snapshot.name if isinstance(ref, int) else "", ref)
        return self._pages.get(at, lambda: self.repository.page(snapshot, ref))


class StreamMap:
    """The map of one stream of `size` bytes in a snapshot."""

    def __init__(self, maps: MapCache, snapshot: Snapshot, size: int, root: StreamRoot, content: str) -> None:
        self.maps = maps
        self.size = size
        self.root = root
        self._snapshot = snapshot
        self._content = content
        geometry = maps.repository.geometry
        self.frame_bytes = geometry.frame
        self._per_segment = geometry.segment_frames
        self._per_page = geometry.page // geometry.segment
        self._blocks_per_page = geometry.page // geometry.segment * geometry.segment_blocks
        if len(root.pages) != -(-size // geometry.page):
            raise DamagedError(f"{snapshot.name}: a stream of {size} bytes has {len(root.pages)} pages")

    @property
    def frames(self) -> int:
        """Frames the stream has, absent ones included."""
        return -(-self.size // self.frame_bytes)

    @property
    def segments(self) -> int:
        """Segments the stream has, absent ones included."""
        return -(-self.frames // self._per_segment)

    def frame_length(self, frame: int) -> int:
        """Plain bytes of a frame."""
        return min(self.frame_bytes, self.size - frame * self.frame_bytes)

    def segment_frames(self, segment: int) -> int:
        """Frames that a segment covers."""
        return min(self._per_segment, self.frames - segment * self._per_segment)

    def _page(self, number: int) -> Page:
        ref = self.root.pages[number]
        if ref.page is None:
            return Page(number * self._per_page, 0, 0, b"", 0, {})
        page = self.maps.page(self._snapshot, ref.page)
        if page.first_segment != number * self._per_page:
            raise DamagedError(f"{self._snapshot.name}: page {number} of a stream is another's")
        return page

    def segment_ref(self, segment: int) -> SegmentRef | None:
        """The items of a segment; None when it is absent."""
        return self._page(segment // self._per_page).segments.get(segment)

    def segment(self, segment: int) -> Segment | None:
        """A segment's locations; None when it is absent."""
        ref = self.segment_ref(segment)
        if ref is None:
            return None
        found = self.maps.segment(ref.locations)
        if found.frames != self.segment_frames(segment) or found.stored != ref.stored:
            raise DamagedError(f"{self._snapshot.name}: a segment covers {found.frames} frames, not its own")
        return found

    def ids(self, segment: int) -> list[bytes]:
        """The content ids of a segment's present frames, in order; empty when it is absent."""
        ref = self.segment_ref(segment)
        if ref is None:
            return []
        return split_ids(self.maps.repository.item(ITEM_IDS, ref.ids), ref.stored)

    def present(self) -> Iterator[Frame]:
        """Every present frame in order, its id proved (see `FrameMap`)."""
        for number, digest in self.proved().items():
            yield from self.present_in(number, digest)

    def proved(self) -> dict[int, bytes]:
        """The digests of the stored segments, in order; `DamagedError` unless they are the content's."""
        keys = self.maps.repository.keys
        digests = dict(self.digests())
        every = (digests.get(n, ZERO_ID) for n in range(self.segments))
        if content_digest(keys, self.size, self.frame_bytes, every).hex() != self._content:
            raise DamagedError(f"{self._snapshot.name}: a stream's digests are not those of its content")
        return digests

    def present_in(self, number: int, digest: bytes) -> Iterator[Frame]:
        """The present frames of one segment in order, their ids proved by its digest."""
        segment, ids = self.segment(number), self.ids(number)
        if segment is None:
            raise DamagedError(f"{self._snapshot.name}: a segment is missing from its page")
        rows = [segment.row(i) for i in range(segment.frames)]
        proof = segment_digest(self.maps.repository.keys, [ids[r] if r >= 0 else ZERO_ID for r in rows])
        if proof != digest:
            raise DamagedError(f"{self._snapshot.name}: a segment's ids are not those of its content")
        first = number * self._per_segment
        for i, row in enumerate(rows):
            at = segment.locate(i)
            if at is not None:
                yield Frame(first + i, ids[row], at, self.frame_length(first + i))

    def digests(self) -> Iterator[tuple[int, bytes]]:
        """(segment, digest) of the stored segments, in order."""
        for number, ref in enumerate(self.root.pages):
            page = self._page(number)
            if ref.digests is None:
                continue
            data = self.maps.repository.section_or_item(self._snapshot, ITEM_DIGESTS, ref.digests)
            yield from zip(page.segments, split_ids(data, len(page.segments)), strict=True)

    def locate(self, frame: int) -> Location | None:
        """Where a frame lies; None when it is absent."""
        found = self.segment(frame // self._per_segment)
        return found.locate(frame % self._per_segment) if found is not None else None

    def segment_of(self, frame: int) -> tuple[int, int]:
        """A frame's segment and its place in it."""
        return divmod(frame, self._per_segment)

    def presence(self) -> bytes:
        """The bitmap of present 2 MiB blocks of the whole stream (8 blocks a byte, lowest bit first)."""
        geometry = self.maps.repository.geometry
        total = -(-self.size // (geometry.segment // geometry.segment_blocks))
        bits = 0
        if self._blocks_per_page % 8 == 0:
            parts = []
            for number in range(len(self.root.pages)):
                blocks = min(self._blocks_per_page, total - number * self._blocks_per_page)
                parts.append(self._page(number).presence.ljust((blocks + 7) // 8, b"\0"))
            return b"".join(parts)
        for number in range(len(self.root.pages)):
            bits |= int.from_bytes(self._page(number).presence, "little") << (number * self._blocks_per_page)
        return bits.to_bytes((total + 7) // 8, "little")
