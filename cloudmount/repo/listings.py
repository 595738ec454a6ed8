"""Reading the ordinary files of a snapshot: parts, folders, and files' frames.

Decided here and only here: the form of parts and of their index (FORMAT.md section
6.4), and that a folder's listing loads only the parts it lies in. Writing them is
`partwriter`. Safe on any thread.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cloudmount.crypto.keyring import ZERO_ID
from cloudmount.errors import DamagedError
from cloudmount.repo.entries import Entry, SortKey, entry_from_json, sort_key
from cloudmount.repo.frames import Frame, FrameMap, content_digest, segment_digest
from cloudmount.repo.loading import LoadingCache
from cloudmount.repo.locations import Location
from cloudmount.repo.pages import ItemRef
from cloudmount.repo.repository import split_ids
from cloudmount.repo.snapshots import MapRows, Snapshot
from cloudmount.repo.streams import MapCache, StreamMap
from cloudmount.repo.structures import ITEM_ENTRIES, ITEM_IDS, ITEM_ROOTS

PART_CACHE_BYTES = 24 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """A row of the parts' index: the order key of its first entry, its items, entry count, digest."""

    first: tuple[str, str]
    entries: ItemRef
    locations: ItemRef | None
    ids: ItemRef | None
    roots: ItemRef | None
    count: int
    digest: bytes

    @property
    def key(self) -> SortKey:
        """Its first entry's place in the order."""
        return sort_key(*self.first)


class Listing:
    """The ordinary files of one snapshot."""

    def __init__(self, maps: MapCache, snapshot: Snapshot) -> None:
        self.maps = maps
        self.snapshot = snapshot
        self.parts: list[Part] = []
        self._loaded: LoadingCache[int, tuple[list[Entry], list[SortKey]]] = LoadingCache(
            PART_CACHE_BYTES, lambda part: 1000 * len(part[0]) + 100
        )
        self._ids: LoadingCache[ItemRef, list[bytes]] = LoadingCache(4 << 20, lambda ids: 50 * len(ids))
        if snapshot.files is not None:
            data = maps.repository.section(snapshot, snapshot.files)
            try:
                value = json.loads(data)
                rows = MapRows(value["maps"])
                self.parts = [_part(rows, p) for p in value["parts"]]
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedError(f"{snapshot.name}: its listing makes no sense: {error!r}") from None
            digest = maps.repository.keys.digest("files", [p.digest for p in self.parts])
            if digest.hex() != snapshot.summary["files"]["digest"]:
                raise DamagedError(f"{snapshot.name}: its listing is not the one it was made with")
        self._keys = [p.key for p in self.parts]

    def entries(self, number: int) -> list[Entry]:
        """The entries of a part, in order, proved to be the snapshot's."""
        return self._part(number)[0]

    def _part(self, number: int) -> tuple[list[Entry], list[SortKey]]:
        return self._loaded.get(number, lambda: self._load(number))

    def _load(self, number: int) -> tuple[list[Entry], list[SortKey]]:
        part = self.parts[number]
        data = self.maps.repository.item(ITEM_ENTRIES, part.entries)
        if self.maps.repository.keys.digest("part", [data]) != part.digest:
            raise DamagedError(f"{self.snapshot.name}: a part of its listing is another's")
        try:
            found = [entry_from_json(folder, e) for folder, group in json.loads(data) for e in group]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{self.snapshot.name}: its listing makes no sense: {error!r}") from None
        return found, [e.key for e in found]

    def _from(self, key: SortKey) -> Iterator[tuple[int, Entry]]:
        """Entries from the first whose key is at least `key`, each with its part's number."""
        start = max(0, bisect.bisect_right(self._keys, key) - 1)
        for number in range(start, len(self.parts)):
            entries, keys = self._part(number)
            for i in range(bisect.bisect_left(keys, key), len(entries)):
                yield number, entries[i]

    def walk(self) -> Iterator[tuple[int, Entry]]:
        """Every entry in order, with its part's number."""
        for number in range(len(self.parts)):
            for entry in self.entries(number):
                yield number, entry

    def children(self, folder: str) -> Iterator[tuple[int, Entry]]:
        """What lies directly in a folder, sorted by name, with its part's number."""
        for number, entry in self._from((sort_key(folder, "")[0], b"")):
            if entry.folder != folder:
                return
            yield number, entry

    def lookup(self, path: str) -> tuple[int, Entry] | None:
        """The entry at a path from the root, with its part's number; None when there is none."""
        folder, _, name = path.rpartition("/")
        for number, entry in self._from(sort_key(folder, name)):
            return (number, entry) if entry.folder == folder and entry.name == name else None
        return None

    def content(self, number: int, entry: Entry) -> FrameMap:
        """The frames of a file in part `number`; a hard link gives the file it names."""
        if entry.hardlink is not None:
            found = self.lookup(entry.hardlink)
            if found is None or found[1].hardlink is not None:
                raise DamagedError(f"{self.snapshot.name}: {entry.path!r} links to nothing")
            number, entry = found
        if entry.type != "file" or entry.content is None:
            raise DamagedError(f"{self.snapshot.name}: {entry.path!r} has no content")
        if entry.first is None:
            return self._large(number, entry)
        return SmallFile(self, self.parts[number], entry)

    def part_ids(self, part: Part) -> list[bytes]:
        """The content ids of the present frames of a part's segment, in order."""
        if part.locations is None or part.ids is None:
            return []
        count = self.maps.segment(part.locations).stored
        ids, ref = self._ids, part.ids
        return ids.get(ref, lambda: split_ids(self.maps.repository.item(ITEM_IDS, ref), count))

    def _large(self, number: int, entry: Entry) -> StreamMap:
        part = self.parts[number]
        place = next(i for i, e in enumerate(self.entries(number)) if e is entry or e == entry)
        try:
            if part.roots is None:
                raise KeyError("roots")
            value: Mapping[str, Any] = json.loads(self.maps.repository.item(ITEM_ROOTS, part.roots))
            root = MapRows(value["maps"]).root(value["files"][str(place)])
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{self.snapshot.name}: {entry.path!r} has no map: {error!r}") from None
        return StreamMap(self.maps, self.snapshot, entry.size, root, entry.content or "")


