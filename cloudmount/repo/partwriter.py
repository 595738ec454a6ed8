"""Writing the ordinary files of a snapshot: entries are cut into parts as they come.

Decided here and only here: where parts are cut (FORMAT.md section 6.4), and that a
part equal to the previous snapshot's is shared. Belongs to one thread.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence

from cloudmount.crypto.keyring import ZERO_ID, Keyring
from cloudmount.crypto.slots import canonical
from cloudmount.errors import DamagedError
from cloudmount.repo.config import Geometry
from cloudmount.repo.entries import Entry
from cloudmount.repo.frames import content_digest, segment_digest
from cloudmount.repo.listings import Listing, Part
from cloudmount.repo.locations import Location, encode_segment
from cloudmount.repo.mapset import MapSet
from cloudmount.repo.pages import ItemRef
from cloudmount.repo.snapshots import MapRows, StreamRoot
from cloudmount.repo.structures import ITEM_ENTRIES, ITEM_IDS, ITEM_LOCATIONS, ITEM_ROOTS
from cloudmount.repo.trust import Trust
from cloudmount.system import name_bytes

SMALL_FRAMES = 1024
"""A file of more frames than this has a map of its own."""
PART_ENTRIES, PART_FRAMES, PART_BYTES = 4096, 8192, 4 << 20
CUT = 1024
FrameList = Sequence[tuple[bytes, Location] | None]
"""A file's frames in order: content id and location, None for absent ones."""


def small_content(keys: Keyring, geometry: Geometry, size: int, frames: FrameList) -> str:
    """The content digest of a file from its frames, in hex."""
    ids = [f[0] if f is not None else ZERO_ID for f in frames]
    per = geometry.segment_frames
    digests = [segment_digest(keys, ids[i : i + per]) for i in range(0, len(ids), per)]
    return content_digest(keys, size, geometry.frame, digests).hex()


class PartWriter:
    """Takes entries in order; `previous` is the listing of the last snapshot, whose parts may be shared."""

    def __init__(
        self, keys: Keyring, geometry: Geometry, maps: MapSet, trust: Trust, previous: Listing | None
    ) -> None:
        self._keys, self._geometry, self._maps = keys, geometry, maps
        self._trust = trust
        self._old = {p.digest: p for p in previous.parts} if previous is not None else {}
        self._previous = previous
        self._parts: list[Part] = []
        self._entries: list[Entry] = []
        self._frames: list[tuple[bytes, Location] | None] = []
        self._roots: dict[int, StreamRoot] = {}
        self._bytes = 0
        self.count = 0
        self.bytes = 0
        """Content of the files so far."""

    def add(self, entry: Entry, frames: FrameList = (), root: StreamRoot | None = None) -> None:
        """The next entry, with its frames (a small file) or root (a large one). Sets `entry.first`."""
        if self._entries and len(self._frames) + len(frames) > PART_FRAMES:
            self._cut()
        if root is not None:
            self._roots[len(self._entries)] = root
        elif entry.type == "file" and entry.hardlink is None:
            entry.first = len(self._frames)
            self._frames.extend(frames)
        self._entries.append(entry)
        self.count += 1
        if entry.hardlink is None:
            self.bytes += entry.size
        self._bytes += 200 + len(entry.name) + sum(len(v) * 4 // 3 for v in (entry.xattrs or {}).values())
        key = name_bytes(entry.folder) + b"\0" + name_bytes(entry.name)
        if zlib.crc32(key) % CUT == 0 or len(self._entries) >= PART_ENTRIES or self._bytes >= PART_BYTES:
            self._cut()

    def _cut(self) -> None:
        groups = itertools.groupby(self._entries, lambda e: e.folder)
        data = canonical([[folder, [e.to_json() for e in group]] for folder, group in groups])
        digest = self._keys.digest("part", [data])
        part = self._shared(digest) or self._store(data, digest)
        self._parts.append(part)
        self._entries, self._frames, self._roots, self._bytes = [], [], {}, 0

    def _shared(self, digest: bytes) -> Part | None:
        old = self._old.get(digest)
        if old is None or self._roots or old.roots is not None:
            return None  # large files' roots name places: written again, which is little
        refs = [r for r in (old.entries, old.locations, old.ids) if r is not None]
        if not all(self._trust.item(r) for r in refs):
            return None
        if old.locations is not None and self._previous is not None:
            try:
                segment = self._previous.maps.segment(old.locations)
            except DamagedError:
                return None
            places = [segment.locate(i) for i in range(segment.frames)]
            if places != [f[1] if f is not None else None for f in self._frames]:
                return None
        return old

    def _store(self, data: bytes, digest: bytes) -> Part:
        locations: ItemRef | None = None
        ids: ItemRef | None = None
        roots: ItemRef | None = None
        if any(f is not None for f in self._frames):
            places = [f[1] if f is not None else None for f in self._frames]
            locations = self._maps.add(ITEM_LOCATIONS, encode_segment(places))
            ids = self._maps.add(ITEM_IDS, b"".join(f[0] for f in self._frames if f is not None))
        if self._roots:
            rows = MapRows()
            files = {str(i): rows.root_to_json(root) for i, root in self._roots.items()}
            roots = self._maps.add(ITEM_ROOTS, canonical({"files": files, "maps": rows.to_json()}))
        first = (self._entries[0].folder, self._entries[0].name)
        entries = self._maps.add(ITEM_ENTRIES, data)
        return Part(first, entries, locations, ids, roots, len(self._entries), digest)

    def finish(self) -> tuple[bytes, str]:
        """The parts' index and the digest of all files, in hex."""
        if self._entries:
            self._cut()
        rows = MapRows()
        parts = [
            {
                "first": list(p.first),
                "entries": rows.ref(p.entries),
                "locations": rows.ref(p.locations),
                "ids": rows.ref(p.ids),
                "roots": rows.ref(p.roots),
                "count": p.count,
                "digest": p.digest.hex(),
            }
            for p in self._parts
        ]
        digest = self._keys.digest("files", [p.digest for p in self._parts]).hex()
        return canonical({"maps": rows.to_json(), "parts": parts}), digest
