"""The folder store: atomic under kills, create-only without hard links, errors in our words."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudmount.blobs import placing
from cloudmount.blobs.local import LocalStore
from cloudmount.errors import (
    BlobExistsError,
    CloudMountError,
    DamagedError,
    NoRepositoryError,
    NoRoomError,
    StoreError,
    StoreRefusedError,
    StoreTimeoutError,
    StoreUnreachableError,
)
from tests.blobs.conformance import StoreConformance


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "repository")
    store.prepare()
    return store


def root(store: LocalStore) -> Path:
    return Path(store.address)


def files(store: LocalStore) -> set[str]:
    """Everything in the folder that is no folder."""
    return {str(path.relative_to(root(store))) for path in root(store).rglob("*") if not path.is_dir()}


def fail(number: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


# --- Kills -------------------------------------------------------------------------------

_WRITER = """
import hashlib, os, sys
from pathlib import Path
from cloudmount.blobs import placing
from cloudmount.blobs.local import LocalStore
for way in sys.argv[3:]:
    def refuse(*_):
        raise OSError(95, "unsupported")
    setattr(placing, way, refuse)
store, number = LocalStore(Path(sys.argv[1])), 0
while True:
    body = os.urandom(400_000)
    store.create(f"packs/{number % 7:02x}/{sys.argv[2]}-{number}", hashlib.sha256(body).digest() + body)
    number += 1
