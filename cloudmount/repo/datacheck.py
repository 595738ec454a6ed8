"""Reading a repository's data and proving it: frames against their content ids, objects to their last byte.

Decided here and only here: that every distinct frame is read once however many snapshots
hold it, in the order of packs and in large ranges; that what fails is read once more
alone before it counts as damaged; and how references are kept meanwhile (a temporary
SQLite file: 60 bytes a frame on disk, a bounded part of it in memory).
`References` is safe on any thread; `DataCheck` belongs to one and reads on several.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from cloudmount.errors import BlobMissingError, DamagedError
from cloudmount.repo.ahead import in_order
from cloudmount.repo.damage import Damage
from cloudmount.repo.findings import Findings, Spot
from cloudmount.repo.locations import Birth, Location
from cloudmount.repo.mapcheck import ITEM_FAILED, Reference
from cloudmount.repo.mapobjects import map_table, open_item
from cloudmount.repo.names import PACKS, map_name, pack_name
from cloudmount.repo.objects import parse_header
from cloudmount.repo.packs import PackTable, open_frame, open_seal, pack_table, spanned
from cloudmount.repo.pages import ItemRef
from cloudmount.repo.payload import METADATA_LIMIT, inflate_frame
from cloudmount.repo.repository import Repository
from cloudmount.repo.structures import HEADER_BYTES, KIND_MAP, TRAILER_BYTES, Trailer

AHEAD = 8
"""Packs begun at once, each read by one range of at most `RANGE_BYTES` after another."""
RANGE_BYTES = 4 << 20
GAP_BYTES = 256 << 10
"""Frames so near each other are read in one range, when not all are wanted."""
TAIL_BYTES = 64 << 10
ROWS_IN_MEMORY = 64 << 10  # KiB of SQLite's page cache

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE refs(
  pack INTEGER, at INTEGER, length INTEGER, birth INTEGER, number INTEGER, cut INTEGER, skip INTEGER,
  plain INTEGER, content BLOB,
  PRIMARY KEY(pack, at, length, birth, number, cut, skip, plain, content)) WITHOUT ROWID;
"""


