"""The life of a drive as real processes: it comes up, and ends within seconds whatever its reads do."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudmount.errors import NotFoundError, UsageError
from cloudmount.mounts.lifecycle import unmount
from cloudmount.mounts.mountpoints import mounted_at
from cloudmount.mounts.records import read_records
from tests import needs
from tests.mounts.drivers import NAMES
from tests.mounts.mounting import END_SECONDS, within
from tests.mounts.processes import Processes, Started
from tests.mounts.serving import SIZE, STUCK

pytestmark = pytest.mark.mount


@pytest.fixture(params=NAMES)
def processes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Processes]:
    made = Processes(tmp_path, request.param)
    try:
        yield made
    finally:
        made.finish()


def _unmounted(p: Processes) -> list[str]:
    told: list[str] = []
    unmount(str(p.at), records=p.records, tell=told.append)
    return told


WAYS: dict[str, Callable[[Processes, Started], object]] = {
    "SIGTERM": lambda _, drive: drive.process.send_signal(signal.SIGTERM),
    "SIGINT": lambda _, drive: drive.process.send_signal(signal.SIGINT),
    "SIGHUP": lambda _, drive: drive.process.send_signal(signal.SIGHUP),
    "fusermount3": lambda p, _: subprocess.run(["fusermount3", "-u", str(p.at)], check=True),
    "fusermount3 -z": lambda p, _: subprocess.run(["fusermount3", "-uz", str(p.at)], check=True),
    "umount -l": lambda p, _: subprocess.run(["umount", "-l", str(p.at)], check=True),
    "unmount": lambda p, _: _unmounted(p),
}


def _gone(p: Processes, drive: Started, began: float) -> None:
    assert drive.ends(END_SECONDS) == 0, drive.errors
    seconds = time.monotonic() - began
    assert seconds < END_SECONDS
    assert drive.said[-1] == {"ended": True}
    assert drive.errors == ""
    assert not p.mounts()
    assert read_records(p.records) == []
    assert not p.at.exists(), "its folder was made for it, so it goes with it"
    assert within(2, lambda: p.living() == [])


@pytest.mark.parametrize("way", WAYS)
def test_an_idle_drive_ends(processes: Processes, way: str) -> None:
    drive = processes.up()
    assert (processes.at / "f").read_bytes() == b"hello\n"
    (record,) = read_records(processes.records)
    assert record.pid == drive.process.pid
    assert record.alive
    assert (record.mountpoint, record.repository) == (str(processes.at), "a repository")
    assert abs(record.since - time.time()) < 10
    began = time.monotonic()
    WAYS[way](processes, drive)
    _gone(processes, drive, began)
    assert time.monotonic() - began < END_SECONDS, "nothing to wait for"


@pytest.mark.parametrize("way", [w for w in WAYS if w != "fusermount3"])  # that one says "busy", rightly
def test_a_drive_whose_reads_never_come_back_ends(processes: Processes, way: str) -> None:
    drive = processes.up("--tree", "stuck")
    readers = [processes.start("cat", processes.at / f"s{i}") for i in range(STUCK)]
    readers.append(processes.start("stat", processes.at / "d" / "x"))
    time.sleep(0.7)
    assert all(r.process.poll() is None for r in readers)
    assert (processes.at / "f").read_bytes() == b"hello\n"
    began = time.monotonic()
    WAYS[way](processes, drive)
    if way == "unmount":
        assert time.monotonic() - began < END_SECONDS
    _gone(processes, drive, began)
    for reader in readers:  # they get an error, and nobody waits for ever
        assert reader.process.wait(15) != 0
    assert re.search(r"ended while \d+ requests hung", drive.said[-2]["told"])


def test_fusermount_says_that_it_is_in_use(processes: Processes) -> None:
    drive = processes.up("--tree", "stuck")
    processes.start("cat", processes.at / "s0")
    time.sleep(0.5)
    done = subprocess.run(["fusermount3", "-u", processes.at], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert drive.process.poll() is None
    assert (processes.at / "f").read_bytes() == b"hello\n"


def test_a_shell_standing_in_it(processes: Processes) -> None:
    drive = processes.up()
    processes.start("sleep", "60", cwd=processes.at)
    began = time.monotonic()
    told = _unmounted(processes)
    assert any("in use" in t for t in told)
    _gone(processes, drive, began)
    assert drive.said[-2] == {"told": f"{processes.at}: ended while it was in use"}


def test_a_killed_drive_is_cleared_by_the_next(processes: Processes) -> None:
    drive = processes.up()
    drive.process.kill()
    drive.process.wait(15)
    with pytest.raises(OSError, match="endpoint is not connected") as caught:
        os.stat(processes.at)
    assert caught.value.errno == errno.ENOTCONN
    again = processes.drive()
    assert "killed was cleared" in again.until("told")
    again.until("ready")
    assert (processes.at / "f").read_bytes() == b"hello\n"
    assert processes.mounts() == [str(processes.at)]
    assert [r.pid for r in read_records(processes.records)] == [again.process.pid]


def test_a_drive_killed_with_reads_stuck_is_cleared(processes: Processes) -> None:
    drive = processes.up("--tree", "stuck")
    reader = processes.start("cat", processes.at / "s0")
    time.sleep(0.5)
    drive.process.kill()
    drive.process.wait(15)
    assert reader.process.wait(15) != 0
    processes.start("tail", "-f", "/dev/null", cwd=Path("/"))
    again = processes.drive()
    assert "killed was cleared" in again.until("told")
    again.until("ready")


def test_umount_clears_what_a_killed_drive_left(processes: Processes) -> None:
    drive = processes.up()
    drive.process.kill()
    drive.process.wait(15)
    (told,) = _unmounted(processes)
    assert "killed" in told
    assert not processes.mounts()
    assert read_records(processes.records) == []
    with pytest.raises(NotFoundError, match="nothing is mounted"):
        _unmounted(processes)


def test_umount_ends_a_drive_that_does_not_answer(processes: Processes) -> None:
    """Its process is stopped: neither unmounting nor a polite signal reaches it."""
    drive = processes.up()
    drive.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    _unmounted(processes)
    assert time.monotonic() - began < END_SECONDS
    assert drive.process.wait(15) == -signal.SIGKILL
    assert not processes.mounts()


def _refused(processes: Processes, at: Path, kind: str, code: int, text: str) -> None:
    before = processes.mounts()
    drive = processes.drive(at=at)
    error = drive.until("error")
    assert text in error
    assert str(at) in error
    assert drive.said[-1]["kind"] == kind
    assert drive.ends(10) == code
    assert processes.mounts() == before
    assert len(read_records(processes.records)) == len(before)


def test_where_a_drive_is_already(processes: Processes) -> None:
    processes.up()
    _refused(processes, processes.at, "TargetExistsError", 8, "mounted at")
    assert (processes.at / "f").read_bytes() == b"hello\n"


@needs.root
def test_where_something_else_is_mounted(processes: Processes, tmp_path: Path) -> None:
    at = tmp_path / "foreign"
    at.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "none", at], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    try:
        drive = processes.drive(at=at)
        assert "another file system (tmpfs)" in drive.until("error")
        assert drive.ends(10) == 8
        with pytest.raises(UsageError, match=r"tmpfs\) is not a drive of CloudMount's"):
            unmount(str(at), records=processes.records, tell=lambda _: None)
        assert mounted_at(str(at)) is not None
    finally:
        subprocess.run(["umount", at], check=True)


def test_where_it_can_not_be(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    _refused(processes, file, "UsageError", 2, "is not a folder")
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    _refused(processes, full, "TargetExistsError", 8, "is not empty")
    _refused(processes, tmp_path / "no" / "parent", "NotFoundError", 3, "parent folder does not exist")
    _refused(processes, file / "below", "CloudMountError", 1, "Not a directory")
    assert sorted(os.listdir(full)) == ["x"]


def test_a_folder_that_was_there_stays(processes: Processes) -> None:
    processes.at.mkdir()
    drive = processes.up()
    _unmounted(processes)
    assert drive.ends(END_SECONDS) == 0
    assert os.listdir(processes.at) == []


def test_odd_mount_points(processes: Processes, tmp_path: Path) -> None:
    odd = tmp_path / "with space\tand\nnewline, ä=1\\"
    drive = processes.drive(at=odd)
    assert drive.until("ready") == str(odd)
    assert (odd / "f").read_bytes() == b"hello\n"
    unmount(str(odd), records=processes.records, tell=lambda _: None)
    assert drive.ends(END_SECONDS) == 0
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    drive = processes.drive(at=tmp_path / "link" / "drive")
    assert drive.until("ready") == str(processes.at)
    unmount(str(tmp_path / "link" / "drive") + "/", records=processes.records, tell=lambda _: None)
    assert drive.ends(END_SECONDS) == 0


def test_in_the_background(processes: Processes, tmp_path: Path) -> None:
    log = tmp_path / "state" / "drive.log"
    parent = processes.drive("--daemon", log)
    pid = None
    assert parent.ends(20) == 0
    said = {k: v for line in parent.said for k, v in line.items()}
    assert said["returned"] < 15
    assert said["children"] == []
    pid = said["pid"]
    assert pid != parent.process.pid
    assert (processes.at / "f").read_bytes() == b"hello\n", "up when the command has returned"
    assert (processes.at / "big").stat().st_size == SIZE
    (record,) = read_records(processes.records)
    assert record.pid == pid
    assert os.getsid(pid) not in (os.getsid(0), pid), "it outlives the terminal"
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/fd/2") == str(log)
    began = time.monotonic()
    _unmounted(processes)
    assert time.monotonic() - began < END_SECONDS
    assert within(2, lambda: processes.living() == [])
    assert not processes.at.exists()
    assert read_records(processes.records) == []


def test_in_the_background_with_reads_stuck(processes: Processes, tmp_path: Path) -> None:
    parent = processes.drive("--daemon", tmp_path / "log", "--tree", "stuck")
    assert parent.ends(20) == 0
    readers = [processes.start("cat", processes.at / f"s{i}") for i in range(STUCK)]
    time.sleep(0.5)
    began = time.monotonic()
    _unmounted(processes)
    assert time.monotonic() - began < END_SECONDS
    for reader in readers:
        assert reader.process.wait(15) != 0
    assert within(2, lambda: processes.living() == [])


def test_what_fails_in_the_background_is_told_in_front(processes: Processes, tmp_path: Path) -> None:
    processes.at.mkdir()
    (processes.at / "x").touch()
    parent = processes.drive("--daemon", tmp_path / "log")
    assert parent.ends(20) == 8
    assert "is not empty" in parent.said[-1]["error"]
    assert parent.said[-1]["children"] == []
    assert within(2, lambda: processes.living() == [])


def test_the_background_process_dies_before_it_is_up(processes: Processes, tmp_path: Path) -> None:
    parent = processes.drive("--daemon", tmp_path / "log", "--tree", "dies")
    assert parent.ends(20) == 1
    assert "before it was up" in parent.said[-1]["error"]
