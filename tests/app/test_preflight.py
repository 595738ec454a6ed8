"""Whether a machine runs on a PC, of PCs of every kind."""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudmount.app import thispc
from cloudmount.app.preflight import READY_SECONDS, Preflight, Stage, compared
from cloudmount.app.prices import prices
from cloudmount.app.thispc import ThisPc, this_pc
from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.memory import MemoryStore
from cloudmount.errors import NotFoundError, StoreUnreachableError, UsageError
from cloudmount.repo.repository import Repository
from cloudmount.repo.traces import Trace, seal_trace
from tests.backup.lab import FRAME, PASSPHRASE, Lab
from tests.disks.partition_writer import BASIC_DATA, ESP, LINUX, boot_record, write_gpt

GIB, MIB = 1 << 30, 1 << 20
PC = ThisPc(
    memory=16 * GIB, memory_free=12 * GIB, cpus=8, folder="/state/vms", free=100 * GIB,
    copy_folder="/state/vms", copy_free=100 * GIB, qemu=(7, 2), qemu_why="", qemu_img=True,
    accelerator="kvm", kvm_why="", kvm_advice="", variables=540_672, secure_variables=540_672, drive_why="",
)  # fmt: skip
STORED = 3 * MIB


class Cloud(MemoryStore):
    """Objects in memory at an address that is billed."""

    @property
    def address(self) -> str:
        return "azure://backups"


