"""A volume in a disk: folders, files and links, by names as its guest wrote them.

Decided here and only here: how names are found (case does not count on NTFS and FAT, but an exact name goes
first), and what is kept of folders read. Content never changes, so what is kept is always right.

Threading: any number of threads.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cloudmount.errors import UnreadableInputError
from cloudmount.extents import BlockSource, Extent, check_range
from cloudmount.guest import wire
from cloudmount.guest.children import Children
from cloudmount.guest.entries import Entry, Listing, entries

_HOLES_FROM = 1 << 20
"""Bytes of files that are asked for their holes."""
KEPT_ENTRIES = 30_000
"""Entries of folders kept, beside those of the last folder: about 15 MB."""
_MOST_EXTENTS = 1 << 20
_MOST_WARNING = 500
Path = tuple[str, ...]

log = logging.getLogger("cloudmount.guest")


@dataclass(frozen=True, slots=True)
class Place:
    """`length` bytes of a file from `offset` on lie in the volume from `at` on."""

    offset: int
    at: int
    length: int


class KeptFolders:
    """Folders that were read last, of any number of volumes."""

    def __init__(self, most: int = KEPT_ENTRIES) -> None:
        self._most = most
        self._folders: OrderedDict[tuple[Volume, int], Mapping[str, Entry]] = OrderedDict()
        self._kept = 0
        self._lock = threading.Lock()

    def get(self, volume: Volume, number: int) -> Mapping[str, Entry] | None:
        """A folder of a volume, if it is kept."""
        with self._lock:
            found = self._folders.get((volume, number))
            if found is not None:
                self._folders.move_to_end((volume, number))
            return found

    def keep(self, volume: Volume, number: int, found: Mapping[str, Entry]) -> None:
        """It was read."""
        with self._lock:
            before = self._folders.pop((volume, number), None)
            self._kept += 1 + len(found) - (0 if before is None else 1 + len(before))
            self._folders[volume, number] = found
            while self._kept > self._most and len(self._folders) > 1:
                self._kept -= 1 + len(self._folders.popitem(last=False)[1])

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._folders.clear()
            self._kept = 0


class Volume:
    """The file system in `source`, read by `parser` in one of `children`. Owns `source`. Its folders are kept
    in `kept`, which it may share with others."""

    def __init__(
        self,
        children: Children,
        source: BlockSource,
        parser: str,
        where: str,
        kept: KeptFolders | None = None,
        tell: Callable[[str], None] = log.warning,
    ) -> None:
        """`tell` is told of names that can't be shown."""
        self._tell = tell
        self.source, self.parser, self.where = source, parser, where
        self._folders = kept or KeptFolders()
        self._children = children
        self._caseless = parser == "ntfs" or parser.startswith("fat")
        self._listing = threading.Lock()
        self._about: tuple[str, int, str] | None = None

    @property
    def label(self) -> str:
        """Its own name; may be empty."""
        return self._told()[0]

    @property
    def root(self) -> int:
        """The number of its root folder."""
        return self._told()[1]

    @property
    def warning(self) -> str:
        """What people should know before they trust its files; mostly empty."""
        return self._told()[2]

    def confined(self) -> bool:
        """Whether its parser's system calls are limited."""
        return bool(self._children.call(self, "about")[3])

    def folder(self, path: Path, number: int) -> Mapping[str, Entry]:
        """What lies in the folder `number` at `path`, sorted by name."""
        known = self._folders.get(self, number)
        if known is not None:
            return known
        with self._listing:
            known = self._folders.get(self, number)
            if known is not None:
                return known
            listing = Listing(len(path), f"{self.where}: {'/'.join(path)}", self._tell)
            told = self._children.call(self, "folder", number, part=listing.add)
            try:
                listing.add(told)
            except wire.BrokenFrameError as error:
                raise self._broken(error) from None
            found = listing.entries()
            self._folders.keep(self, number, found)
            return found

    def lookup(self, path: Path, number: int, name: str) -> Entry | None:
        """What is called `name` in the folder `number` at `path`."""
        folder = self._folders.get(self, number)
        if folder is None and not self.parser.startswith("fat"):
            told = self._children.call(self, "lookup", [*path, name], number, most=wire.MOST_SMALL)
            if told is not None:
                if not isinstance(told, list) or len(told) != 1:
                    raise self._broken(wire.BrokenFrameError("a name that is none"))
                if told[0] is None:
                    return None
                try:
                    return next(iter(entries(told, len(path), self.where).values()), None)
                except wire.BrokenFrameError as error:
                    raise self._broken(error) from None
        if folder is None:
            folder = self.folder(path, number)
        found = folder.get(name)
        if found is None and self._caseless:
            wanted = _upper(name)
            found = next((e for n, e in folder.items() if len(n) == len(name) and _upper(n) == wanted), None)
        return found

    def open(self, entry: Entry) -> FileSource:
        """A file's content. `UnreadableInputError` where that can't be had rightly."""
        if entry.unreadable is not None:
            raise UnreadableInputError(f"{self.where}: {entry.name}: {entry.unreadable}")
        return FileSource(self, entry)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Bytes of a file, at most `wire.MOST_READ`."""
        data = self._children.call(self, "read", number, offset, length, most=max(length, 1 << 16))
        if not isinstance(data, bytes) or len(data) != length:
            raise self._broken(wire.BrokenFrameError("other bytes than were asked for"))
        return data

    def places(self, entry: Entry) -> list[Place]:
        """Where a file's content lies in the volume, in its order, as far as its parser tells."""
        told = self._children.call(self, "extents", entry.number)
        found = []
        try:
            for offset, at, length in told[:_MOST_EXTENTS]:
                if not 0 <= at <= at + length <= self.source.size or not 0 <= offset < 1 << 62:
                    raise ValueError
                found.append(Place(offset, at, length))
        except (TypeError, ValueError, LookupError):
            raise self._broken(wire.BrokenFrameError("extents that are none")) from None
        return found

    def data(self, entry: Entry) -> list[Extent]:
        """A file's extents, holes told apart from data where its parser knows them."""
        told = self._children.call(self, "data", entry.number)
        if told is None:
            return [Extent(0, entry.size, True)]
        found, end = [], 0
        try:
            for offset, length in told:
                if type(offset) is not int or type(length) is not int or offset < end or length < 1:
                    raise ValueError
                found += [Extent(end, offset - end, False), Extent(offset, length, True)]
                end = offset + length
        except (TypeError, ValueError):
            raise self._broken(wire.BrokenFrameError("extents that are none")) from None
        found.append(Extent(end, max(0, entry.size - end), False))
        return found

    def close(self) -> None:
        """Close the source. Its children end when they are idle."""
        self.source.close()

    def _told(self) -> tuple[str, int, str]:
        if self._about is None:
            told = self._children.call(self, "about", most=wire.MOST_SMALL)
            try:
                label, root, warning = told[:3]
                if not isinstance(label, str) or type(root) is not int or not isinstance(warning, str):
                    raise TypeError
            except (TypeError, ValueError, LookupError):
                raise self._broken(wire.BrokenFrameError("no volume")) from None
            warning = "".join(c if c.isprintable() else " " for c in warning)
            self._about = label, root, warning[:_MOST_WARNING]
        return self._about

    def _broken(self, error: wire.BrokenFrameError) -> UnreadableInputError:
        return UnreadableInputError(f"{self.where}: its parser said what it must not: {error}")


