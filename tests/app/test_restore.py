"""Restore puts back what was backed up, and never anything else."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from cloudmount import system
from cloudmount.app.restore import RestoreResult, restore
from cloudmount.app.select import select
from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.run import BackupOptions, run_backup
from cloudmount.blobs.memory import MemoryStore
from cloudmount.crypto.phrase import new_phrase
from cloudmount.crypto.slots import KdfCost
from cloudmount.errors import DamagedError, NotFoundError, TargetExistsError
from cloudmount.repo.config import Geometry
from cloudmount.repo.repository import Repository

SMALL = Geometry(frame=4096, pack=1 << 16, segment=2 << 20, page=32 << 20)


@pytest.fixture
def repository() -> Repository:
    store = MemoryStore(prepared=False)
    return Repository.init(store, "pw", new_phrase(), geometry=SMALL, cost=KdfCost(64, 1, 1))


def back_up(repository: Repository, *paths: Path) -> None:
    run_backup(repository, [str(p) for p in paths], BackupOptions("srv"), BackupProgress())


def bring_back(repository: Repository, target: Path, what: str = "srv", **options: object) -> RestoreResult:
    return restore(repository, select(repository, what), target, **options)  # type: ignore[arg-type]


def test_everything_of_a_folder(repository: Repository, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "empty").mkdir(parents=True)
    (folder / "none").touch()
    (folder / "large").write_bytes(os.urandom(6 << 20))  # more frames than a small file has
    (folder / "same").hardlink_to(folder / "large")
    (folder / "link").symlink_to("nowhere")
    odd = os.fsdecode(b"odd \xff\n name")
    (folder / odd).write_bytes(b"odd")
    with open(folder / "sparse", "wb") as file:
        file.truncate(50 << 20)
        file.seek(20 << 20)
        file.write(b"data")
    os.mkfifo(folder / "pipe")
    os.chmod(folder / "none", 0o640)
    os.utime(folder / "none", ns=(1, 1_600_000_000_123_456_789))
    os.utime(folder / "empty", ns=(1, 1_500_000_000_000_000_001))
    back_up(repository, folder)
    bring_back(repository, tmp_path / "back")
    back = tmp_path / "back" / "docs"
    assert sorted(os.listdir(back)) == sorted(os.listdir(folder))
    for name in os.listdir(folder):
        was, now = os.lstat(folder / name), os.lstat(back / name)
        assert (was.st_mode, was.st_mtime_ns) == (now.st_mode, now.st_mtime_ns), name
        if stat.S_ISREG(was.st_mode):
            assert (folder / name).read_bytes() == (back / name).read_bytes(), name
    assert os.readlink(back / "link") == "nowhere"
    assert os.stat(back / "same").st_ino == os.stat(back / "large").st_ino
    assert os.stat(back / "sparse").st_blocks * 512 < 1 << 20
    assert not [p for p in (tmp_path / "back").iterdir() if p.name != "docs"]


def test_one_file_and_a_part(repository: Repository, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x").write_text("x")
    (folder / "y").write_text("y")
    back_up(repository, folder)
    bring_back(repository, tmp_path / "new", "srv:docs/a/x")
    assert (tmp_path / "new").read_text() == "x"
    with pytest.raises(TargetExistsError):
        bring_back(repository, tmp_path / "new", "srv:docs/y")
    assert (tmp_path / "new").read_text() == "x"
    bring_back(repository, tmp_path / "folder", "srv:docs/y", into=True)
    assert (tmp_path / "folder" / "y").read_text() == "y"
    bring_back(repository, tmp_path / "part", "srv:docs/a")
    assert os.listdir(tmp_path / "part") == ["x"]
    with pytest.raises(NotFoundError):
        bring_back(repository, tmp_path / "none", "srv:docs/b")


def test_damage_costs_only_what_it_is_in(repository: Repository, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for n in range(20):
        (folder / f"{n:02}").write_bytes(random.Random(n).randbytes(20_000))
    (tmp_path / "disk.raw").write_bytes(random.Random(99).randbytes(1 << 20))
    back_up(repository, folder, tmp_path / "disk.raw")
    store = repository.store
    assert isinstance(store, MemoryStore)
    name = sorted(n for n in store.objects if n.startswith("packs/"))[0]
    wrong = bytearray(store.objects[name])
    wrong[len(wrong) // 2] ^= 4
    store.objects[name] = bytes(wrong)
    with pytest.raises(DamagedError, match="1 of 21 could not be restored"):
        bring_back(repository, tmp_path / "back")
    kept = sorted(p.relative_to(tmp_path / "back") for p in (tmp_path / "back").rglob("*") if p.is_file())
    assert len([p for p in kept if p.name != ".cloudmount-restore"]) == 20
    for path in kept:
        if path.name != ".cloudmount-restore":
            assert (tmp_path / "back" / path).read_bytes() == (tmp_path / path).read_bytes()
    store.objects[name] = bytes(
        wrong[: len(wrong) // 2] + bytes([wrong[len(wrong) // 2] ^ 4]) + wrong[len(wrong) // 2 + 1 :]
    )
    bring_back(repository, tmp_path / "back")  # the same again goes on
    assert (tmp_path / "back/disk.raw").read_bytes() == (tmp_path / "disk.raw").read_bytes()
    assert len(list((tmp_path / "back/docs").iterdir())) == 20


def test_nothing_is_overwritten(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("f")
    back_up(repository, tmp_path / "f")
    target = tmp_path / "there"
    target.mkdir()
    (target / "mine").write_text("mine")
    with pytest.raises(TargetExistsError):
        bring_back(repository, target)
    assert os.listdir(target) == ["mine"]


def test_names_that_windows_can_not_hold_are_those_of_the_drive(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "docs"
    (folder / "con").mkdir(parents=True)
    for name in ("con/a:b", "con/plain", "its\uf03aown"):
        (folder / name).write_text(name)
    (folder / "same?").hardlink_to(folder / "con/a:b")
    back_up(repository, folder)
    monkeypatch.setattr(system, "WINDOWS", True)
    result = bring_back(repository, tmp_path / "back")
    back = tmp_path / "back" / "docs"
    assert (back / "\uf063on/a\uf03ab").read_text() == "con/a:b"
    assert (back / "\uf063on/plain").read_text() == "con/plain"
    assert (back / "its\uf03aown").read_text() == "its\uf03aown"
    assert (back / "same\uf03f").samefile(back / "\uf063on/a\uf03ab")
    assert result.skipped == []
    assert len(result.notes) == 3 and all("as on the drive" in note for note in result.notes)
