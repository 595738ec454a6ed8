"""VMs as they are recorded, and what a machine is taken for by its disks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudmount.app.looking import Look, by_table, firmware
from cloudmount.app.vms import Definition, State, Vm, all_vms, find_vm, making_one, new_folder, vm_of
from cloudmount.boot.machine import MIB, Disk, Machine
from cloudmount.disks.partitions import BIOS_BOOT, ESP, Partition, PartitionTable
from cloudmount.errors import CloudMountError, NotFoundError
from cloudmount.mounts.records import start_time


def made(environ: dict[str, str], machine: str, snapshot: str, id: str) -> Vm:
    """A VM that was made."""
    with making_one(environ):
        folder = new_folder(machine, snapshot, environ)
        hardware = Machine("uefi", 512 * MIB, 2, (Disk("drive/1.img", MIB),), macs=("52:54:00:00:00:01",))
        vm = Vm(Definition(folder.path.name, machine, snapshot, id, "r", "azure://x", hardware), folder)
        vm.write_definition()
    return vm


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    return {"XDG_STATE_HOME": str(tmp_path / "link")}


def test_they_are_found_as_they_were_made(environ: dict[str, str], tmp_path: Path) -> None:
    assert all_vms(environ) == []
    a = made(environ, "a", "2026-11-22T03-00-00Z", "11111111" * 4)
    b1 = made(environ, "b", "2026-11-22T03-00-00Z", "22222222" * 4)
    b2 = made(environ, "b", "2026-11-23T03-00-00Z", "33333333" * 4)
    other = made(environ, "a", "2026-11-22T03-00-00Z", "44444444" * 4)  # of another repository
    assert other.name == f"{a.name}-2" and a.folder.path.is_relative_to(tmp_path / "real")
    assert [vm.definition for vm in all_vms(environ)] == [v.definition for v in (a, other, b1, b2)]
    assert a.folder.path.stat().st_mode & 0o777 == 0o700
    for text, vm in ((a.name, a), ("b/2026-11-23T03-00-00Z", b2), ("33333333", b2)):
        assert find_vm(text, environ).name == vm.name
    for text in ("b", "a/latest", "c", "3333333"):
        with pytest.raises(NotFoundError, match=b2.name if text != "a/latest" else "-2"):
            find_vm(text, environ)
    found = vm_of("22222222" * 4, environ)
    assert found is not None and found.name == b1.name and vm_of("5" * 32, environ) is None
    a.delete()
    assert find_vm("a", environ).name == other.name and not a.folder.path.exists()


def test_long_names_and_damaged_records(environ: dict[str, str]) -> None:
    vm = made(environ, "ü" * 127, "2026-11-22T03-00-00Z", "1" * 32)
    assert len(os.fsencode(vm.name)) < 255 and find_vm("ü" * 127, environ).name == vm.name
    (vm.folder.path / "vm.json").write_text('{"name": "x"}')
    assert all_vms(environ) == []


def test_how_one_is_told(environ: dict[str, str]) -> None:
    vm = made(environ, "a", "2026-11-22T03-00-00Z", "1" * 32)
    assert vm.told()["state"] == "never started" and not vm.alive
    pid = os.getpid()
    state = State(pid, start_time(pid), 0, 0, "tcg", "running", "ready", "t", "t", 1.0, 10, 2)
    vm.write_state(state)
    assert vm.alive and vm.told()["state"] == "running" and vm.told()["pid"] == pid
    for text in ("running", "booting", "paused: repository unreachable since x", "starting"):
        vm.write_state(state._replace(state=text, started=1))
        assert vm.told()["state"] == "its process was killed" and vm.told()["pid"] is None
    for text in ("powered off", "stopped", "failed: QEMU ended"):
        vm.write_state(state._replace(state=text, started=1))
        assert vm.told()["state"] == text


def test_a_full_disk_does_not_hide_how_one_is(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = made(environ, "a", "2026-11-22T03-00-00Z", "1" * 32)
    state = State(1, 1, 0, 0, "tcg", "running, and a long story", "ready", "t", "t", 1.0, 10, 2)
    vm.write_state(state)

    def full(file: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloudmount.app.vms._write", full)
    vm.write_state(state._replace(state="paused: no room"))
    assert vm.state == state._replace(state="paused: no room")


def test_one_is_made_at_a_time(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudmount.app.vms._PATIENCE", 0.1)
    with making_one(environ):
        with pytest.raises(CloudMountError, match="another"):
            with making_one(environ):
                pass
    with making_one(environ):
        pass


def table(kind: str, *types: str, active: int | None = None) -> PartitionTable:
    """Partitions of these types."""
    found = tuple(Partition(n, n << 20, MIB, t, active=n == active) for n, t in enumerate(types))
    return PartitionTable(kind, partitions=found)  # type: ignore[arg-type]


MSR = "e3c9e316-0b5c-4db8-817d-f92df00215ae"


@pytest.mark.parametrize(
    ("disk", "look"),
    [
        (table("gpt", ESP, MSR), Look("uefi", True)),
        (table("gpt", BIOS_BOOT, ESP), Look("uefi", False)),
        (table("gpt", BIOS_BOOT), Look("bios", False)),
        (table("gpt", MSR), Look(None, True)),
        (table("mbr", "0x07", active=0), Look("bios", True)),
        (table("mbr", "0x83", "0x83", active=1), Look("bios", False)),
        (table("mbr", "0x07"), Look(None, False)),
        (table("none"), Look(None, False)),
    ],
)
def test_what_a_disk_looks_like(disk: PartitionTable, look: Look) -> None:
    assert by_table(disk) == look


def test_the_firmware_is_that_of_the_first_disk_that_boots() -> None:
    data, old, new = Look(None, True), Look("bios", False), Look("uefi", False)
    assert [firmware(x) for x in ([data, new], [old, new], [data], [])] == ["uefi", "bios", "bios", "bios"]
