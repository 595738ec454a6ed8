"""The line cut, and silent, for minutes under VMs of `boot`: while they start, and while their guest reads as
fast as it can. `count` is how long, in steps of 3 seconds: 200 are the ten minutes. Each waits, paused, as
long as the line is gone; it goes on by itself, its guest reads the right bytes and its kernel tells of no
error.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.azurite_server import AzuriteServer
from tests.boot.conftest import end_all
from tests.boot.linux import build_disks
from tests.boot.machines import Serial, the_vm, until
from tests.boot.test_linux import MACHINE, MIB, PAUSED, said
from tests.cli.console import PROGRAM, Console
from tests.wanlink import WanLink

GRACE = 300.0
"""Seconds for what is left when the line is back, before it counts as hanging: four are emulated at once."""


def campaign(seed: int, count: int) -> str:
    """All four, at the same time."""
    azurite = AzuriteServer()
    try:
        with tempfile.TemporaryDirectory(prefix="boots-") as folder, ThreadPoolExecutor(4) as pool:
            root = Path(folder).resolve()
            running = [
                pool.submit(outage, azurite, root / f"{when}-{how}", when, how, 3.0 * count)
                for when in ("starting", "reading")
                for how in ("cut", "stall")
            ]
            return "; ".join(each.result() for each in running)
    finally:
        azurite.stop()


def outage(azurite: AzuriteServer, folder: Path, when: str, how: str, seconds: float) -> str:
    """One VM, over a line of its own."""
    folder.mkdir()
    system, data, sums = build_disks(folder)
    shutil.copyfile("/usr/share/OVMF/OVMF_VARS_4M.fd", folder / "vars.fd")
    (folder / "machine.toml").write_text(MACHINE)
    with WanLink(("127.0.0.1", azurite.port), rtt=0.02, down_mbit=60) as link:
        away = azurite.address(azurite.new_container(), prefix="r")
        console = Console(folder / "home", away.replace(str(azurite.port), str(link.address[1])))
        console.run("init")
        console.run(
            "backup", "--name", "srv", "--machine", str(folder / "machine.toml"), str(data), str(system)
        )
        before = link.traffic().down_bytes
        command = [PROGRAM, "boot", "srv", "--json", "--timeout", str(seconds + 2 * GRACE)]
        booting = subprocess.Popen(
            command, env=console.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            if when == "starting":
                until(lambda: link.traffic().down_bytes - before > 8 * MIB, GRACE, "the loader's reads")
                vm = the_vm(console)
            else:
                until(lambda: console.json("vms") != [], GRACE, "the VM")
                vm = the_vm(console)
                until(lambda: "READING sda" in said(vm["serial_log"]), GRACE, "the guest's reads")
            link.cut() if how == "cut" else link.stall()
            began = time.monotonic()
            until(lambda: the_vm(console)["state"].startswith(PAUSED), 60, "the pause")
            paused = time.monotonic() - began
            while time.monotonic() < began + seconds:
                time.sleep(5)
                assert the_vm(console)["state"].startswith(PAUSED), the_vm(console)["state"]
            link.restore()
            began = time.monotonic()
            out, err = booting.communicate(timeout=GRACE)
            back = time.monotonic() - began
            assert booting.returncode == 0, err
            assert json.loads(out)["state"] == "running"
            text = said(vm["serial_log"])
            assert all(f"READ {device} {sha}" in text for device, sha in sums.items()), text
            assert "ERRORS 0" in text.splitlines(), text
            with Serial(vm["folder"]) as serial:
                serial.send("off\r")
                until(lambda: the_vm(console)["state"] == "powered off", GRACE, "its own power-off")
        finally:
            booting.kill()
            booting.communicate()
            end_all(console)
    return f"{when}, {how} {seconds:.0f} s: paused after {paused:.1f} s, ready {back:.1f} s after its end"
