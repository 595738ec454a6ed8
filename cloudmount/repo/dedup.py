"""The writer's index: which content ids are stored already, kept on this machine.

Decided here and only here: what a writer trusts (FORMAT.md section 8.3), and the
journal that makes a killed upload resume: packs are entered as soon as the store
acknowledged them, before any index object names them. SQLite in WAL mode: a power
cut loses the last entries at most, and what it loses is stored again. Nothing here
is needed to restore: a broken file is removed and made anew, one that breaks while it is
used counts as empty from then on, and every row has a checksum, because a wrong place
would go into the snapshot unseen. Safe on any thread.
"""

from __future__ import annotations

import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from cloudmount.repo.locations import Birth, Location
from cloudmount.repo.packs import PackTable
from cloudmount.repo.trust import Trust

_SCHEMA = """
CREATE TABLE IF NOT EXISTS packs(
  no INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, epoch INTEGER NOT NULL, salt BLOB NOT NULL,
  size INTEGER NOT NULL, indexed INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS frames(
  id BLOB PRIMARY KEY, pack INTEGER NOT NULL, at INTEGER NOT NULL, length INTEGER NOT NULL,
  number INTEGER NOT NULL, epoch INTEGER, salt BLOB, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS frames_by_pack ON frames(pack, at);
CREATE TABLE IF NOT EXISTS indexes(name TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_UPSERT = """
INSERT INTO frames VALUES(?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT(id) DO UPDATE SET pack=excluded.pack, at=excluded.at, length=excluded.length,
  number=excluded.number, epoch=excluded.epoch, salt=excluded.salt, crc=excluded.crc
  WHERE pack NOT IN (SELECT no FROM temp.trusted)
"""
_SELECT = "SELECT id, pack, at, length, number, epoch, salt, crc FROM frames"
VERSION = 3
_ASKED = 500
"""Ids asked for in one statement: SQLite takes 999 parameters at least."""
_PLACE = struct.Struct("<QQQq")
_UNUSABLE = (sqlite3.DatabaseError, struct.error, TypeError)
"""What reading a broken file can raise: its own errors, and values of other types than were written."""


def _row(no: int, table: PackTable, id: bytes, at: Location) -> tuple[object, ...]:
    own = at.birth == table.birth
    other = (None, None) if own else (at.birth.epoch, at.birth.salt)
    return (id, no, at.offset, at.length, at.number, *other, _crc(id, at))


def _crc(id: bytes, at: Location) -> int:
    place = _PLACE.pack(at.offset, at.length, at.number, at.birth.epoch)
    return zlib.crc32(b"".join((id, at.pack, place, at.birth.salt)))


class DedupIndex:
    """What is stored, as far as this machine knows. `path` None keeps it in memory."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._packs: dict[int, tuple[bytes, Birth]] = {}
        self._trust_in = Trust()
        self._path = path
        self._broken = False
        self._spoiled = False
        try:
            self._db = self._connect(path)
        except sqlite3.DatabaseError:
            self._remove()
            self._db = self._connect(path)

    def _remove(self) -> None:
        if self._path is not None:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def _failed(self, error: Exception) -> None:
        """From now on nothing is known. A file that is no database any more goes; one that was only
        busy, or had no room, stays."""
        self._broken = True
        self._spoiled = self._spoiled or not isinstance(error, sqlite3.OperationalError)

    @staticmethod
    def _connect(path: Path | None) -> sqlite3.Connection:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=60, isolation_level=None)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError("made by another version")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA cache_size=-32768")  # KiB: random ids over a large index need some
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version={VERSION}")
            db.execute("CREATE TEMP TABLE trusted(no INTEGER PRIMARY KEY)")
        except BaseException:
            db.close()
            raise
        return db

    def trust(self, trust: Trust) -> None:
        """Use only what `trust` holds. Packs entered later as uploads of ours are added to it."""
        with self._lock:
            self._trust_in = trust
            try:
                self._trust_known()
            except _UNUSABLE as error:
                self._failed(error)
                self._packs.clear()
                if self._spoiled:
                    self._db.close()
                    self._remove()
                    self._db = self._connect(self._path)
                    self._broken = self._spoiled = False

    def _trust_known(self) -> None:
        rows = self._db.execute("SELECT no, id, epoch, salt, size FROM packs").fetchall()
        for no, id, epoch, salt, size in rows:
            if self._trust_in.packs.get(bytes(id)) == size:
                self._trust(no, bytes(id), Birth(epoch, bytes(salt)))
        numbers = {id: no for no, (id, _) in self._packs.items()}
        damaged = [(numbers[id], at) for id, at in self._trust_in.damage.frames if id in numbers]
        if damaged:  # forgotten, so that what is stored anew for them can take their place
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("DELETE FROM frames WHERE pack=? AND at=?", damaged)

    def _trust(self, no: int, id: bytes, birth: Birth) -> None:
        self._packs[no] = (id, birth)
        self._db.execute("INSERT OR IGNORE INTO temp.trusted VALUES(?)", (no,))

    def missing_indexes(self, names: Iterable[str]) -> list[str]:
        """Those index objects whose content was not entered yet."""
        with self._lock:
            try:
                have = {row[0] for row in self._db.execute("SELECT name FROM indexes")}
            except _UNUSABLE as error:
                self._failed(error)
                return []
        return [name for name in names if name not in have]

    def enter(self, tables: Sequence[PackTable], index: str | None) -> None:
        """Enter packs: those an index object called `index` names, or (None) acknowledged uploads of ours."""
        with self._lock:
            if index is None:
                self._trust_in.packs.update((table.id, table.size) for table in tables)
            if self._broken:
                return
            try:
                with self._db:
                    self._db.execute("BEGIN IMMEDIATE")
                    for table in tables:
                        self._enter(table, index is not None)
                    if index is not None:
                        self._db.execute("INSERT OR IGNORE INTO indexes VALUES(?)", (index,))
            except _UNUSABLE as error:
                self._failed(error)

    def _enter(self, table: PackTable, indexed: bool) -> None:
        row = self._db.execute("SELECT no FROM packs WHERE id=?", (table.id,)).fetchone()
        if row is not None:
            if indexed:
                self._db.execute("UPDATE packs SET indexed=1 WHERE no=?", row)
            return
        no = self._db.execute(
            "INSERT INTO packs(id, epoch, salt, size, indexed) VALUES(?, ?, ?, ?, ?)",
            (table.id, table.birth.epoch, table.birth.salt, table.size, indexed),
        ).lastrowid
        assert no is not None
        if self._trust_in.packs.get(table.id) == table.size:
            self._trust(no, table.id, table.birth)
        damaged = self._trust_in.damage.frames
        rows = (_row(no, table, id, at) for id, at in table.entries() if (at.pack, at.offset) not in damaged)
        self._db.executemany(_UPSERT, rows)

    def find(self, content: bytes) -> Location | None:
        """Where a frame with this content id lies; None when nothing trusted holds it."""
        return self.find_all([content]).get(content)

    def find_all(self, contents: Sequence[bytes]) -> dict[bytes, Location]:
        """Where frames with these content ids lie; those that nothing trusted holds are left out. One call
        for a batch: each alone spends most of its time waiting for Python's lock."""
        found: dict[bytes, Location] = {}
        with self._lock:
            if self._broken:
                return found
            try:
                for first in range(0, len(contents), _ASKED):
                    self._find(contents[first : first + _ASKED], found)
            except _UNUSABLE as error:
                self._failed(error)
                return {}
        return {content: at for content, at in found.items() if self._trust_in.location(at)}

    def _find(self, contents: Sequence[bytes], found: dict[bytes, Location]) -> None:
        marks = ",".join("?" * len(contents))
        rows = self._db.execute(f"{_SELECT} WHERE id IN ({marks})", contents)
        for content, pack, offset, length, number, epoch, salt, crc in rows:
            if pack not in self._packs:
                continue
            id, birth = self._packs[pack]
            if epoch is not None:
                birth = Birth(epoch, bytes(salt))
            at = Location(id, offset, length, birth, number)
            if crc == _crc(content, at):
                found[bytes(content)] = at

    def unindexed(self) -> list[PackTable]:
        """The journal: trusted packs that were acknowledged, but that no index object names yet."""
        tables = []
        with self._lock:
            try:
                packs = self._db.execute("SELECT no, size FROM packs WHERE indexed=0").fetchall()
                for no, size in packs:
                    if no in self._packs:
                        tables += self._unindexed(no, size)
            except _UNUSABLE as error:
                self._failed(error)
                return []
        return tables

    def _unindexed(self, no: int, size: int) -> list[PackTable]:
        _, birth = self._packs[no]
        rows = self._db.execute(
            "SELECT id, length, number, crc FROM frames WHERE pack=? ORDER BY number", (no,)
        ).fetchall()
        table = PackTable(birth, size, [bytes(r[0]) for r in rows], [r[1] for r in rows])
        sound = all(r[3] == _crc(id, at) for r, (id, at) in zip(rows, table.entries(), strict=True))
        return [table] if rows and sound else []

    def close(self) -> None:
        """Close the file; one that broke is removed."""
        with self._lock:
            self._db.close()
            if self._spoiled:
                self._remove()
