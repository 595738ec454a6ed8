"""`drill` as a user runs it, with real machines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudmount.boot.qemu import program
from tests.boot.machines import until
from tests.boot.tiny import HANGING, LEAVING, tiny_disk
from tests.cli.console import Console
from tests.disks.oracles import run

pytestmark = [pytest.mark.boot, pytest.mark.mount]

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Console]:
    """Commands against a repository that is not made yet; no drill's process outlives the test."""
    made = Console(tmp_path / "home", str(tmp_path / "repo"))
    try:
        yield made
    finally:
        for pid in running(made):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for folder in places(made).glob("*/state/cloudmount/vms/*/drive"):
            subprocess.run(["fusermount3", "-u", "-z", str(folder)], check=False, capture_output=True)


def places(console: Console) -> Path:
    """Where its drills are done."""
    return console.home / "state/cloudmount/drilling"


def running(console: Console) -> list[int]:
    """Processes that have to do with this console's drills, by what stands on their command lines or where
    they are."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environ = (process / "environ").read_bytes().split(b"\0")
            if b"XDG_STATE_HOME=" + os.fsencode(console.home / "state") in environ:
                found.append(int(process.name))
    return found


def drill(console: Console, *arguments: str, code: int = 0) -> Any:
    """What a drill's JSON says."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.boot.drilling", "drill", *arguments, "--json"],
        env=console.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.count("cloudmount: error: ") == (code != 0), done.stderr
    return json.loads(done.stdout)


def nothing_is_left(console: Console) -> None:
    """No process, no place, no VM."""
    until(lambda: not running(console), 30, "the end of every process")
    assert list(places(console).iterdir()) == [] and console.json("vms") == []


def test_a_machine_is_proved_from_the_kit(fresh: Console, tmp_path: Path) -> None:
    """It greets and powers itself off, so that its screen is there for a moment only."""
    phrase = fresh.json("init")["recovery_phrase"]
    system = tiny_disk(tmp_path / "system.img", 4, program=LEAVING)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("a")
    data = tmp_path / "z.img"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tmp_path / "in", data, "4096k")
    made = fresh.json("backup", "--name", "srv", str(system), str(data))
    assert fresh.json("snapshots")[0]["proved"] is False

    refused = fresh.run("drill", "srv", "--from-kit", code=2)  # a passphrase is not what lies in the safe
    assert "24 words" in refused.stderr
    fresh.environ["CLOUDMOUNT_PASSPHRASE"] = phrase
    told = drill(fresh, "srv", "--from-kit", "--timeout", "90")
    assert told["ok"] and told["result"] == "proved" and told["snapshot_id"] == made["snapshot"]
    assert told["stage"] == "ready" and told["seconds_to_ready"] < 90
    assert 0 < told["fetched_bytes"] <= told["total_bytes"] and 0 < told["reads"] < told["requests"]
    assert [(e["kind"], "tiny login:" in e["what"]) for e in told["evidence"]] == [("serial", True)]
    assert [(v["disk"], v["opens"], v["problem"]) for v in told["volumes"]] == [("z", True, None)]
    assert told["estimated_cost"] is None  # a folder
    report, shot = Path(told["report"]), Path(told["screenshot"]).read_bytes()
    assert report.is_relative_to(fresh.home / "state/cloudmount") and shot.startswith(PNG)
    assert "Proved" in report.read_text() and "tiny login:" in report.read_text()
    assert json.loads(Path(told["report_json"]).read_text())["proof"] == told["proof"]
    nothing_is_left(fresh)

    fresh.environ.clear()
    assert (tmp_path / "repo" / told["proof"]).is_file()
    assert fresh.json("snapshots", "srv")[0]["proved"] and fresh.json("snapshots")[0]["proved"]
    shown = fresh.json("show", "srv")
    assert shown["proved"] and shown["drilled"] == told["time"]
    assert shown["drill"]["evidence"] == told["evidence"]
    assert "proved" in fresh.run("snapshots").stdout and "tiny login" in fresh.run("show", "srv").stdout
    assert fresh.json("check", "--read-data")["notices"] == []
    (tmp_path / "repo" / told["proof"]).write_bytes(b"not a proof")
    checked = fresh.json("check")
    assert checked["ok"] and "proves nothing" in checked["notices"][0]


def test_silence_proves_nothing_and_a_kill_leaves_nothing(fresh: Console, tmp_path: Path) -> None:
    fresh.run("init")
    fresh.run("backup", "--name", "srv", str(tiny_disk(tmp_path / "system.img", 2, program=HANGING)))
    told = drill(fresh, "srv", "--timeout", "8", code=1)
    assert told["ok"] is False and told["result"] == "not proved" and told["evidence"] == []
    assert told["seconds_to_ready"] is None and told["stage"] in ("firmware", "loader")
    assert "Not proved" in Path(told["report"]).read_text()
    assert Path(told["screenshot"]).read_bytes().startswith(PNG)
    shown = fresh.json("show", "srv")
    assert not shown["proved"] and shown["drilled"] == told["time"] and shown["drill"]["why"] == told["why"]
    nothing_is_left(fresh)

    killed = subprocess.Popen(
        [sys.executable, "-m", "tests.boot.drilling", "drill", "srv"],
        env=fresh.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        machine = os.path.basename(program())
        until(lambda: any(machine in name(pid) for pid in running(fresh)), 60, "a machine that runs")
    finally:
        killed.kill()
        killed.wait()
    until(lambda: not running(fresh), 30, "the end of every process")
    assert drill(fresh, "nobody", code=3)["ok"] is False  # removes what the machine's process had no time for
    nothing_is_left(fresh)


def name(pid: int) -> str:
    """The program of a process."""
    with contextlib.suppress(OSError):
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    return ""
