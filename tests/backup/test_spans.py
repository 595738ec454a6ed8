"""What a disk holds twice at another alignment is stored about once, and read as what it is."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.backup import spans
from cloudmount.backup.spans import Spans, first_words, words
from cloudmount.blobs.faulty import Fault, FaultyStore, at
from cloudmount.blobs.memory import MemoryStore
from cloudmount.crypto.keyring import Keyring
from cloudmount.errors import CloudMountError, UnreadableInputError
from cloudmount.extents import Bytes
from cloudmount.repo.config import Geometry
from cloudmount.repo.locations import Birth, Location
from cloudmount.repo.names import pack_name
from cloudmount.repo.streams import StreamMap
from tests.backup.lab import FRAME, PACK, PAGE, SEGMENT, Lab, disk_maps, flip, objects

MIB = 1 << 20
LARGE_PACKS = Geometry(FRAME, 1 << 20, SEGMENT, PAGE)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def stream(lab: Lab, disk: str = "disk") -> StreamMap:
    return disk_maps(lab.repository, lab.repository.latest("srv"))[disk]


def places(lab: Lab, disk: str = "disk") -> dict[int, Location]:
    """Where the frames of a disk lie that span two, by number."""
    return {f.number: f.at for f in stream(lab, disk).present() if f.at.cut}


def back_up(lab: Lab, content: bytes, name: str = "disk") -> tuple[int, int]:
    """Back a disk of this content up, and compare what is stored; new frames and writes."""
    image = lab.folder / f"{name}.img"
    image.write_bytes(content)
    result = lab.backup(image)
    assert lab.read(result).disks == {name: content}
    return result.progress.new_frames, result.progress.writes


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Large packs, so that a copy costs nothing at the edges of packs."""
    return Lab(tmp_path, geometry=LARGE_PACKS)