"""


@pytest.mark.parametrize("without", [[], ["_link"], ["_link", "_rename_new"]], ids=["link", "rename", "lock"])
def test_a_killed_writer_leaves_whole_objects_only(store: LocalStore, without: list[str]) -> None:
    draw = random.Random(1)
    for round in range(10):
        command = [sys.executable, "-c", _WRITER, store.address, str(round), *without]
        with subprocess.Popen(command) as writer:
            try:
                limit = time.monotonic() + 20
                while not any(f"/{round}-" in blob.name for blob in store.list("")):
                    assert time.monotonic() < limit
                    time.sleep(0.005)
                time.sleep(draw.random() * 0.05)
            finally:
                os.kill(writer.pid, signal.SIGKILL)
    found = [*store.list("")]
    assert len(found) >= 10
    for blob in found:
        assert blob.size == 400_032
        data = store.read(blob.name)
        assert hashlib.sha256(data[32:]).digest() == data[:32]
    assert files(store) - {blob.name for blob in found} <= {
        name for name in files(store) if name.startswith(".tmp/")
    }


def test_what_killed_writers_left_is_removed_when_old(store: LocalStore) -> None:
    temporary = root(store) / ".tmp"
    for name, hours in (("1-old", 25), ("2-young", 1)):
        (temporary / name).write_bytes(b"half")
        then = time.time() - hours * 3600
        os.utime(temporary / name, (then, then))
    assert [*store.list("")] == []
    assert [*store.list_folders("")] == []
    store.create("x", b"1")
    assert files(store) == {"x", ".tmp/2-young"}


def test_a_failed_write_leaves_nothing(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pwrite", "fsync", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail(errno.ENOSPC))
            for ask in (store.create, store.put):
                if name == "link" and ask == store.put:
                    continue
                with pytest.raises(NoRoomError, match="no room left"):
                    ask("packs/x", b"1234")
        assert files(store) == set()
    store.create("packs/x", b"1")


def test_everything_reaches_the_disk_before_a_create_returns(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), store.address))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    store.create("packs/ab/1", b"1")
    assert synced[0].startswith(".tmp/")
    assert synced[1:] == ["packs/ab", "packs", "."]
    synced.clear()
    store.create("packs/ab/2", b"1")
    assert synced[1:] == ["packs/ab"]  # the names above are known to be there
    synced.clear()
    store.put("config", b"1")
    assert synced[1:] == ["."]


# --- File systems without hard links ------------------------------------------------------


class TestWithoutHardLinks(StoreConformance):
    """As on vfat."""

    @pytest.fixture(autouse=True)
    def _no_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "link", fail(errno.EPERM))

    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        store = LocalStore(tmp_path / "r")
        store.prepare()
        return store

    @pytest.fixture
    def unprepared(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path / "r")


class TestWithLockOnly(TestWithoutHardLinks):
    """As on exFAT, CIFS and most of FUSE."""

    @pytest.fixture(autouse=True)
    def _no_rename_either(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(placing, "_renameat2", lambda: None)


def test_many_writers_on_a_file_system_with_locks_only(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_link", fail(errno.EOPNOTSUPP))
    monkeypatch.setattr(placing, "_rename_new", fail(errno.EINVAL))

    def create(number: int) -> bool:
        try:
            store.create(f"x{number % 5}", bytes([number]) * 1000)
        except BlobExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [*pool.map(create, range(100))]
    assert won.count(True) == 5
    for name in range(5):
        assert store.read(f"x{name}") in [bytes([n]) * 1000 for n in range(100) if won[n] and n % 5 == name]


def test_waiting_for_the_lock_keeps_the_deadline(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(placing, "_link", fail(errno.EPERM))
    monkeypatch.setattr(placing, "_rename_new", fail(errno.EINVAL))
    fd = os.open(root(store) / ".tmp/lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    start = time.monotonic()
    with pytest.raises(StoreTimeoutError, match="another writer"):
        store.create("x", b"1", deadline=start + 0.2)
    assert time.monotonic() - start < 15
    os.close(fd)
    store.create("x", b"1")
    assert files(store) == {"x", ".tmp/lock"}


def test_without_any_safe_way_it_is_refused(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(placing, "_link", fail(errno.EPERM))
    monkeypatch.setattr(placing, "_rename_new", fail(errno.EINVAL))
    monkeypatch.setattr(fcntl, "flock", fail(errno.ENOLCK))
    with pytest.raises(StoreRefusedError, match="not safe"):
        store.create("x", b"1")
    assert files(store) == {".tmp/lock"}


def test_nfs_that_repeats_a_link_is_a_success(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def twice(source: str, target: str) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", twice)
    store.create("x", b"1")
    assert store.read("x") == b"1"


# --- Errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, NoRoomError, "no room left"),
        (errno.EDQUOT, NoRoomError, "no room left"),
        (errno.EROFS, StoreRefusedError, "Read-only"),
        (errno.EACCES, StoreRefusedError, "that it may be written"),
        (errno.ESTALE, StoreUnreachableError, "still connected"),
        (errno.EHOSTDOWN, StoreUnreachableError, "still connected"),
        (errno.ENOTCONN, StoreUnreachableError, "still connected"),
        (errno.EIO, StoreError, "Input/output error"),
    ],
)
def test_errors_of_writing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[CloudMountError], said: str
) -> None:
    monkeypatch.setattr(os, "pwrite", fail(number))
    with pytest.raises(kind, match=said) as caught:
        store.create("x", b"1")
    assert str(root(store)) in str(caught.value)
    assert files(store) == set()


def test_a_sector_that_can_not_be_read_is_damage(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("x", b"1234")
    monkeypatch.setattr(os, "pread", fail(errno.EIO))
    with pytest.raises(DamagedError, match="x"):
        store.read("x")


def test_a_disk_that_is_gone_is_not(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("x", b"1234")
    monkeypatch.setattr(os, "pread", fail(errno.EIO))
    monkeypatch.setattr(os, "listdir", fail(errno.EIO))
    with pytest.raises(StoreUnreachableError, match="still connected"):
        store.read("x")


def test_a_missing_folder_is_told_by_its_path(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "unplugged")
    with pytest.raises(NoRepositoryError, match=r"unplugged.*connected"):
        store.read("config")


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LocalStore(tmp_path / "file")
    with pytest.raises(StoreRefusedError, match="is not a folder"):
        store.prepare()
    with pytest.raises(NoRepositoryError):
        store.create("x", b"1")
    with pytest.raises(NoRepositoryError):
        [*store.list("")]


def test_a_file_where_a_folder_is_needed(store: LocalStore) -> None:
    store.create("packs", b"1")
    with pytest.raises(StoreRefusedError, match="a file where folder packs/ab is needed"):
        store.create("packs/ab/1", b"1")


# --- What else may lie in the folder -----------------------------------------------------


def test_foreign_files_are_not_objects(store: LocalStore) -> None:
    store.create("a/1", b"1")
    for name in (".DS_Store", "a/.hidden", "Neuer Ordner (2)/x", "a/ümlaut", "a/System Volume Information/y"):
        path = root(store) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    os.mkfifo(root(store) / "a/fifo")
    os.symlink("nowhere", root(store) / "a/dangling")
    (root(store) / "empty").mkdir()
    assert [blob.name for blob in store.list("")] == ["a/1"]
    assert [*store.list_folders("")] == ["a"]


def test_folders_that_loop_end(store: LocalStore) -> None:
    store.create("a/1", b"1")
    os.symlink(".", root(store) / "a/loop")
    assert {blob.name for blob in store.list("", limit=3)} <= {
        "a/1",
        *(f"a{'/loop' * n}/1" for n in range(50)),
    }
    assert len([*store.list("")]) < 50


def test_a_folder_moved_to_another_disk_by_a_link(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    os.symlink(tmp_path / "other", root(store) / "packs")
    store.create("packs/ab/1", b"1")
    assert [blob.name for blob in store.list("packs/")] == ["packs/ab/1"]
    assert (tmp_path / "other/ab/1").read_bytes() == b"1"


def test_listing_while_others_write_and_delete(store: LocalStore) -> None:
    for number in range(50):
        store.create(f"kept/{number:02}", b"1")
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            store.put(f"churn/{number % 10}/x", b"1")
            store.delete(f"churn/{(number + 5) % 10}/x")
            number += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(30):
            names = [blob.name for blob in store.list("")]
            assert names == sorted(names)
            assert len([name for name in names if name.startswith("kept/")]) == 50
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def slow(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """A disk that takes 0.1 s for each piece."""
    write, read = os.pwrite, os.pread

    def slowly(call: Callable[..., object]) -> Callable[..., object]:
        def slow(*arguments: object) -> object:
            time.sleep(0.1)
            return call(*arguments)

        return slow

    monkeypatch.setattr(os, "pwrite", slowly(write))
    monkeypatch.setattr(os, "pread", slowly(read))
    return store


def test_slow_disks_keep_deadlines(slow: LocalStore) -> None:
    data = bytes(40 * 1024 * 1024)
    with pytest.raises(StoreTimeoutError):
        slow.create("x", data, deadline=time.monotonic() + 0.15)
    assert files(slow) == set()
    slow.create("x", data)
    with pytest.raises(StoreTimeoutError):
        slow.read("x", deadline=time.monotonic() + 0.15)
    assert slow.read("x", deadline=time.monotonic() + 60) == data
