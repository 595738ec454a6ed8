"""Dirty logs found, replayed in memory and never written: entries of our own writing, QEMU as a judge.

QEMU 7.2 is no judge of three things: it refuses entries of more than 126
descriptors (it reads their sectors over one another), it replays what lies
before the tail, and it doesn't make the file as long as LastFileOffset says
when that is whole MiB.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from cloudmount.disks.detect import open_disk
from cloudmount.disks.vhdx_log import Patch, _laid_over
from cloudmount.errors import UnreadableInputError
from tests.disks.disk_model import Model, check_reads
from tests.disks.oracles import run
from tests.disks.vhdx_writer import FULL, KIB, MIB, UNMAPPED, ZERO, Log, VhdxFile, patch

GUID = UUID("11111111-2222-3333-4444-555555555555")
SECTOR = 4096
GARBAGE = b"\xa5" * SECTOR


class Dirty:
    """A VHDX whose last changes are only in its log: the tables in the file are garbage."""

    def __init__(self, folder: Path, seed: int, log_length: int = MIB, block: int = MIB) -> None:
        self.rng = rng = random.Random(seed)
        self.file = VhdxFile(
            Model(block * 6 + 512), block=block, log_guid=GUID, log_length=log_length, order=rng
        )
        for number in range(7):
            self.file.fill(number, rng, rng.choice((FULL, FULL, ZERO, UNMAPPED)))
        self.path = self.file.write(folder / "dirty.vhdx")
        self.log = Log(GUID, log_length)
        lay = self.file.layout
        places = [lay.region_tables[0], lay.metadata, lay.metadata + 64 * KIB, lay.bat, lay.region_tables[1]]
        places += [at for at in lay.payload.values()]
        with self.path.open("rb") as f:
            self.right = {}
            for at in places:
                f.seek(at)
                self.right[at] = f.read(SECTOR)
        for at in places:
            patch(self.path, at, GARBAGE)

    def flush(
        self,
        *,
        also: list[tuple[int, bytes | int]] | None = None,
        flushed: int = 0,
        last: int = 0,
        torn: int = 0,
    ) -> None:
        """One entry with everything right in it."""
        self.log.entry([*self.right.items(), *(also or [])], flushed=flushed, last=last, torn=torn)

    def check(self, *, qemu: bool = True) -> None:
        """The reader gives what was written and leaves the file as it was; QEMU agrees, if asked."""
        self.log.put(self.path, self.file.log_offset)
        before = digest(self.path)
        with open_disk(self.path) as disk:
            check_reads(disk.source, self.file.model, self.rng)
        assert digest(self.path) == before
        if not qemu:
            return
        copy = self.path.with_suffix(".copy")
        shutil.copy(self.path, copy)
        run("qemu-img", "check", "-r", "all", "-f", "vhdx", copy)
        raw = self.path.with_suffix(".raw")
        run("qemu-img", "convert", "-f", "vhdx", "-O", "raw", copy, raw)
        assert raw.read_bytes() == self.file.model.read(0, self.file.model.size)

    def refused(self, match: str) -> None:
        """The reader gives one clear error."""
        self.log.put(self.path, self.file.log_offset)
        with pytest.raises(UnreadableInputError, match=match):
            open_disk(self.path)


def digest(path: Path) -> str:
    """Of the file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def dirty(tmp_path: Path) -> Dirty:
    """A dirty file, its log still empty."""
    return Dirty(tmp_path, 1)


def test_one_entry(dirty: Dirty) -> None:
    dirty.flush()
    dirty.check()


def test_entries_over_one_another(dirty: Dirty) -> None:
    """Later ones win, zeros and data either way."""
    lay = dirty.file.layout
    dirty.log.entry([(at, GARBAGE[::-1]) for at in dirty.right])
    dirty.log.entry([(lay.bat, 16 * SECTOR), (lay.metadata, 17 * SECTOR)])
    dirty.log.entry([(lay.bat, MIB)])
    dirty.flush()
    dirty.log.entry([(lay.bat + SECTOR, GARBAGE), (lay.bat + SECTOR, 2 * SECTOR), (lay.bat + 64 * KIB, 4096)])
    dirty.check()


def test_many_descriptors(dirty: Dirty) -> None:
    """126 descriptors fit beside the header, 128 in each sector that follows."""
    spare = dirty.file.layout.bat + 64 * KIB
    for count in (0, 1, 125, 126, 127, 254, 255):
        dirty.log.entry([(spare, SECTOR)] * count)
    dirty.flush(also=[(spare, bytes(SECTOR))] * 130)
    dirty.check(qemu=False)


