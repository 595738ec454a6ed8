"""Sector bitmaps as runs of equal bits.

Decided here and only here: how the bits of a VHD's bitmap (most significant
first) and a VHDX's (least significant first) are walked: as text, so that a run
is found at the speed of `str.find` however the bits alternate. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal


def bit_runs(
    bits: bytes, first: int, count: int, order: Literal["little", "big"]
) -> Iterator[tuple[int, bool]]:
    """(length, value) of each run among `count` bits from bit `first` on.

    `order` "big": a byte's most significant bit comes first; "little": its least.
    """
    width = len(bits) * 8
    text = format(int.from_bytes(bits, order), f"0{width}b") if width else ""
    if order == "little":
        text = text[::-1]
    at, end = first, first + count
    while at < end:
        value = text[at]
        stop = text.find("0" if value == "1" else "1", at, end)
        if stop < 0:
            stop = end
        yield stop - at, value == "1"
        at = stop
