"""Versions are told apart by their contents' digests, which reading gives too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from cloudmount.app.browsing import top_of
from cloudmount.app.opening import looking_inside
from cloudmount.app.versions import Version, digest_of, versions
from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.run import BackupOptions, run_backup
from cloudmount.blobs.memory import MemoryStore
from cloudmount.crypto.phrase import new_phrase
from cloudmount.crypto.slots import KdfCost
from cloudmount.errors import CloudMountError, NotFoundError, UsageError
from cloudmount.extents import Bytes
from cloudmount.repo.config import Geometry
from cloudmount.repo.repository import Repository
from cloudmount.tree.snapshotdir import StoredFile
from tests.strategies import contents

SMALL = Geometry(frame=4096, pack=1 << 16, segment=2 << 20, page=32 << 20)


@pytest.fixture
def repository() -> Repository:
    store = MemoryStore(prepared=False)
    return Repository.init(store, "pw", new_phrase(), geometry=SMALL, cost=KdfCost(64, 1, 1))


def back_up(repository: Repository, *paths: Path) -> None:
    run_backup(repository, [str(p) for p in paths], BackupOptions("srv"), BackupProgress())


def look(repository: Repository, tmp_path: Path, what: str) -> tuple[list[Version], list[CloudMountError]]:
    """What `versions` tells, and its failures."""
    failures: list[CloudMountError] = []
    environ = {"XDG_CACHE_HOME": str(tmp_path / "c"), "XDG_STATE_HOME": str(tmp_path / "s")}
    with looking_inside(repository, environ) as drive:
        found = versions(drive, what, failed=lambda _, error: failures.append(error), environ=environ)
    return found, failures


@given(content=contents())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_digest_of_what_is_read_is_that_of_the_backup(tmp_path: Path, content: bytes) -> None:
    repository = Repository.init(
        MemoryStore(prepared=False), "pw", new_phrase(), geometry=SMALL, cost=KdfCost(64, 1, 1)
    )
    (tmp_path / "f").write_bytes(content)
    back_up(repository, tmp_path / "f")
    with looking_inside(repository, {"XDG_CACHE_HOME": str(tmp_path / "c")}) as drive:
        file = top_of(drive, repository.latest("srv")).lookup("f")
        assert isinstance(file, StoredFile)
        assert file.content() == digest_of(repository, Bytes(content)) == digest_of(repository, file.open())


def test_a_large_one_and_hard_links_too(repository: Repository, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    content = os.urandom(1 << 20) + bytes(3 << 20) + os.urandom(1_000_001)
    (folder / "a").write_bytes(content)
    (folder / "b").hardlink_to(folder / "a")
    back_up(repository, folder)
    (folder / "b").unlink()
    back_up(repository, folder)
    (two,), _ = look(repository, tmp_path, "srv:d/b")  # gone from the second
    one, three = look(repository, tmp_path, "srv:d/a")[0]
    assert one.content == two.content == three.content == digest_of(repository, Bytes(content))


def test_what_is_nowhere(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "Plan").write_text("x")
    back_up(repository, tmp_path / "Plan")
    for what, said in (
        ("srv:none", "no snapshot"),
        ("srv:plan", "did you mean 'Plan'"),
        ("x:y", "there is srv"),
    ):
        with pytest.raises(NotFoundError, match=said):
            look(repository, tmp_path, what)
    for what in ("srv", "srv/latest:Plan"):
        with pytest.raises(UsageError):
            look(repository, tmp_path, what)


def test_a_snapshot_that_is_damaged_costs_only_itself(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one")
    for n in range(3):
        (tmp_path / "f").write_text(str(n))
        back_up(repository, tmp_path / "f")
    store = repository.store
    assert isinstance(store, MemoryStore)
    oldest = sorted(n for n in store.objects if n.startswith("snapshots/"))[-1]
    store.objects[oldest] = store.objects[oldest][:-1] + b"?"
    again = Repository.open(store, "pw")
    found, failures = look(again, tmp_path, "srv:f")
    assert len(found) + len(failures) == 3 and len(failures) <= 1
    store.objects[oldest] = b"?" * len(store.objects[oldest])
    found, failures = look(Repository.open(store, "pw"), tmp_path, "srv:f")
    assert len(found) == 2 and len(failures) == 1
