"""Columns, presence, segments, pages and tables: what is written is read, and nothing else is accepted.

What these decoders get was sealed, so it is an honest writer's. They still must not crash,
loop or take memory without bound on anything: each gives its value or `DamagedError`.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount.errors import DamagedError
from cloudmount.repo.columns import decode_column, decode_presence, encode_column, encode_presence
from cloudmount.repo.locations import MAX_SEGMENT_FRAMES, Birth, Location, decode_segment, encode_segment
from cloudmount.repo.packs import PackTable, decode_tables, encode_tables
from cloudmount.repo.pages import Page, decode_page, encode_page, large_blocks, stored_segments
from cloudmount.repo.payload import encode_payload
from cloudmount.repo.structures import HEADER_BYTES, IndexHeader, PackRow, PageHeader, SegmentHeader
from tests.strategies import births, ids, locations, pack_tables, pages, u32


@given(values=st.lists(u32, max_size=200), before=st.binary(max_size=5), after=st.binary(max_size=5))
def test_columns(values: list[int], before: bytes, after: bytes) -> None:
    data = before + encode_column(values) + after
    found, end = decode_column(data, len(before), len(values))
    assert found.tolist() == values
    assert end == len(data) - len(after)


def test_column_is_byte_planes() -> None:
    assert encode_column([0x04030201, 0x14131211]) == bytes.fromhex("0111 0212 0313 0414")


@given(present=st.lists(st.booleans(), max_size=100), after=st.binary(max_size=3))
def test_presence(present: list[bool], after: bytes) -> None:
    data = encode_presence(present)
    assert len(data) == (len(present) + 7) // 8
    assert all(bool(data[i // 8] >> i % 8 & 1) == p for i, p in enumerate(present))
    found, end = decode_presence(data + after, 0, len(present))
    assert (found, end) == ([i for i, p in enumerate(present) if p], len(data))


@given(count=st.integers(1, 50), stray=st.integers(0, 7))
def test_presence_beyond_its_end(count: int, stray: int) -> None:
    if count % 8 + stray < 8 and count % 8:
        data = bytearray((count + 7) // 8)
        data[-1] |= 1 << (count % 8 + stray)
        with pytest.raises(DamagedError):
            decode_presence(bytes(data), 0, count)


@given(places=locations())
def test_segments(places: Sequence[Location | None]) -> None:
    segment = decode_segment(encode_segment(places))
    assert segment.frames == len(places)
    assert [segment.locate(i) for i in range(len(places))] == list(places)
    assert list(segment.locations()) == [p for p in places if p is not None]
    assert segment.stored == sum(p is not None for p in places)
    rows = [segment.row(i) for i in range(len(places))]
    assert [r for r in rows if r >= 0] == list(range(segment.stored))
    assert [r >= 0 for r in rows] == [p is not None for p in places]


@given(birth=births, count=st.integers(1, 500), length=st.integers(17, 140_000))
def test_a_fresh_segment_is_all_zeros_but_lengths(birth: tuple[int, bytes], count: int, length: int) -> None:
    """Offsets and numbers are differences from what is expected, so that zstd packs them to nothing."""
    from cloudmount.repo.locations import Birth

    own = Birth(*birth)
    places = [Location(own.salt[:16], HEADER_BYTES + i * length, length, own, i) for i in range(count)]
    data = encode_segment(places)
    columns = data[-5 * 4 * count :]
    assert columns[: 8 * count] == bytes(8 * count)  # pack and birth rows
    assert columns[12 * count :] == bytes(8 * count)  # offsets and numbers
    assert len(encode_payload(data)) < 250


@given(made=pages())
def test_pages(made: tuple[Page, int]) -> None:
    page, per_segment = made
    assert decode_page(encode_page(page), per_segment) == page
    assert [page.first_segment + n for n in stored_segments(page.presence, page.blocks, per_segment)] == list(
        page.segments
    )


@given(tables=st.lists(pack_tables(), max_size=4, unique_by=lambda t: t.id))
def test_tables(tables: list[PackTable]) -> None:
    found = decode_tables(encode_tables(tables))
    assert [list(t.entries()) for t in found] == [list(t.entries()) for t in tables]
    assert [(t.birth, t.size) for t in found] == [(t.birth, t.size) for t in tables]


def _harmless(decode: Callable[[bytes], object], data: bytes) -> None:
    """`data`, cut anywhere or altered anywhere, decodes or is told to be damaged."""
    rng = random.Random(len(data))
    cuts = {*range(0, len(data), max(1, len(data) // 40)), len(data) - 1}
    for cut in cuts - {-1}:
        with pytest.raises(DamagedError):
            decode(data[:cut])
    with pytest.raises(DamagedError):
        decode(data + b"\0")
    for _ in range(40):
        wrong = bytearray(data)
        for _ in range(rng.choice((1, 1, 8))):
            wrong[rng.randrange(min(len(wrong), rng.choice((40, 1 << 20))))] ^= 1 << rng.randrange(8)
        with contextlib.suppress(DamagedError):
            decode(bytes(wrong))


@given(places=locations())
def test_altered_segments(places: Sequence[Location | None]) -> None:
    _harmless(decode_segment, encode_segment(places))


@given(made=pages())
def test_altered_pages(made: tuple[Page, int]) -> None:
    _harmless(lambda data: decode_page(data, made[1]), encode_page(made[0]))


@given(tables=st.lists(pack_tables(), max_size=3, unique_by=lambda t: t.id))
def test_altered_tables(tables: list[PackTable]) -> None:
    _harmless(decode_tables, encode_tables(tables))


_ALL = 2**32 - 1


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (decode_segment, SegmentHeader(_ALL, _ALL, _ALL, _ALL).pack()),
        (decode_segment, SegmentHeader(MAX_SEGMENT_FRAMES, MAX_SEGMENT_FRAMES, 0, 0).pack() + bytes(1000)),
        (decode_segment, SegmentHeader(8, 9, 0, 0).pack() + bytes(1000)),
        (decode_segment, SegmentHeader(0, 0, 0, _ALL).pack() + bytes(1000)),
        (decode_segment, SegmentHeader(0, 0, _ALL, 0).pack() + bytes(1000)),
        (lambda d: decode_page(d, 512), PageHeader(0, _ALL, _ALL, _ALL, _ALL, 0).pack()),
        (lambda d: decode_page(d, 512), PageHeader(0, 1, 1, _ALL, 512, 0).pack() + bytes(1000)),
        (lambda d: decode_page(d, 512), PageHeader(0, 1 << 17, 1 << 17, 0, 1 << 26, 0).pack() + bytes(1000)),
        (decode_tables, IndexHeader(_ALL, _ALL).pack() + bytes(1000)),
        (decode_tables, IndexHeader(1, _ALL).pack() + PackRow(0, bytes(32), 2**60, _ALL, _ALL).pack()),
        (decode_tables, IndexHeader(1, _ALL).pack() + PackRow(0, bytes(32), 2**60, _ALL, 0).pack()),
    ],
)
def test_hostile_counts_are_bounded(decode: Callable[[bytes], object], data: bytes) -> None:
    began = time.process_time()
    with pytest.raises(DamagedError):
        decode(data)
    assert time.process_time() - began < 0.5


@given(table=pack_tables(), more=ids)
def test_a_table_with_more_frames_than_its_pack_has_room_for(table: PackTable, more: bytes) -> None:
    own = PackTable(table.birth, HEADER_BYTES + sum(table.lengths) - 1, table.ids, table.lengths, table.moved)
    with pytest.raises(DamagedError, match="beyond"):
        decode_tables(encode_tables([own]))


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.data())
def test_runs_are_the_presence(present: list[bool], data: st.DataObject) -> None:
    birth = Birth(0, bytes(32))
    places = [Location(bytes(16), 64 + 10 * i, 10, birth, i) if p else None for i, p in enumerate(present)]
    segment = decode_segment(encode_segment(places))
    first = data.draw(st.integers(0, len(present)))
    runs = list(segment.runs(first))
    assert [p for _, count, p in runs for _ in range(count)] == present[first:]
    assert all(a[0] + a[1] == b[0] and a[2] != b[2] for a, b in itertools.pairwise(runs))
    assert not runs or runs[0][0] == first


@given(st.lists(st.sampled_from([0, 0, 0, 1, 128, 255]), max_size=50).map(bytes))
def test_large_blocks_are_pairs_of_bytes(presence: bytes) -> None:
    assert large_blocks(presence) == sum(any(presence[i : i + 2]) for i in range(0, len(presence), 2))