def backed_up(folder: Path, store: MemoryStore | None = None, **hardware: Any) -> Lab:
    """A server with a small UEFI disk, the second one of data only."""
    lab = Lab(folder, store or Cloud())
    rng = random.Random(5)
    system = write_gpt(
        folder / "system.img", 16 * MIB, [(ESP, 2048, 6143, "EFI"), (LINUX, 6144, 30000, "root")]
    )
    with system.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(rng.randbytes(STORED))
    write_gpt(folder / "data.img", 8 * MIB, [(BASIC_DATA, 2048, 8191, "data")])
    lab.backup(folder / "system.img", folder / "data.img", hardware=hardware or None)
    return lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Only looked at."""
    return backed_up(tmp_path_factory.mktemp("lab"))


def looked(lab: Lab, pc: ThisPc = PC, text: str = "srv") -> Preflight:
    """At a PC; nothing is asked of this one."""
    store = CountingStore(lab.store)
    repository = Repository.open(store, PASSPHRASE, tell=lab.told.append)
    environ = {"XDG_STATE_HOME": str(lab.folder / "none"), "XDG_CACHE_HOME": str(lab.folder / "none")}
    return compared(repository, store, text, pc, began=time.monotonic(), environ=environ)


def levels(found: Preflight) -> dict[str, str]:
    """Of what is not well."""
    return {f.what: f.level for f in found.findings if f.level != "ok"}


def stage(found: Preflight, name: str) -> Stage:
    return next(s for s in found.stages if s.stage == name)


def test_a_pc_that_does(lab: Lab) -> None:
    found = looked(lab)
    assert found.ok and levels(found) == {}
    assert found.snapshot.startswith("srv/20") and not lab.told
    machine = found.machine
    assert (machine.firmware, machine.memory, machine.cpus) == ("uefi", 4 * GIB, 4)
    assert [(d.size, d.bus, d.bootable) for d in machine.disks] == [
        (8 * MIB, "ide", False), (16 * MIB, "ide", True),
    ]  # fmt: skip
    assert [s.stage for s in found.stages] == ["opening", "boot", "hydration"]
    assert not (lab.folder / "none").exists()


@pytest.mark.parametrize(
    ("change", "what", "level", "says"),
    [
        ({"memory": 4 * GIB, "memory_free": 3 * GIB}, "memory", "ok", "2.0 GiB"),  # it gets half
        ({"memory": 512 * MIB, "memory_free": 300 * MIB}, "memory", "problem", "larger PC"),
        ({"memory_free": 3 * GIB}, "memory", "warn", "--memory 2772MiB"),
        ({"memory_free": 600 * MIB}, "memory", "warn", "larger PC"),
        (
            {"accelerator": "tcg", "kvm_why": "no /dev/kvm", "kvm_advice": "VT-x"},
            "virtualisation",
            "warn",
            "VT-x",
        ),
        ({"qemu": None, "qemu_why": "it is not there"}, "qemu", "problem", "qemu-system-x86"),
        ({"qemu": (5, 2)}, "qemu", "problem", "7.2"),
        ({"qemu": (6, 2)}, "qemu", "warn", "7.2"),
        ({"qemu": (10, 0)}, "qemu", "ok", "10.0"),
        ({"qemu_img": False}, "qemu-img", "problem", "qemu-utils"),
        ({"variables": None}, "firmware", "problem", "ovmf"),
        ({"drive_why": "no /dev/fuse"}, "drive", "problem", "no /dev/fuse"),
        ({"free": 10 * MIB}, "disk", "problem", "at once"),
        ({"free": GIB}, "disk", "warn", "pauses"),
        ({"copy_free": GIB}, "hydration", "warn", "--hydrate-to"),
        ({"copy_folder": "/other", "copy_free": GIB}, "hydration", "ok", "/other"),
        ({"cpus": 2}, "processors", "ok", "2"),
    ],
)
def test_pcs_that_lack_something(lab: Lab, change: dict[str, Any], what: str, level: str, says: str) -> None:
    found = looked(lab, replace(PC, **change))
    (about,) = (f for f in found.findings if f.what == what)
    assert about.level == level and says in f"{about.text} {about.advice}"
    assert bool(about.advice) or level == "ok"
    assert found.ok == (level != "problem")


def test_what_its_machine_file_said(tmp_path: Path) -> None:
    nvram = {"nvram": "eNpjYGBgAAAABAAB"}  # four zero bytes
    said = {"memory": 32 * GIB, "cpus": 16, "secure_boot": True, "firmware": "uefi", **nvram}
    lab = backed_up(tmp_path, disks=[{"name": "system", "bus": "nvme"}], **said)
    found = looked(lab, replace(PC, secure_variables=None))
    assert levels(found) == {
        "memory": "problem", "processors": "warn", "firmware": "problem", "disks": "warn",
    }  # fmt: skip
    assert [(d.size, d.bus) for d in found.machine.disks] == [(16 * MIB, "nvme"), (8 * MIB, "ide")]
    found = looked(lab, replace(PC, memory=64 * GIB, memory_free=60 * GIB, cpus=16))
    assert found.ok and levels(found) == {"uefi variables": "warn", "disks": "warn"}


@pytest.mark.parametrize("said", [{"secure_boot": True}, {"nvram": "eNpjYGBgAAAABAAB"}])
def test_what_only_a_uefi_has_means_one(tmp_path: Path, said: dict[str, Any]) -> None:
    lab = Lab(tmp_path, Cloud())
    (tmp_path / "disk.img").write_bytes(boot_record((0x80, 0x83, 1, 100)) + bytes(512 * 200))
    lab.backup(tmp_path / "disk.img", hardware=said)
    assert looked(lab).machine.firmware == "uefi"


@pytest.mark.parametrize(("active", "firmware"), [(0, "uefi"), (0x80, "bios")])
def test_an_efi_partition_in_an_mbr(tmp_path: Path, active: int, firmware: str) -> None:
    lab = Lab(tmp_path, Cloud())
    table = boot_record((0, 0xEF, 1, 100), (active, 0x83, 101, 99))
    (tmp_path / "disk.img").write_bytes(table + bytes(512 * 200))
    lab.backup(tmp_path / "disk.img")
    assert looked(lab).machine.firmware == firmware


def test_a_boot_that_was_seen_goes_before_a_guess(tmp_path: Path) -> None:
    lab = backed_up(tmp_path)
    guessed = looked(lab)
    assert not guessed.traced and stage(guessed, "boot").bytes == stage(guessed, "hydration").bytes
    repository = lab.reopened()
    snapshot = repository.latest("srv")
    first = 2 * MIB // FRAME
    runs = ((0, 1, 0), (first, 10, 20), (first + 5, 20, 60), (first + 200, 5, 900), (1 << 40, 9, 1000))
    trace = Trace("system", snapshot.id, int(time.time()), 16 * MIB, FRAME, runs)
    lab.store.create(*seal_trace(repository.keys, snapshot.tag, trace))
    seen = looked(lab)
    boot = stage(seen, "boot")
    assert seen.traced and 30 * FRAME < boot.bytes < 34 * (FRAME + 100) and 2 <= boot.requests <= 10
    assert boot.seconds <= stage(guessed, "boot").seconds
    slow = looked(lab, replace(PC, accelerator="tcg"))
    assert stage(slow, "boot").seconds > boot.seconds


def test_a_trace_of_many_segments_is_looked_up_in_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = backed_up(tmp_path)
    repository = lab.reopened()
    snapshot = repository.latest("srv")
    first = 2 * MIB // FRAME
    runs = ((first, 2 * MIB // FRAME, 0),)  # a whole segment, and half of the next
    both = (*runs, (first + 2 * MIB // FRAME, MIB // FRAME, 9))
    found = []
    for at, (which, most) in enumerate(((both, 32), (both, 1))):
        trace = Trace("system", snapshot.id, int(time.time()) + at, 16 * MIB, FRAME, which)
        lab.store.create(*seal_trace(repository.keys, snapshot.tag, trace))
        monkeypatch.setattr("cloudmount.app.bootneeds.MOST_SEGMENTS", most)
        found.append(stage(looked(lab), "boot").bytes)
    assert found[0] == pytest.approx(found[1], rel=0.05) and found[0] >= STORED


def test_what_it_costs(lab: Lab, tmp_path: Path) -> None:
    found = looked(lab)
    hydration = stage(found, "hydration")
    assert found.prices is prices() and hydration.bytes >= STORED and hydration.cost is not None
    assert hydration.cost == prices().cost("hot", reads=hydration.requests, bytes_down=hydration.bytes)
    opening = stage(found, "opening")
    assert opening.cost is not None and 0 < opening.cost.total < 0.001 and opening.requests < 10
    assert found.reads >= opening.requests and found.fetched_bytes > opening.bytes
    (tmp_path / "at home").mkdir()
    free = looked(backed_up(tmp_path / "at home", MemoryStore()))
    assert free.prices is None and all(s.cost is None for s in free.stages)


def test_the_link_is_measured_by_what_is_stored(lab: Lab) -> None:
    link = looked(lab).link
    assert link is not None and STORED / 2 < link.fetched_bytes < 2 * STORED and link.bytes_per_second > 0


def test_a_link_that_is_lost_meanwhile(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise StoreUnreachableError("no line")

    monkeypatch.setattr("cloudmount.app.preflight.measure", lost)
    found = looked(lab)
    assert found.ok and found.link is None and levels(found) == {"link": "warn"}
    assert "no line" in next(f.text for f in found.findings if f.what == "link")


def test_a_slow_line_wants_patience(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudmount.app.preflight.READY_SECONDS", READY_SECONDS / 1000)
    (about,) = (f for f in looked(lab).findings if f.what == "patience")
    assert about.level == "warn" and "--timeout" in about.advice


def test_an_empty_disk_and_none(tmp_path: Path) -> None:
    lab = Lab(tmp_path, Cloud())
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    (tmp_path / "note").write_text("x")
    lab.backup(tmp_path / "disk.img")
    lab.backup(tmp_path / "note", machine="pc")
    found = looked(lab)
    assert found.ok and found.link is None and levels(found) == {"disks": "warn"}
    assert [s.bytes for s in found.stages[1:]] == [0, 0]
    with pytest.raises(NotFoundError, match="no disks"):
        looked(lab, text="pc")
    with pytest.raises(UsageError, match="whole snapshot"):
        looked(lab, text="srv:disk")


# --- this PC ----------------------------------------------------------------------------------------


def test_this_pc(tmp_path: Path) -> None:
    state = tmp_path / "state"
    found = this_pc(tmp_path / "not" / "there", {"XDG_STATE_HOME": str(state)})
    assert found.memory >= found.memory_free > 0 and found.cpus >= 1
    assert found.free > 0 and found.folder == os.path.realpath(state / "cloudmount" / "vms")
    assert found.copy_folder == str(tmp_path / "not" / "there") and not any(tmp_path.iterdir())
    assert (found.qemu is None) == bool(found.qemu_why)
    assert (found.accelerator == "kvm") == (not found.kvm_why) == (not found.kvm_advice)


@pytest.mark.parametrize(
    ("script", "version", "why"),
    [
        ("echo QEMU emulator version 8.1.3", (8, 1), ""),
        ("echo what; exit 3", None, "what"),
        ("exit 3", None, "exit code 3"),
        ("exec /no/such/program", None, "version"),
        (None, None, "not there"),
    ],
)
def test_qemus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, version: tuple[int, int], why: str
) -> None:
    if script is not None:
        (tmp_path / "qemu-system-x86_64").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "qemu-system-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found, told = thispc._qemu()
    assert found == version and why in told and bool(told) == (version is None)


def test_why_there_is_no_kvm(tmp_path: Path) -> None:
    assert "firmware setup" in thispc._kvm_why(str(tmp_path / "kvm"))[1]
    (tmp_path / "kvm").touch()
    why, advice = thispc._kvm_why(str(tmp_path / "kvm"))
    assert "is there" in why and advice


def test_free_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       16000 kB\nMemAvailable:    9000 kB\n")
    assert thispc._memory_free(tmp_path / "meminfo") == 9000 << 10
    assert thispc._memory_free(tmp_path / "none") > 0
