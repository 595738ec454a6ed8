"""What is kept beside a local copy of a disk: which of its pieces are there, and their digests.

Decided here and only here: the form of `NAME.hydration`, and what is left of it after a power cut
or a flipped bit. It is a header and a journal that only grows:

    header   magic, length, canonical JSON (which disk of which snapshot, sizes, a nonce), check
    entry    head (kind, first piece, count, payload length), payload, check
             PIECES  a 16-byte digest for each piece: these are written and on the disk
             ZEROS   these read as zeros, and are on the disk
             LOST    these are no longer what they were
             SEEN    size, times and inode of the file, and whether it is finished

A check is 16 bytes of SHA-256 over the nonce, the entry's offset and the entry: what was cut, flipped,
left by another journal or moved does not pass, and everything from the first entry on that does not pass
counts as never written. So damage costs progress, and never makes a piece count as written that is not.
Digests of pieces are 16 bytes of BLAKE3 (no key: who checks a copy needs no passphrase); 1 TiB takes
128 MiB.

Threading: one thread writes; `entries` may be read by others meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from blake3 import blake3

from cloudmount.records import Record, record
from cloudmount.system import pread, pwrite

ENDING = ".hydration"
DIGEST_BYTES = 16
PIECES, ZEROS, LOST, SEEN = 1, 2, 3, 4
MOST_DIGESTS = 4096
"""Digests in one entry, at most."""
_MAGIC = b"CMCOPY1\n"
_LONGEST_HEADER = 64 << 10
_SPEC = "cloudmount/reader/sidecar.py"
_sync = getattr(os, "fdatasync", os.fsync)


@record(size=28, spec=_SPEC)
class _Head(Record):
    """What begins an entry."""

    kind: Annotated[int, "I"]
    first: Annotated[int, "Q"]
    count: Annotated[int, "Q"]
    payload: Annotated[int, "Q"]


@record(size=40, spec=_SPEC)
class Seen(Record):
    """What a file looked like: whoever changes it changes one of these."""

    size: Annotated[int, "Q"]
    mtime_ns: Annotated[int, "q"]
    ctime_ns: Annotated[int, "q"]
    inode: Annotated[int, "Q"]
    finished: Annotated[int, "Q"]

    @staticmethod
    def of(status: os.stat_result, *, finished: bool = False) -> Seen:
        """A file as it is now."""
        inode = status.st_ino & (1 << 64) - 1
        return Seen(status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode, int(finished))


@dataclass(frozen=True, slots=True)
class Described:
    """Which disk a copy is of. `size` bytes of file, `piece` bytes of each piece of it."""

    repository: str
    machine: str
    snapshot: str
    folder: str
    disk: str
    format: str
    size: int
    piece: int

    @property
    def pieces(self) -> int:
        """Pieces of the file; the last may be shorter."""
        return -(-self.size // self.piece)


class Entry(NamedTuple):
    """An entry of the journal: pieces from `first` on; `data` are digests, or a `Seen`."""

    kind: int
    first: int
    pieces: int
    data: bytes = b""


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of the copy at `path` lies."""
    return path.with_name(path.name + ENDING)


def digest(piece: bytes | memoryview) -> bytes:
    """What a piece is known by."""
    return blake3(piece).digest(length=DIGEST_BYTES)


def digests_of(data: bytes | memoryview, piece: int) -> list[bytes]:
    """The digests of the pieces in `data`."""
    view = memoryview(data)
    return [digest(view[at : at + piece]) for at in range(0, len(view), piece)]


def _check(nonce: bytes, at: int, data: bytes) -> bytes:
    return hashlib.sha256(nonce + at.to_bytes(8, "little") + data).digest()[:DIGEST_BYTES]


class Sidecar:
    """The journal in an open file."""

    def __init__(self, fd: int, described: Described, nonce: bytes, start: int) -> None:
        self._fd, self.described = fd, described
        self._nonce, self._start = nonce, start
        self.end = start
        """Where the next entry goes."""

    @classmethod
    def create(cls, fd: int, described: Described) -> Sidecar:
        """A new one in place of whatever the file held, on the disk when this returns."""
        nonce = os.urandom(16)
        value = {**asdict(described), "nonce": nonce.hex()}
        text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
        head = _MAGIC + len(text).to_bytes(4, "little") + text
        head += _check(b"", 0, head)
        os.ftruncate(fd, 0)
        _write(fd, head, 0)
        os.fsync(fd)
        return cls(fd, described, nonce, len(head))

    @classmethod
    def open(cls, fd: int) -> Sidecar | None:
        """What an open file holds; None when that is not, or no longer, a sidecar."""
        head = pread(fd, _LONGEST_HEADER, 0)
        at = len(_MAGIC) + 4
        if len(head) < at or head[: len(_MAGIC)] != _MAGIC:
            return None
        stop = at + int.from_bytes(head[len(_MAGIC) : at], "little")
        if head[stop : stop + DIGEST_BYTES] != _check(b"", 0, head[:stop]):
            return None
        try:
            value = json.loads(head[at:stop])
            nonce = bytes.fromhex(value.pop("nonce"))
            described = Described(**value)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None  # of another version
        if described.size < 0 or described.piece < 1:
            return None
        return cls(fd, described, nonce, stop + DIGEST_BYTES)

    def entries(self) -> Iterator[Entry]:
        """Every entry up to the first that does not pass; when all were taken, `end` is behind the last good
        one."""
        at, pieces = self._start, self.described.pieces
        while True:
            raw = pread(self._fd, _Head.SIZE, at)
            if len(raw) < _Head.SIZE:
                break
            head = _Head.unpack(raw)
            if head.payload > MOST_DIGESTS * DIGEST_BYTES:
                break
            rest = pread(self._fd, head.payload + DIGEST_BYTES, at + _Head.SIZE)
            data, check = rest[: head.payload], rest[head.payload :]
            if check != _check(self._nonce, at, raw + data) or head.first + head.count > pieces:
                break
            at += _Head.SIZE + len(rest)
            yield Entry(head.kind, head.first, head.count, data)
        self.end = at

    def cut(self) -> None:
        """Remove what is behind the last good entry."""
        os.ftruncate(self._fd, self.end)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries; on the disk when this returns. `OSError` when they can't be added: none is."""
        data = bytearray()
        for entry in entries:
            for part in _split(entry):
                raw = _Head(part.kind, part.first, part.pieces, len(part.data)).pack() + part.data
                data += raw + _check(self._nonce, self.end + len(data), raw)
        try:
            _write(self._fd, bytes(data), self.end)
            _sync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self.end)
            raise
        self.end += len(data)


def _split(entry: Entry) -> Iterator[Entry]:
    if entry.kind != PIECES or entry.pieces <= MOST_DIGESTS:
        yield entry
        return
    for at in range(0, entry.pieces, MOST_DIGESTS):
        data = entry.data[at * DIGEST_BYTES : (at + MOST_DIGESTS) * DIGEST_BYTES]
        yield Entry(PIECES, entry.first + at, len(data) // DIGEST_BYTES, data)


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = pwrite(fd, view, at)
        view, at = view[done:], at + done
