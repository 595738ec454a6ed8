"""The writer's index: which content ids are stored already, kept on this machine.

Decided here and only here: what a writer trusts (FORMAT.md section 8.3), and the
journal that makes a killed upload resume: packs are entered as soon as the store
acknowledged them, before any index object names them. SQLite in WAL mode: a power
cut loses the last entries at most, and what it loses is stored again. Nothing here
is needed to restore; a broken file is set aside and made anew. Safe on any thread.
"""

from __future__ import annotations

import sqlite3
import threading
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
  number INTEGER NOT NULL, epoch INTEGER, salt BLOB) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS frames_by_pack ON frames(pack) ;
CREATE TABLE IF NOT EXISTS indexes(name TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_UPSERT = """
INSERT INTO frames VALUES(?, ?, ?, ?, ?, ?, ?)
ON CONFLICT(id) DO UPDATE SET pack=excluded.pack, at=excluded.at, length=excluded.length,
  number=excluded.number, epoch=excluded.epoch, salt=excluded.salt
  WHERE pack NOT IN (SELECT no FROM temp.trusted)
"""
VERSION = 1


def _row(no: int, table: PackTable, id: bytes, at: Location) -> tuple[object, ...]:
    own = at.birth == table.birth
    other = (None, None) if own else (at.birth.epoch, at.birth.salt)
    return (id, no, at.offset, at.length, at.number, *other)


class DedupIndex:
    """What is stored, as far as this machine knows. `path` None keeps it in memory."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._packs: dict[int, tuple[bytes, Birth]] = {}
        self._trust_in = Trust()
        try:
            self._db = self._connect(path)
        except sqlite3.DatabaseError:
            if path is None:
                raise
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            self._db = self._connect(path)

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
            known = {
                bytes(id): (no, size, Birth(epoch, bytes(salt)))
                for no, id, epoch, salt, size in self._db.execute(
                    "SELECT no, id, epoch, salt, size FROM packs"
                )
            }
            self._trust_in = trust
            for id, (no, size, birth) in known.items():
                if trust.packs.get(id) == size:
                    self._trust(no, id, birth)

    def _trust(self, no: int, id: bytes, birth: Birth) -> None:
        self._packs[no] = (id, birth)
        self._db.execute("INSERT OR IGNORE INTO temp.trusted VALUES(?)", (no,))

    def missing_indexes(self, names: Iterable[str]) -> list[str]:
        """Those index objects whose content was not entered yet."""
        with self._lock:
            have = {row[0] for row in self._db.execute("SELECT name FROM indexes")}
        return [name for name in names if name not in have]

    def enter(self, tables: Sequence[PackTable], index: str | None) -> None:
        """Enter packs: those an index object called `index` names, or (None) acknowledged uploads of ours."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for table in tables:
                self._enter(table, index is not None)
            if index is not None:
                self._db.execute("INSERT OR IGNORE INTO indexes VALUES(?)", (index,))

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
        if not indexed:
            self._trust_in.packs[table.id] = table.size
        if self._trust_in.packs.get(table.id) == table.size:
            self._trust(no, table.id, table.birth)
        self._db.executemany(_UPSERT, (_row(no, table, id, at) for id, at in table.entries()))

    def find(self, content: bytes) -> Location | None:
        """Where a frame with this content id lies; None when nothing trusted holds it."""
        with self._lock:
            row = self._db.execute(
                "SELECT pack, at, length, number, epoch, salt FROM frames WHERE id=?", (content,)
            ).fetchone()
        if row is None or row[0] not in self._packs:
            return None
        id, birth = self._packs[row[0]]
        if row[5] is not None:
            birth = Birth(row[4], bytes(row[5]))
        at = Location(id, row[1], row[2], birth, row[3])
        return at if self._trust_in.location(at) else None

    def unindexed(self) -> list[PackTable]:
        """The journal: trusted packs that were acknowledged, but that no index object names yet."""
        tables = []
        with self._lock:
            packs = self._db.execute("SELECT no, size FROM packs WHERE indexed=0").fetchall()
            for no, size in packs:
                if no not in self._packs:
                    continue
                _, birth = self._packs[no]
                rows = self._db.execute(
                    "SELECT id, length, number FROM frames WHERE pack=? ORDER BY number", (no,)
                ).fetchall()
                if [r[2] for r in rows] == list(range(len(rows))):
                    tables.append(PackTable(birth, size, [bytes(r[0]) for r in rows], [r[1] for r in rows]))
        return tables

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
