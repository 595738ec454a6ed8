"""`BitmapPresence` against a plain list of booleans."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloudmount.disks.presence import BitmapPresence

# Runs make long empty and full stretches, which single random bits never would.
blocks = st.lists(st.tuples(st.booleans(), st.integers(1, 700)), max_size=12).map(
    lambda runs: [flag for flag, n in runs for _ in range(n)]
) | st.lists(st.booleans(), max_size=1200)


def bitmap(model: list[bool]) -> bytes:
    """`model` as the bytes that `BitmapPresence` takes."""
    return sum(flag << i for i, flag in enumerate(model)).to_bytes(-(-len(model) // 8), "little")


@given(blocks)
@example([True] * 512)
@example([False] * 512 + [True])
def test_agrees_with_a_list(model: list[bool]) -> None:
    presence = BitmapPresence(bitmap(model), len(model))
    chosen = [i for i, flag in enumerate(model) if flag]
    assert (presence.blocks, presence.count) == (len(model), len(chosen))
    assert [presence.present(i) for i in range(len(model))] == model
    assert [presence.select(k) for k in range(len(chosen))] == chosen
    ranks = [0]
    for flag in model:
        ranks.append(ranks[-1] + flag)
    assert [presence.rank(i) for i in range(len(model) + 1)] == ranks


@given(blocks, st.data())
def test_flags_of_any_range(model: list[bool], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(model)))
    stop = data.draw(st.integers(start, len(model)))
    assert BitmapPresence(bitmap(model), len(model)).flags(start, stop) == bytes(model[start:stop])


@given(blocks, st.sampled_from([8, 16, 24, 64]))
def test_coarser_blocks_are_present_if_any_part_is(model: list[bool], factor: int) -> None:
    coarse = BitmapPresence(bitmap(model), len(model)).coarsened(factor)
    parts = [model[i : i + factor] for i in range(0, len(model), factor)]
    assert coarse.flags(0, coarse.blocks) == bytes(any(part) for part in parts)
    assert coarse.count == sum(any(part) for part in parts)


def test_64_tib_in_a_few_mib() -> None:
    n = 64 << 19
    chosen = sorted(random.Random(1).sample(range(n), 1000))
    bits = bytearray(n // 8)
    for b in chosen:
        bits[b >> 3] |= 1 << (b & 7)
    presence = BitmapPresence(bytes(bits), n)
    assert [presence.select(k) for k in range(1000)] == chosen
    assert [presence.rank(b) for b in chosen] == list(range(1000))
    assert presence.coarsened(16).count == len({b // 16 for b in chosen})
    index = presence._before
    assert sys.getsizeof(presence._bitmap) + index.itemsize * len(index) < 5 << 20


def test_what_is_no_bitmap_is_refused() -> None:
    for bits, n in [(b"", 1), (b"\0\0", 8), (b"\0", 0), (b"\x08", 3), (b"", -1)]:
        with pytest.raises(ValueError, match="presence bitmap"):
            BitmapPresence(bits, n)


def test_arguments_out_of_range_are_refused() -> None:
    presence = BitmapPresence(b"\x05", 3)
    for call in [
        lambda: presence.present(3),
        lambda: presence.present(-1),
        lambda: presence.rank(4),
        lambda: presence.rank(-1),
        lambda: presence.select(2),
        lambda: presence.select(-1),
        lambda: presence.flags(2, 1),
        lambda: presence.flags(0, 4),
        lambda: presence.coarsened(4),
    ]:
        with pytest.raises(ValueError, match=r"block|coarser"):
            call()
