"""Stored streams read through caches: the right bytes, with few requests."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.memory import MemoryStore
from cloudmount.errors import BlobMissingError, CloudMountError, DamagedError
from cloudmount.extents import BlockSource
from cloudmount.reader.diskcache import DiskCache
from cloudmount.reader.flights import ENTRY_BYTES
from cloudmount.reader.stored import FrameReader, StoredSource
from cloudmount.repo.config import Geometry
from cloudmount.repo.frames import FrameMap
from cloudmount.repo.streams import StreamMap
from cloudmount.repo.structures import BLOCK_BYTES
from tests.reader.stored_repository import SMALL, StoredRepository, model, noise

FRAME = SMALL.frame
SIZE = 5 * (1 << 20) + 1234


class Recording(CountingStore):
    """Counts, keeps the ranges that were read of packs, and holds reads while `gate` is closed."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.reads: list[tuple[str, int, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        self.gate.wait(20)
        if name.startswith("packs/"):
            self.reads.append((name, offset, length or 0))
        return super().read(name, offset, length, deadline=deadline)


class Bench:
    """One stored disk behind a recording store."""

    def __init__(
        self,
        content: bytes,
        *,
        geometry: Geometry = SMALL,
        memory: int = 64 << 20,
        cache: DiskCache | None = None,
        order: list[int] | None = None,
        pack_bytes: int | None = None,
    ) -> None:
        self.made = StoredRepository(geometry)
        assert isinstance(self.made.store, MemoryStore)
        self.content = content
        self.store = Recording(self.made.store)
        repository = self.made.behind(self.store)
        self.map = self.made.disk(content, order=order, pack_bytes=pack_bytes, repository=repository)
        self.reader = FrameReader(repository, memory_bytes=memory, cache=cache, io_timeout=20)
        self.source = StoredSource(self.reader, self.map, "disk")

    def read(self, offset: int, length: int) -> None:
        assert self.source.read_at(offset, length) == self.content[offset : offset + length]

    def quiet(self) -> list[tuple[str, int, int]]:
        """Pack reads so far, once readahead is done."""
        before = -1
        while before != len(self.store.reads):
            before = len(self.store.reads)
            settle(self.reader)
        return self.store.reads


def settle(reader: FrameReader) -> None:
    """Wait until its workers have nothing to do: readahead is done, and the disk cache has what it shall."""
    end = time.monotonic() + 60
    while True:
        time.sleep(0.02)
        workers = reader.workers
        if not (workers._running or workers._urgent or workers._later):
            return
        assert time.monotonic() < end


@pytest.fixture
def bench() -> Callable[..., Bench]:
    return Bench


def fetched_twice(reads: list[tuple[str, int, int]]) -> int:
    """Bytes that were asked for more than once."""
    twice = 0
    last, end = "", 0
    for name, offset, length in sorted(reads):
        if name != last:
            last, end = name, 0
        twice += max(0, min(end, offset + length) - offset)
        end = max(end, offset + length)
    return twice


# Right bytes