class References:
    """The distinct frames to read: all, or `percent` of them drawn by `seed` (the same for the same seed)."""

    def __init__(self, percent: float, seed: int) -> None:
        self._below = None if percent >= 100 else int(percent / 100 * 2**64)
        self._seed = seed.to_bytes(8, "little", signed=False)
        self._lock = threading.Lock()
        # "": a temporary file that SQLite itself removes, and that is written only when it grows.
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._db.executescript(_SCHEMA)
        self._db.execute(f"PRAGMA cache_size=-{ROWS_IN_MEMORY}")
        self._db.execute("PRAGMA journal_mode=OFF")
        self._packs: dict[bytes, int] = {}
        self._births: dict[Birth, int] = {}
        self._numbered: list[Birth] = []

    def _drawn(self, at: Location) -> bool:
        if self._below is None:
            return True
        digest = hashlib.blake2b(at.pack + at.offset.to_bytes(8, "little"), digest_size=8, key=self._seed)
        return int.from_bytes(digest.digest(), "little") < self._below

    def take(self, references: Iterable[Reference]) -> None:
        """Add those that are drawn."""
        drawn = [r for r in references if self._drawn(r.at)]
        with self._lock:
            packs = self._packs
            rows = [
                (
                    packs.setdefault(at.pack, len(packs)),
                    at.offset,
                    at.length,
                    self._birth(at.birth),
                    at.number,
                    at.cut,
                    at.skip,
                    length,
                    content,
                )
                for at, content, length in drawn
            ]
            self._db.executemany("INSERT OR IGNORE INTO refs VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _birth(self, birth: Birth) -> int:
        number = self._births.get(birth)
        if number is None:
            number = self._births[birth] = len(self._numbered)
            self._numbered.append(birth)
        return number

    def packs(self) -> list[bytes]:
        """Packs that hold some of them, in the order they were met."""
        return list(self._packs)

    def of_pack(self, pack: bytes) -> list[Reference]:
        """Those in a pack, by offset."""
        no = self._packs.get(pack)
        if no is None:
            return []
        with self._lock:
            rows = self._db.execute(
                "SELECT at, length, birth, number, cut, skip, plain, content FROM refs WHERE pack=? "
                "ORDER BY at",
                (no,),
            ).fetchall()
        return [
            Reference(Location(pack, at, length, self._numbered[birth], number, cut, skip), content, plain)
            for at, length, birth, number, cut, skip, plain, content in rows
        ]

    def totals(self) -> tuple[int, int]:
        """How many distinct frames, and their sealed bytes: those of frames that span two are others'."""
        with self._lock:
            count, size = self._db.execute(
                "SELECT count(*), total(CASE cut WHEN 0 THEN length ELSE 0 END) FROM refs"
            ).fetchone()
        return int(count), int(size)

    def close(self) -> None:
        """Forget them."""
        with self._lock:
            self._db.close()


@dataclass(frozen=True, slots=True)
class _Piece:
    """A sealed piece of an object, and what proves it (`DamagedError` when it is not that)."""

    offset: int
    length: int
    prove: Callable[[bytes | memoryview], object]
    failed: Callable[[str], None]


def _ranges(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces in order of offset, grouped into ranges worth one request."""
    group: list[_Piece] = []
    end = 0
    for piece in pieces:
        if group and (
            piece.offset > end + GAP_BYTES or piece.offset + piece.length - group[0].offset > RANGE_BYTES
        ):
            yield group
            group = []
        end = max(end if group else 0, piece.offset + piece.length)
        group.append(piece)
    if group:
        yield group


class DataCheck:
    """Reads and proves. Damaged frames that snapshots name are collected in `bad`; unsound frames and
    items enter `damage`, and what is wrong with objects `findings`."""

    def __init__(
        self,
        repository: Repository,
        damage: Damage,
        findings: Findings,
        read: Callable[[int, int], None],
        pool: Executor,
    ) -> None:
        """`pool` reads; `read` is called, on any thread, with frames and bytes read since the last call."""
        self._store, self._keys = repository.store, repository.keys
        self._find = repository.dictionaries.get
        self._frame = repository.geometry.frame
        self._damage, self._findings = damage, findings
        self._read, self._pool = read, pool
        self.bad: dict[Location, str] = {}
        self.wrong_once = 0
        """Pieces that came wrong and, read again, right."""

    def frames(self, references: References, packs: dict[bytes, int], whole: bool) -> None:
        """Read the frames of `references`; with `whole` all of every pack in `packs` (ids to sizes)."""
        ids = list(dict.fromkeys([*references.packs(), *packs])) if whole else references.packs()
        for _ in in_order(
            self._pool, AHEAD, lambda id: self._pack(id, packs, references.of_pack(id), whole), ids
        ):
            pass

    def _pack(self, id: bytes, packs: dict[bytes, int], wanted: Sequence[Reference], whole: bool) -> None:
        name, size = pack_name(id), packs.get(id)
        if size is None:
            return  # told by the maps
        pieces = [
            _Piece(
                r.at.offset, r.at.length, partial(self._prove, r), partial(self._bad_frame, r.at, r.length)
            )
            for r in wanted
        ]
        told = {(r.at, r.content) for r in wanted}
        table = self._pack_table(name, size) if whole else None
        if table is not None:
            for content, at in table.entries():
                if (at, content) not in told:
                    prove, failed = partial(self._prove_any, at, content), partial(self._bad_spare, name, at)
                    pieces.append(_Piece(at.offset, at.length, prove, failed))
            pieces.sort(key=lambda p: p.offset)
        self._pieces(name, pieces)

    def _pack_table(self, name: str, size: int) -> PackTable | None:
        def table() -> PackTable:
            return pack_table(self._keys, name, size, self._store.read(name, 0, head), self._tail(name, size))

        head = min(size, HEADER_BYTES)
        try:
            return self._twice(table)
        except (DamagedError, BlobMissingError) as error:
            self._findings.add("", Spot(name, 0, size, f"{_tail_of(error, name)}; read without its table"))
            return None

    def _tail(self, name: str, size: int) -> bytes:
        """The last bytes of an object, table and trailer among them."""
        length = min(size, TAIL_BYTES)
        tail = self._store.read(name, size - length, length)
        if length < TRAILER_BYTES:
            return tail
        wanted = Trailer.unpack(tail, length - TRAILER_BYTES).table_length + TRAILER_BYTES
        if length < wanted <= min(size, METADATA_LIMIT):
            tail = self._store.read(name, size - wanted, wanted)
        return tail

    def _prove(self, r: Reference, sealed: bytes | memoryview) -> None:
        if self._keys.content_id(open_frame(self._keys, r.at, sealed, r.length, self._find)) != r.content:
            raise DamagedError("a frame opens, but its content id is another's")

    def _prove_any(self, at: Location, content: bytes, sealed: bytes | memoryview) -> None:
        """A frame that no snapshot names: its plain length is not known."""
        payload = open_seal(self._keys, at, sealed)
        if self._keys.content_id(payload) == content:
            return
        if self._keys.content_id(inflate_frame(payload, self._frame, self._find)) != content:
            raise DamagedError("a frame opens, but its content id is another's")

    def _bad_frame(self, at: Location, length: int, why: str) -> None:
        for part in self._unsound(at, length) if at.cut else (at,):
            self._damage.add_frame(part)
        self.bad[at] = why

    def _unsound(self, at: Location, length: int) -> Sequence[Location]:
        """Which of the two frames that one spans do not open; both when that can't be told."""
        bad = []
        for part in spanned(at):
            try:
                sealed = self._store.read(pack_name(at.pack), part.offset, part.length)
                open_frame(self._keys, part, sealed, length, self._find)
            except (DamagedError, BlobMissingError):
                bad.append(part)
        return bad or spanned(at)

    def _bad_spare(self, name: str, at: Location, why: str) -> None:
        self._damage.add_frame(at)
        self._findings.add("", Spot(name, at.offset, at.length, f"{why}; no snapshot holds it"))

    def maps(self, maps: dict[bytes, int]) -> None:
        """Read every map object (ids to sizes) to its last byte."""
        for _ in in_order(self._pool, AHEAD, lambda id: self._map(id, maps[id]), maps):
            pass

    def _map(self, id: bytes, size: int) -> None:
        name = map_name(id)
        head = min(size, HEADER_BYTES)

        def table() -> tuple[Birth, list[tuple[int, int]]]:
            header = self._store.read(name, 0, head)
            items = map_table(self._keys, name, size, header, self._tail(name, size))
            told = parse_header(header, KIND_MAP, name)
            return Birth(told.epoch, told.salt), items

        try:
            birth, items = self._twice(table)
        except (DamagedError, BlobMissingError) as error:
            self._findings.add("", Spot(name, 0, size, _tail_of(error, name)))
            return
        pieces = []
        offset = HEADER_BYTES
        for number, (kind, length) in enumerate(items):
            ref = ItemRef(birth, offset, length, number)
            prove = partial(self._prove_item, kind, ref)
            pieces.append(_Piece(offset, length, prove, partial(self._bad_item, name, ref)))
            offset += length
        self._pieces(name, pieces)

    def _prove_item(self, kind: int, ref: ItemRef, sealed: bytes | memoryview) -> None:
        open_item(self._keys, kind, ref, bytes(sealed))

    def _bad_item(self, name: str, ref: ItemRef, why: str) -> None:
        self._damage.add_item(ref)
        self._findings.add("", Spot(name, ref.offset, ref.length, ITEM_FAILED))

    def _pieces(self, name: str, pieces: Sequence[_Piece]) -> None:
        for group in _ranges(pieces):
            first = group[0].offset
            length = max(p.offset + p.length for p in group) - first
            try:
                data = memoryview(self._store.read(name, first, length))
            except (DamagedError, BlobMissingError):
                data = memoryview(b"")  # shorter than it was listed, or gone since: each is read alone
            for p in group:
                try:
                    p.prove(data[p.offset - first : p.offset - first + p.length])
                except DamagedError:
                    self._again(name, p)
            self._read(len(group) if name.startswith(PACKS) else 0, length)

    def _again(self, name: str, piece: _Piece) -> None:
        try:
            piece.prove(self._store.read(name, piece.offset, piece.length))
        except (DamagedError, BlobMissingError) as error:
            piece.failed(_tail_of(error, name))
        else:
            self.wrong_once += 1

    def _twice(self, attempt: Callable[[], T]) -> T:
        try:
            return attempt()
        except (DamagedError, BlobMissingError):
            value = attempt()
            self.wrong_once += 1
            return value


def _tail_of(error: Exception, name: str) -> str:
    """What is wrong, without the object's name where that is told beside it."""
    return str(error).removeprefix(f"{name}: ").removeprefix(f"{name} ")
