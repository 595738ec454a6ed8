"""A set of pieces of a file, one bit each.

Decided here and only here: how such a set is kept (1 TiB in pieces of 128 KiB: 1 MiB) and walked.

Threading: one thread changes it; any number ask meanwhile (`has` of a piece that is being added is
either answer).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_BYTES = re.compile(rb"\x00+|\xff+|[^\x00\xff]")


class Pieces:
    """Which of `count` pieces are in the set; none at first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.held = 0
        """How many are in it."""
        self._bits = bytearray(-(-count // 8))

    def has(self, first: int, stop: int) -> bool:
        """Whether all pieces from `first` up to `stop` are in it."""
        bits = self._bits
        if stop - first == 1:  # as nearly always
            return bool(bits[first >> 3] >> (first & 7) & 1)
        if stop - first <= 64:
            return all(bits[n >> 3] >> (n & 7) & 1 for n in range(first, stop))
        return next(self.runs(first, stop, present=False), None) is None

    def add(self, first: int, stop: int) -> None:
        """Add pieces."""
        self._change(first, stop, True)

    def remove(self, first: int, stop: int) -> None:
        """Remove pieces."""
        self._change(first, stop, False)

    def _change(self, first: int, stop: int, present: bool) -> None:
        bits = self._bits
        while first < stop:
            if not first & 7 and stop - first >= 8:
                whole = (stop - first) // 8
                before = int.from_bytes(bits[first >> 3 : (first >> 3) + whole], "little").bit_count()
                bits[first >> 3 : (first >> 3) + whole] = (b"\xff" if present else b"\0") * whole
                self.held += 8 * whole * present - before
                first += 8 * whole
                continue
            mask = 1 << (first & 7)
            was = bool(bits[first >> 3] & mask)
            if present and not was:
                bits[first >> 3] |= mask
            elif was and not present:
                bits[first >> 3] ^= mask
            self.held += present - was
            first += 1

    def runs(self, first: int = 0, stop: int | None = None, *, present: bool) -> Iterator[tuple[int, int]]:
        """Runs (first, stop) of the pieces that are in it, or that are not, in order; some may adjoin. Pieces
        may be added or removed behind it meanwhile."""
        stop = self.count if stop is None else stop
        base = first // 8
        last: tuple[int, int] | None = None
        for low, high in self._stretches(bytes(self._bits[base : -(-stop // 8)]), base, present):
            low, high = max(low, first), min(high, stop)
            if low >= high:
                continue
            if last is not None and last[1] == low:
                last = last[0], high
                continue
            if last is not None:
                yield last
            last = low, high
        if last is not None:
            yield last

    @staticmethod
    def _stretches(bits: bytes, base: int, present: bool) -> Iterator[tuple[int, int]]:
        for found in _BYTES.finditer(bits):
            start, byte = 8 * (base + found.start()), bits[found.start()]
            if byte in (0x00, 0xFF):
                if (byte == 0xFF) == present:
                    yield start, 8 * (base + found.end())
            else:
                yield from ((start + i, start + i + 1) for i in range(8) if bool(byte >> i & 1) == present)
