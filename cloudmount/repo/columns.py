"""Columns of u32 as byte planes, and presence bitmaps: the building blocks of maps.

Decided here and only here: how numbers and presence lie in segments, pages and
index objects (FORMAT.md 6.3). Pure.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Iterable

from cloudmount.errors import DamagedError

assert array.array("I").itemsize == 4
_SWAP = sys.byteorder == "big"


def encode_column(values: Iterable[int]) -> bytes:
    """A column of u32 as byte planes: lowest bytes first (FORMAT.md 6.3)."""
    raw = array.array("I", values)
    if _SWAP:
        raw.byteswap()
    data = raw.tobytes()
    return b"".join(data[plane::4] for plane in range(4))


def decode_column(data: bytes, offset: int, count: int) -> tuple[array.array[int], int]:
    """`count` values of the column at `offset`, and the offset after it; `DamagedError` when cut short."""
    end = offset + 4 * count
    if end > len(data):
        raise DamagedError("a column is cut short")
    raw = bytearray(4 * count)
    for plane in range(4):
        raw[plane::4] = data[offset + plane * count : offset + (plane + 1) * count]
    values = array.array("I")
    values.frombytes(raw)
    if _SWAP:
        values.byteswap()
    return values, end


def encode_presence(present: list[bool]) -> bytes:
    """One bit each, bit i of byte j for number 8 j + i."""
    bits = "".join("1" if p else "0" for p in reversed(present))
    return int(bits or "0", 2).to_bytes((len(present) + 7) // 8, "little")


def decode_presence(data: bytes, offset: int, count: int) -> tuple[list[int], int]:
    """The numbers whose bit is set, ascending, and the offset after the bitmap.

    `DamagedError` when it is cut short or a bit beyond `count` is set.
    """
    end = offset + (count + 7) // 8
    if end > len(data):
        raise DamagedError("a presence bitmap is cut short")
    bits = int.from_bytes(data[offset:end], "little")
    if bits >> count:
        raise DamagedError("a presence bitmap has bits beyond its end")
    text = format(bits, "b")[::-1]
    return [i for i, bit in enumerate(text) if bit == "1"], end