def _part(rows: MapRows, value: Mapping[str, Any]) -> Part:
    refs = [rows.item(value[k]) if value[k] is not None else None for k in ("locations", "ids", "roots")]
    folder, name = value["first"]
    return Part(
        (str(folder), str(name)),
        rows.item(value["entries"]),
        refs[0],
        refs[1],
        refs[2],
        int(value["count"]),
        bytes.fromhex(value["digest"]),
    )


class SmallFile:
    """A file whose frames lie in its part's segment (see `FrameMap`)."""

    def __init__(self, listing: Listing, part: Part, entry: Entry) -> None:
        self._listing, self._part, self._entry = listing, part, entry
        self.size = entry.size
        self.frame_bytes = listing.maps.repository.geometry.frame
        self._frames = -(-self.size // self.frame_bytes)
        assert entry.first is not None
        self._first = entry.first

    def frame_length(self, frame: int) -> int:
        """Plain bytes of a frame."""
        return min(self.frame_bytes, self.size - frame * self.frame_bytes)

    def locate(self, frame: int) -> Location | None:
        """Where a frame lies; None when it is absent."""
        if self._part.locations is None:
            return None
        segment = self._listing.maps.segment(self._part.locations)
        if self._first + self._frames > segment.frames:
            raise DamagedError(f"{self._listing.snapshot.name}: {self._entry.path!r} lies beyond its part")
        return segment.locate(self._first + frame)

    def present(self) -> Iterator[Frame]:
        """Every present frame in order, its id proved (see `FrameMap`)."""
        repository = self._listing.maps.repository
        keys = repository.keys
        found: list[Frame] = []
        if self._part.locations is not None and self._part.ids is not None:
            segment = self._listing.maps.segment(self._part.locations)
            ids = self._listing.part_ids(self._part)
            for n in range(self._frames):
                at = self.locate(n)
                if at is not None:
                    found.append(Frame(n, ids[segment.row(self._first + n)], at, self.frame_length(n)))
        present = {f.number: f.content for f in found}
        every = [present.get(n, ZERO_ID) for n in range(self._frames)]
        per = repository.geometry.segment_frames
        digests = [segment_digest(keys, every[i : i + per]) for i in range(0, self._frames, per)]
        if content_digest(keys, self.size, self.frame_bytes, digests).hex() != self._entry.content:
            raise DamagedError(
                f"{self._listing.snapshot.name}: the ids of {self._entry.path!r} are not those of its content"
            )
        yield from found
