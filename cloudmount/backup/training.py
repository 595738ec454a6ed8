"""The dictionary that a backup's frames are compressed with: the repository's, or one trained of a disk.

Decided here and only here: which of several dictionaries is used (the first that is sound), when one is
trained (before the first disk that has enough to compress is read, while the repository has none), and of
what: pieces of frames scattered over all its data, read within about a second. Ordinary files are compressed
with a dictionary that is there; of files alone none is trained. Belongs to the backup's thread.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Callable, Iterator

import zstandard

from cloudmount.errors import CloudMountError, DamagedError
from cloudmount.extents import BlockSource
from cloudmount.repo.damage import Damage
from cloudmount.repo.dictionaries import MOST_NAMES, room
from cloudmount.repo.payload import LEVEL, Dictionary, encode_frame
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import Snapshot

WORTH_BYTES = 64 << 20
"""A dictionary makes compressed frames a tenth smaller: of so many bytes some 3 MB, and it takes 0.2."""
LARGEST_FRAME = 256 << 10
"""Larger frames gain little, and the tables that dictionaries are used with are made for smaller ones."""
PLACES = 256
STRIDE = 61
"""In steps of so many places, so that a look that is cut short is scattered too."""
SECONDS = 1.0
"""A slow disk moves its heads a hundred times in this."""
FEWEST = 16
"""Places that are looked at however long it takes."""
PIECE, LOOK = 4 << 10, 32 << 10
MOST_SAMPLES = 96
"""Times a dictionary's size: 9 MiB of samples make frames 0.3 % smaller than 2 do, and 33 by another 0.2."""


class Training:
    """Finds the dictionary for one backup; `create` stores an object."""

    def __init__(
        self,
        repository: Repository,
        create: Callable[[str, bytes], None],
        worth_bytes: int,
    ) -> None:
        self._repository, self._create, self._worth = repository, create, worth_bytes
        geometry = repository.geometry
        self._wanted = bool(geometry.dictionary) and geometry.frame <= LARGEST_FRAME
        self.needed: list[int] = []
        """Ids of the dictionaries that frames in the repository may name."""
        self.found: Dictionary | None = None
        self._stored = repository.dictionaries.stored() if geometry.dictionary else {}
        for id, there in itertools.islice(sorted(self._stored.items()), MOST_NAMES):
            if self._wanted and self.found is None:
                self.found = repository.dictionaries.usable(id, there, create)
            try:
                self.needed.append(repository.dictionaries.get(id).id)
            except DamagedError as error:
                repository.warn(f"a dictionary is ignored: {error}")

    def lost(self, previous: Snapshot, damage: Damage) -> list[int]:
        """Dictionaries that frames of the previous snapshot may need, that are lost, and that no check has
        told the frames of: what is used again of those can't be read. They stay `needed`."""
        ids = [id for id in previous.dictionaries if id not in damage.dictionaries]
        found = [id for id in ids if id not in self.needed and self._repository.dictionaries.lost(id)]
        self.needed += [id for id in ids if id not in self.needed]
        return found

    def before(self, source: BlockSource) -> Dictionary | None:
        """The dictionary to compress a disk with that is about to be read."""
        if self.found is None and self._wanted:
            samples = _samples(source, self._repository, self._worth)
            content = _trained(samples, room(self._repository.geometry.dictionary))
            if content is not None:
                self.found = self._repository.dictionaries.add(content, self._stored, self._create)
                self.needed.append(self.found.id)
        return self.found


def _frames(source: BlockSource, frame: int) -> Iterator[tuple[int, int]]:
    """(first, end) of the runs of frames that hold data."""
    last = 0
    for extent in source.extents(0, source.size):
        if extent.data and extent.length:
            first, end = max(last, extent.offset // frame), -(-extent.end // frame)
            if first < end:
                yield first, end
                last = end


def _samples(source: BlockSource, repository: Repository, worth: int) -> list[bytes]:
    """Pieces of a disk; none when so little of it can be compressed that it is not worth a dictionary.
    Places that can't be read are the backup's to tell."""
    frame = repository.geometry.frame
    try:
        runs = list(_frames(source, frame))
    except CloudMountError:
        return []
    before = list(itertools.accumulate((end - first for first, end in runs), initial=0))
    count = before[-1]
    if count * frame < worth:
        return []
    began = time.monotonic()
    looked, taken = 0, []
    for place in dict.fromkeys(count * (n * STRIDE % PLACES) // PLACES for n in range(PLACES)):
        if looked >= FEWEST and time.monotonic() - began > SECONDS:
            break
        run = bisect.bisect_right(before, place) - 1
        offset = (runs[run][0] + place - before[run]) * frame
        try:
            data = source.read_at(offset, min(frame, source.size - offset))
        except CloudMountError:
            continue
        looked += 1
        if any(data) and len(encode_frame(data[:LOOK])) < 0.9 * min(LOOK, len(data)):
            taken.append(data)
    if count * frame * len(taken) < worth * looked:
        return []
    pieces = [data[i : i + PIECE] for data in taken for i in range(0, len(data), PIECE)]
    step = -(-len(pieces) * PIECE // (MOST_SAMPLES * repository.geometry.dictionary))
    return pieces[:: max(1, step)]


def _trained(samples: list[bytes], size: int) -> bytes | None:
    """A dictionary of at most `size` bytes, in zstd's form; None of too few samples.

    Measured for 96 KiB of 6 MiB: 0.08 CPU s, and as much to find the samples. zstd's own search for the best
    parameters takes 1 s, for 0.1 % less.
    """
    if not samples:
        return None
    given: list[bytes | bytearray | memoryview[int]] = [*samples]
    try:
        made = zstandard.train_dictionary(
            size, given, k=min(512, size // 2), d=6, f=20, accel=1, level=LEVEL, dict_id=1 << 15
        )
    except (zstandard.ZstdError, ValueError):
        return None
    content: bytes = made.as_bytes()
    return content