@pytest.fixture
def twice() -> bytes:
    """400 KiB, and again three sectors further on from a frame's beginning."""
    once = noise(400 << 10)
    return once + bytes(3 * 512) + once + bytes(5 * 512)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_disk_with_copies(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any regions copied anywhere, over each other too, to any byte: it is read as it was, checks clean,
    and another backup of it stores nothing."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    content = bytearray(512 * data.draw(st.integers(1, 400)))
    places_ = st.integers(0, len(content) - 1)
    for seed in range(data.draw(st.integers(0, 3))):
        start, length = data.draw(places_), data.draw(st.integers(0, 80_000))
        content[start : start + length] = noise(len(content[start : start + length]), seed)
    for _ in range(data.draw(st.integers(1, 4))):
        unit = data.draw(st.sampled_from([1, 512, 512, FRAME]))
        start, target = data.draw(places_) // unit * unit, data.draw(places_) // unit * unit
        piece = content[start : start + data.draw(st.integers(0, 100_000))][: len(content) - target]
        content[target : target + len(piece)] = piece
    back_up(lab, bytes(content))
    lab.clean()
    assert lab.backup(lab.folder / "disk.img", force_read=True).progress.writes == 1


def test_a_copy_by_sectors_is_stored_once(lab: Lab, twice: bytes) -> None:
    new, _ = back_up(lab, twice)
    frames = -(-len(twice) // FRAME)
    assert new <= 400 // 4 + 4  # the copy's first and last frame hold other bytes too
    assert len(places(lab)) == frames - new
    assert sum(len(d) for d in objects(memory(lab), "packs/").values()) < 430 << 10
    lab.clean()


def memory(lab: Lab) -> MemoryStore:
    assert isinstance(lab.store, MemoryStore)
    return lab.store


def test_at_every_shift_of_sectors(tmp_path: Path) -> None:
    for sectors in range(FRAME // 512):
        lab = Lab(tmp_path / f"{sectors}", geometry=LARGE_PACKS)
        lab.folder.mkdir()
        once = noise(200 << 10, sectors)
        new, _ = back_up(lab, once + bytes(sectors * 512) + once + bytes(512))
        assert new <= 50 + 3
        assert bool(places(lab)) == bool(sectors)


def test_in_small_packs_edges_are_stored(tmp_path: Path, twice: bytes) -> None:
    """Where two frames lie in two packs, what spans them is stored as itself."""
    lab = Lab(tmp_path)
    new, _ = back_up(lab, twice)
    edges = 400 * 1024 // PACK
    assert 100 + edges <= new <= 100 + 2 * edges + 4  # the one behind an edge is not always looked up
    lab.clean()


def test_stored_bytes_are_counted_once(lab: Lab, twice: bytes) -> None:
    """A page counts of a frame that spans two the first: about what reading all takes."""
    back_up(lab, twice)
    sealed = sum(f.at.counted for f in stream(lab).present())
    assert stream(lab).root.sealed == sealed
    assert 0.98 < sealed / len(twice) < 1.02


def test_the_next_backups_store_nothing(lab: Lab, twice: bytes) -> None:
    back_up(lab, twice)
    image = lab.folder / "disk.img"
    for options in ({}, {"force_read": True}, {"journal": None}, {"journal": None, "force_read": True}):
        result = lab.backup(image, **options)  # type: ignore[arg-type]  # options of several types
        assert (result.progress.new_frames, result.progress.writes) == (0, 1)
    lab.clean()


def test_little_changed(lab: Lab, twice: bytes) -> None:
    """What changes is stored anew, in the copied and in the copy; the others of the copy stay as they are."""
    back_up(lab, twice)
    before = places(lab)
    content = bytearray(twice)
    content[40 * FRAME] ^= 1
    assert back_up(lab, bytes(content))[0] == 1
    assert places(lab) == before
    content[150 * FRAME + 7] ^= 1
    assert back_up(lab, bytes(content))[0] == 1
    assert places(lab).keys() == before.keys() - {150}
    lab.clean()


def test_what_was_copied_is_overwritten(lab: Lab, twice: bytes) -> None:
    """The copy goes on to lie in frames that its disk doesn't have any more."""
    back_up(lab, twice)
    before = places(lab)
    back_up(lab, noise(400 << 10, 7) + twice[400 << 10 :])
    assert places(lab) == before
    lab.clean()


def test_a_copy_that_appears_later(lab: Lab, twice: bytes) -> None:
    """It is found by frames that were stored before, and are read again only."""
    once = twice[: 400 << 10]
    back_up(lab, once + bytes(len(twice) - len(once)))
    assert back_up(lab, twice)[0] <= 2 + 20  # of what is known only some frames are remembered
    lab.clean()


def test_a_third_copy(lab: Lab, twice: bytes) -> None:
    """It lies in the frames of the first, not in what is no frame of a pack."""
    new, _ = back_up(lab, twice + bytes(512 * 2) + twice[: 400 << 10] + bytes(512 * 6))
    assert new <= 100 + 8
    assert len({at.pack for at in places(lab).values()}) == 1
    lab.clean()


def test_a_copy_on_another_disk(lab: Lab) -> None:
    """Of the same backup, though the first is closed when the second is read."""
    once = noise(400 << 10)
    disks = {"a": once + bytes(512), "b": bytes(512) + once}
    for name, content in disks.items():
        (lab.folder / f"{name}.img").write_bytes(content)
    result = lab.backup(lab.folder / "a.img", lab.folder / "b.img")
    assert lab.read(result).disks == disks
    assert result.progress.new_frames <= 100 + 4
    assert not places(lab, "a")
    assert places(lab, "b")
    lab.clean()


def test_a_short_last_frame(lab: Lab) -> None:
    """It is stored as itself: only whole frames span others, and are spanned."""
    once = noise(10 * FRAME)
    content = once + bytes(512) + once
    back_up(lab, content)
    assert max(places(lab)) == 19
    assert len(content) % FRAME
    lab.clean()


def test_what_compresses_well_is_stored(lab: Lab) -> None:
    """Reading two frames costs more than storing one that is small."""
    once = b"".join(b"%08d, something that compresses well\n" % n for n in range(5000))
    back_up(lab, once + bytes(512 - len(once) % 512 + 512) + once + bytes(-len(once) % 512))
    assert not places(lab)


@pytest.mark.parametrize("part", [0, 1])
def test_damage_of_either_frame_is_told_and_mended(lab: Lab, twice: bytes, part: int) -> None:
    """Check names the copy's range beside the copied one's, and the next backup stores both anew."""
    back_up(lab, twice)
    number, where = sorted(places(lab).items())[10]
    frames = {f.number: f.at for f in stream(lab).present()}
    base = next(n for n, a in frames.items() if not a.cut and a.offset == where.offsets[part])
    copies = [n for n, a in places(lab).items() if frames[base].offset in a.offsets]
    assert number in copies and len(copies) == 2
    flip(memory(lab), pack_name(where.pack), 8 * (where.offsets[part] + 99))
    found = lab.check()
    assert [(d.path, d.offset, d.length) for d in found.damage] == [
        ("disk.img", base * FRAME, FRAME),
        ("disk.img", min(copies) * FRAME, 2 * FRAME),
    ]
    assert found.recorded is not None
    result = lab.backup(lab.folder / "disk.img")
    assert lab.read(result).disks == {"disk": twice}
    assert 1 <= result.progress.new_frames <= 3
    assert lab.check(read_data=None).ok
    damaged = {d.snapshot for d in lab.check().damage}
    assert damaged == {d.snapshot for d in found.damage}  # the old one only


def test_a_lost_pack(lab: Lab, twice: bytes) -> None:
    """Frames that lie in it are told, and stored anew."""
    back_up(lab, twice)
    (name,) = objects(memory(lab), "packs/")
    lab.store.delete(name)
    found = lab.check(read_data=None)
    assert sum(d.length for d in found.damage if d.path == "disk.img") == stream(lab).frames * FRAME
    assert back_up(lab, twice)[0] > 100


@pytest.mark.parametrize("fault", [Fault.KILLED, Fault.KILLED_AFTER])
def test_killed_at_every_operation(tmp_path: Path, twice: bytes, fault: Fault) -> None:
    from tests.backup.test_kills import DyingStore, _settle

    image = tmp_path / "disk.img"
    image.write_bytes(twice)
    whole = Lab(tmp_path)
    counting = FaultyStore(whole.store, lambda operation: None)
    whole.backup(image, store=counting, journal=False)
    for k in range(counting.operations):
        lab = Lab(tmp_path / f"{k}", MemoryStore())
        with contextlib.suppress(CloudMountError, BaseException):
            lab.backup(image, store=DyingStore(lab.store, k, fault))
        _settle()
        lab.clean()
        assert lab.read(lab.backup(image)).disks == {"disk": twice}
        lab.clean()


@pytest.mark.parametrize("seed", range(4))
def test_a_pack_that_does_not_land(lab: Lab, twice: bytes, seed: int) -> None:
    """No snapshot names it."""
    image = lab.folder / "disk.img"
    image.write_bytes(twice)
    faulty = FaultyStore(lab.store, at({10 + seed: Fault.RESET}))
    try:
        result = lab.backup(image, store=faulty)
    except CloudMountError:
        lab.clean()
        result = lab.backup(image)
    assert lab.read(result).disks == {"disk": twice}
    lab.clean()


# What finds them

KEYS = Keyring(bytes(32), {0: b"k" * 32})
BIRTH = Birth(0, b"s" * 32)


class Changing(Bytes):
    """A source that changes under its reader, or fails."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reads = 0
        self.flip_at: int | None = None
        self.fails = False

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads += 1
        if self.fails:
            raise UnreadableInputError("gone")
        data = bytearray(super().read_at(offset, length))
        if self.flip_at is not None and offset <= self.flip_at < offset + length:
            data[self.flip_at - offset] ^= 1
        return bytes(data)


class Finder:
    """A `Spans` over one stream, all of whose frames are stored in one pack as they come."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.source = Changing(content)
        self.stored: dict[bytes, Location] = {}
        self.spans = Spans(KEYS, FRAME, lambda ids: {i: self.stored[i] for i in ids if i in self.stored})
        self.stream = self.spans.stream(self.source, lambda: self.source)

    def frame(self, number: int) -> bytes:
        return self.content[number * FRAME : (number + 1) * FRAME]

    def store(self, number: int) -> None:
        at = Location(b"p" * 16, 64 + 4112 * len(self.stored), 4112, BIRTH, len(self.stored))
        self.stored.setdefault(KEYS.content_id(self.frame(number)), at)
        self.spans.remember(self.stream, number, first_words(self.content[number * FRAME :][:FRAME], FRAME))

    def each(self) -> Iterator[Location | None]:
        """All frames in order; those that aren't found are stored."""
        for n in range(len(self.content) // FRAME):
            self.spans.look(self.stream, n, words(self.content, n * FRAME, FRAME))
            (first,) = first_words(self.content[n * FRAME :][:FRAME], FRAME)
            at = self.spans.find(self.stream, n, KEYS.content_id(self.frame(n)), first)
            if at is None:
                self.store(n)
            yield at


def test_sources_that_change_underneath() -> None:
    """What is read again decides: a frame is found where its bytes are now, or not at all."""
    once = noise(10 * FRAME)
    content = once + bytes(512) + once + bytes(FRAME - 512)
    for spoiled in range(0, 10 * FRAME, 511):
        finder = Finder(content)
        for number, found in enumerate(finder.each()):
            finder.source.flip_at = spoiled if number >= 10 else None
            if found is not None:
                first = (number * FRAME - 10 * FRAME - 512) // FRAME
                touched = range(first * FRAME, (first + 2) * FRAME)
                assert spoiled not in touched


def test_a_source_that_fails_is_passed_over() -> None:
    once = noise(10 * FRAME)
    finder = Finder(once + bytes(512) + once + bytes(FRAME - 512))
    finder.source.fails = True
    assert not any(finder.each())


@pytest.mark.parametrize("period", [1, 7, 8, 512, 1000, FRAME - 512, FRAME])
def test_what_repeats_costs_little(period: int) -> None:
    """Reads are bounded, whatever the content."""
    unit = bytes(noise(period, 3))
    content = bytearray((unit * (300 * FRAME // period + 1))[: 300 * FRAME])
    for n in range(300):  # every frame another, so that none is the same as one before
        content[n * FRAME + 2000 : n * FRAME + 2008] = noise(8, n)
    finder = Finder(bytes(content))
    list(finder.each())
    assert finder.source.reads <= 300 * 4 * spans.TRIES


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered grows thinner, and long copies are found all the same."""
    monkeypatch.setattr(spans, "TABLE", 64)
    once = noise(500 * FRAME)
    finder = Finder(once + bytes(512) + once + bytes(FRAME - 512))
    found = list(finder.each())
    assert len(finder.spans._table) <= 64
    assert sum(at is not None for at in found) > 400
