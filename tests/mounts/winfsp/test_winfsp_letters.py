"""The life of a drive at a letter, as real processes: put up, recorded, and ended within seconds."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudmount.app import status
from cloudmount.app.mount import _driver
from cloudmount.cli import mount as mount_command
from cloudmount.errors import NotFoundError, TargetExistsError, UsageError
from cloudmount.mounts import letters, ntstatus
from cloudmount.mounts.letters import LetterSite, letter, unmount
from cloudmount.mounts.records import MountRecord, ask_to_end, asked_to_end, read_records, write_record
from cloudmount.mounts.winfsp_driver import WinFspDrive
from tests.cli.console import Console
from tests.mounts.mounting import within
from tests.mounts.processes import Processes, Started
from tests.mounts.winfsp.serving import READERS

ENDS = 100.0


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    try:
        yield made
    finally:
        made.finish()


def _drive(p: Processes, *more: str) -> Started:
    command = ("-m", "tests.mounts.winfsp.serving", "x:\\", "--records", p.records, *more)
    return p.start(sys.executable, *command)


WAYS: dict[str, Callable[[Processes, Started], object]] = {
    "SIGINT": lambda _, drive: drive.process.send_signal(signal.SIGINT),
    "SIGTERM": lambda _, drive: drive.process.send_signal(signal.SIGTERM),
    "umount": lambda p, _: unmount("x:", records=p.records, tell=lambda text: None),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("way", "tree"), [("SIGINT", "plain"), ("SIGTERM", "stuck"), ("umount", "stuck")])
def test_a_winfsp_drive_ends(
    processes: Processes, way: str, tree: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would kill what has not ended in 4 s; a busy machine may need them.
    monkeypatch.setattr(letters, "end_process", lambda record, _: within(ENDS, lambda: not record.alive))
    drive = _drive(processes, "--tree", tree)
    assert drive.until("ready", ENDS) == "X:"
    (record,) = read_records(processes.records)
    assert record.pid == drive.process.pid
    assert record.alive
    assert (record.mountpoint, record.driver) == ("X:", "winfsp")
    assert record.pass_through == "no: WinFsp can't"
    assert [m["mountpoint"] for m in _status(processes)] == ["X:"]
    with pytest.raises(TargetExistsError, match="already; 'cloudmount umount X:' ends it"):
        LetterSite("X:", processes.records).take(lambda text: None)
    WAYS[way](processes, drive)
    assert drive.ends(ENDS) == 0, drive.errors
    assert drive.said[-1]["ended"], drive.errors
    assert drive.said[-1]["letters"] == ["C:"]
    if tree == "stuck":
        told = [said["status"] for said in drive.said if "status" in said]
        assert told == [ntstatus.CANCELLED] * READERS, "no program waits for what hangs"
    assert read_records(processes.records) == []
    assert list(processes.records.iterdir()) == []


def _status(p: Processes) -> list[dict[str, object]]:
    """`status`'s mounts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(status, "records_folder", lambda environ: p.records)
        found: list[dict[str, object]] = status.status({"XDG_STATE_HOME": str(p.folder / "state")})["mounts"]
        return found


def test_winfsp_drives_that_are_gone(processes: Processes) -> None:
    with pytest.raises(NotFoundError, match="no drive of this user's is mounted at Q:"):
        unmount("q:", records=processes.records, tell=lambda text: None)
    write_record(processes.records, MountRecord(os.getpid(), 1, "Q:", "r", 0.0, driver="winfsp"))
    assert _status(processes) == []
    assert read_records(processes.records) == [], "its process was killed, and its drive went with it"
    write_record(processes.records, MountRecord(os.getpid(), 1, "Q:", "r", 0.0, driver="winfsp"))
    with pytest.raises(NotFoundError):
        unmount("Q:/", records=processes.records, tell=lambda text: None)
    assert read_records(processes.records) == []


def test_a_word_for_another_process_ends_no_winfsp_drive(tmp_path: Path) -> None:
    site = LetterSite("x:", tmp_path)
    site.take(lambda text: None)
    ask_to_end(tmp_path, "X:", os.getpid() + 1)
    assert site.stays()
    ask_to_end(tmp_path, "X:", os.getpid())
    assert not site.stays()
    site.take(lambda text: None)
    assert site.stays(), "what was left from before is taken away"
    assert not asked_to_end(tmp_path, "X:", os.getpid())


@pytest.mark.parametrize("text", ["", "X", "1:", "X:\\folder", "C:/mnt", "/mnt", "XY:", "ä:"])
def test_what_is_no_letter_for_winfsp(text: str) -> None:
    with pytest.raises(UsageError, match="such as X:"):
        letter(text)


def test_winfsp_is_taken_on_windows_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--driver winfsp: not on this system"):
        _driver("winfsp")
    assert _driver(None)[0] != "winfsp"
    monkeypatch.setattr(letters, "WINDOWS", True)
    assert _driver(None) == _driver("winfsp") == ("winfsp", WinFspDrive)
    with pytest.raises(UsageError, match="--driver native: not on this system"):
        _driver("native")


@pytest.mark.timeout(300)
def test_the_commands_on_a_system_with_winfsp(tmp_path: Path) -> None:
    console = Console(tmp_path / "home", str(tmp_path / "repo"))
    console.json("init")
    (tmp_path / "plan.txt").write_bytes(b"plan")
    console.json("backup", "--name", "srv", str(tmp_path / "plan.txt"))

    def start(*arguments: str) -> Started:
        command = (sys.executable, "-m", "tests.mounts.winfsp.program", *arguments)
        return Started(*command, environment=console.environment)

    drive = start("mount", "x:")
    state = {"XDG_STATE_HOME": str(tmp_path / "home" / "state")}
    try:
        assert within(ENDS, lambda: bool(status.status(state)["mounts"])), drive.errors
        (mounted,) = status.status(state)["mounts"]
        assert (mounted["mountpoint"], mounted["driver"], mounted["state"]) == ("X:", "winfsp", "up")
        ending = start("umount", "x:\\")
        try:
            assert ending.ends(ENDS) == 0, ending.errors
        finally:
            ending.finish()
        assert drive.ends(ENDS) == 0, drive.errors
        assert "WinFsp - Windows File System Proxy, Copyright (C) Bill Zissimopoulos" in drive.errors
        assert "'cloudmount umount X:', or Ctrl-C here, ends it" in drive.errors
        assert "Traceback" not in drive.errors
    finally:
        drive.finish()
    assert status.status(state)["mounts"] == []


def test_the_help_has_winfsps_notice() -> None:
    """A condition of its licence: in what users see, with a link."""
    text = " ".join((mount_command.command.help or "").split())
    assert "WinFsp - Windows File System Proxy, Copyright (C) Bill Zissimopoulos" in text
    assert "https://github.com/winfsp/winfsp" in text
    for document in ("README.md", "docs/windows.md"):
        told = " ".join((Path(__file__).parents[3] / document).read_text().split())
        assert "WinFsp - Windows File System Proxy, Copyright (C) Bill Zissimopoulos" in told, document
        assert "https://github.com/winfsp/winfsp" in told, document
