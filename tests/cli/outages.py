"""Outages of the line under those who read from a drive: a `dd`, and a VM that boots.

Decided here and only here: what they must live through. The repository lies in an Azurite at the end of a
`WanLink`, which is cut (everything is reset) or falls silent for `seconds` in the middle.

- A `dd` from a drive whose `--io-timeout` is longer waits, and comes through with the right bytes; one from a
  drive whose time-out is shorter ends with EIO soon after that, and when the line is back the same file
  can be read again, to its end and right, through the same drive.
- A VM that stops on errors (`rerror=stop,werror=stop`) stops, and goes on by QMP's `cont` when the line is
  back, as if nothing had been: its guest finds the file it was backed up with.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cloudmount.boot.accelerator import Trial
from demo.build_guest import build
from demo.run import CODE, VARS
from tests.azurite_server import AzuriteServer
from tests.cli.console import Console
from tests.wanlink import WanLink

MIB = 1 << 20
LATE = 5.0
"""Seconds after its time-out by which a read must have failed."""
GRACE = 90.0
"""Seconds for what is left when the line is back, before it counts as hanging."""


@contextlib.contextmanager
def far_repository(
    azurite: AzuriteServer, folder: Path, disk: Path, down_mbit: float
) -> Iterator[tuple[Console, WanLink]]:
    """A repository with a machine `srv`, whose disk is `disk`, behind a line of its own."""
    parts = urlsplit(azurite.account_url)
    assert parts.hostname is not None and parts.port is not None
    container = azurite.new_container()
    tail = f"{parts.path}/{container}/office?{azurite.sas(container, 'rcl')}"
    straight = Console(folder / "home", f"http://{parts.netloc}{tail}")
    straight.run("init")
    straight.run("backup", "--name", "srv", str(disk))
    with WanLink((parts.hostname, parts.port), rtt=0.02, down_mbit=down_mbit) as link:
        host, port = link.address
        yield Console(folder / "home", f"http://{host}:{port}{tail}"), link


@contextlib.contextmanager
def drive(console: Console, folder: Path, *options: str) -> Iterator[Path]:
    """A drive with a cache of its own, which is empty."""
    at = folder / "drive"
    folder.mkdir()
    console.run("mount", str(at), "--daemon", "--cache-dir", str(folder / "cache"), *options)
    try:
        yield at
    finally:
        console.run("umount", str(at))


def _fail(link: WanLink, how: str) -> None:
    link.cut() if how == "cut" else link.stall()


def _dd(source: Path, target: Path) -> subprocess.Popen[str]:
    command = ["dd", f"if={source}", f"of={target}", "bs=128K", "status=none"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"})


def dd_outage(azurite: AzuriteServer, folder: Path, how: str, seconds: float, short: float | None) -> str:
    """`short` is the time-out of the drive that gives up, in seconds; None is the default's 60."""
    disk = folder / "disk.img"
    content = random.Random(7).randbytes(12 * MIB)
    disk.write_bytes(content)
    patience = 60.0 if short is None else short
    with (
        far_repository(azurite, folder, disk, 40) as (console, link),
        drive(console, folder / "patient", "--io-timeout", str(seconds + 60)) as patient,
        drive(console, folder / "short", *(("--io-timeout", str(short)) if short else ())) as hasty,
    ):
        places = {"patient": patient / "srv/latest/disk.img", "short": hasty / "srv/latest/disk.img"}
        before = link.traffic().down_bytes
        running = {n: _dd(place, folder / f"{n}.out") for n, place in places.items()}
        try:
            while link.traffic().down_bytes < before + 4 * MIB:
                assert all(r.poll() is None for r in running.values()), "it was over too soon"
                time.sleep(0.01)
            _fail(link, how)
            began = time.monotonic()
            _, said = running["short"].communicate(timeout=patience + LATE)
            gave_up = time.monotonic() - began
            assert "Input/output error" in said and running["short"].returncode == 1
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            assert running["patient"].poll() is None, "it gave up"
            link.restore()
            began = time.monotonic()
            _, said = running["patient"].communicate(timeout=GRACE)
            assert (said, running["patient"].returncode) == ("", 0)
            back = time.monotonic() - began
            assert (folder / "patient.out").read_bytes() == content
            got = (folder / "short.out").read_bytes()
            assert got == content[: len(got)] and len(got) < len(content)
            assert _readable(places["short"], GRACE) == content
        finally:
            for each in running.values():
                each.kill()
                each.communicate()
    return f"dd, {how} {seconds:.0f} s: EIO after {gave_up:.1f} s, {back:.1f} s after its end whole and right"


