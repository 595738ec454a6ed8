"""Taking a stream of the previous snapshot over as it is, without reading its source.

Decided here and only here: that everything it names must still be there
(FORMAT.md section 8.3), or it is read anew. Pure but for the repository.
"""

from __future__ import annotations

from cloudmount.crypto.keyring import ZERO_ID
from cloudmount.errors import DamagedError, StoreUnreachableError
from cloudmount.repo.frames import FrameMap
from cloudmount.repo.locations import Location
from cloudmount.repo.partwriter import FrameList
from cloudmount.repo.snapshots import Snapshot
from cloudmount.repo.streams import StreamMap
from cloudmount.repo.streamwriter import BuiltPage, BuiltStream
from cloudmount.repo.structures import ITEM_DIGESTS, ITEM_PAGE
from cloudmount.repo.trust import Trust


def whole_stream(stream: StreamMap, snapshot: Snapshot, content: str, trust: Trust) -> BuiltStream | None:
    """The map of `stream`, if every item and pack it names is there and sound; else None."""
    repository = stream.maps.repository
    pages = []
    try:
        for number in range(stream.segments):
            ref = stream.segment_ref(number)
            if ref is None:
                continue
            if not (trust.item(ref.locations) and trust.item(ref.ids)):
                return None
            segment = stream.segment(number)
            if segment is None or not all(map(trust.location, segment.locations())):
                return None
        for p in stream.root.pages:
            if p.page is None or p.digests is None:
                pages.append(BuiltPage(b"", b"", 0, 0))
                continue
            page = repository.section_or_item(snapshot, ITEM_PAGE, p.page)
            digests = repository.section_or_item(snapshot, ITEM_DIGESTS, p.digests)
            pages.append(BuiltPage(page, digests, p.blocks, p.large_blocks))
    except StoreUnreachableError:
        raise
    except DamagedError:
        return None
    return BuiltStream(pages, content, stream.root.sealed, stream.root.frames)


def small_file(frames: FrameMap, trust: Trust) -> FrameList | None:
    """The frames of a small file, if all are there and sound; else None. `DamagedError` for its map."""
    count = -(-frames.size // frames.frame_bytes)
    found: list[tuple[bytes, Location] | None] = [None] * count
    for f in frames.present():
        if not trust.location(f.at) or f.content == ZERO_ID:
            return None
        found[f.number] = (f.content, f.at)
    return found
