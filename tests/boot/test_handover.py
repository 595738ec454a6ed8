"""A running machine is given over to its local disks, killed in the middle of it, and goes on without its
repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.boot.machines import Serial, the_vm, until
from tests.boot.tiny import letter, tiny_disk
from tests.cli.console import Console

pytestmark = [pytest.mark.boot, pytest.mark.mount]

QUICK = ("--memory", "32M", "--cpus", "1")
NOTHING = {"CLOUDMOUNT_REPO": "", "CLOUDMOUNT_PASSPHRASE": ""}
SECTOR = 5 * 512
"""Where the tiny guest writes."""


def boot(console: Console, faults: dict[str, str], *arguments: str) -> None:
    """`boot` whose hand-over meets these faults."""
    command = [sys.executable, "-m", "tests.boot.handover_program", json.dumps(faults), "boot", *arguments]
    subprocess.run(command, env=console.environment, check=True, capture_output=True, timeout=100)


def test_a_machine_is_given_over_to_local_disks(console: Console, tmp_path: Path) -> None:
    system = tiny_disk(tmp_path / "system.img", size=1100)
    data = tiny_disk(tmp_path / "z.img", 4, seed=2)
    data.write_bytes(bytes(512) + data.read_bytes()[512:])  # nothing starts from it
    console.run("backup", "--name", "srv", str(system), str(data))
    to, go = tmp_path / "local", tmp_path / "go"
    console.run("hydrate", "srv", "--to", str(to))  # as VHDX, of which the raw copies are made

    # A step fails until there is a file; then all dies when QEMU has ended the first merge and the machine
    # hangs on the local disk, and that is not entered yet.
    faults = {"leaving the drive": f"until {go}", "entering disk 1": "kill"}
    boot(console, faults, "srv", *QUICK, "--hydrate-to", str(to))
    until(lambda: "as the test wants" in str(the_vm(console)["hydration"]), 60, "the failed step")
    vm = the_vm(console)
    folder = Path(vm["folder"])
    assert vm["state"] == "running" and not vm["local"] and vm["fetched_bytes"] < 8 << 20
    assert vm["hydration"]["done_bytes"] == vm["hydration"]["total_bytes"] > 0
    assert os.path.ismount(folder / "drive")
    with Serial(vm["folder"]) as serial:  # it goes on as before
        assert [serial.ask("r"), serial.ask("d"), serial.ask("wx")] == [letter(1), "-", "w"]
    go.touch()
    until(lambda: the_vm(console)["state"] == "its process was killed", 60, "the kill")
    copies = [to / vm["snapshot"] / name for name in ("system.img", "z.img")]
    vm = the_vm(console)
    assert vm["local"] and vm["local_disks"] == [] and vm["hydration"] is None
    os.rename(console.repo, tmp_path / "unplugged")

    told = console.json("boot", "--resume", "srv", *QUICK, **NOTHING)
    assert told["state"] == "running" and (told["fetched_bytes"], told["reads"]) == (0, 0)
    with Serial(vm["folder"]) as serial:
        until(lambda: the_vm(console)["local_disks"] == list(map(str, copies)), 60, "the end of it")
        assert [serial.ask("r"), serial.ask("d"), serial.ask("wy"), serial.ask("d")] == [
            letter(1), "x", "w", "y",
        ]  # fmt: skip
    until(lambda: the_vm(console)["hydration"] is None, 60, "that it is told")
    vm = the_vm(console)
    assert vm["state"] == "running" and vm["local"] and vm["written_bytes"] == 0
    assert " here " in console.run("vms").stdout
    assert list(folder.glob("*.qcow2")) == [] and not os.path.ismount(folder / "drive")
    console.run("stop", "srv", "--timeout", "0", **NOTHING)

    os.rename(tmp_path / "unplugged", console.repo)
    for before, after in zip((system, data), copies, strict=True):
        wanted = bytearray(before.read_bytes())
        if before == system:
            wanted[SECTOR : SECTOR + 1] = b"y"
        assert after.read_bytes() == wanted
    console.run("verify-local", str(copies[0]), code=3)  # it is no copy of the snapshot any more,
    told = console.run("hydrate", "srv", "--to", str(to), "--format", "raw", code=8).stderr
    assert "not overwritten" in told
    done = console.json("backup", "--name", "srv", *map(str, copies))  # but the next of its machine
    assert (done["new_frames"], done["incomplete"]) == (1, False)
    told = console.run("stop", "srv", "--delete").stdout
    assert str(copies[0]) in told and "stay" in told and all(copy.exists() for copy in copies)
    assert console.json("vms") == []