CONTENT = model(SIZE, 1)
RANGES = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 40000)), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None)
@given(RANGES, st.sampled_from([0, 20000, 300_000, 64 << 20]), st.booleans(), st.randoms())
def test_reads_are_the_model_s(
    tmp_path_factory: pytest.TempPathFactory,
    ranges: list[tuple[int, int]],
    memory: int,
    cached: bool,
    rng: random.Random,
) -> None:
    order = list(range(-(-SIZE // FRAME)))
    rng.shuffle(order)
    folder = str(tmp_path_factory.mktemp("cache"))
    cache = DiskCache(folder, 1 << 20) if cached else None
    bench = Bench(
        CONTENT, memory=memory, cache=cache, order=order[: len(order) // 2] + order[len(order) // 2 :]
    )
    for offset, length in ranges:
        bench.read(offset, min(length, SIZE - offset))
        assert bench.reader.table.used <= memory
    bench.reader.close()
    if cache is not None:
        cache.close()


def test_a_whole_disk_in_one_read_with_hardly_any_memory() -> None:
    bench = Bench(CONTENT, memory=0)
    bench.read(0, SIZE)
    assert bench.reader.table.used == 0


def test_it_is_a_block_source_and_keeps_its_manners() -> None:
    bench = Bench(noise(10000))
    assert isinstance(bench.source, BlockSource)
    assert bench.source.read_at(10000, 0) == b""
    for offset, length in ((0, 10001), (-1, 1), (10001, 0), (5, -1)):
        with pytest.raises(ValueError, match="outside"):
            bench.source.read_at(offset, length)
        with pytest.raises(ValueError, match="outside"):
            list(bench.source.extents(offset, length))
    bench.source.close()
    bench.source.close()
    with pytest.raises(ValueError, match="closed"):
        bench.source.read_at(0, 1)
    assert StoredSource(bench.reader, bench.map, "disk").read_at(1, 5) == bench.content[1:6]


def test_an_empty_stream() -> None:
    bench = Bench(b"")
    assert bench.source.read_at(0, 0) == b""
    assert list(bench.source.extents(0, 0)) == []


def test_sixty_four_readers_at_once(tmp_path: Path) -> None:
    bench = Bench(CONTENT, memory=500_000, cache=DiskCache(str(tmp_path), 1 << 20))
    failed: list[BaseException] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(15):
                offset = rng.randrange(SIZE)
                bench.read(offset, min(rng.randrange(30000), SIZE - offset))
                assert bench.reader.table.used <= 500_000
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# Extents


@given(st.integers(0, 20 << 20), st.integers(0, 20 << 20))
@settings(max_examples=60, deadline=None)
def test_extents_cover_exactly_what_is_asked_without_reading_content(a: int, b: int) -> None:
    bench = SPARSE
    begin, end = min(a, b), max(a, b)
    size = len(bench.content)
    begin, end = min(begin, size), min(end, size)
    before = len(bench.store.reads)
    at = begin
    last = None
    for extent in bench.source.extents(begin, end - begin):
        assert extent.offset == at
        assert extent.length > 0
        assert extent.data != last
        last = extent.data
        if not extent.data:
            assert not any(bench.content[extent.offset : extent.end])
        at = extent.end
    assert at == end
    assert len(bench.store.reads) == before


def _sparse() -> Bench:
    parts = [bytes(BLOCK_BYTES), noise(FRAME) + bytes(BLOCK_BYTES - FRAME), bytes(3 * BLOCK_BYTES)]
    return Bench(b"".join([*parts, noise(BLOCK_BYTES, 2), bytes(2 * BLOCK_BYTES), b"end"]))


SPARSE = _sparse()


def test_extents_are_the_present_blocks() -> None:
    block = BLOCK_BYTES
    found = [
        (e.offset // block, e.end // block, e.data) for e in SPARSE.source.extents(0, len(SPARSE.content) - 3)
    ]
    assert found == [(0, 1, False), (1, 2, True), (2, 5, False), (5, 6, True), (6, 8, False)]
    assert [e.data for e in SPARSE.source.extents(8 * block, 3)] == [True]


class Few:
    """A map of the kind that small files have: no pages, only frames."""

    def __init__(self, inner: StreamMap) -> None:
        self.size, self.frame_bytes = inner.size, inner.frame_bytes
        self.locate, self.frame_length, self.present = inner.locate, inner.frame_length, inner.present


def test_extents_of_a_small_file_are_its_frames() -> None:
    bench = Bench(noise(FRAME) + bytes(2 * FRAME) + noise(100, 1))
    few: FrameMap = Few(bench.map)
    source = StoredSource(bench.reader, few, "file")
    assert [(e.offset, e.length, e.data) for e in source.extents(10, 3 * FRAME)] == [
        (10, FRAME - 10, True),
        (FRAME, 2 * FRAME, False),
        (3 * FRAME, 10, True),
    ]
    assert source.read_at(0, source.size) == bench.content


# Requests


def test_absent_frames_and_what_is_in_memory_cost_no_request(bench: Callable[..., Bench]) -> None:
    b = bench(noise(FRAME) + bytes(100 * FRAME) + noise(FRAME, 1))
    b.read(5 * FRAME, 90 * FRAME)
    assert b.quiet() == []
    b.read(0, 100)
    b.read(50, 200)
    b.read(101 * FRAME, 100)
    assert len(b.quiet()) == 2
    b.read(0, 102 * FRAME)
    assert len(b.quiet()) == 2


def test_a_read_of_adjoining_frames_is_one_request(bench: Callable[..., Bench]) -> None:
    b = bench(noise(64 * FRAME), pack_bytes=1 << 20)
    b.read(16 * FRAME, 16 * FRAME)
    first = b.store.reads[0]
    assert first[2] >= 16 * (FRAME + 16)
    assert len([r for r in b.quiet() if r[1] < first[1] + first[2]]) == 1


def test_frames_of_several_packs_are_asked_for_at_once(bench: Callable[..., Bench]) -> None:
    b = bench(noise(16 * FRAME), order=[n for k in range(4) for n in range(k, 16, 4)], pack_bytes=4 * FRAME)
    assert len(b.made.packs()) == 4
    b.store.gate.clear()
    thread = threading.Thread(target=b.read, args=(0, 16 * FRAME))
    thread.start()
    time.sleep(0.1)
    b.store.gate.set()
    thread.join()
    # All frames of one pack with one request, though others' numbers lie between.
    assert len(b.quiet()) == 4


def test_readers_of_one_frame_share_one_request(bench: Callable[..., Bench]) -> None:
    b = bench(noise(FRAME))
    b.read(0, 0)
    b.reader.places(b.map, 0, time.monotonic() + 10)
    b.store.gate.clear()
    threads = [threading.Thread(target=b.read, args=(n, 1000)) for n in range(30)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    b.store.gate.set()
    for thread in threads:
        thread.join()
    assert len(b.quiet()) == 1


def test_sequential_reads_grow_to_few_large_requests(bench: Callable[..., Bench]) -> None:
    size = 16 << 20
    b = bench(noise(size), geometry=Geometry(FRAME, 64 << 20, 32 << 20, 32 << 20), memory=64 << 20)
    for offset in range(0, size, 2 * FRAME):
        b.read(offset, 2 * FRAME)
    reads = b.quiet()
    assert fetched_twice(reads) == 0
    assert len(reads) < 40  # 2048 reads of two frames
    assert max(length for _, _, length in reads) > 2 << 20
    assert max(length for _, _, length in reads) <= 5 << 20
    assert b.reader.fetched().wasted == 0


def test_random_reads_shrink_to_what_is_asked(bench: Callable[..., Bench]) -> None:
    b = bench(noise(32 << 20), geometry=Geometry(FRAME, 64 << 20, 32 << 20, 32 << 20))
    rng = random.Random(3)
    frames = rng.sample(range(0, (32 << 20) // FRAME, 70), 60)
    for n in frames:
        b.read(n * FRAME + 5, 100)
    lengths = [length for _, _, length in b.quiet()]
    assert len(lengths) == 60
    assert lengths[0] > FRAME + 16
    assert lengths[20:] == [FRAME + 16] * 40


def test_readahead_passes_over_what_is_cached_and_what_is_absent(bench: Callable[..., Bench]) -> None:
    content = bytearray(noise(256 * FRAME))
    for n in range(20, 200, 10):
        content[n * FRAME : (n + 1) * FRAME] = bytes(FRAME)
    b = bench(bytes(content), pack_bytes=4 << 20)
    for n in (100, 131, 132, 180):
        b.read(n * FRAME, 10)
    b.quiet()
    for n in range(256):
        b.read(n * FRAME, FRAME)
    reads = b.quiet()
    assert fetched_twice(reads) == 0
    assert sum(length for _, _, length in reads) == (256 - 18) * (FRAME + 16)


def test_little_memory_makes_readahead_give_way_and_not_thrash(bench: Callable[..., Bench]) -> None:
    b = bench(noise(4 << 20), memory=24 * (FRAME + ENTRY_BYTES), pack_bytes=8 << 20)
    starts = [n * (1 << 20) for n in range(4)]
    for step in range(0, 1 << 20, FRAME):
        for start in starts:
            b.read(start + step, FRAME)
    fetched = sum(length for _, _, length in b.quiet())
    assert fetched < 1.5 * (4 << 20)


# The disk cache


def test_what_was_fetched_once_comes_from_the_disk_cache_after_a_restart(tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path), 16 << 20)
    bench = Bench(CONTENT, cache=cache)
    bench.read(0, SIZE)
    asked = len(bench.quiet())
    assert asked
    again = FrameReader(bench.reader.repository, cache=cache, io_timeout=20)
    source = StoredSource(again, bench.map, "disk")
    assert source.read_at(0, SIZE) == CONTENT
    rng = random.Random(1)
    for _ in range(50):
        offset = rng.randrange(SIZE - 5000)
        assert source.read_at(offset, 5000) == CONTENT[offset : offset + 5000]
    assert len(bench.quiet()) == asked
    assert again.fetched().requests == 0
    assert again.fetched().cached > 100


def test_damage_in_the_disk_cache_is_dropped_and_fetched_anew(tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path), 16 << 20)
    bench = Bench(CONTENT, cache=cache)
    bench.read(0, SIZE)
    bench.quiet()
    rng = random.Random(2)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.parent != tmp_path:
            data = bytearray(path.read_bytes())
            at = rng.randrange(len(data))
            data[at] ^= 1 << rng.randrange(8)
            path.write_bytes(data if rng.random() < 0.5 else data[:at])
    again = FrameReader(bench.reader.repository, cache=cache, io_timeout=20)
    assert StoredSource(again, bench.map, "disk").read_at(0, SIZE) == CONTENT
    fetched = again.fetched()
    assert fetched.frames > 0
    assert fetched.cached == 0
    settle(again)
    third = FrameReader(bench.reader.repository, cache=cache, io_timeout=20)
    assert StoredSource(third, bench.map, "disk").read_at(0, SIZE) == CONTENT
    assert third.fetched().requests == 0  # mended


# Damage


def spoil(store: Recording, name: str, at: int) -> None:
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    data = bytearray(inner.objects[name])
    data[at] ^= 1
    inner.objects[name] = bytes(data)


def test_damage_is_an_error_that_names_the_frame_and_spoils_no_neighbour(bench: Callable[..., Bench]) -> None:
    b = bench(noise(16 * FRAME), pack_bytes=1 << 20)
    (name,) = b.made.packs()
    at = b.map.locate(5)
    assert at is not None
    spoil(b.store, name, at.offset + 7)
    b.read(4 * FRAME, FRAME)
    for _ in range(2):
        with pytest.raises(DamagedError, match=f"{name}.*at {at.offset}, frame 5 "):
            b.source.read_at(4 * FRAME, 3 * FRAME)
    b.read(6 * FRAME, 10 * FRAME)
    b.read(0, 5 * FRAME)


def test_a_pack_cut_short_loses_only_what_is_cut(bench: Callable[..., Bench]) -> None:
    b = bench(noise(16 * FRAME), pack_bytes=1 << 20)
    (name,) = b.made.packs()
    at = b.map.locate(10)
    assert at is not None
    inner = b.store.inner
    assert isinstance(inner, MemoryStore)
    inner.objects[name] = inner.objects[name][: at.offset + 5]
    b.read(9 * FRAME, FRAME)  # its neighbours are asked for with it
    b.read(0, 10 * FRAME)
    with pytest.raises(DamagedError, match="frame 10 "):
        b.source.read_at(9 * FRAME, 2 * FRAME)


def test_a_missing_pack_is_damage_and_its_map_looked_up_once_before(bench: Callable[..., Bench]) -> None:
    b = bench(noise(16 * FRAME))
    asked = []

    def renew() -> FrameMap | None:
        asked.append(1)
        return None

    inner = b.store.inner
    assert isinstance(inner, MemoryStore)
    for name in b.made.packs():
        inner.delete(name)
    with pytest.raises(DamagedError, match=r"packs/.* is missing"):
        b.source.read_at(0, 5)
    source = StoredSource(b.reader, b.map, "disk", renew=renew)
    with pytest.raises(DamagedError, match=r"packs/.* is missing"):
        source.read_at(0, 5)
    assert asked == [1]


def test_frames_that_were_moved_are_found_by_the_newer_map(bench: Callable[..., Bench]) -> None:
    content = noise(64 * FRAME)
    b = bench(content)
    old = b.made.packs()
    source = StoredSource(b.reader, b.map, "disk", renew=lambda: newer)
    assert source.read_at(0, 10) == content[:10]
    newer = b.made.disk(content, repository=b.reader.repository)
    for name in old:
        b.made.store.delete(name)
    assert source.read_at(40 * FRAME, 10 * FRAME) == content[40 * FRAME : 50 * FRAME]
    assert source.read_at(0, len(content)) == content


def test_a_newer_map_of_another_size_is_refused(bench: Callable[..., Bench]) -> None:
    b = bench(noise(64 * FRAME))
    other = b.made.disk(noise(FRAME, 5), repository=b.reader.repository)
    for name in b.made.packs():
        b.made.store.delete(name)
    with pytest.raises(DamagedError, match="another size"):
        StoredSource(b.reader, b.map, "disk", renew=lambda: other).read_at(0, 5)


def test_maps_that_do_not_open_are_damage(bench: Callable[..., Bench]) -> None:
    b = bench(noise(64 * FRAME))
    for info in list(b.made.store.list("maps/")):
        spoil(b.store, info.name, 100)
    with pytest.raises(DamagedError):
        b.source.read_at(0, 5)


# Closing


def test_closing_ends_who_waits_at_once(bench: Callable[..., Bench]) -> None:
    b = bench(noise(64 * FRAME))
    b.store.gate.clear()
    failed: list[BaseException] = []

    def read() -> None:
        try:
            b.source.read_at(0, 64 * FRAME)
        except CloudMountError as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(5)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    begun = time.monotonic()
    b.reader.close()
    b.reader.close()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 20
    assert len(failed) == 5
    assert not any(isinstance(error, BlobMissingError) for error in failed)
    with pytest.raises(CloudMountError, match="closed"):
        b.source.read_at(0, 1)
    b.store.gate.set()
