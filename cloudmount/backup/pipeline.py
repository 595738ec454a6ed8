"""Frames from sources into packs: read, hashed, compressed in parallel; sealed in order.

Decided here and only here: the order of things (frames lie in packs in the order of
the source), how much is in memory (`BATCH_BYTES` times `AHEAD`, plus the packs in
flight), and which frames are read at all (those a source's extents call data). The
methods of `Pipeline` belong to one thread.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.spans import LOOKED, WORTH, Spans, Stream, first_words, words
from cloudmount.backup.uploader import Uploader
from cloudmount.crypto.keyring import ZERO_ID, Keyring
from cloudmount.errors import CloudMountError, UnreadableInputError
from cloudmount.extents import BlockSource
from cloudmount.repo.config import Geometry
from cloudmount.repo.locations import Location
from cloudmount.repo.payload import Dictionary, decode_frame, encode_frame

_FEW_ZEROS = bytes(64)
BATCH_BYTES = 2 << 20
AHEAD = 12
WAITING = 256
"""Batches and actions in the queue: a million empty files are not all held open."""
WORKERS = max(2, os.cpu_count() or 2)
"""Threads that read, hash and compress: as many as processors, at least two; more only wait for each other
(measured on two: 6.2 s with two more, 6.0 with one, 5.8 with none)."""


class New(NamedTuple):
    """A frame that was read and is not stored yet, as far as a worker knows."""

    place: int
    """Among those taken together."""
    payload: bytes | memoryview
    length: int
    """Plain bytes."""


class Taken(NamedTuple):
    """Frames beside each other that were read."""

    first: int
    contents: list[bytes]
    """Content ids; `ZERO_ID` for all zeros."""
    places: list[Location | None]
    """Where they are stored already."""
    new: list[New]
    moment: int
    """`Uploader.moments` when they were looked for."""
    words: list[int | None]
    """Their first words, for those that may span two others, or be spanned; none when the stream takes no
    part in this."""
    looked: dict[int, tuple[int, Sequence[int]]]
    """Of `LOOKED` frames beside each other, by their number: the one that is looked up for them, and the
    words of all its sectors."""


class Sink(Protocol):
    """Takes the frames of one stream in order."""

    def add(self, first: int, contents: list[bytes], places: list[Location | None]) -> None:
        """The next frames; those that are absent, or left out, are all zeros."""

    def known(self, first: int, contents: list[bytes]) -> list[Location | None]:
        """Where the previous snapshot keeps these frames, if with these content ids. On any thread."""

    def usable(self, frame: int, at: Location) -> bool:
        """Whether this frame may use what is stored at `at`. On any thread."""

    def failed(self, error: UnreadableInputError) -> None:
        """The source could not be read; nothing more of this stream follows."""


def _only(dictionary: Dictionary | None, id: int) -> Dictionary:
    if dictionary is None or dictionary.id != id:
        raise CloudMountError("what was compressed names another dictionary: faulty memory?")
    return dictionary


class Pipeline:
    """Stores the frames of one stream after another."""

    def __init__(
        self, keys: Keyring, geometry: Geometry, uploader: Uploader, progress: BackupProgress
    ) -> None:
        self._keys, self._frame = keys, geometry.frame
        self._uploader, self._progress = uploader, progress
        self._spans = Spans(keys, geometry.frame, uploader.find_all)
        self._zeros = bytes(geometry.frame)
        self.dictionary: Dictionary | None = None
        """What frames read from now on are compressed with."""
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="frames")
        self._queue: deque[tuple[Future[Taken], Sink, Stream | None] | Callable[[], None]] = deque()
        self._ahead = 0
        self._batch = max(1, BATCH_BYTES // geometry.frame)

    def ranges(self, source: BlockSource) -> Iterator[tuple[int, int]]:
        """(first frame, count) of the frames that hold data, at most a batch each, in order."""
        first = end = 0
        for extent in source.extents(0, source.size):
            if not extent.data:
                continue
            a, b = extent.offset // self._frame, -(-extent.end // self._frame)
            a = max(a, end)
            if a > end:
                yield from self._cut(first, end)
                first = a
            end = max(end, b)
            while end - first > self._batch:
                yield first, self._batch
                first += self._batch
        yield from self._cut(first, end)

    def _cut(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        while first < end:
            n = min(self._batch, end - first)
            yield first, n
            first += n

    def stream(self, source: BlockSource, sink: Sink, again: Callable[[], BlockSource] | None = None) -> None:
        """Store a stream: every present frame reaches `sink`, in order, by the time `then` runs. With
        `again`, which opens the source anew, its frames may span two stored ones, and other streams' its."""
        part = self._spans.stream(source, again) if again is not None else None
        done = 0
        try:
            for first, count in self.ranges(source):
                job = functools.partial(self._take, source, first, count, sink, part is not None)
                self._submit(job, sink, part)
                end = min((first + count) * self._frame, source.size)
                self._progress.add(done_bytes=end - done)
                done = end
        finally:
            if part is not None:
                self._queue.append(part.done)
        self._progress.add(done_bytes=source.size - done)

    def then(self, action: Callable[[], None]) -> None:
        """Run `action` on this thread once all before it reached their sinks."""
        while len(self._queue) >= WAITING:
            self._next()
        self._queue.append(action)

    def _submit(self, job: Callable[[], Taken], sink: Sink, part: Stream | None) -> None:
        while self._ahead >= AHEAD:
            self._next()
        self._queue.append((self._pool.submit(job), sink, part))
        self._ahead += 1

    def _next(self) -> None:
        head = self._queue.popleft()
        if not isinstance(head, tuple):
            head()
            return
        future, sink, part = head
        self._ahead -= 1
        try:
            taken = self._wait(future)
        except UnreadableInputError as error:
            sink.failed(error)
            return
        self._place(taken, sink, part)

    def _place(self, taken: Taken, sink: Sink, part: Stream | None) -> None:
        """Store those of these frames that are nowhere yet."""
        places = taken.places
        beside = -1
        remembered = new = new_bytes = 0
        for place, payload, length in taken.new:
            frame, content = taken.first + place, taken.contents[place]
            if part is not None and frame // LOOKED != beside:
                beside = frame // LOOKED
                self._remember(part, taken, remembered, place)
                remembered = place
                if beside in taken.looked:
                    self._spans.look(part, *taken.looked[beside])
            at = self._put_since(frame, content, taken.moment, sink)
            if at is None and part is not None and part.expected is not None:
                at = self._spanning(frame, content, taken.words[place], sink, part)
            if at is None:
                at = self._uploader.store(content, payload)
                new, new_bytes = new + 1, new_bytes + length
            places[place] = at
        sink.add(taken.first, taken.contents, places)
        if part is not None:
            self._remember(part, taken, remembered, len(places))
        present = len(places) - places.count(None)
        self._progress.add(frames=present, new_frames=new, new_bytes=new_bytes)

    def _remember(self, part: Stream, taken: Taken, begin: int, end: int) -> None:
        """Have these of the frames found later: their places are known by now."""
        places = zip(taken.words[begin:end], taken.places[begin:end], strict=True)
        words = [None if at is None or at.cut else word for word, at in places]
        self._spans.remember(part, taken.first + begin, words)

    def _wait(self, future: Future[Taken]) -> Taken:
        while True:
            self._uploader.check()
            try:
                return future.result(timeout=0.5)  # so that a failed upload is noticed behind a slow source
            except TimeoutError:
                if future.done():
                    raise

    def _put_since(self, frame: int, content: bytes, moment: int, sink: Sink) -> Location | None:
        """Where the same content was put after a worker had looked for it."""
        at = self._uploader.find_since(content, moment)
        return at if at is not None and sink.usable(frame, at) else None

    def _spanning(
        self, frame: int, content: bytes, first: int | None, sink: Sink, part: Stream
    ) -> Location | None:
        """Where two frames that are stored hold a new one's bytes, at another alignment."""
        at = self._spans.find(part, frame, content, first) if first is not None else None
        return at if at is not None and sink.usable(frame, at) else None

    def _take(self, source: BlockSource, first: int, count: int, sink: Sink, takes_part: bool) -> Taken:
        offset = first * self._frame
        data = source.read_at(offset, min(count * self._frame, source.size - offset))
        self._progress.add(read_bytes=len(data))
        whole = memoryview(data)
        contents = [self._content(data, whole, i * self._frame) for i in range(count)]
        places = sink.known(first, contents)
        moment = self._uploader.moments
        new: list[New] = []
        missing = [i for i in range(count) if places[i] is None and contents[i] != ZERO_ID]
        if missing:
            stored = self._uploader.find_all([contents[i] for i in missing])
            for i in missing:
                at = stored.get(contents[i])
                if at is not None and sink.usable(first + i, at):
                    places[i] = at
                    continue
                begin = i * self._frame
                plain = whole[begin : begin + self._frame]
                new.append(New(i, self._encode(data, begin, plain), len(plain)))
        taken = Taken(first, contents, places, new, moment, [], {})
        if takes_part:
            self._note_words(taken, data)
        return taken

    def _content(self, data: bytes, whole: memoryview, begin: int) -> bytes:
        """The content id of the frame that begins at `begin` of `data`."""
        plain = whole[begin : begin + self._frame]
        n = len(plain)
        if data.startswith(_FEW_ZEROS[:n], begin) and data[begin : begin + n] == self._zeros[:n]:
            return ZERO_ID
        return self._keys.content_id(plain)

    def _note_words(self, taken: Taken, data: bytes) -> None:
        """Fill in `words` and `looked`: of whole frames that take enough room, and don't span two."""
        sizes = [0 if at is None or at.cut else at.length for at in taken.places]
        for place, payload, _ in taken.new:
            sizes[place] = len(payload)
        firsts = zip(first_words(data, self._frame), sizes, strict=False)
        taken.words.extend(word if size * WORTH >= self._frame else None for word, size in firsts)
        taken.words.extend([None] * (len(sizes) - len(taken.words)))
        looked = {
            (taken.first + n.place) // LOOKED: n.place for n in taken.new if taken.words[n.place] is not None
        }
        for beside, place in looked.items():  # the last of each: a copy may begin before it
            taken.looked[beside] = taken.first + place, words(data, place * self._frame, self._frame)

    def _encode(self, data: bytes, begin: int, plain: memoryview) -> bytes | memoryview:
        """The payload of `plain`, which lies in `data` from `begin` on."""
        dictionary = self.dictionary
        payload = encode_frame(plain, dictionary)
        if payload is plain:
            return payload
        again = decode_frame(bytes(payload), len(plain), functools.partial(_only, dictionary))
        if not data.startswith(again, begin):
            raise CloudMountError("what was compressed does not inflate to itself: faulty memory?")
        return payload

    def drain(self) -> None:
        """Deal with everything submitted so far."""
        while self._queue:
            self._next()

    def close(self) -> None:
        """End the threads, whatever they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._spans.close()