def test_the_ring_goes_around(tmp_path: Path) -> None:
    """The sequence starts near the end of the ring and goes on at its start."""
    for start in (MIB - SECTOR, MIB - 2 * SECTOR, MIB - 5 * SECTOR, MIB - 60 * SECTOR):
        folder = tmp_path / str(start)
        folder.mkdir()
        dirty = Dirty(folder, start)
        dirty.log.head = start
        items = list(dirty.right.items())
        for at, _ in items:
            dirty.log.entry([(at, GARBAGE)])
        dirty.log.entry(items[:3])
        dirty.log.entry(items[3:])
        dirty.check()


def test_entries_before_the_tail_are_done(dirty: Dirty) -> None:
    """Written back already: replaying them would undo what came later outside the log."""
    lay = dirty.file.layout
    last = max(lay.payload.values())
    wrong = dirty.log.entry([(last, GARBAGE)])
    assert wrong == 0
    dirty.log.tail = dirty.log.head
    right = dirty.right.pop(last)
    patch(dirty.path, last, right)
    dirty.flush()
    dirty.check(qemu=False)


@pytest.mark.parametrize("torn", [1, 100, SECTOR, 3 * SECTOR])
def test_a_torn_last_entry(dirty: Dirty, torn: int) -> None:
    dirty.flush()
    dirty.log.entry([(at, GARBAGE) for at in dirty.right], torn=torn)
    dirty.check()


def test_stale_sequences(dirty: Dirty) -> None:
    """An older lap of the ring, another log's entries, and a sequence with a gap."""
    log = dirty.log
    log.head, log.sequence, log.tail = 100 * SECTOR, 20, None
    for _ in range(5):
        log.entry([(at, GARBAGE) for at in dirty.right])
    log.head, log.sequence, log.tail = 0, 60, None
    dirty.flush()
    dirty.log.entry([(dirty.file.layout.bat + 64 * KIB, SECTOR)])
    end = log.head
    log.entry([(at, GARBAGE) for at in dirty.right], sequence=59)
    log.head = end
    log.entry([(at, GARBAGE) for at in dirty.right], sequence=64)
    log.head = 150 * SECTOR
    log.entry([(at, GARBAGE) for at in dirty.right], sequence=900, guid=UUID(int=4))
    dirty.check()


def test_a_newer_sequence_whose_tail_is_gone(dirty: Dirty) -> None:
    dirty.flush()
    dirty.log.head, dirty.log.tail = 120 * SECTOR, 200 * SECTOR
    dirty.log.sequence = 500
    dirty.log.entry([(at, GARBAGE) for at in dirty.right])
    dirty.check(qemu=False)


