"""Frames whose bytes lie elsewhere in what is backed up, at another alignment (FORMAT.md 6.3).

Decided here and only here: how such a frame is found (the first word of each quarter of the frames read is
remembered, and those of all sectors in the first quarter of every second new one are looked up, so what was
copied by whole sectors is found), that what was found is read again and proved by content ids before it
counts, and what that may cost: a bounded table and a few tries a frame. What is copied otherwise, as file
systems don't, is stored as before: to look at every byte takes several times as long.

Functions are pure; a `Spans` belongs to the backup's thread.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
PARTS = 4
"""A word of each of a frame's so many parts is remembered, and a new frame's first part looked up: with fewer
that takes longer (memory is slow: 0.2 us a word), with more the table is full sooner."""
LOOKED = 2
"""Every second new frame is looked up, beside those behind one that was found."""
UNCHANGED = 3
"""A mask for `drawn`: of frames that the last snapshot has in the same place only every fourth is remembered,
since a disk that is read again must stay quick."""
TABLE = 1 << 17
"""Words remembered, 17 MB: of each frame of 4 GiB, then of every second frame, and so on."""
REACH = 4
"""So many frames behind one that was found are expected to go on as it did, whatever lies between."""
TRIES = 4
"""Places looked at for a frame."""
DISTINCT = 7
"""Different bytes that a word must have to be remembered."""
OPEN = 2
"""Sources of other streams that are open at once, beside the one being stored."""


class Marks(NamedTuple):
    """What a worker took of a frame: the first word of each of its parts, to be remembered, and those of the
    sectors of its first part, to be looked up."""

    kept: Sequence[int]
    words: Sequence[int]


def marks(data: bytes, begin: int, frame: int, *, looked: bool) -> Marks:
    """Of the whole frame of `frame` bytes that begins at `begin` of `data`; no `words` unless `looked` up."""
    part = frame // PARTS
    kept = _words(PARTS, part).unpack_from(data, begin)
    return Marks(kept, _words(part // SECTOR, SECTOR).unpack_from(data, begin) if looked else ())


@functools.cache
def _words(count: int, step: int) -> struct.Struct:
    return struct.Struct("<" + f"Q{step - WORD}x" * (count - 1) + "Q")


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
    """The last frame that was found, and where its bytes begin: the next ones may go on from there."""

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

    def remember(self, stream: Stream, frame: int, found: Marks) -> None:
        """A frame that is stored as itself."""
        if not drawn(frame, self._mask):
            return
        begin = stream.number << 56 | frame * self._frame
        for i, word in enumerate(found.kept):
            if len(set(word.to_bytes(WORD, "little"))) >= DISTINCT:
                place = begin + i * (self._frame // PARTS)
                if self._table.setdefault(word, place) != place:
                    self._table[word] = -1
        if len(self._table) > TABLE:
            self._mask = 2 * self._mask + 1
            self._table = {
                word: place
                for word, place in self._table.items()
                if place >= 0 and drawn((place & (1 << 56) - 1) // self._frame, self._mask)
            }

    def find(self, stream: Stream, frame: int, content: bytes, found: Marks) -> Location | None:
        """Where two stored frames hold the bytes of this one, of the stream that is being stored."""
        for base, begin in self._candidates(stream, frame, found.words):
            at = self._proved(base, begin, content, found.words)
            if at is not None:
                stream.expected = (frame, base, begin)
                return at
        return None

    def _candidates(self, stream: Stream, frame: int, words: Sequence[int]) -> Iterator[tuple[Stream, int]]:
        expected = stream.expected
        tried: set[tuple[int, int]] = set()
        if expected is not None and frame - expected[0] <= REACH:
            base, begin = expected[1], expected[2] + (frame - expected[0]) * self._frame
            tried.add((base.number, begin))
            yield base, begin
        if self._table.keys().isdisjoint(words):
            return
        for i, word in enumerate(words):
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

    def _proved(self, base: Stream, begin: int, content: bytes, words: Sequence[int]) -> Location | None:
        """Where the frame lies whose bytes are those of `base` from `begin` on, if that is so.

        All is decided by bytes read just now, and by the ids of just those: that what was remembered has
        changed since does no harm.
        """
        first, skip = divmod(begin, self._frame)
        if not skip or (first + 2) * self._frame > base.size:
            return None
        try:
            source = base.source or self._opened(base)
            if source is None:
                return None
            for i in {0, len(words) - 1} if words else ():  # most that is none ends here
                if source.read_at(begin + i * SECTOR, WORD) != words[i].to_bytes(WORD, "little"):
                    return None
            (one, plain), (two, more) = (self._read(base, source, first + i) for i in range(2))
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
