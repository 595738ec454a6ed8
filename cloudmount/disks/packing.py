"""The moving parts of a synthesised container: packed blocks, computed tables, padded ends.

Decided here and only here: how a byte of a packed container is found in the
disk (one `select` of a `Presence`), and that tables are computed for each read
and never kept: memory is flat for any size of disk.

Threading: immutable; as safe as the sources they wrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cloudmount.disks.presence import Presence
from cloudmount.extents import BlockSource, Bytes, Extent, Layout, Piece, Zeros, check_range, merged

_RUN = 256  # blocks looked at for a run: 512 MiB, more than any reader asks for at once


def padded(source: BlockSource, size: int) -> BlockSource:
    """`source` followed by zeros up to `size` bytes."""
    return Layout([Piece(source.size, source), Piece(size - source.size, Zeros(size - source.size))])


class Placed(Layout):
    """Sources at ascending byte offsets, zeros between them. Owns every one, empty ones too."""

    def __init__(self, parts: Sequence[tuple[int, BlockSource]]) -> None:
        pieces, end = [], 0
        for offset, source in parts:
            assert offset >= end, f"a part at {offset} overlaps the one that ends at {end}"
            pieces += [Piece(offset - end, Zeros(offset - end)), Piece(source.size, source)]
            end = offset + source.size
        super().__init__(pieces)
        self._parts_owned = [source for _, source in parts]

    def close(self) -> None:
        """Close every source; a `Layout` forgets one without bytes, such as the payload of an empty disk."""
        for source in self._parts_owned:
            source.close()


class Packed:
    """The present blocks of `content`, one after another, each behind `prefix`.

    `content` is as long as `presence.blocks` blocks of `block_size` bytes. It is
    owned: `close` closes it.
    """

    def __init__(
        self, content: BlockSource, presence: Presence, block_size: int, prefix: bytes = b""
    ) -> None:
        assert content.size == presence.blocks * block_size
        self._content = content
        self._presence = presence
        self._block_size = block_size
        self._prefix = Bytes(prefix)
        self._stride = len(prefix) + block_size
        self.size = presence.count * self._stride

    def _pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """The range as pieces of `prefix` and of `content`, one for each run of blocks."""
        check_range(self.size, offset, length)
        presence, prefix, end = self._presence, self._prefix.size, offset + length
        while offset < end:
            k, within = divmod(offset, self._stride)
            if within < prefix:
                piece = Piece(min(end - offset, prefix - within), self._prefix, within)
            else:
                block, run = presence.select(k), 1
                if not prefix:  # present blocks that adjoin in the disk adjoin here: one read
                    wanted = min(-(-end // self._stride) - k, _RUN, presence.blocks - block)
                    run = (presence.flags(block, block + wanted) + b"\0").index(0)
                until = (k + run) * self._stride
                start = block * self._block_size + within - prefix
                piece = Piece(min(end, until) - offset, self._content, start)
            yield piece
            offset += piece.length

    def read_at(self, offset: int, length: int) -> bytes:
        """One read of the content for each run of blocks that adjoin in it."""
        parts = [p.source.read_at(p.start, p.length) for p in self._pieces(offset, length)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The content's own extents, where they lie in the packing."""

        def shifted() -> Iterator[Extent]:
            at = offset
            for p in self._pieces(offset, length):
                for e in p.source.extents(p.start, p.length):
                    yield Extent(e.offset - p.start + at, e.length, e.data)
                at += p.length

        return merged(shifted())

    def close(self) -> None:
        """Close the content."""
        self._content.close()


class Table:
    """`count` entries of `width` bytes each, made by `entries(start, stop)` when they are read."""

    def __init__(self, count: int, width: int, entries: Callable[[int, int], bytes]) -> None:
        self._width = width
        self._entries = entries
        self.size = count * width

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes of the entries that the range touches."""
        check_range(self.size, offset, length)
        first, last = offset // self._width, -(-(offset + length) // self._width)
        start = offset - first * self._width
        return self._entries(first, last)[start : start + length]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """One DATA extent."""
        check_range(self.size, offset, length)
        yield Extent(offset, length, True)

    def close(self) -> None:
        """Nothing to release."""
