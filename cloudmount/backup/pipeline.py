"""Frames from sources into packs: read, hashed, compressed in parallel; sealed in order.

Decided here and only here: the order of things (frames lie in packs in the order of
the source), how much is in memory (`BATCH_BYTES` times `AHEAD`, plus the packs in
flight), and which frames are read at all (those a source's extents call data). The
methods of `Pipeline` belong to one thread.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.spans import LOOKED, WORTH, Spans, Stream, word, words
from cloudmount.backup.uploader import Uploader
from cloudmount.crypto.keyring import Keyring
from cloudmount.errors import CloudMountError, UnreadableInputError
from cloudmount.extents import BlockSource
from cloudmount.repo.config import Geometry
from cloudmount.repo.locations import Location
from cloudmount.repo.payload import Dictionary, decode_frame, encode_frame

_FEW_ZEROS = bytes(64)
BATCH_BYTES = 1 << 20
AHEAD = 24
WAITING = 256
"""Batches and actions in the queue: a million empty files are not all held open."""
WORKERS = (os.cpu_count() or 2) + 1
"""Threads that read, hash and compress: one more than processors, as some wait for the disk; more than
that only wait for each other (measured: 6.2 s with two more, 6.0 with one, 5.8 with none)."""


class Taken(NamedTuple):
    """A frame that was read: its number, content id, where it is stored already, else its payload."""

    frame: int
    content: bytes
    at: Location | None
    payload: bytes | memoryview
    length: int
    moment: int
    """`Uploader.moments` when it was looked for."""
    word: int | None
    """Its first word, when it may span two others, or be spanned."""
    words: Sequence[int] = ()
    """Those of all its sectors, when it is one that is looked up for those beside it."""


class Sink(Protocol):
    """Takes the present frames of one stream in order."""

    def add(self, frame: int, content: bytes, at: Location) -> None:
        """The next present frame."""

    def known(self, frame: int, content: bytes) -> Location | None:
        """Where the previous snapshot keeps this frame, if with this content id. On any thread."""

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
        self._queue: deque[tuple[Future[list[Taken]], Sink, Stream | None] | Callable[[], None]] = deque()
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

    def _submit(self, job: Callable[[], list[Taken]], sink: Sink, part: Stream | None) -> None:
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
        for _, beside in itertools.groupby(taken, lambda t: t.frame // LOOKED):
            self._place(list(beside), sink, part)

    def _place(self, taken: list[Taken], sink: Sink, part: Stream | None) -> None:
        """Store those of these frames that are nowhere yet."""
        if part is not None:
            for t in taken:
                if t.words:
                    self._spans.look(part, t.frame, t.words)
        for t in taken:
            at = t.at or self._put_since(t, sink)
            if at is None and part is not None and part.expected is not None and t.word is not None:
                at = self._spanning(t.frame, t.content, t.word, sink, part)
            if at is None:
                at = self._uploader.store(t.content, t.payload, t.length)
            sink.add(t.frame, t.content, at)
            if part is not None and t.word is not None and not at.cut:
                self._spans.remember(part, t.frame, t.word)
            self._progress.add(frames=1)

    def _wait(self, future: Future[list[Taken]]) -> list[Taken]:
        while True:
            self._uploader.check()
            try:
                return future.result(timeout=0.5)  # so that a failed upload is noticed behind a slow source
            except TimeoutError:
                if future.done():
                    raise

    def _put_since(self, taken: Taken, sink: Sink) -> Location | None:
        """Where the same content was put after a worker had looked for it."""
        at = self._uploader.find_since(taken.content, taken.moment)
        return at if at is not None and sink.usable(taken.frame, at) else None

    def _spanning(self, frame: int, content: bytes, first: int, sink: Sink, part: Stream) -> Location | None:
        """Where two frames that are stored hold a new one's bytes, at another alignment."""
        at = self._spans.find(part, frame, content, first)
        return at if at is not None and sink.usable(frame, at) else None

    def _take(self, source: BlockSource, first: int, count: int, sink: Sink, takes_part: bool) -> list[Taken]:
        offset = first * self._frame
        data = source.read_at(offset, min(count * self._frame, source.size - offset))
        self._progress.add(read_bytes=len(data))
        whole = memoryview(data)
        found: list[tuple[int, bytes, int, memoryview]] = []
        for i in range(count):
            begin, end = i * self._frame, min((i + 1) * self._frame, len(data))
            if (
                data.startswith(_FEW_ZEROS[: end - begin], begin)
                and data[begin:end] == self._zeros[: end - begin]
            ):
                continue
            plain = whole[begin:end]
            found.append((first + i, self._keys.content_id(plain), begin, plain))
        known = {n: at for n, content, *_ in found if (at := sink.known(n, content)) is not None}
        moment = self._uploader.moments
        stored = self._uploader.find_all([content for n, content, *_ in found if n not in known])
        taken: list[Taken] = []
        looked: dict[int, tuple[int, int]] = {}
        for n, content, begin, plain in found:
            at = known.get(n)
            if at is None:
                at = stored.get(content)
                if at is not None and not sink.usable(n, at):
                    at = None
            payload = b"" if at is not None else self._encode(data, begin, plain)
            first_word = None
            size = len(payload) if at is None else at.length
            if takes_part and len(plain) == self._frame <= size * WORTH and not (at is not None and at.cut):
                first_word = word(data, begin)
                if at is None:
                    looked[n // LOOKED] = len(taken), begin  # the last: a copy may begin before it
            taken.append(Taken(n, content, at, payload, len(plain), moment, first_word))
        for i, begin in looked.values():
            taken[i] = taken[i]._replace(words=words(data, begin, self._frame))
        return taken

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
