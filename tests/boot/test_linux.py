"""A Linux server that boots over a bad line, and a loader on a disk of 4096-byte sectors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.azurite_server import AzuriteServer
from tests.boot.linux import build_disks
from tests.boot.machines import Serial, the_vm, until
from tests.cli.console import Console
from tests.disks.partition_writer import ESP, write_gpt
from tests.wanlink import WanLink

pytestmark = [pytest.mark.boot, pytest.mark.mount, pytest.mark.azurite]

MIB = 1 << 20
PAUSED = "paused: repository unreachable since "
MACHINE = """\
memory = "512MiB"
cpus = 2
nvram = "vars.fd"
[[disks]]
name = "system"
[[disks]]
name = "data.img"
bus = "virtio"
"""


@pytest.mark.timeout(300)
def test_a_server_boots_over_a_line_that_dies_twice(
    console: Console, tmp_path: Path, azurite: AzuriteServer
) -> None:
    """While it reads from IDE by a reset, and while it reads from virtio silently."""
    system, data, sums = build_disks(tmp_path)
    shutil.copyfile("/usr/share/OVMF/OVMF_VARS_4M.fd", tmp_path / "vars.fd")
    file = tmp_path / "machine.toml"
    file.write_text(MACHINE)
    with WanLink(("127.0.0.1", azurite.port), down_mbit=120) as link:
        away = azurite.address(azurite.new_container(), prefix="r")
        console.repo = away.replace(str(azurite.port), str(link.address[1]))
        console.run("init")
        console.run("backup", "--name", "srv", "--machine", str(file), str(data), str(system))
        before = link.traffic().down_bytes
        command = [sys.executable, "-m", "tests.boot.program", "2", "boot", "srv", "--json", "--quiet"]
        booting = subprocess.Popen(
            command, env=console.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            until(lambda: link.traffic().down_bytes - before > 8 * MIB, 60, "the loader's reads")
            vm = the_vm(console)
            assert vm["state"] == "booting"
            for words, dies in (("READING sda", link.cut), ("READING vda", link.stall)):
                wait_for_words(vm["serial_log"], words)
                dies_and_comes_back(console, dies, link.restore)
            out, err = booting.communicate(timeout=90)
        finally:
            booting.kill()
            booting.wait()
        assert booting.returncode == 0, err
        told = json.loads(out)
        assert told["state"] == "running" and told["fetched_bytes"] < 120 * MIB
        text = said(vm["serial_log"])
        assert [f"READ {d} {s}" in text for d, s in sums.items()] == [True, True], text
        assert "ERRORS 0" in text.splitlines(), text
        with Serial(vm["folder"]) as serial:
            serial.send("off\r")
            until(lambda: the_vm(console)["state"] == "powered off", 30, "its own power-off")
    hardware = json.loads((Path(vm["folder"]) / "vm.json").read_text())["hardware"]
    assert hardware["firmware"] == "uefi" and hardware["memory"] == 512 * MIB
    assert [d["bus"] for d in hardware["disks"]] == ["ide", "virtio"]
    assert not os.path.ismount(f"{vm['folder']}/drive")


def said(log: str) -> str:
    """What a guest said so far."""
    path = Path(log)
    return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""


def wait_for_words(log: str, words: str) -> None:
    """Until a guest said them."""
    until(lambda: words in said(log), 120, words)


def dies_and_comes_back(console: Console, dies: Callable[[], None], restore: Callable[[], None]) -> None:
    """The line is gone until the machine waits for it, and a little longer."""
    dies()
    until(lambda: the_vm(console)["state"].startswith(PAUSED), 60, "the pause")
    time.sleep(1)
    restore()
    until(lambda: not the_vm(console)["state"].startswith("paused"), 60, "that it goes on")


def test_a_disk_of_4096_byte_sectors_boots(console: Console, tmp_path: Path) -> None:
    """Under UEFI on virtio, which is what it gets: its boot loader is read, and speaks."""
    esp, disk = tmp_path / "esp.img", tmp_path / "system.img"
    with esp.open("wb") as file:
        file.truncate(64 * MIB)
    loader = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
    for command in (
        ["mkfs.vfat", "-F16", "-S", "4096", "-s", "1", "-n", "ESP", esp],
        ["mmd", "-i", esp, "::/EFI", "::/EFI/BOOT", "::/loader"],
        ["mcopy", "-i", esp, loader, "::/EFI/BOOT/BOOTX64.EFI"],
    ):
        subprocess.run([*map(str, command)], check=True, capture_output=True)
    write_gpt(disk, 80 * MIB, [(ESP, 256, 256 + 64 * MIB // 4096 - 1, "esp")], sector=4096)
    with disk.open("r+b") as file:
        file.seek(MIB)
        file.write(esp.read_bytes())
    console.run("backup", "--name", "srv", str(disk))
    told = console.json("boot", "srv", "--memory", "256M", "--ready", "Reboot Into Firmware")
    assert told["state"] == "running"
    vm = the_vm(console)
    (attached,) = json.loads((Path(vm["folder"]) / "vm.json").read_text())["hardware"]["disks"]
    assert (attached["logical_sector"], attached["bus"]) == (4096, "virtio")
    console.run("stop", "srv", "--timeout", "0", "--delete")
