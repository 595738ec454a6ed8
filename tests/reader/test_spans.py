"""Frames that span two stored ones are read as others: right bytes, each stored one asked for once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.memory import MemoryStore
from cloudmount.errors import DamagedError
from cloudmount.extents import Zeros
from cloudmount.reader.bulk import read_frames
from cloudmount.reader.diskcache import DiskCache
from cloudmount.reader.filling import COMPLETE
from cloudmount.reader.stored import FrameReader, StoredSource
from cloudmount.repo.config import Geometry
from cloudmount.repo.names import pack_name
from cloudmount.repo.packs import open_frame
from cloudmount.repo.payload import no_dictionary
from cloudmount.repo.streams import StreamMap
from tests.backup.lab import FRAME, PAGE, SEGMENT, Lab, disk_maps, flip
from tests.reader.test_filling import filling, local_disk

ONCE = random.Random(5).randbytes(100 * FRAME)
CONTENT = (
    ONCE + bytes(3 * 512) + ONCE + bytes(5 * 512 + 100 * FRAME) + ONCE[7 * 512 : 60 * FRAME] + bytes(512)
)


class Copies:
    """A disk that holds some content three times, in a store that counts; its map, and what reads it."""

    def __init__(self, folder: Path, cache: DiskCache | None = None, memory: int = 64 << 20) -> None:
        folder.mkdir(exist_ok=True)
        self.lab = Lab(folder, geometry=Geometry(FRAME, 1 << 20, SEGMENT, PAGE))
        image = folder / "disk.img"
        image.write_bytes(CONTENT)
        self.lab.backup(image)
        self.store = CountingStore(self.lab.store)
        self.repository = self.lab.reopened(self.store)
        self.map: StreamMap = disk_maps(self.repository, self.repository.latest("srv"))["disk"]
        self.reader = FrameReader(self.repository, memory_bytes=memory, cache=cache, io_timeout=20)
        self.source = StoredSource(self.reader, self.map, "disk")
        assert sum(bool(f.at.cut) for f in self.map.present()) > 150

    def close(self) -> None:
        self.reader.close()


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    return Copies(tmp_path_factory.mktemp("copies"), memory=40 * FRAME)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(CONTENT)), st.integers(0, 30 * FRAME))
def test_reads_anywhere(copies: Copies, offset: int, length: int) -> None:
    length = min(length, len(CONTENT) - offset)
    assert copies.source.read_at(offset, length) == CONTENT[offset : offset + length]


def test_one_request_brings_a_run(tmp_path: Path) -> None:
    """Of n frames that go on in each other n + 1 stored ones come, once each."""
    made = Copies(tmp_path)
    try:
        made.source.read_at(310 * FRAME, 1)  # the map, and neighbours of that
        before, asked = made.reader.fetched(), made.store.snapshot().requests
        source = StoredSource(made.reader, made.map, "disk", ahead=False)
        assert source.read_at(150 * FRAME, 20 * FRAME) == CONTENT[150 * FRAME : 170 * FRAME]
        after = made.reader.fetched()
        assert made.store.snapshot().requests - asked == after.requests - before.requests == 1
        assert after.bytes - before.bytes == 21 * (FRAME + 16)
    finally:
        made.close()


def test_the_disk_cache_keeps_both_apart(tmp_path: Path) -> None:
    """A frame and what spans it lie in the cache each under its own name."""
    cache = DiskCache(tmp_path / "cache", 8 << 20, "r")
    made = Copies(tmp_path / "a", cache)
    try:
        for _ in range(2):
            for at in (3 * FRAME, 103 * FRAME, 104 * FRAME, 4 * FRAME):
                assert made.source.read_at(at, FRAME) == CONTENT[at : at + FRAME]
            made.reader.settle(5)
            made.reader.table.close(DamagedError("forgotten"))
            made.reader = FrameReader(made.repository, cache=cache, io_timeout=20)
            made.source = StoredSource(made.reader, made.map, "disk")
        assert made.source.read_at(103 * FRAME, FRAME) == CONTENT[103 * FRAME : 104 * FRAME]
        assert made.reader.fetched().cached == 1
    finally:
        made.close()
        cache.close()


@pytest.mark.parametrize("memory", [1, 1 << 20, 96 << 20])
def test_in_bulk(copies: Copies, memory: int) -> None:
    """In order, verified, and about as many bytes as the frames count for."""
    before = copies.store.snapshot().bytes_down
    whole = bytearray(len(CONTENT))
    for frame, plain in read_frames(copies.repository, copies.map, workers=2, memory_bytes=memory):
        whole[frame.number * FRAME : frame.number * FRAME + len(plain)] = plain
    assert whole == CONTENT
    if memory > 1 << 20:
        assert copies.store.snapshot().bytes_down - before < copies.map.root.sealed * 1.1


def test_damage_in_bulk_is_what_it_touches(tmp_path: Path) -> None:
    made = Copies(tmp_path)
    assert isinstance(made.lab.store, MemoryStore)
    at = made.map.locate(50)
    assert at is not None and not at.cut
    flip(made.lab.store, pack_name(at.pack), 8 * (at.offset + 30))
    lost: list[int] = []
    whole = dict(read_frames(made.repository, made.map, on_damage=lambda f, e: lost.append(f.number)))
    touched = [f.number for f in made.map.present() if at.offset in f.at.offsets and f.at.pack == at.pack]
    assert lost == touched and len(touched) == 5
    assert len(whole) == made.map.root.frames - 5
    with pytest.raises(DamagedError):
        made.source.read_at(touched[1] * FRAME, 1)
    made.close()


def test_a_local_copy(tmp_path: Path) -> None:
    made = Copies(tmp_path / "made")
    local, copy = local_disk(tmp_path / "copy.raw", len(CONTENT))
    work = filling(made.repository, made.map, local)
    assert work.fill(Zeros(len(CONTENT))) and work.state == COMPLETE
    assert (tmp_path / "copy.raw").read_bytes() == CONTENT
    copy.close()
    made.close()


def test_wrong_bytes_do_not_open(copies: Copies) -> None:
    """Whatever is wrong with the sealed bytes or the place: damage, never other bytes."""
    keys = copies.repository.keys
    frame = next(f for f in copies.map.present() if f.at.cut)
    at = frame.at
    sealed = copies.repository.store.read(pack_name(at.pack), at.offset, at.length)
    plain = open_frame(keys, at, sealed, FRAME, no_dictionary)
    assert plain == CONTENT[frame.number * FRAME : (frame.number + 1) * FRAME]
    wrong = [
        (at, sealed[:-1]),
        (at, sealed + b"x"),
        (at, bytes([sealed[0] ^ 1]) + sealed[1:]),
        (at, sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (at._replace(cut=at.cut + 1), sealed),
        (at._replace(cut=1), sealed),
        (at._replace(cut=at.length - 1), sealed),
        (at._replace(number=at.number + 1), sealed),
        (at._replace(skip=FRAME), sealed),
        (at._replace(cut=0, skip=0), sealed),
    ]
    for place, data in wrong:
        with pytest.raises(DamagedError):
            open_frame(keys, place, data, FRAME, no_dictionary)
    with pytest.raises(DamagedError):
        open_frame(keys, at, sealed, FRAME - 1, no_dictionary)
