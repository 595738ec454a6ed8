"""A volume of ext3 or 4 with its journal applied, in memory: as the kernel reads it after a power cut.

Decided here and only here: which transactions count. As in the kernel's recovery (fs/jbd2/recovery.c): from
the one that the journal's superblock names, in the order of their numbers, to the first that has no sound
commit block; what a transaction revokes, no earlier one brings. Only places are kept: a block's latest
content is read from the journal when it is asked for, and compared with its checksum then. A journal that
makes no sense is not applied at all, and the volume's `warning` tells it. Layouts: the kernel's
Documentation/filesystems/ext4/journal.rst. One thread; runs in the child.
"""

from __future__ import annotations

import bisect
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from cloudmount.disks.crc32c import crc32c
from cloudmount.guest import ext_inode
from cloudmount.guest.blocks import BLOCK, ParentBlocks
from cloudmount.guest.ext_map import Run, runs
from cloudmount.guest.volumes import STALE

MOST_BLOCKS = 1 << 20
"""Of a journal: mke2fs makes them of 262,144 blocks at most. Its places take 150 MB then."""
MOST_REVOKED = 1 << 20
"""Blocks that one transaction may revoke."""
MOST_ASKED = 768 << 20
"""Bytes read to find a log's end. A log takes three quarters of its journal at most, and that one GiB."""
_KEPT = 4 << 20
_SUPERBLOCK = ext_inode.SUPERBLOCK_AT, ext_inode.SUPERBLOCK_LENGTH
_FIRST_AHEAD, _MOST_AHEAD = 256 << 10, 4 << 20
_MAGIC = 0xC03B3998
_DESCRIPTOR, _COMMIT, _SUPER_1, _SUPER_2, _REVOKE = 1, 2, 3, 4, 5
_COMPAT_SUM = 0x1
_WIDE, _ASYNC, _SUM_2, _SUM_3, _FAST = 0x2, 0x4, 0x8, 0x10, 0x20
_KNOWN = 0x3F
_ESCAPED, _SAME_UUID, _LAST = 1, 2, 8
_CRC32, _CRC32C = 1, 4
_FAST_BLOCKS, _FAST_HEAD, _LEAST = 256, 9, 1024
_REVERSED = bytes(int(f"{n:08b}"[::-1], 2) for n in range(256))


class _Broken(Exception):
    """Why a journal can't be applied."""


class Logged(NamedTuple):
    """Where in the volume a block's latest content lies, and what its transaction's descriptor says of it."""

    block: int
    escaped: bool
    sequence: int
    checksum: int


