"""Readahead along a file's places on its disk, and exactly what `prefetch` is told."""

from __future__ import annotations

import random
import time

from hypothesis import given
from hypothesis import strategies as st

from cloudmount.blobs.counting import CountingStore
from cloudmount.errors import DamagedError
from cloudmount.extents import Bytes
from cloudmount.reader.following import SMALL, UNIT, Following, Place
from cloudmount.reader.stored import FrameReader, StoredSource
from tests.mounts.mounting import within
from tests.reader.stored_repository import StoredRepository, noise

MIB = 1 << 20


def scattered(size: int, rng: random.Random) -> list[Place]:
    """A file's places on a disk, in no order there, with holes in the file."""
    places, at, offset = [], 10 * size, 0
    while offset < size:
        length = min(rng.randrange(1, 600_000), size - offset)
        if rng.random() < 0.8:
            places.append((offset, at, length))
            at += length + rng.randrange(3) * 100_000 * rng.choice((1, -1))
        offset += length
    return places


@given(st.integers(0, 1 << 30))
def test_all_that_is_read_in_order_was_told_before_and_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(SMALL + 1, 6 * MIB)
    places = scattered(size, rng)
    told: list[tuple[int, int]] = []
    source = Following(
        Bytes(bytes(size)), lambda: places, lambda at, n: told.append((at, n)), lambda: 2 * MIB
    )
    step = rng.choice((4096, UNIT, MIB))
    for at in range(0, size, step):
        assert len(source.read_at(at, min(step, size - at))) == min(step, size - at)
    for at, length in told:
        assert length > 0
        assert any(p[1] <= at and at + length <= p[1] + p[2] for p in places)
    wanted = sum(p[2] for p in places if p[0] >= 2 * max(step, UNIT))
    assert sum(n for _, n in told) >= wanted
    source.close()


def test_small_files_and_failing_places() -> None:
    def fails() -> list[Place]:
        raise DamagedError("no places")

    told: list[tuple[int, int]] = []
    for size in (0, 1, SMALL, 3 * MIB):
        source = Following(Bytes(bytes(size)), fails, lambda at, n: told.append((at, n)), lambda: MIB)
        assert source.read_at(0, size) == bytes(size)
    assert not told


def test_prefetch_fetches_exactly_that() -> None:
    content = noise(MIB)
    made = StoredRepository()
    store = CountingStore(made.store)
    reader = FrameReader(made.behind(store))
    source = StoredSource(reader, made.disk(content, repository=reader.repository), "x", ahead=False)
    try:
        source.prefetch(300_000, 100_000)
        frames = range(300_000 // 4096, -(-400_000 // 4096))
        assert within(10, lambda: reader.fetched().frames == len(frames))
        reads = store.snapshot().read
        assert source.read_at(300_000, 100_000) == content[300_000:400_000]
        assert store.snapshot().read == reads
        for at in range(0, 200_000, 4096):  # in order, and nothing beside
            assert source.read_at(at, 4096) == content[at : at + 4096]
        time.sleep(0.2)
        assert reader.fetched().frames == len(frames) + -(-200_000 // 4096)
    finally:
        reader.close()