class FileSource:
    """A file's content, read by its volume's parser."""

    def __init__(self, volume: Volume, entry: Entry) -> None:
        self.size = entry.size
        self._volume, self._entry = volume, entry
        self._closed = False
        self._extents: list[Extent] | None = None

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; `UnreadableInputError` when the parser can't give them."""
        check_range(self.size, offset, length)
        if self._closed:
            raise ValueError("this source is closed")
        steps = range(offset, offset + length, wire.MOST_READ)
        end = offset + length
        parts = [self._volume.read(self._entry.number, at, min(wire.MOST_READ, end - at)) for at in steps]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def places(self) -> list[Place]:
        """Where it lies in the volume."""
        return self._volume.places(self._entry)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Holes are told apart in files that are so large that asking the parser for them pays."""
        check_range(self.size, offset, length)
        if self.size < _HOLES_FROM or not length:
            yield Extent(offset, length, True)
            return
        if self._extents is None:
            self._extents = self._volume.data(self._entry)
        end = offset + length
        for e in self._extents:
            low, high = max(offset, e.offset), min(end, e.end)
            if low < high:
                yield Extent(low, high - low, e.data)

    def close(self) -> None:
        """Reads begun later are refused."""
        self._closed = True


def _upper(name: str) -> str:
    """As file systems compare names: character by character."""
    return "".join(u if len(u := c.upper()) == 1 else c for c in name)
