"""Completing disks through a drive's tree: the right bytes from the first on, from here as soon as they are
here, and without the store in the end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudmount.app.hydrate import hydrate
from cloudmount.app.select import select
from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.faulty import Fault, FaultyStore
from cloudmount.blobs.limited import LimitedStore
from cloudmount.blobs.store import BlobStore
from cloudmount.errors import StoreTimeoutError
from cloudmount.reader.filling import COMPLETE
from cloudmount.reader.stored import FrameReader
from cloudmount.tree import hydrator as hydrating
from cloudmount.tree.copies import Format
from cloudmount.tree.drive import Drive
from cloudmount.tree.hydrator import Hydrator
from cloudmount.tree.snapshotdir import OpenedSnapshot, StoredDisk
from tests.backup.lab import Lab
from tests.guest.images import make_ext
from tests.tree.drives import MIB, raw_disk, read
from tests.tree.drives import node as found

DISK, VHDX = "srv/latest/disk.img", "srv/latest/disk.vhdx"


@contextmanager
def hydrating_drive(
    lab: Lab, to: Path, store: BlobStore | None = None, io_timeout: float = 10
) -> Iterator[tuple[Drive, Hydrator, list[str]]]:
    """A drive that completes its disks in `to`."""
    repository = lab.reopened(store)
    reader = FrameReader(repository, io_timeout=io_timeout)
    drive = Drive(repository, reader)
    told: list[str] = []
    made = Hydrator(to, drive, reader, told.append)
    drive.local = made
    try:
        yield drive, made, told
    finally:
        made.close()
        drive.close()
        reader.close()


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.01)


def node(root: Drive, path: str) -> Any:
    """What lies there: a file."""
    return found(root, path)


def home(folder: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}


def disk_bytes(lab: Lab) -> list[int]:
    return [info.size for info in lab.store.list("packs/")]


def complete(made: Hydrator, count: int = 1) -> bool:
    states = made.states()
    return len(states) == count and all(s.state == COMPLETE for s in states)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path)
    made.backup(raw_disk(tmp_path / "disk.img"))
    return made


def test_a_disk_that_is_read_is_completed_and_then_needs_no_store(lab: Lab, tmp_path: Path) -> None:
    content = (tmp_path / "disk.img").read_bytes()
    faulty = FaultyStore(lab.store, lambda op: None)
    with hydrating_drive(lab, tmp_path / "to", faulty, io_timeout=1) as (drive, made, told):
        vhdx = read(drive, VHDX)
        assert read(drive, DISK) == content
        wait_for(lambda: complete(made))
        (state,) = made.states()
        assert state.done_bytes == state.total_bytes == len(vhdx) and state.disk == "disk"
        assert Path(state.path).read_bytes() == vhdx
        assert state.path == str(tmp_path / "to" / state.snapshot / "disk.vhdx")
        folder = state.snapshot
        files = [node(drive, f"{folder}/{name}") for name in ("disk.vhdx", "disk.img")]
        sources = [f.open() for f in files]
        drive.reader.table.close(ConnectionError("nothing may be asked of memory either"))
        faulty.plan = lambda op: Fault.RESET
        assert sources[0].read_at(0, len(vhdx)) == vhdx and sources[1].read_at(0, len(content)) == content
        assert told == []
    with hydrating_drive(lab, tmp_path / "to") as (drive, made, told):
        assert read(drive, DISK, 5 * MIB, 100) == content[5 * MIB : 5 * MIB + 100]
        assert complete(made) and drive.reader.fetched().requests == 0


def test_looking_inside_completes_nothing_but_uses_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"inside" * 100_000)
    lab = Lab(tmp_path)
    lab.backup(make_ext(tmp_path / "disk.img", 8 * MIB, tmp_path / "source"))
    faulty = FaultyStore(lab.store, lambda op: None)
    with hydrating_drive(lab, tmp_path / "to", faulty, io_timeout=1) as (drive, made, _):
        assert read(drive, "srv/latest/disk/1-root/file") == b"inside" * 100_000
        assert made.states() == []
        read(drive, DISK, 0, 1)
        wait_for(lambda: complete(made))
        drive.reader.table.close(ConnectionError("nothing may be asked of memory either"))
        faulty.plan = lambda op: Fault.RESET
        assert read(drive, f"{made.states()[0].snapshot}/disk/1-root/file") == b"inside" * 100_000


@pytest.mark.parametrize("format", ["vhdx", "raw"])
def test_a_finished_copy_of_either_form_serves_both_files(lab: Lab, tmp_path: Path, format: Format) -> None:
    repository = lab.reopened()
    done = hydrate(
        repository, select(repository, "srv"), tmp_path / "to", format=format, environ=home(tmp_path)
    )
    assert done.files == 1
    content = (tmp_path / "disk.img").read_bytes()
    with hydrating_drive(lab, tmp_path / "plain") as (plain, _, _told):
        vhdx = read(plain, VHDX)
    with hydrating_drive(lab, tmp_path / "to") as (drive, made, told):
        assert read(drive, DISK) == content and read(drive, VHDX) == vhdx
        assert complete(made) and drive.reader.fetched().requests == 0 and told == []
        path = Path(made.states()[0].path)
        assert path.name == ("disk.vhdx" if format == "vhdx" else "disk.img")
        # Drivers are given the file itself, for the form that it has, as long as nobody touches it.
        for name, form in (("disk.vhdx", "vhdx"), ("disk.img", "raw")):
            source = node(drive, f"{made.states()[0].snapshot}/{name}").open()
            assert source.local_path() == (str(path) if form == format else None)
        path.chmod(0o400)
        assert made.path(node_disk(drive), format) is None


def node_disk(drive: Drive) -> StoredDisk:
    """The disk of the newest snapshot of `srv`."""
    newest = drive.repository.newest(drive.repository.keys.tag("srv"))
    assert newest is not None
    (disk,) = OpenedSnapshot(drive, newest[0]).disks
    return disk


def test_random_reads_are_right_while_it_fills_and_each_frame_comes_about_once(
    lab: Lab, tmp_path: Path
) -> None:
    content = (tmp_path / "disk.img").read_bytes()
    counting = CountingStore(LimitedStore(lab.store, down=3_000_000))
    wrong: list[int] = []
    with hydrating_drive(lab, tmp_path / "to", counting) as (drive, made, _):

        def look(seed: int) -> None:
            rng = random.Random(seed)
            source = node(drive, DISK).open()
            while not complete(made):
                at = rng.randrange(len(content) - 70_000)
                length = rng.randrange(70_000)
                if source.read_at(at, length) != content[at : at + length]:
                    wrong.append(at)

        threads = [threading.Thread(target=look, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert complete(made) and not wrong
        stored = sum(disk_bytes(lab))
        assert counting.snapshot().bytes_down < 1.6 * stored + (1 << 20)


def test_the_disk_opened_last_comes_first(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    names = ("a", "b", "c")
    for n, name in enumerate(names):
        (tmp_path / f"{name}.img").write_bytes(b"\1" + random.Random(n).randbytes(2 * MIB - 1))
    lab.backup(*(tmp_path / f"{name}.img" for name in names))
    with hydrating_drive(lab, tmp_path / "to", LimitedStore(lab.store, down=4_000_000)) as (drive, made, _):
        for name in names:
            read(drive, f"srv/latest/{name}.img", 0, 100)
        finished: list[str] = []
        until = time.monotonic() + 20
        while len(finished) < 3 and time.monotonic() < until:
            finished += sorted(
                s.disk for s in made.states() if s.state == COMPLETE and s.disk not in finished
            )
            time.sleep(0.005)
        assert finished == ["c", "b", "a"]


def test_what_another_process_completes_is_read_through(lab: Lab, tmp_path: Path) -> None:
    content = (tmp_path / "disk.img").read_bytes()
    slow = LimitedStore(lab.store, down=100_000)
    with hydrating_drive(lab, tmp_path / "to", slow) as (first, one, _):
        read(first, DISK, 0, 4096)
        assert len(one.states()) == 1
        with hydrating_drive(lab, tmp_path / "to") as (second, two, told):
            assert read(second, DISK) == content
            assert two.states() == [] and len(told) == 1 and "another process" in told[0]


def test_a_finished_copy_that_somebody_changes_is_mended(lab: Lab, tmp_path: Path) -> None:
    content = (tmp_path / "disk.img").read_bytes()
    for already in (False, True):
        with hydrating_drive(lab, tmp_path / "to") as (drive, made, _):
            assert read(drive, DISK) == content
            wait_for(lambda: complete(made))  # it ends within the loop's turn
            path = Path(made.states()[0].path)
            good = path.read_bytes()
            path.chmod(0o600)
            with path.open("r+b") as f:
                f.seek(len(good) - MIB)
                f.write(bytes(range(1, 256)) * 1000)
            assert read(drive, DISK) == content
            wait_for(lambda: complete(made))
            assert path.read_bytes() == good
            assert read(drive, DISK) == content, already


def test_a_store_that_is_away_is_waited_for(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hydrating, "AGAIN_SECONDS", 0.05)
    content = (tmp_path / "disk.img").read_bytes()
    faulty = FaultyStore(lab.store, lambda op: None)
    with hydrating_drive(lab, tmp_path / "to", faulty, io_timeout=1) as (drive, made, told):
        assert read(drive, DISK, 0, 512) == content[:512]
        source = node(drive, DISK).open()
        faulty.plan = lambda op: Fault.RESET
        wait_for(lambda: complete(made) or len(told) == 1)
        if not complete(made):
            assert "waits for the store" in told[0]
            assert made.states()[0].state == "paused: no answer"
        faulty.plan = lambda op: None
        wait_for(lambda: complete(made))
        assert source.read_at(0, len(content)) == content


def test_a_silent_store_does_not_keep_first_reads_waiting_for_a_copy(lab: Lab, tmp_path: Path) -> None:
    content = (tmp_path / "disk.img").read_bytes()
    faulty = FaultyStore(lab.store, lambda op: None, stall=1.5)
    with hydrating_drive(lab, tmp_path / "to", faulty, io_timeout=1) as (drive, made, _):
        files = [node(drive, DISK) for _ in range(2)]
        faulty.plan = lambda op: Fault.STALL
        began = time.monotonic()
        for file in files:
            with pytest.raises(StoreTimeoutError):
                file.open().read_at(0, 4096)
        assert time.monotonic() - began < 30
        faulty.plan = lambda op: None

        def answers() -> bool:
            try:
                return bool(node(drive, DISK).open().read_at(0, len(content)) == content)
            except StoreTimeoutError:
                return False

        wait_for(answers)
        wait_for(lambda: complete(made))


def test_a_folder_that_cannot_be_written_costs_the_copy_only(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "to").write_text("a file")
    with hydrating_drive(lab, tmp_path / "to") as (drive, made, told):
        assert read(drive, DISK) == (tmp_path / "disk.img").read_bytes()
        assert made.states() == [] and len(told) == 1 and "can't be written" in told[0]
