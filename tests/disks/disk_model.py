"""What a disk should hold, kept simply: 64 KiB pieces by number, absent ones zero."""

from __future__ import annotations

import random
from collections.abc import Iterator

from cloudmount.extents import BlockSource, Extent

PIECE = 64 * 1024


class Model:
    """A disk of `size` bytes, written and read anywhere."""

    def __init__(self, size: int, pieces: dict[int, bytes] | None = None) -> None:
        self.size = size
        self.pieces = dict(pieces or {})

    def copy(self) -> Model:
        """An independent copy."""
        return Model(self.size, self.pieces)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes; beyond the size too, as zeros."""
        out = bytearray(length)
        for number in range(offset // PIECE, -(-(offset + length) // PIECE)):
            piece = self.pieces.get(number)
            if piece is not None:
                lo, hi = max(offset, number * PIECE), min(offset + length, (number + 1) * PIECE)
                out[lo - offset : hi - offset] = piece[lo - number * PIECE : hi - number * PIECE]
        return bytes(out)

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` there."""
        assert offset + len(data) <= self.size
        end = offset + len(data)
        for number in range(offset // PIECE, -(-end // PIECE)):
            lo, hi = max(offset, number * PIECE), min(end, (number + 1) * PIECE)
            piece = bytearray(self.pieces.get(number, bytes(PIECE)))
            piece[lo - number * PIECE : hi - number * PIECE] = data[lo - offset : hi - offset]
            self.pieces[number] = bytes(piece)

    def zero(self, offset: int, length: int) -> None:
        """Zeros from there on, cut off at the end."""
        end = min(offset + length, self.size)
        for number in range(offset // PIECE, -(-end // PIECE)):
            if number in self.pieces:
                lo, hi = max(offset, number * PIECE), min(end, (number + 1) * PIECE)
                self.write(lo, bytes(hi - lo))

    def scribble(self, rng: random.Random, offset: int, length: int, runs: int = 3) -> None:
        """A few short runs of random bytes within the range."""
        for _ in range(runs):
            at = offset + rng.randrange(length)
            n = min(offset + length - at, self.size - at, rng.choice((1, 511, 512, 4096, 9000)))
            if n > 0:
                self.write(at, rng.randbytes(n))

    def written(self, offset: int, length: int) -> list[tuple[int, bytes]]:
        """The pieces that hold anything within the range, cut to it."""
        found = []
        for number in sorted(self.pieces):
            lo, hi = max(offset, number * PIECE), min(offset + length, (number + 1) * PIECE)
            if lo < hi:
                found.append((lo, self.pieces[number][lo - number * PIECE : hi - number * PIECE]))
        return found


def check_reads(source: BlockSource, model: Model, rng: random.Random, reads: int = 30) -> None:
    """`source` reads as `model`: all that it calls DATA, all that the model holds, and anywhere."""
    assert source.size == model.size
    check_extents(source, 0, model.size, model)
    for number in model.pieces:
        at = number * PIECE
        n = min(PIECE, model.size - at)
        assert source.read_at(at, n) == model.read(at, n), f"piece at {at}"
    for _ in range(reads):
        at = rng.randrange(model.size)
        n = rng.choice((1, 511, 512, 513, 4096, 100_000, 3 << 20))
        n = min(n, model.size - at)
        assert source.read_at(at, n) == model.read(at, n), f"{n} bytes at {at}"
        check_extents(source, at, n, None)


def check_extents(source: BlockSource, offset: int, length: int, model: Model | None) -> list[Extent]:
    """They cover the range exactly, and ZERO is zero; DATA is read and compared with `model`."""
    found = list(source.extents(offset, length))
    at = offset
    for e in found:
        assert e.offset == at
        assert e.length > 0
        at = e.end
        if not e.data and model is not None:
            assert not any(any(data) for _, data in model.written(e.offset, e.length)), e
        for piece in pieces(e, 1 << 20):
            if e.data and model is not None:
                assert source.read_at(piece.offset, piece.length) == model.read(piece.offset, piece.length)
            elif not e.data and model is None:
                assert not any(source.read_at(piece.offset, piece.length))
    assert at == offset + length
    return found


def pieces(extent: Extent, step: int) -> Iterator[Extent]:
    """The extent in pieces of at most `step` bytes."""
    for at in range(extent.offset, extent.end, step):
        yield Extent(at, min(step, extent.end - at), extent.data)
