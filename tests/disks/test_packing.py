"""`Packed` and `Table` against the plain bytes they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount.disks.packing import Packed, Placed, Table, padded
from cloudmount.disks.presence import BitmapPresence
from cloudmount.extents import Bytes
from tests.disks.sparse_disk import SparseDisk

BLOCK = 16


@st.composite
def packings(draw: st.DrawFn) -> tuple[Packed, bytes, SparseDisk]:
    flags = draw(st.lists(st.booleans(), max_size=40))
    prefix = draw(st.sampled_from([b"", b"<^>"]))
    runs = {i * BLOCK + i % 3: bytes([i + 1]) * (BLOCK - 5) for i, flag in enumerate(flags) if flag}
    disk = SparseDisk(len(flags) * BLOCK, runs)
    bits = sum(flag << i for i, flag in enumerate(flags)).to_bytes(-(-len(flags) // 8), "little")
    whole = disk.read_at(0, disk.size)
    model = b"".join(prefix + whole[i * BLOCK : (i + 1) * BLOCK] for i, flag in enumerate(flags) if flag)
    disk.reads.clear()
    return Packed(disk, BitmapPresence(bits, len(flags)), BLOCK, prefix), model, disk


@given(packings(), st.data())
def test_packed_reads_and_extents(packing: tuple[Packed, bytes, SparseDisk], data: st.DataObject) -> None:
    packed, model, _ = packing
    assert packed.size == len(model)
    start = data.draw(st.integers(0, len(model)))
    length = data.draw(st.integers(0, len(model) - start))
    assert packed.read_at(start, length) == model[start : start + length]
    at = start
    for e in packed.extents(start, length):
        assert e.offset == at
        assert e.length > 0
        assert e.data or not any(model[e.offset : e.end])
        at = e.end
    assert at == start + length


def test_blocks_that_adjoin_in_the_disk_are_read_at_once() -> None:
    disk = SparseDisk(8 * BLOCK, {0: bytes(range(1, 8 * BLOCK + 1))})
    packed = Packed(disk, BitmapPresence(b"\x7e", 8), BLOCK)
    packed.read_at(3, packed.size - 3)
    assert disk.reads == [(BLOCK + 3, 6 * BLOCK - 3)]


@given(st.integers(0, 30), st.sampled_from([1, 4, 8]), st.data())
def test_table_computes_only_what_is_read(count: int, width: int, data: st.DataObject) -> None:
    asked: list[tuple[int, int]] = []

    def entries(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return b"".join(bytes([i]) * width for i in range(start, stop))

    table = Table(count, width, entries)
    start = data.draw(st.integers(0, table.size))
    length = data.draw(st.integers(0, table.size - start))
    whole = b"".join(bytes([i]) * width for i in range(count))
    assert table.read_at(start, length) == whole[start : start + length]
    assert asked == [(start // width, -(-(start + length) // width))]


def test_padding_and_placing() -> None:
    assert padded(Bytes(b"abc"), 5).read_at(1, 4) == b"bc\0\0"
    assert padded(Bytes(b"abc"), 3).read_at(0, 3) == b"abc"
    layout = Placed([(2, Bytes(b"ab")), (4, Bytes(b"c")), (7, Bytes(b"d"))])
    assert layout.read_at(0, layout.size) == b"\0\0abc\0\0d"
    with pytest.raises(AssertionError, match="overlaps"):
        Placed([(0, Bytes(b"ab")), (1, Bytes(b"c"))])


def test_what_was_placed_is_closed_even_if_empty() -> None:
    disk = SparseDisk(BLOCK, {})
    Placed([(0, Bytes(b"a")), (1, Packed(disk, BitmapPresence(b"\0", 1), BLOCK))]).close()
    assert disk.closed == 1
