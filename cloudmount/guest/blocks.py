"""In the child: the volume's bytes, asked of the parent.

Decided here and only here: what is asked for at once. Parsers read records of 1 and 4 KiB: those come in
blocks of `BLOCK` bytes, of which the last `KEPT` are kept; larger reads are asked for as they are.
One thread.
"""

from __future__ import annotations

from collections import OrderedDict

from cloudmount.guest import wire

BLOCK = 64 << 10
KEPT = 128


class ParentBlocks:
    """A volume of `size` bytes. Its reads fail with `OSError` when the parent says so."""

    def __init__(self, size: int, asking: int, answers: int) -> None:
        self.size = size
        self._asking, self._answers = asking, answers
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes at `offset`; fewer at the volume's end, none behind it."""
        length = max(0, min(length, self.size - offset))
        if offset < 0 or not length:
            return b""
        if length == BLOCK and not offset % BLOCK and offset // BLOCK in self._blocks:
            return self._block(offset // BLOCK)
        if length >= BLOCK:
            pieces = range(offset, offset + length, wire.MOST_ASKED)
            return b"".join(self._ask(at, min(wire.MOST_ASKED, offset + length - at)) for at in pieces)
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        if first == last:
            at = offset - first * BLOCK
            return self._block(first)[at : at + length]
        return (self._block(first) + self._block(last))[offset - first * BLOCK :][:length]

    def expect(self, ranges: list[tuple[int, int]]) -> None:
        """These (offset, length) are read next: the parent may fetch them at once."""
        blocks = sorted({at // BLOCK for at, length in ranges if at + length <= self.size})
        whole: list[tuple[int, int]] = []
        for n in blocks:
            if n in self._blocks:
                continue
            if whole and sum(whole[-1]) == n * BLOCK:
                whole[-1] = (whole[-1][0], whole[-1][1] + BLOCK)
            else:
                whole.append((n * BLOCK, BLOCK))
        if len(blocks) > 1:
            told = [wire.RANGE.pack(at, min(n, self.size - at)) for at, n in whole[: wire.MOST_EXPECTED]]
            wire.send(self._asking, wire.EXPECT, b"".join(told))

    def _block(self, number: int) -> bytes:
        found = self._blocks.get(number)
        if found is None:
            at = number * BLOCK
            found = self._blocks[number] = self._ask(at, min(BLOCK, self.size - at))
            if len(self._blocks) > KEPT:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(number)
        return found

    def _ask(self, offset: int, length: int) -> bytes:
        wire.send(self._asking, wire.ASK, wire.RANGE.pack(offset, length))
        kind, payload = wire.receive(self._answers, wire.MOST_ASKED)
        if kind != wire.BYTES or len(payload) != length:
            raise OSError("the volume can't be read there")
        return payload


class FileLike:
    """The same as a file object of Python."""

    def __init__(self, blocks: ParentBlocks) -> None:
        self._blocks = blocks
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        """From the current offset."""
        data = self._blocks.read_at(self._at, self._blocks.size if size < 0 else size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move the current offset."""
        self._at = offset + (0, self._at, self._blocks.size)[whence]
        return self._at

    def tell(self) -> int:
        """The current offset."""
        return self._at

    def get_size(self) -> int:
        """Length of the volume."""
        return self._blocks.size
