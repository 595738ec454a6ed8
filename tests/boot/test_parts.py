"""The parts of the room `boot` by themselves."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from cloudmount.boot import accelerator, commandline, readiness
from cloudmount.boot.agent import Agent
from cloudmount.boot.machine import MIB, Bus, Disk, Machine, default_bus
from cloudmount.boot.qmp import Qmp, QmpError
from cloudmount.errors import UsageError

HELLO = b'{"QMP": {"version": {}}}\n'


# --- the serial line --------------------------------------------------------------------------------


def line(tmp_path: Path, *said: str, ready: str | None = None) -> readiness.SerialLine:
    """A serial line on which this was said, piece by piece."""
    log = tmp_path / "serial.log"
    found = readiness.SerialLine(log, readiness.pattern(ready) if ready is not None else None)
    for piece in said:
        with log.open("ab") as file:
            file.write(piece.encode())
        found.read()
    return found


@pytest.mark.parametrize(
    "said",
    [
        ["\r\nDebian GNU/Linux 12 srv ttyS0\r\n\r\nsrv login: "],
        ["srv lo", "gin: "],
        ["\x1b[2J\x1b[1;1Hsrv login: \x1b[0m"],
        ["srv login:\r\n[   12.000000] usb 1-1: new device\r\n"],
    ],
)
def test_a_login_prompt_is_known(tmp_path: Path, said: list[str]) -> None:
    assert line(tmp_path, *said).ready


@pytest.mark.parametrize("said", ["Last login: Tue Nov 24\r\n", "login: incorrect\r\n", "systemd-logind\r\n"])
def test_other_words_are_none(tmp_path: Path, said: str) -> None:
    assert not line(tmp_path, said).ready


def test_what_an_earlier_boot_said_is_none(tmp_path: Path) -> None:
    (tmp_path / "serial.log").write_text("srv login: ")
    assert not line(tmp_path, "BdsDxe: loading\r\n").ready


def test_words_of_ones_own(tmp_path: Path) -> None:
    assert not line(tmp_path, "srv login: ", ready="^up$").ready
    assert line(tmp_path, "\r\nup\r\n", ready="^up$").ready
    with pytest.raises(UsageError, match="regular expression"):
        readiness.pattern("(")


def test_the_stages(tmp_path: Path) -> None:
    nothing = line(tmp_path)
    assert (nothing.stage(0), nothing.stage(2 << 20)) == ("firmware", "loader")
    assert line(tmp_path, "[    0.000000] Linux version 6.1\r\n").stage(0) == "kernel"
    found = line(tmp_path, "[    0.1", "00000] x\r\n", "[  OK  ] Started cron\r\n", "[    9.000000] y\r\n")
    assert found.stage(0) == "services"
    assert readiness.last_line(tmp_path / "serial.log") == "[ 9.000000] y"
    assert readiness.last_line(tmp_path / "none") == ""


# --- the guest agent --------------------------------------------------------------------------------


def test_an_agent_that_answers() -> None:
    ours, its = socket.socketpair()
    with its:
        agent = Agent(lambda: ours)
        its.sendall(b'\xff{"return": 7}\n{"return": {}}\nnoise\n')  # of others' questions
        assert not agent.answers()
        number = json.loads(its.recv(4096))["arguments"]["id"]
        assert not agent.answers()
        its.sendall(json.dumps({"return": number}).encode() + b"\n")
        assert agent.answers()
        agent.close()


def test_an_agent_that_is_not_there() -> None:
    def refuse() -> socket.socket:
        raise ConnectionRefusedError

    assert not Agent(refuse).answers()
    ours, its = socket.socketpair()
    its.close()
    assert not Agent(lambda: ours).answers()


# --- QMP --------------------------------------------------------------------------------------------


def test_answers_and_events_are_told_apart() -> None:
    ours, its = socket.socketpair()
    its.sendall(HELLO + b'{"event": "RESUME"}\n{"return": {}, "id": 1}\n')
    qmp = Qmp(ours, seconds=2)
    assert [e["event"] for e in qmp.events(0)] == ["RESUME"]
    its.sendall(b'{"event": "STOP"}\n{"return": {"a": 1}, "id": 2}\n{"error": {"desc": "no"}, "id": 3}\n')
    assert qmp.execute("query-status") == {"a": 1}
    with pytest.raises(QmpError, match="refused cont: no"):
        qmp.execute("cont")
    assert [e["event"] for e in qmp.events(0)] == ["STOP"] and qmp.events(0.01) == [] and not qmp.ended
    its.close()
    assert qmp.events(1) == [] and qmp.ended
    with pytest.raises(QmpError):
        qmp.execute("quit")
    qmp.close()


def test_a_silent_qemu() -> None:
    ours, its = socket.socketpair()
    with ours, its:
        with pytest.raises(QmpError, match="no greeting"):
            Qmp(ours, seconds=0.05)


# --- KVM --------------------------------------------------------------------------------------------


def test_kvm_is_proved_by_a_machine_that_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works = tuple("tcg" if o == "kvm" else o for o in accelerator._COMMAND)  # as if it were KVM
    trials = [accelerator.Trial("/dev/null", works, 60), accelerator.Trial("/dev/null", (*works, "-S"), 1)]
    broken = accelerator.Trial("/dev/null", ("-accel", "nosuch"))
    assert accelerator.Trial("/dev/nosuch", works).result() == "tcg"
    for _ in range(3):  # the command fails at once
        ended = accelerator.Trial("/dev/null", (*works, "-S"))
        ended.close()
        assert ended._process is None or ended._process.returncode is not None
    assert [t.result() for t in trials] == ["kvm", "tcg"] and broken.result() == "tcg"
    busy = tmp_path / "qemu-system-x86_64"  # it says the right thing, after two seconds of a processor
    busy.write_text(
        f"#!{sys.executable}\nimport time\nwhile time.process_time() < 2: pass\nprint('No bootable device')\n"
    )
    busy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert accelerator.Trial("/dev/null", works, 60).result() == "tcg"
    for thread in [t for t in threading.enumerate() if t.name == "cloudmount-kvm"]:
        thread.join(60)
        assert not thread.is_alive()


# --- the command line -------------------------------------------------------------------------------


def options(*disks: Disk, **more: object) -> list[str]:
    """Of a machine with these disks."""
    parts: dict[str, object] = {"firmware": "bios", "memory": 512 * MIB, "cpus": 2, "disks": disks}
    machine = Machine(**{**parts, **more})  # type: ignore[arg-type]
    return commandline.options(machine, "tcg", 3)


def values(found: list[str], option: str) -> list[str]:
    """What it is given."""
    return [b for a, b in pairwise(found) if a == option]


def test_every_format_is_stated_and_every_error_a_pause() -> None:
    buses: list[Bus] = ["ide", "ide", "ide", "ide", *["sata"] * 7, "virtio", "sas", "nvme"]  # type: ignore[list-item]
    found = options(*(Disk(f"drive/{n}.img", MIB, bus=bus) for n, bus in enumerate(buses)))
    nodes = [json.loads(node) for node in values(found, "-blockdev")]
    assert {n["driver"] for n in nodes} == {"file", "raw", "qcow2"} and len(nodes) == 4 * len(buses)
    assert "-drive" not in found and all(
        "no-flush" not in str(n) or "True" not in str(n["cache"]) for n in nodes
    )
    devices = [json.loads(d) for d in values(found, "-device") if d.startswith("{")]
    assert len(devices) == len(buses)
    assert all((d.get("rerror"), d.get("werror")) == ("stop", "stop") for d in devices[:-1])
    assert "rerror" not in devices[-1]  # QEMU has no such option for it
    places = [(d["driver"], d.get("bus"), d.get("unit"), d.get("scsi-id")) for d in devices]
    assert len(set(places)) == len(buses)  # one place each
    assert sum(d.startswith("ich9-ahci") for d in values(found, "-device")) == 2


def test_disks_of_this_computer() -> None:
    found = options(Disk("/d/1.img", MIB, overlay=False), Disk("/d/2.img", MIB))
    nodes = [json.loads(node) for node in values(found, "-blockdev")]
    assert [(n["node-name"], n["driver"], n.get("filename"), n.get("read-only")) for n in nodes] == [
        ("disk0", "file", "/d/1.img", False),
        ("local1", "file", "/d/2.img", True),
        ("file1", "file", "disk2.qcow2", None),
        ("disk1", "qcow2", None, None),
    ]
    assert nodes[-1]["backing"] == "local1"
    assert not any(n["cache"]["no-flush"] for n in nodes)
    devices = [json.loads(d) for d in values(found, "-device") if d.startswith("{")]
    assert [d["drive"] for d in devices] == ["disk0", "disk1"]
    assert all((d["rerror"], d["werror"]) == ("stop", "stop") for d in devices)


def test_the_disk_that_boots_is_first_and_none_is_moved() -> None:
    found = options(Disk("drive/1.img", MIB), Disk("drive/2.img", MIB, bootable=True))
    devices = [json.loads(d) for d in values(found, "-device") if d.startswith("{")]
    assert [(d["drive"], d["bootindex"]) for d in devices] == [("disk0", 1), ("disk1", 0)]


def test_secure_boot_has_its_firmware_and_its_chipset() -> None:
    disks = [Disk(f"drive/{n}.img", MIB) for n in (1, 2)]
    found = options(*disks, firmware="uefi", secure_boot=True)
    assert values(found, "-machine") == ["q35,smm=on"]
    assert "driver=cfi.pflash01,property=secure,value=on" in values(found, "-global")
    code, variables = values(found, "-drive")
    assert "secboot" in code and "readonly=on" in code and "readonly=off" in variables
    assert values(found, "-device").count("piix3-ide,id=ide") == 1  # q35 has none of its own
    plain = options(*disks, firmware="uefi")
    assert values(plain, "-machine") == ["pc"] and not values(plain, "-global")
    assert "secboot" not in values(plain, "-drive")[0]


def test_networks() -> None:
    assert values(options(), "-nic") == ["none"]
    found = options(network="user", macs=("52:54:00:00:00:01", "52:54:00:00:00:02"))
    assert values(found, "-netdev") == ["user,id=net0", "user,id=net1"] and "-nic" not in found
    assert "52:54:00:00:00:02" in "".join(values(found, "-device"))


def test_buses_when_nobody_said_one() -> None:
    assert [default_bus(n, 512, False) for n in (0, 3, 4)] == ["ide", "ide", "sata"]
    assert (default_bus(0, 4096, False), default_bus(0, 4096, True)) == ("virtio", "nvme")
