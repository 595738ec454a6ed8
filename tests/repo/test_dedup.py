"""The writer's index: what it trusts, and that it survives whatever befalls its file."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
from pathlib import Path

import pytest

from cloudmount.repo.damage import Damage
from cloudmount.repo.dedup import DedupIndex
from cloudmount.repo.locations import Birth
from cloudmount.repo.packs import PackTable
from cloudmount.repo.structures import HEADER_BYTES
from cloudmount.repo.trust import Trust


def _table(seed: int, frames: int = 5) -> PackTable:
    rng = random.Random(seed)
    lengths = [rng.randrange(17, 5000) for _ in range(frames)]
    ids = [rng.randbytes(16) for _ in range(frames)]
    return PackTable(Birth(0, rng.randbytes(32)), HEADER_BYTES + sum(lengths) + 99, ids, lengths)


def _trust(*tables: PackTable) -> Trust:
    return Trust(packs={t.id: t.size for t in tables})


@pytest.fixture(params=[False, True], ids=["memory", "file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "deep" / "dedup.sqlite" if request.param else None


def test_finds_what_is_there(path: Path | None) -> None:
    one, two = _table(1), _table(2)
    index = DedupIndex(path)
    index.trust(_trust(one))
    index.enter([one, two], "index/a")
    for content, at in one.entries():
        assert index.find(content) == at
    for content, _ in two.entries():
        assert index.find(content) is None  # its pack is not listed
    assert index.find(bytes(16)) is None
    assert index.missing_indexes(["index/a", "index/b"]) == ["index/b"]
    assert index.unindexed() == []
    index.close()


def test_trust_is_of_now(tmp_path: Path) -> None:
    """A pack that went, or has another length, or a damaged frame, is not used again."""
    path = tmp_path / "d.sqlite"
    one = _table(1)
    first, *rest = one.entries()
    index = DedupIndex(path)
    index.trust(_trust(one))
    index.enter([one], "index/a")
    index.close()
    for trust, found in (
        (_trust(one), True),
        (Trust(), False),
        (Trust(packs={one.id: one.size - 1}), False),
    ):
        index = DedupIndex(path)
        index.trust(trust)
        assert (index.find(first[0]) is not None) == found
        index.close()
    index = DedupIndex(path)
    index.trust(Trust({one.id: one.size}, damage=Damage(frames={(one.id, first[1].offset)})))
    assert index.find(first[0]) is None
    assert all(index.find(content) == at for content, at in rest)
    index.close()


def test_a_lost_packs_frames_are_entered_anew(path: Path | None) -> None:
    lost = _table(1)
    again = PackTable(Birth(0, os.urandom(32)), lost.size, lost.ids, lost.lengths)
    index = DedupIndex(path)
    index.trust(Trust())
    index.enter([lost], "index/a")
    index.enter([again], None)
    for content, at in again.entries():
        assert index.find(content) == at


@pytest.mark.parametrize("first", ["damaged", "anew"])
@pytest.mark.parametrize("known", [True, False])
def test_a_damaged_frame_is_entered_anew(tmp_path: Path, first: str, known: bool) -> None:
    """What was stored anew for it takes its place, whichever index object is read first."""
    path = tmp_path / "d.sqlite"
    old = _table(1)
    anew = PackTable(Birth(0, os.urandom(32)), old.size, old.ids, old.lengths)
    if known:
        index = DedupIndex(path)
        index.trust(_trust(old))
        index.enter([old], "index/a")
        index.close()
    index = DedupIndex(path)
    trust = _trust(old, anew)
    places = dict(old.entries())
    bad = {old.ids[1], old.ids[4]}
    trust.damage = Damage(frames={(old.id, places[id].offset) for id in bad})
    index.trust(trust)
    for table in (old, anew) if first == "damaged" else (anew, old):
        index.enter([table], f"index/{table.id.hex()}")
    renewed = dict(anew.entries())
    for id in old.ids:
        assert index.find(id) in ((renewed[id],) if id in bad else (places[id], renewed[id]))
    index.close()


def test_a_second_copy_does_not_replace_a_trusted_one(path: Path | None) -> None:
    one = _table(1)
    two = PackTable(Birth(0, os.urandom(32)), one.size, one.ids, one.lengths)
    index = DedupIndex(path)
    index.trust(_trust(one, two))
    index.enter([one], "index/a")
    index.enter([two], "index/b")
    assert all(index.find(content) == at for content, at in one.entries())


def test_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite"
    one, two, gone = _table(1), _table(2), _table(3)
    index = DedupIndex(path)
    index.trust(Trust())
    for table in (one, two, gone):
        index.enter([table], None)
        assert all(index.find(content) == at for content, at in table.entries())
    # Not closed: the process was killed.
    resumed = DedupIndex(path)
    resumed.trust(_trust(one, two))
    assert resumed.unindexed() == [one, two]
    resumed.enter([one], "index/x")
    assert resumed.unindexed() == [two]
    resumed.close()
    index.close()


def test_moved_frames(path: Path | None) -> None:
    birth = Birth(0, os.urandom(32))
    own = _table(1)
    table = PackTable(own.birth, own.size, own.ids, own.lengths, {1: (birth, 77), 3: (birth, 5)})
    index = DedupIndex(path)
    index.trust(_trust(table))
    index.enter([table], "index/a")
    assert all(index.find(content) == at for content, at in table.entries())


@pytest.mark.parametrize("junk", [b"", b"no database at all", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_broken_file_is_made_anew(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "d.sqlite"
    path.write_bytes(junk)
    one = _table(1)
    index = DedupIndex(path)
    index.trust(_trust(one))
    index.enter([one], "index/a")
    assert index.find(one.ids[0])
    index.close()


def test_a_file_broken_in_the_middle(tmp_path: Path) -> None:
    """Damage that is met only while reading must not end in a backup that can't be made."""
    path = tmp_path / "d.sqlite"
    tables = [_table(n, 400) for n in range(10)]
    index = DedupIndex(path)
    index.trust(_trust(*tables))
    index.enter(tables, "index/a")
    index.close()
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    index = DedupIndex(path)
    index.trust(_trust(*tables))
    for table in tables:
        for content in table.ids:
            index.find(content)
    index.enter([_table(77)], None)
    index.unindexed()
    index.missing_indexes(["index/a"])
    index.close()


