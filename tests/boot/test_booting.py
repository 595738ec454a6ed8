"""`boot`, `vms`, `stop` and `console` as a user runs them, with real machines."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cloudmount.mounts.records import start_time
from tests.azurite_server import AzuriteServer
from tests.boot.machines import Serial, the_vm, until
from tests.boot.tiny import letter, tiny_disk
from tests.cli.console import PROGRAM, Console
from tests.cli.test_endings import ended, start
from tests.wanlink import WanLink

pytestmark = [pytest.mark.boot, pytest.mark.mount]

QUICK = ("--memory", "32M", "--cpus", "1")


def pids(vm: dict[str, Any]) -> tuple[int, int]:
    """Its own process's id, and QEMU's."""
    state = json.loads((Path(vm["folder"]) / "state.json").read_text())
    return state["pid"], state["qemu_pid"]


@pytest.mark.timeout(300)
def test_the_life_of_a_machine(console: Console, tmp_path: Path) -> None:
    console.run("backup", "--name", "srv", str(tiny_disk(tmp_path / "system.img", size=1100)))

    done = console.run("boot", "srv", *QUICK, "--json")
    told = json.loads(done.stdout)
    assert told["state"] == "running" and told["seconds_to_ready"] < 60
    assert 0 < told["fetched_bytes"] < 8 << 20 and told["reads"] > 0
    assert ("KVM can't be used" in done.stderr) == (told["accelerator"] == "tcg")
    vm = the_vm(console)
    assert vm["vm"] == told["vm"] and vm["snapshot"].startswith("srv/") and vm["pid"] == told["pid"]
    status = console.json("status")
    assert status["mounts"] == [] and [v["vm"] for v in status["vms"]] == [vm["vm"]]
    assert vm["vm"] in console.run("status").stdout and "running" in console.run("vms").stdout
    told = console.run("boot", "srv", *QUICK, code=8).stderr
    assert f"boot --resume {vm['vm']}" in told and f"stop --delete {vm['vm']}" in told
    assert "is on" in console.run("boot", "srv", "--resume", code=8).stderr
    with Serial(vm["folder"]) as serial:
        assert [serial.ask("r") for _ in range(3)] == [letter(1), letter(2), letter(3)]
        assert serial.ask("d") == "-" and serial.ask("wx") == "w"
    seen_at_a_terminal(console, vm["vm"])

    for pid in pids(vm):  # everything dies, nothing says good-bye
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: the_vm(console)["state"] == "its process was killed", 60, "that it is told")
    console.run("console", vm["vm"], code=3)
    console.run("boot", "srv", code=8)
    told = console.json("boot", "--resume", "srv", *QUICK)
    assert told["vm"] == vm["vm"] and told["state"] == "running"
    with Serial(vm["folder"]) as serial:
        assert serial.ask("d") == "x"  # what was flushed
        assert serial.ask("wy") == "w" and serial.ask("a") == "a"
    assert console.json("stop", "srv") == {"vm": vm["vm"], "state": "powered off", "deleted": False}
    assert all(start_time(pid) == 0 for pid in pids(vm)) and not os.path.ismount(f"{vm['folder']}/drive")

    resumed = console.json("boot", "--resume", vm["snapshot"], *QUICK, "--bus", "virtio")
    with Serial(vm["folder"]) as serial:
        assert serial.ask("d") == "y"
    supervisor, qemu = pids(vm)
    os.kill(supervisor, signal.SIGKILL)  # QEMU does not outlive it
    until(lambda: start_time(qemu) == 0, 60, "the end of QEMU")
    told = console.json("stop", resumed["vm"], "--delete")
    assert told["deleted"] and console.json("vms") == [] and not Path(vm["folder"]).exists()
    console.run("stop", resumed["vm"], code=3)


def seen_at_a_terminal(console: Console, name: str) -> None:
    """The serial line is left by Ctrl-], and the VM stays."""
    ours, its = pty.openpty()
    command = [PROGRAM, "console", name]
    running = subprocess.Popen(command, env=console.environment, stdin=its, stdout=its, stderr=its)
    os.close(its)
    said = b""
    try:
        while not said.endswith((b"w\n", b"w\r\n")):  # what it said before
            said += os.read(ours, 1024)
        assert b"Ctrl-]" in said
        os.write(ours, b"d")
        while not said.endswith(b"x\n"):
            said += os.read(ours, 1024)
        os.write(ours, b"\x1d")
        assert running.wait(10) == 0
    finally:
        running.kill()
        running.wait()
        os.close(ours)
    assert the_vm(console)["state"] == "running"


def test_in_the_foreground_and_not_ready(console: Console, tmp_path: Path) -> None:
    disk = tiny_disk(tmp_path / "system.img")
    console.run("backup", "--name", "srv", str(disk), str(tiny_disk(tmp_path / "z.img", 4, seed=2)))
    told = console.run("boot", "srv", *QUICK, "--ready", "no such words", "--timeout", "6", code=1).stderr
    vm = the_vm(console)
    assert "'firmware'" in told and vm["serial_log"] in told and "'tiny login:'" in told
    assert "stop" in told and vm["state"] == "booting"  # an installing guest must not be killed by a clock
    assert console.json("stop", vm["vm"], "--timeout", "0")["state"] == "stopped"

    running = start(console, "boot", "--resume", "srv", "--foreground", "--json", "--quiet", *QUICK)
    assert running.stdout is not None
    value = json.loads(running.stdout.readline())
    assert value["state"] == "running" and value["pid"] == running.pid
    drive = Path(vm["folder"]) / "drive"
    assert sorted(p.name for p in drive.iterdir()) == ["1.img", "2.img"]  # all of the snapshot's disks
    assert (drive / "2.img").read_bytes()[:446] == (tmp_path / "z.img").read_bytes()[:446]
    _, qemu = pids(vm)
    running.send_signal(signal.SIGINT)
    code, _, err = ended(running, 8)
    assert (code, err) == (0, "") and the_vm(console)["state"] == "stopped" and start_time(qemu) == 0
    assert not os.path.ismount(drive)


@pytest.mark.timeout(300)
def test_a_dead_link_is_a_pause(console: Console, tmp_path: Path, azurite: AzuriteServer) -> None:
    with WanLink(("127.0.0.1", azurite.port)) as link:
        away = azurite.address(azurite.new_container(), prefix="r")
        console.repo = away.replace(str(azurite.port), str(link.address[1]))
        console.run("init")
        console.run("backup", "--name", "srv", str(tiny_disk(tmp_path / "system.img", 32, size=1100)))
        command = [sys.executable, "-m", "tests.boot.program", "2", "boot", "srv", *QUICK, "--bus", "sata"]
        subprocess.run(command, env=console.environment, check=True, capture_output=True, timeout=90)
        vm = the_vm(console)
        running = pids(vm)
        with Serial(vm["folder"]) as serial:
            for _ in range(9):
                serial.ask("r")
            link.stall()
            began = time.time()
            serial.send("r")
            until(lambda: the_vm(console)["state"].startswith("paused: "), 60, "the pause")
            assert time.time() - began > 1.5
            state = the_vm(console)["state"]
            assert state.startswith("paused: repository unreachable since ")
            assert state in console.run("status").stdout
            time.sleep(1)
            link.restore()
            assert serial.expect(r"[^\n]\n")[0] == letter(10)
            until(lambda: the_vm(console)["state"] == "running", 60, "that it runs")
            assert serial.ask("r") == letter(11)
            link.cut()
            serial.send("rrr")
            until(lambda: the_vm(console)["state"].startswith("paused: "), 30, "the pause")
            link.restore()
            answers = "".join(f"{letter(n)}\n" for n in (12, 13, 14))
            assert serial.expect(r"(?:[^\n]\n){3}") == answers
            until(lambda: the_vm(console)["state"] == "running", 30, "that it runs")
            link.stall()
            serial.send("r")
            until(lambda: the_vm(console)["state"].startswith("paused: "), 60, "the pause")
            began = time.time()
            console.run("stop", vm["vm"], "--delete")  # as soon while it is paused, and the line is dead
            assert time.time() - began < 60 and console.json("vms") == []
            assert not trials() and all(start_time(pid) == 0 for pid in running)


def trials() -> list[Path]:
    """Trials of KVM whose command has ended."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"isa-debugcon,iobase=0x402" in (process / "cmdline").read_bytes():
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                found += [process] * (parent == "1")
    return found


def test_what_can_not_be_booted(console: Console, tmp_path: Path) -> None:
    plain = tmp_path / "plan.txt"
    plain.write_text("plan")
    console.run("backup", "--name", "papers", str(plain))
    for code, *arguments in (
        (3, "boot", "nosuch"),
        (3, "boot", "papers"),
        (3, "boot", "--resume", "papers"),
        (2, "boot", "papers", "--ready", "("),
        (2, "boot", "papers", "--memory", "1K"),
        (2, "boot", "papers", "--timeout", "nan"),
        (3, "stop", "nosuch"),
        (3, "console", "nosuch"),
    ):
        console.run(*map(str, arguments), code=int(str(code)))
    console.run("boot", "papers", code=6, CLOUDMOUNT_PASSPHRASE="wrong")
    console.run("boot", "papers", code=5, CLOUDMOUNT_REPO=str(tmp_path / "none"))
    console.run("boot", "papers", code=1, PATH="/nonexistent")
    until(lambda: not trials(), 60, "that no trial of KVM is left")
    assert console.json("vms") == [] and console.run("vms").stdout == "There is no VM.\n"
