"""`mount`, `umount` and `status` as a user runs them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmount.mounts.native_driver import installed
from tests import needs
from tests.cli.console import PROGRAM, Console
from tests.cli.test_endings import ended, start
from tests.mounts.drivers import NAMES

pytestmark = pytest.mark.mount


@pytest.fixture
def drive(console: Console, source: Path, tmp_path: Path) -> Iterator[Path]:
    """A place for a drive, with something to see; taken down afterwards, whatever happened."""
    console.run("backup", "--name", "srv", str(source))
    place = tmp_path / "drive"
    try:
        yield place
    finally:
        with contextlib.suppress(OSError):
            if os.path.ismount(place) or place.is_symlink():
                subprocess.run(["fusermount3", "-u", "-z", str(place)], check=False)


def test_in_the_background(console: Console, drive: Path, source: Path) -> None:
    told = console.json("mount", str(drive), "--daemon", "--quiet")
    assert told["mountpoint"] == str(drive)
    assert (drive / "srv/latest/docs/plan.txt").read_text() == "plan\n"
    (mount,) = console.json("status")["mounts"]
    assert mount["driver"] == ("native" if installed() else "refuse")
    assert {k: mount[k] for k in ("mountpoint", "repository", "pid", "state")} == {
        "mountpoint": str(drive), "repository": console.repo, "pid": told["pid"], "state": "up",
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", mount["since"])
    assert str(drive) in console.run("status").stdout
    console.run("mount", str(drive), code=8)
    (source / "new").write_text("new")
    console.run("backup", "--name", "srv", str(source))
    until = time.monotonic() + 15
    while not (drive / "srv/latest/docs/new").exists():
        assert time.monotonic() < until, "a new snapshot did not appear"
        time.sleep(0.2)
    began = time.monotonic()
    assert console.json("umount", str(drive))["mountpoint"] == str(drive)
    assert time.monotonic() - began < 15
    assert console.json("status")["mounts"] == []
    console.run("umount", str(drive), code=3)
    stat = Path(f"/proc/{told['pid']}/stat")  # ended, if perhaps not yet buried by its new parent
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("driver", NAMES)
def test_through_the_driver_that_is_asked_for(console: Console, drive: Path, driver: str) -> None:
    console.run("mount", str(drive), "--daemon", "--driver", driver)
    (mount,) = console.json("status")["mounts"]
    assert mount["driver"] == driver
    assert mount["pass_through"] == (
        "no: only the native driver can"
        if driver != "native"
        else "yes"
        if needs.IS_ROOT
        else "no: it needs root (CAP_SYS_ADMIN)"
    )
    assert (drive / "srv/latest/docs/plan.txt").read_text() == "plan\n"
    console.run("umount", str(drive))


def test_a_driver_that_is_not_installed(console: Console, drive: Path, tmp_path: Path) -> None:
    """Is asked for in vain; without asking, the other one serves."""
    hidden = tmp_path / "hidden" / "cloudmount_native.py"
    hidden.parent.mkdir()
    hidden.write_text("raise ImportError('not built here')")
    environ = {"PYTHONPATH": str(hidden.parent)}
    done = console.run("mount", str(drive), "--driver", "native", code=1, **environ)
    assert "pip install ./native" in done.stderr
    console.run("mount", str(drive), "--daemon", **environ)
    assert [m["driver"] for m in console.json("status")["mounts"]] == ["refuse"]
    console.run("umount", str(drive))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_until_a_signal(console: Console, drive: Path, number: int) -> None:
    running = start(console, "mount", str(drive), "--json")
    assert running.stdout is not None
    first = running.stdout.readline() + running.stdout.readline()  # printed as soon as it is up
    assert json.loads(first + running.stdout.readline() + running.stdout.readline())["pid"] == running.pid
    assert (drive / "srv/latest/docs/plan.txt").exists()
    running.send_signal(number)
    code, out, err = ended(running, 8)
    assert (code, out) == (0, "") and err.count("\n") == 1 and "umount" in err and "Ctrl-C" in err
    assert not os.path.ismount(drive)


def test_what_a_killed_one_left_is_told_and_cleared(console: Console, drive: Path) -> None:
    told = console.json("mount", str(drive), "--daemon")
    os.kill(told["pid"], signal.SIGKILL)
    time.sleep(0.3)
    assert console.json("status")["mounts"][0]["state"] != "up"
    done = console.run("mount", str(drive), "--daemon")
    assert "killed" in done.stderr and (drive / "srv").exists()
    console.run("umount", str(drive))
    assert console.json("status")["mounts"] == []


def test_failures_before_it_is_up_have_their_exit_codes(
    console: Console, drive: Path, tmp_path: Path
) -> None:
    for daemon in ([], ["--daemon"]):
        console.run("mount", str(drive), *daemon, code=6, CLOUDMOUNT_PASSPHRASE="wrong")
        console.run("mount", str(drive), *daemon, code=5, CLOUDMOUNT_REPO=str(tmp_path / "none"))
        console.run("mount", str(tmp_path), *daemon, code=8)
    console.run("umount", str(tmp_path / "nosuch"), code=3)
    assert not os.path.lexists(drive)


def test_caches_are_where_they_are_wanted(console: Console, drive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "my cache"
    console.run("mount", str(drive), "--daemon", "--cache-dir", str(cache), "--cache-size", "1M")
    try:
        assert (drive / "srv/latest/docs/inner/data.bin").read_bytes()[:2] == b"\x00\x01"
    finally:
        console.run("umount", str(drive))
    kept = [f for f in cache.rglob("*") if f.is_file()]
    assert kept and sum(f.stat().st_size for f in kept) <= 1_100_000


def test_what_goes_wrong_later_is_in_the_log(console: Console, drive: Path) -> None:
    console.run("mount", str(drive), "--daemon", "--io-timeout", "1")
    try:
        (drive / "srv/latest/docs").exists()
        shutil.rmtree(Path(console.repo) / "packs")
        with pytest.raises(OSError, match="Input/output error"):
            (drive / "srv/latest/docs/inner/data.bin").read_bytes()
    finally:
        console.run("umount", str(drive))
    log = (console.home / "state/cloudmount/mount.log").read_text()
    assert re.search(r"^cloudmount: \d{4}-\d\d-\d\dT[\d:]+Z .*packs/", log, re.M)
    assert "Traceback" not in log


def test_a_drive_needs_no_terminal_to_stay(console: Console, drive: Path) -> None:
    """`--daemon` returns although its caller waits for the end of all output (as ssh does)."""
    shell = f"{PROGRAM} mount {drive} --daemon 2>&1 | cat; echo returned"
    done = subprocess.run(
        ["bash", "-c", shell], env=console.environment, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.endswith("returned\n")
    console.run("umount", str(drive))


def test_umount_where_one_stands(console: Console, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    console.run("mount", str(drive), "--daemon")
    done = subprocess.run(
        [PROGRAM, "umount", "."],
        cwd=drive,
        env=console.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("does not answer")) == (0, 0)