def _readable(path: Path, within: float) -> bytes:
    """Its bytes, as soon as it can be read."""
    until = time.monotonic() + within
    while True:
        try:
            return path.read_bytes()
        except OSError:
            assert time.monotonic() < until, "it does not come back"
            time.sleep(0.2)


class _Qmp:
    """A QEMU's monitor."""

    def __init__(self, path: Path) -> None:
        until = time.monotonic() + 20
        self._socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._socket.connect(os.fspath(path))
                break
            except OSError:
                assert time.monotonic() < until, "QEMU has no monitor"
                time.sleep(0.05)
        self._socket.settimeout(30)
        self._file = self._socket.makefile("rw", encoding="utf-8")
        self._file.readline()
        self("qmp_capabilities")

    def __call__(self, command: str) -> Any:
        self._file.write(json.dumps({"execute": command}) + "\n")
        self._file.flush()
        while True:
            line = self._file.readline()
            assert line, "QEMU is gone"
            said = json.loads(line)
            assert "error" not in said, said
            if "return" in said:
                return said["return"]

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def vm_outage(azurite: AzuriteServer, folder: Path, how: str, seconds: float, short: float | None) -> str:
    """As `dd_outage`, with a VM that boots from the drive."""
    guest = build(folder / "guest.img")
    options = ("--io-timeout", str(short)) if short else ()
    with (
        far_repository(azurite, folder, folder / "guest.img", 60) as (console, link),
        drive(console, folder / "vm", *options) as at,
    ):
        overlay, serial, monitor = (folder / name for name in ("overlay.qcow2", "serial.log", "qmp"))
        disk = at / "srv/latest/guest.img"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(disk), "-F", "raw", str(overlay)]
        subprocess.run(create, check=True)
        before = link.traffic().down_bytes
        pflash = "if=pflash,format=raw"
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35",
            "-accel", Trial().result(), "-cpu", "max", "-smp", "1", "-m", "512",
            "-drive", f"{pflash},unit=0,readonly=on,file={CODE}",
            "-drive", f"{pflash},unit=1,snapshot=on,file={VARS}",
            "-drive", f"if=none,id=d,format=qcow2,file={overlay},rerror=stop,werror=stop",
            "-device", "virtio-blk-pci,drive=d,bootindex=0",
            "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot",
            "-serial", f"file:{serial}", "-qmp", f"unix:{monitor},server=on,wait=off",
        ]  # fmt: skip
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            qmp = _Qmp(monitor)
            with contextlib.closing(qmp):
                until = time.monotonic() + GRACE
                while link.traffic().down_bytes < before + 12 * MIB:
                    assert time.monotonic() < until and machine.poll() is None
                    time.sleep(0.01)
                _fail(link, how)
                began = time.monotonic()
                while qmp("query-status")["status"] != "io-error":
                    assert time.monotonic() - began < (short or 60) + 2 * LATE, "it did not stop"
                    time.sleep(0.1)
                stopped = time.monotonic() - began
                time.sleep(max(0.0, began + seconds - time.monotonic()))
                assert qmp("query-status")["status"] == "io-error"
                link.restore()
                began = time.monotonic()
                conts = 0
                while not (told := re.findall(r"GUEST-(?:READY|FAILED).*\n", _text(serial))):
                    assert time.monotonic() - began < GRACE, f"it does not go on: {_text(serial)[-300:]}"
                    assert machine.poll() is None
                    if qmp("query-status")["status"] == "io-error":
                        qmp("cont")
                        conts += 1
                    time.sleep(0.2)
                back = time.monotonic() - began
            assert told[0].startswith("GUEST-READY"), told
            assert f"GUEST-DATA {guest.qbw_sha256}" in _text(serial)
        finally:
            machine.kill()
            machine.wait()
    stop = f"stopped after {stopped:.1f} s"
    return f"VM, {how} {seconds:.0f} s: {stop}, ready {back:.1f} s after its end ({conts} cont)"


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