@pytest.mark.parametrize("length", [MIB, 4 * MIB])
@pytest.mark.parametrize("seed", range(6))
def test_any_history(tmp_path: Path, length: int, seed: int) -> None:
    """Laps of random entries, the tail following; what the last ones say holds."""
    dirty = Dirty(tmp_path, seed, length)
    rng, log = dirty.rng, dirty.log
    log.head = rng.randrange(length // SECTOR) * SECTOR
    items = list(dirty.right.items())
    spare = dirty.file.layout.bat + 64 * KIB
    for _ in range(rng.randrange(3, 40)):
        log.tail = log.head  # all that came before is written back
        for _ in range(rng.randrange(1, 4)):
            log.entry(
                [(at, GARBAGE) for at, _ in rng.sample(items, 3)] + [(spare, SECTOR)] * rng.randrange(9)
            )
        log.entry([(at, data) for at, data in rng.sample(items, len(items))])
        for at in dirty.right:
            patch(dirty.path, at, rng.choice((GARBAGE, dirty.right[at])))
    if rng.random() < 0.5:
        log.entry([(at, GARBAGE) for at in dirty.right], torn=rng.randrange(1, SECTOR))
    dirty.check()


def test_the_file_grows(dirty: Dirty) -> None:
    """Blocks allocated beyond what was flushed: zeros until written (LastFileOffset)."""
    lay = dirty.file.layout
    path = dirty.path
    size = path.stat().st_size
    dirty.flush(flushed=size, last=size + 8 * MIB)
    block = next(b for b, s in dirty.file.states.items() if s != FULL)
    bat = bytearray(dirty.right[lay.bat])
    bat[8 * block : 8 * block + 8] = (size + MIB | FULL).to_bytes(8, "little")
    dirty.log.entry([(lay.bat, bytes(bat))], flushed=size, last=size + 8 * MIB)
    dirty.log.entry([(size + MIB, b"new!" * 1024)], flushed=size, last=size + 8 * MIB)
    if block * MIB + SECTOR <= dirty.file.model.size:
        dirty.file.model.write(block * MIB, b"new!" * 1024)
    dirty.check(qemu=False)


Change = Callable[[Dirty], None]


def cut(dirty: Dirty) -> None:
    """The file is shorter than it was flushed."""
    dirty.flush(flushed=dirty.path.stat().st_size + 1)


def nothing(_: Dirty) -> None:
    """No entry at all."""


def only_torn(dirty: Dirty) -> None:
    """One entry, torn."""
    dirty.flush(torn=1)


def into_headers(dirty: Dirty) -> None:
    """The log may not rewrite headers."""
    dirty.flush(also=[(64 * KIB, GARBAGE)])


def into_itself(dirty: Dirty) -> None:
    """Nor the log."""
    dirty.flush(also=[(MIB + 3 * SECTOR, GARBAGE)])


def over_itself(dirty: Dirty) -> None:
    """Nor zeros over all of it."""
    dirty.flush(also=[(512 * KIB, 4 * MIB)])


def unaligned(dirty: Dirty) -> None:
    """4 KiB only."""
    dirty.flush(also=[(dirty.file.layout.bat + 512, GARBAGE)])


def odd_zeros(dirty: Dirty) -> None:
    """4 KiB only."""
    dirty.flush(also=[(dirty.file.layout.bat + 64 * KIB, 512)])


def absurd_zeros(dirty: Dirty) -> None:
    """More than any file."""
    dirty.flush(also=[(dirty.file.layout.end, 1 << 62)])


def absurd_end(dirty: Dirty) -> None:
    """More than any file."""
    dirty.flush(last=1 << 63)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (cut, "flushed file offset: .*cut short"),
        (nothing, "no valid sequence"),
        (only_torn, "no valid sequence"),
        (into_headers, "inside the headers"),
        (into_itself, "inside the log itself"),
        (over_itself, "inside the log itself"),
        (unaligned, "not whole 4 KiB"),
        (odd_zeros, "not whole 4 KiB"),
        (absurd_zeros, "more than any VHDX has"),
        (absurd_end, "more than any VHDX has"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_refused(dirty: Dirty, change: Change, why: str) -> None:
    change(dirty)
    dirty.refused(why)


def test_a_broken_log_of_a_clean_file_harms_nothing(tmp_path: Path) -> None:
    file = VhdxFile(Model(MIB))
    file.fill(0, random.Random(1), FULL)
    path = file.write(tmp_path / "a.vhdx")
    patch(path, file.log_offset, random.Random(2).randbytes(MIB))
    with open_disk(path) as disk:
        check_reads(disk.source, file.model, random.Random(3))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["headers", "claims", "chain"])
def test_crafted_logs_take_bounded_time(tmp_path: Path, kind: str) -> None:
    """A log full of entries that promise much: an error or an answer, soon."""
    length = 16 * MIB
    file = VhdxFile(Model(MIB), log_guid=GUID, log_length=length)
    path = file.write(tmp_path / "a.vhdx")
    log = Log(GUID, length)
    if kind == "chain":
        log.tail = 0
        while log.head < length - SECTOR:
            log.tail = length - SECTOR  # never in the sequence: none is valid, thousands of starts
            log.entry([])
    else:
        for at in range(0, length, SECTOR):
            head = bytearray(SECTOR)
            head[:4] = b"loge"
            head[8:12] = (length if kind == "claims" else SECTOR).to_bytes(4, "little")
            head[16:24] = (at // SECTOR + 1).to_bytes(8, "little")
            head[32:48] = GUID.bytes_le
            log.ring[at : at + SECTOR] = head
    log.put(path, file.log_offset)
    began = time.monotonic()
    with pytest.raises(UnreadableInputError, match="log"):
        open_disk(path)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("seed", range(30))
def test_laid_over_is_what_writing_in_order_gives(seed: int) -> None:
    rng = random.Random(seed)
    patches, slow = [], {}
    for number in range(rng.randrange(40)):
        start = rng.randrange(60)
        end = start + rng.choice((1, 1, 2, 5, 30))
        patches.append(Patch(start, end, number))
        slow.update(dict.fromkeys(range(start, end), number))
    fast: dict[int, int] = {}
    for p in _laid_over(patches):
        assert not fast.keys() & set(range(p.start, p.end))
        assert not fast or max(fast) < p.start
        fast.update(dict.fromkeys(range(p.start, p.end), p.sector))
    assert fast == slow
