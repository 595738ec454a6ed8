"""CRC-32C (Castagnoli), the checksum of every VHDX structure ([MS-VHDX] 2.2.2, 2.2.3.1, 2.3.1.1).

Decided here and only here: how it is computed. The standard library has CRC-32
only. Two bytes a step over a table of 65,536 words: 17 MB/s in CPython 3.11 (one
byte a step: 11). Structures are small or nearly all zeros, so trailing zeros are
skipped by arithmetic: a 64 KiB region table costs 0.1 ms, a full 1 MiB log 60 ms.
Pure; safe on any thread.
"""

from __future__ import annotations

import sys
from array import array
from functools import cache

_POLYNOMIAL = 0x82F63B78  # x^32 + ... + 1, reflected, as RFC 3720 B.4 has it
_ONE = 0x80000000  # the polynomial 1, reflected


@cache
def _table() -> array[int]:
    """The state after two more bytes, by the low half of (state xor bytes)."""
    one = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (_POLYNOMIAL if byte & 1 else 0)
        one.append(byte)
    return array("I", (one[(one[i & 255] ^ (i >> 8)) & 255] ^ (one[i & 255] >> 8) for i in range(65536)))


def _times(a: int, b: int) -> int:
    """The product of two reflected polynomials modulo the CRC's."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def _after_zeros(state: int, count: int) -> int:
    """`state` after `count` zero bytes: state * x^(8 count)."""
    power = 0x00800000  # x^8
    while count:
        if count & 1:
            state = _times(power, state)
        power = _times(power, power)
        count >>= 1
    return state


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """CRC-32C of `data`, going on from `crc` (of what came before it)."""
    state = crc ^ 0xFFFFFFFF
    whole = bytes(data)
    tail = len(whole) - len(whole.rstrip(b"\0"))
    if tail < 64:  # the arithmetic costs as much as some hundred bytes
        tail = 0
    body = whole[: len(whole) - tail]
    if len(body) % 2:
        body, last = body[:-1], body[-1:]
    else:
        last = b""
    words = array("H", body)
    if sys.byteorder == "big":
        words.byteswap()
    table = _table()
    for word in words:
        state = table[(state ^ word) & 0xFFFF] ^ (state >> 16)
    for byte in last:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (_POLYNOMIAL if state & 1 else 0)
    return _after_zeros(state, tail) ^ 0xFFFFFFFF
