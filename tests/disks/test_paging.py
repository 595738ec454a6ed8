"""Pages, tables and sector bitmaps against the simplest way to read them."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Literal

import pytest

from cloudmount.disks.bitmaps import bit_runs
from cloudmount.disks.paging import PAGE, Pages, Table
from cloudmount.extents import Bytes


@pytest.mark.parametrize("order", ["little", "big"])
def test_bit_runs(order: Literal["little", "big"]) -> None:
    rng = random.Random(order)
    for _ in range(300):
        bits = rng.choice((rng.randbytes, bytes, lambda n: b"\xff" * n))(rng.randrange(1, 40))
        first = rng.randrange(len(bits) * 8)
        count = rng.randrange(len(bits) * 8 - first + 1)
        singly = []
        for n in range(first, first + count):
            within = n % 8 if order == "little" else 7 - n % 8
            singly.append(bool(bits[n // 8] >> within & 1))
        runs = list(bit_runs(bits, first, count, order))
        assert [value for n, value in runs for _ in range(n)] == singly
        assert all(a[1] != b[1] for a, b in pairwise(runs))


class TestPaging:
    """Pages and tables over them."""

    def test_any_read_in_bounded_memory(self) -> None:
        rng = random.Random(1)
        content = rng.randbytes(PAGE * 7 + 123)
        pages = Pages(Bytes(content), budget=2 * PAGE)
        for _ in range(300):
            at = rng.randrange(len(content) + 1)
            n = min(len(content) - at, rng.choice((0, 1, 8, 4096, PAGE, 3 * PAGE)))
            assert pages.read(at, n) == content[at : at + n]
            assert pages._cache.currsize <= 2 * PAGE

    @pytest.mark.parametrize(("width", "order"), [(4, "big"), (8, "little")])
    def test_tables(self, width: int, order: Literal["little", "big"]) -> None:
        rng = random.Random(width)
        values: list[int] = []
        while len(values) < 40_000:
            values += [rng.choice((0, 2, rng.getrandbits(8 * width)))] * rng.choice((1, 2, 300, 9000))
        raw = b"".join(v.to_bytes(width, order) for v in values)
        offset = 4096 + width
        table = Table(Pages(Bytes(bytes(offset) + raw)), offset, len(values), width, order)
        for _ in range(500):
            index, most = rng.randrange(len(values)), rng.choice((1, 2, 100, 50_000))
            assert table[index] == values[index]
            n = table.repeats(index, most)
            assert 1 <= n <= most
            assert values[index : index + n] == [values[index]] * n
        listed = [v for _, part in table.slices() for v in table.values(part)]
        assert listed == values
        for bad in (-1, len(values)):
            with pytest.raises(IndexError):
                table[bad]