def test_a_row_that_rotted(tmp_path: Path) -> None:
    """A wrong place would go into the snapshot unseen: the frame is stored anew instead."""
    path = tmp_path / "d.sqlite"
    one = _table(1)
    for column, wrong in (
        ("at", 65),
        ("length", 18),
        ("number", 9),
        ("at", "x"),
        ("crc", 1),
        ("length", b"\1"),
    ):
        path.unlink(missing_ok=True)
        index = DedupIndex(path)
        index.trust(_trust(one))
        index.enter([one], None)
        index.close()
        with sqlite3.connect(path) as db:
            update = f"UPDATE frames SET {column}=? WHERE id=?"  # noqa: S608 - columns listed above
            db.execute(update, (wrong, one.ids[2]))
        db.close()
        index = DedupIndex(path)
        index.trust(_trust(one))
        assert index.unindexed() in ([], [one])  # it needs no offsets
        assert index.find(one.ids[2]) is None
        index.close()


def test_a_file_that_others_hold(tmp_path: Path) -> None:
    """A journal that can't be written costs the journal, not the backup; it is not removed."""
    path = tmp_path / "d.sqlite"
    one, two = _table(1), _table(2)
    index = DedupIndex(path)
    index.trust(_trust(one))
    index.enter([one], "index/a")
    index._db.execute("PRAGMA busy_timeout=50")
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        index.enter([two], None)
        assert index.find(two.ids[0]) is None
        assert index.unindexed() == []
        other.execute("ROLLBACK")
    other.close()
    index.close()
    index = DedupIndex(path)
    index.trust(_trust(one, two))
    assert index.find(one.ids[0])
    index.close()


def test_many_threads(path: Path | None) -> None:
    tables = [_table(n, 50) for n in range(40)]
    index = DedupIndex(path)
    index.trust(Trust())
    wrong: list[object] = []

    def work(mine: list[PackTable]) -> None:
        for table in mine:
            index.enter([table], None)
            for content, at in table.entries():
                if index.find(content) != at:
                    wrong.append(content)

    threads = [threading.Thread(target=work, args=(tables[n::4],)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert len(index.unindexed()) == 40
