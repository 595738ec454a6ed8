"""Frames whose bytes lie elsewhere in what is backed up, at another alignment (FORMAT.md 6.3).

Decided here and only here: how such a frame is found (the first word of each frame is remembered, and those
of all sectors of one new frame in every eight are looked up, so a copy of some 1 MiB by whole sectors is
found, and a smaller one with luck), that what was found is read again and proved by content ids before it
counts, and what that may cost: a bounded table and a few tries. What is copied otherwise, as file systems
don't, is stored as before: to look at every byte takes several times as long.

Functions are pure; a `Spans` belongs to the backup's thread.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cloudmount.crypto.keyring import Keyring
from cloudmount.errors import CloudMountError
from cloudmount.extents import BlockSource
from cloudmount.repo.locations import Location
from cloudmount.repo.packs import spanning

SECTOR = 512
WORD = 8
"""Bytes at the beginning of a sector that it is known by."""
WORTH = 4
"""Only frames that take a fourth of their length when stored: smaller ones cost less than reading two."""
LOOKED = 8
"""Of so many frames beside each other one is looked up; where it is found the others are tried there too."""
TABLE = 1 << 17
"""Words remembered, 17 MB: of each frame of 16 GiB, then of every second frame, and so on."""
TRIES = 4
"""Places looked at for a frame."""
DISTINCT = 7
"""Different bytes that a word must have to be remembered."""
OPEN = 2
"""Sources of other streams that are open at once, beside the one being stored."""


def first_words(data: bytes, frame: int) -> Sequence[int]:
    """What each whole frame of `frame` bytes in `data` is remembered by."""
    return _words(len(data) // frame, frame).unpack_from(data) if len(data) >= frame else ()


def words(data: bytes, begin: int, frame: int) -> Sequence[int]:
    """Of all sectors of the frame of `frame` bytes that begins at `begin` of `data`."""
    return _words(frame // SECTOR, SECTOR).unpack_from(data, begin)


@functools.lru_cache(64)
def _words(count: int, apart: int) -> struct.Struct:
    return struct.Struct("<" + f"Q{apart - WORD}x" * (count - 1) + "Q")


def drawn(frame: int, mask: int) -> bool:
    """Whether a frame is of those that are remembered: one of `mask` + 1, without any period."""
    return not (frame * 0x9E3779B1 >> 16) & mask


@dataclass(slots=True)
class Stream:
    """A stream that takes part: its `source` while its frames are being stored, and how it is opened again
    after that."""

    number: int
    source: BlockSource | None
    again: Callable[[], BlockSource]
    size: int
    expected: tuple[int, Stream, int] | None = None
    """A frame that was found, and where its bytes begin: those beside it may lie beside that."""

    def done(self) -> None:
        """All its frames are stored: whoever opened its source may close it."""
        self.source = None


class Spans:
    """Finds frames that span two. `find_all` tells where frames of these ids are stored."""

    def __init__(
        self, keys: Keyring, frame: int, find_all: Callable[[Sequence[bytes]], dict[bytes, Location]]
    ) -> None:
        self._keys, self._frame, self._find_all = keys, frame, find_all
        self._streams: list[Stream] = []
        self._table: dict[int, int] = {}
        """A word to the number of a stream and, in the lower 56 bits, its place there; -1 when it was met
        elsewhere too, as the beginnings of files are."""
        self._mask = 0
        self._open: dict[int, BlockSource | None] = {}
        self._last: tuple[int, int, bytes, bytes] | None = None

    def stream(self, source: BlockSource, again: Callable[[], BlockSource]) -> Stream:
        """A stream whose frames are looked up, and remembered for others."""
        made = Stream(len(self._streams), source, again, source.size)
        self._streams.append(made)
        return made

    def remember(self, stream: Stream, first: int, firsts: Sequence[int | None]) -> None:
        """Frames from `first` on by their first words: None for those that are not to be found, as they are
        small or not stored as themselves."""
        for frame, word in enumerate(firsts, first):
            if (
                word is None
                or (self._mask and not drawn(frame, self._mask))
                or len(set(word.to_bytes(WORD, "little"))) < DISTINCT
            ):
                continue
            place = stream.number << 56 | frame * self._frame
            if self._table.setdefault(word, place) != place:
                self._table[word] = -1
        if len(self._table) > TABLE:
            self._mask = 2 * self._mask + 1
            self._table = {
                word: place
                for word, place in self._table.items()
                if place >= 0 and drawn((place & (1 << 56) - 1) // self._frame, self._mask)
            }

    def look(self, stream: Stream, frame: int, sectors: Sequence[int]) -> None:
        """Look a new frame of the stream that is being stored up, by its sectors' words: for `find`."""
        for base, begin in self._candidates(stream, frame, sectors):
            if self._likely(base, begin, sectors):
                stream.expected = (frame, base, begin)
                return

    def find(self, stream: Stream, frame: int, content: bytes, first: int) -> Location | None:
        """Where two stored frames hold the bytes of this new one, if one beside it was found."""
        for base, begin in self._expected(stream, frame):
            at = self._proved(base, begin, content) if self._likely(base, begin, (first,)) else None
            if at is not None:
                stream.expected = (frame, base, begin)
                return at
        return None

    def _expected(self, stream: Stream, frame: int) -> Iterator[tuple[Stream, int]]:
        if stream.expected is not None:
            known, base, begin = stream.expected
            begin += (frame - known) * self._frame
            if abs(frame - known) <= LOOKED and begin >= 0:
                yield base, begin

    def _candidates(self, stream: Stream, frame: int, sectors: Sequence[int]) -> Iterator[tuple[Stream, int]]:
        tried: set[tuple[int, int]] = set()
        for base, begin in self._expected(stream, frame):
            tried.add((base.number, begin))
            yield base, begin
        if self._table.keys().isdisjoint(sectors):
            return
        for i, word in enumerate(sectors):
            place = self._table.get(word)
            if place is None or place < 0:
                continue
            number, begin = place >> 56, (place & (1 << 56) - 1) - i * SECTOR
            if begin >= 0 and (number, begin) not in tried:
                if len(tried) == TRIES:
                    return
                tried.add((number, begin))
                yield self._streams[number], begin
                self._table[word] = -1  # it went on to be asked: this was not it

    def _likely(self, base: Stream, begin: int, sectors: Sequence[int]) -> bool:
        """Whether two whole frames of `base` are there, with these words: most that is none ends here."""
        if not begin % self._frame or (begin // self._frame + 2) * self._frame > base.size:
            return False
        try:
            source = base.source or self._opened(base)
            return source is not None and all(
                source.read_at(begin + i * SECTOR, WORD) == sectors[i].to_bytes(WORD, "little")
                for i in {0, len(sectors) // 2, len(sectors) - 1}
            )
        except CloudMountError:
            return False

    def _proved(self, base: Stream, begin: int, content: bytes) -> Location | None:
        """Where the frame lies whose bytes are those of `base` from `begin` on, if that is so.

        All is decided by bytes read just now, and by the ids of just those: that what was remembered has
        changed since does no harm.
        """
        number, skip = divmod(begin, self._frame)
        try:
            source = base.source or self._opened(base)
            if source is None:
                return None
            (one, plain), (two, more) = (self._read(base, source, number + i) for i in range(2))
        except CloudMountError:
            return None
        if self._keys.content_id(b"".join((memoryview(plain)[skip:], memoryview(more)[:skip]))) != content:
            return None
        places = self._find_all([one, two])
        if one not in places or two not in places:
            return None
        return spanning(places[one], places[two], skip)

    def _read(self, base: Stream, source: BlockSource, frame: int) -> tuple[bytes, bytes]:
        """A whole frame's content id and bytes; the last one read is kept, for the frame after it."""
        if self._last is not None and self._last[:2] == (base.number, frame):
            return self._last[2:]
        plain = source.read_at(frame * self._frame, self._frame)
        self._last = (base.number, frame, self._keys.content_id(plain), plain)
        return self._last[2:]

    def _opened(self, base: Stream) -> BlockSource | None:
        """The source of a stream that was stored before; None when it can't be opened any more."""
        if base.number not in self._open:
            if len(self._open) >= OPEN:
                self._close(next(iter(self._open)))
            self._open[base.number] = None
            source = base.again()
            if source.size == base.size:
                self._open[base.number] = source
            else:
                source.close()
        return self._open[base.number]

    def _close(self, number: int) -> None:
        source = self._open.pop(number)
        if source is not None:
            source.close()

    def close(self) -> None:
        """Close what was opened again."""
        for number in list(self._open):
            self._close(number)