class Journalled:
    """The volume in `blocks`, its journal applied if it is in use."""

    def __init__(self, blocks: ParentBlocks) -> None:
        self._blocks, self.size = blocks, blocks.size
        self.about = ext_inode.superblock(blocks.read_at(*_SUPERBLOCK))
        self.warning = ""
        """What people should know; may be empty."""
        self.applied = 0
        """Transactions."""
        self._logged: dict[int, Logged] = {}
        self._journal: Journal | None = None
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        if self.about.in_use:
            try:
                if not self.about.journal:
                    raise _Broken("it lies on another disk")
                self._journal = journal = Journal(blocks, self.about)
                self._logged, self.applied, self.warning = journal.replayed()
                self.about = ext_inode.superblock(self.read_at(*_SUPERBLOCK))
            except (_Broken, ValueError) as error:
                self._logged = {}
                self.warning = f"its journal could not be applied ({error}): {STALE}"

    def read_at(self, offset: int, length: int) -> bytes:
        """As of `ParentBlocks`."""
        data = self._blocks.read_at(offset, length)
        if not self._logged or not data:
            return data
        size = self.about.block
        touched = [
            n for n in range(offset // size, (offset + len(data) - 1) // size + 1) if n in self._logged
        ]
        if not touched:
            return data
        patched = bytearray(data)
        for n in touched:
            content, at = self._content(n), n * size - offset
            if at < 0:
                content, at = content[-at:], 0
            content = content[: len(patched) - at]
            patched[at : at + len(content)] = content
        return bytes(patched)

    def expect(self, ranges: list[tuple[int, int]]) -> None:
        """As of `ParentBlocks`."""
        if self._logged:
            size = self.about.block
            ranges = [
                (at, n) if (found := self._logged.get(at // size)) is None else (found.block * size, size)
                for at, n in ranges
            ]
        self._blocks.expect(ranges)

    def really(self, run: Run) -> Iterator[Run]:
        """Where these blocks' latest content lies; those that lie nowhere as they are are left out."""
        begin = 0
        if self._logged:
            for i in range(run.length):
                found = self._logged.get(run.at + i)
                if found is None:
                    continue
                if begin < i:
                    yield Run(run.first + begin, run.at + begin, i - begin)
                if not found.escaped:
                    yield Run(run.first + i, found.block, 1)
                begin = i + 1
        if begin < run.length:
            yield Run(run.first + begin, run.at + begin, run.length - begin)

    def _content(self, number: int) -> bytes:
        found = self._kept.get(number)
        if found is None:
            assert self._journal is not None
            found = self._kept[number] = self._journal.content(self._logged[number])
            if len(self._kept) * self.about.block > _KEPT:
                self._kept.popitem(last=False)
        return found


class Journal:
    """The journal in an inode of `about`'s volume. `_Broken` or `ValueError` when it makes no sense."""

    def __init__(self, blocks: ParentBlocks, about: ext_inode.Superblock) -> None:
        self._read_at, self._expect = blocks.read_at, blocks.expect
        self._block = about.block
        inode = ext_inode.Inodes(about, blocks.read_at).get(about.journal)
        count = inode.size // about.block
        if not 1 < count <= MOST_BLOCKS:
            raise _Broken(f"it has {count} blocks")
        self._runs = list(runs(inode, about, blocks.read_at, blocks.expect, 0, count))
        self._firsts = [r.first for r in self._runs]
        self._last = self._asked = 0
        raw = self._raw(0)
        magic, kind, _ = struct.unpack_from(">III", raw)
        size, length, self._first, self._sequence, self._start = struct.unpack_from(">5I", raw, 12)
        if magic != _MAGIC or kind not in (_SUPER_1, _SUPER_2) or size != self._block:
            raise _Broken("it has no superblock")
        features = struct.unpack_from(">II", raw, 36) if kind == _SUPER_2 else (0, 0)
        self._compatible, self._features = features
        if self._features & ~_KNOWN:
            raise _Broken(f"features 0x{self._features & ~_KNOWN:x}, which are not known")
        self._summed = bool(self._features & (_SUM_2 | _SUM_3))
        self._seed = _crc32c(0xFFFFFFFF, raw[48:64])
        if self._summed and (
            raw[80] != _CRC32C
            or _crc32c(0xFFFFFFFF, raw[:252] + bytes(4) + raw[256:1024])
            != struct.unpack_from(">I", raw, 252)[0]
        ):
            raise _Broken("its superblock is damaged")
        self._end = min(length, count)
        self._fast = False
        if self._features & _FAST:
            fast = struct.unpack_from(">I", raw, 84)[0] or _FAST_BLOCKS
            self._fast = self._end - fast >= _LEAST
            self._end -= fast if self._fast else 0
        if not 1 <= self._first < self._end or length > count:
            raise _Broken("its length makes no sense")
        if self._start and not self._first <= self._start < self._end:
            raise _Broken("its start makes no sense")
        self._told, self._ahead = 0, _FIRST_AHEAD

    def replayed(self) -> tuple[dict[int, Logged], int, str]:
        """The blocks it brings, from how many transactions, and what of it is missing, in words."""
        logged: dict[int, Logged] = {}
        if not self._start:
            return logged, 0, self._fast_commits(self._sequence)
        at, sequence, left = self._start, self._sequence, self._end - self._first
        pending: dict[int, Logged] = {}
        revoked: set[int] = set()
        began = at, left
        applied, why = 0, ""
        while left > 0:
            self._prefetch(at, self._end - self._first - left)
            raw = self._raw(at)
            magic, kind, number = struct.unpack_from(">III", raw)
            if magic != _MAGIC or number != sequence or kind not in (_DESCRIPTOR, _COMMIT, _REVOKE):
                break
            at, left = self._after(at), left - 1
            if kind == _COMMIT:
                if not self._committed(raw, *began):
                    why = f"its journal's last transactions are not whole: {STALE}"
                    break
                logged.update(pending)
                for block in revoked:
                    logged.pop(block, None)
                pending, revoked = {}, set()
                applied, sequence = applied + 1, sequence + 1 & 0xFFFFFFFF
                began = at, left
                continue
            if self._summed and not self._sound_tail(raw):
                why = f"its journal is damaged where its last transactions are: {STALE}"
                break
            if kind == _REVOKE:
                revoked.update(self._revoked(raw))
                if len(revoked) > MOST_REVOKED:
                    raise _Broken("it revokes more than makes sense")
                continue
            for block, flags, checksum in self._tags(raw):
                if left <= 0:
                    break
                pending[block] = Logged(self._place(at), bool(flags & _ESCAPED), sequence, checksum)
                at, left = self._after(at), left - 1
        return logged, applied, why or self._fast_commits(sequence)

    def content(self, logged: Logged) -> bytes:
        """A block's content; `ValueError` when it is not what was logged."""
        raw = self._read_at(logged.block * self._block, self._block)
        if len(raw) != self._block:
            raise ValueError("the journal lies outside its volume")
        if self._summed:
            found = _crc32c(_crc32c(self._seed, struct.pack(">I", logged.sequence)), raw)
            if (found if self._features & _SUM_3 else found & 0xFFFF) != logged.checksum:
                raise ValueError("a block that the journal holds is damaged")
        return struct.pack(">I", _MAGIC) + raw[4:] if logged.escaped else raw

    def _place(self, number: int) -> int:
        """Where in the volume the journal's block `number` lies."""
        i = bisect.bisect_right(self._firsts, number) - 1
        if i < 0 or number >= self._runs[i].first + self._runs[i].length:
            raise _Broken("it has holes")
        return self._runs[i].at + number - self._runs[i].first

    def _raw(self, number: int) -> bytes:
        at = self._place(number) * self._block
        if at // BLOCK != self._last:
            self._last = at // BLOCK
            self._asked += max(BLOCK, self._block)
            if self._asked > MOST_ASKED:
                raise _Broken("its log is too long")
        raw = self._read_at(at, self._block)
        if len(raw) != self._block:
            raise _Broken("it lies outside its volume")
        return raw

    def _after(self, number: int) -> int:
        return number + 1 if number + 1 < self._end else self._first

    def _prefetch(self, at: int, done: int) -> None:
        """Have what follows `at` fetched, more each time: how long the log is, nothing tells. `done`: blocks
        before it."""
        if done < self._told:
            return
        stop = min(self._end, at + max(1, self._ahead // self._block))
        step = max(1, BLOCK // self._block)
        self._expect([(self._place(n) * self._block, self._block) for n in range(at, stop, step)])
        self._told, self._ahead = done + stop - at, min(2 * self._ahead, _MOST_AHEAD)

    def _sound_tail(self, raw: bytes) -> bool:
        """Whether the checksum at the end of a descriptor or revoke block is right."""
        checksum: int = struct.unpack_from(">I", raw, len(raw) - 4)[0]
        return _crc32c(self._seed, raw[:-4] + bytes(4)) == checksum

    def _tags(self, raw: bytes) -> Iterator[tuple[int, int, int]]:
        """(block, flags, checksum) of each block that follows this descriptor."""
        if self._features & _SUM_3:
            length = 16
        else:
            length = (12 if self._features & _WIDE else 8) + (2 if self._features & _SUM_2 else 0)
        at, end = 12, len(raw) - (4 if self._summed else 0)
        while at + length <= end:
            if self._features & _SUM_3:
                block, flags, high, checksum = struct.unpack_from(">4I", raw, at)
            else:
                block, checksum, flags = struct.unpack_from(">IHH", raw, at)
                high = struct.unpack_from(">I", raw, at + 8)[0] if self._features & _WIDE else 0
            yield block | (high << 32 if self._features & _WIDE else 0), flags, checksum
            at += length + (0 if flags & _SAME_UUID else 16)
            if flags & _LAST:
                return

    def _revoked(self, raw: bytes) -> Iterator[int]:
        used: int = struct.unpack_from(">I", raw, 12)[0]
        if used > len(raw) - (4 if self._summed else 0):
            raise _Broken("a revoke block is damaged")
        each = struct.Struct(">Q" if self._features & _WIDE else ">I")
        for at in range(16, used - each.size + 1, each.size):
            yield each.unpack_from(raw, at)[0]

    def _committed(self, raw: bytes, began: int, left: int) -> bool:
        """Whether a commit block's checksum is right: its own, or that of the transaction that `began`."""
        kind, size = raw[12], raw[13]
        checksum: int = struct.unpack_from(">I", raw, 16)[0]
        if self._summed:
            return _crc32c(self._seed, raw[:16] + bytes(4) + raw[20:]) == checksum
        if not self._compatible & _COMPAT_SUM or (kind, size, checksum) == (0, 0, 0):
            return True
        if (kind, size) != (_CRC32, 4):
            return False
        return self._whole_sum(began, left, struct.unpack_from(">I", raw, 8)[0]) == checksum

    def _whole_sum(self, at: int, left: int, sequence: int) -> int:
        """CRC-32, bits in the other order than zlib's, of a transaction's descriptors and blocks."""
        crc = 0
        while left > 0:
            raw = self._raw(at)
            kind = struct.unpack_from(">I", raw, 4)[0]
            at, left = self._after(at), left - 1
            if kind == _COMMIT:
                break
            if kind == _REVOKE:
                continue
            crc = zlib.crc32(raw.translate(_REVERSED), crc)
            for _ in self._tags(raw):
                crc = zlib.crc32(self._raw(at).translate(_REVERSED), crc)
                at, left = self._after(at), left - 1
        return int(f"{crc ^ 0xFFFFFFFF:032b}"[::-1], 2)

    def _fast_commits(self, sequence: int) -> str:
        """What is said if there are fast commits behind the last transaction: those are not applied."""
        if not self._fast:
            return ""
        tag, length, _, number = struct.unpack_from("<HHII", self._raw(self._end + 1))
        if tag == _FAST_HEAD and length >= 8 and number == sequence:
            return f"its journal's fast commits are not applied: {STALE}"
        return ""


def _crc32c(crc: int, data: bytes) -> int:
    """As the kernel counts: begun with what is given, and not inverted."""
    return crc32c(data, crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
