"""A hand-over with a model of QEMU: whatever fails, and whoever dies, at any step, nothing that was written
is lost, and the machine goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudmount.app.handover import LocalDisks, check_local
from cloudmount.app.vms import Definition, Vm, all_vms
from cloudmount.boot import handover
from cloudmount.boot.folder import VmFolder
from cloudmount.boot.handover import HandOver
from cloudmount.boot.machine import Disk, Machine
from cloudmount.boot.qmp import QmpRefusedError
from cloudmount.errors import CloudMountError, DamagedError, NotFoundError
from cloudmount.reader.sidecar import PIECES, SEEN, Described, Entry, Seen, Sidecar, digest, sidecar_path

DISKS, BLOCKS, SIZE = 2, 4, 4096
STORED = [f"stored{n}" for n in range(BLOCKS)]


class Died(BaseException):
    """The VM's process and QEMU, at once."""


class World:
    """A machine with two disks in a model of QEMU, its VM's folder and its copies on the real disk. Each
    thing that is done counts; `fault` is called with its number, before it and after it."""

    def __init__(self, folder: Path, fault: Callable[[int, bool], None] = lambda number, after: None) -> None:
        self.fault, self.count = fault, 0
        self.folder = folder
        self.environ = {"XDG_STATE_HOME": str(folder / "state")}
        self.paths = [str(folder / f"copy{n}.img") for n in range(DISKS)]
        self.overlays: list[dict[int, str]] = [{} for _ in range(DISKS)]
        self.locals = [list(STORED) for _ in range(DISKS)]
        self.wanted = [list(STORED) for _ in range(DISKS)]
        self.drive = self.ready = True
        at = folder / "state/cloudmount/vms/srv"
        at.mkdir(parents=True)
        disks = tuple(Disk(f"drive/{n + 1}.img", SIZE) for n in range(DISKS))
        hardware = Machine("bios", 1 << 25, 1, disks)
        vm = Vm(Definition("srv", "srv", "now", "0" * 32, "r", "/repo", hardware), VmFolder(at))
        vm.write_definition()
        for n in range(DISKS):
            vm.folder.overlay(n).touch()
            finished_copy(Path(self.paths[n]))

    def start(self) -> HandOver:
        """Switch the machine on, as it was entered last."""
        (vm,) = all_vms(self.environ)
        disks = vm.definition.hardware.disks
        self.running, self.ended = True, False
        self.heads = ["overlay" if disk.overlay else "local" for disk in disks]
        self.backing = ["local" if disk.is_local else "drive" for disk in disks]
        self.nodes = {f"{kind}{n}" for n, d in enumerate(disks) for kind in self._kinds(d)}
        self.writable = [not disk.overlay for disk in disks]
        self.job: int | None = None
        self.events: list[dict[str, Any]] = []
        if vm.definition.is_local:
            check_local(vm, lambda line: None)
        else:
            assert self.drive
        return HandOver(disks, self.paths, Counted(LocalDisks(vm, self.paths, self.leave), self.did))

    @staticmethod
    def _kinds(disk: Disk) -> tuple[str, ...]:
        if not disk.overlay:
            return ("disk",)
        return ("local", "file", "disk") if disk.is_local else ("image", "base", "file", "disk")

    def leave(self) -> None:
        """The drive goes."""
        assert self.backing == ["local"] * DISKS and not {"base0", "image0", "base1"} & self.nodes
        self.drive = False

    def did(self, job: Callable[[], Any]) -> Any:
        """Do it, with what goes wrong before and after it; its guest writes meanwhile."""
        self.count += 1
        number = self.count
        self.fault(number, False)
        value = job()
        self.write(number)
        self.fault(number, True)
        return value

    def write(self, number: int) -> None:
        """The guest writes, and flushes."""
        if self.running:
            for n in range(DISKS):
                block, text = number % BLOCKS, f"written{number}"
                self.wanted[n][block] = text
                if self.heads[n] == "overlay":
                    self.overlays[n][block] = text
                else:
                    assert self.writable[n]
                    self.locals[n][block] = text

    # As `Qmp`

    def execute(self, command: str, **arguments: Any) -> Any:
        """As QEMU does."""
        return self.did(lambda: self._execute(command, arguments))

    def _execute(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "query-status":
            return {"running": self.running}
        if command == "query-jobs":
            return [{"id": f"merge{self.job}"}] if self.job is not None else []
        if command == "query-block-jobs":
            return [{"device": f"merge{self.job}", "ready": self.ready}] if self.job is not None else []
        if command in ("stop", "cont"):
            self.running = command == "cont"
        elif command == "blockdev-add":
            assert arguments["node-name"] not in self.nodes and arguments["read-only"]
            self.nodes.add(arguments["node-name"])
        elif command == "blockdev-reopen":
            (node,) = arguments["options"]
            assert node["node-name"] in self.nodes
            if node["driver"] == "qcow2":
                assert node["backing"] in self.nodes
                self.backing[int(node["node-name"][-1])] = "local"
            else:
                self.writable[int(node["node-name"][-1])] = not node["read-only"]
        elif command == "blockdev-del":
            self.nodes.remove(arguments["node-name"])
        elif command == "block-commit":
            assert self.job is None and self.heads[int(arguments["device"][-1])] == "overlay"
            self.job = int(arguments["device"][-1])
            assert self.writable[self.job] and not sidecar_path(Path(self.paths[self.job])).exists()
            self._copy(self.job)
        elif command == "job-complete":
            assert self.job is not None
            n, self.job = self.job, None
            self._copy(n)
            self.heads[n] = "local"
            self.events.append({"event": "BLOCK_JOB_COMPLETED", "data": {"device": f"merge{n}"}})
        else:
            raise AssertionError(command)
        return {}

    def _copy(self, n: int) -> None:
        for block, text in self.overlays[n].items():
            self.locals[n][block] = text

    def run(self, way: HandOver) -> None:
        """Until it is done."""
        until = time.monotonic() + 60
        while not way.done:
            assert time.monotonic() < until, way.doing
            for event in self.events:
                way.heard(event)
            self.events.clear()
            way.step(self)  # type: ignore[arg-type]  # as much of a `Qmp` as it needs
            time.sleep(0.0005)  # for its threads

    def kept(self) -> list[list[str]]:
        """What the machine's disks hold when it is started as it was entered."""
        (vm,) = all_vms(self.environ)
        found = []
        for n, disk in enumerate(vm.definition.hardware.disks):
            below = self.locals[n] if disk.is_local else STORED
            assert disk.is_local or self.drive
            over = self.overlays[n] if disk.overlay else {}
            found.append([over.get(block, below[block]) for block in range(BLOCKS)])
        return found

    def check_given_over(self) -> None:
        """That all of it is over, and the machine goes on."""
        (vm,) = all_vms(self.environ)
        assert vm.local_disks == self.paths and vm.half_merged == [] and vm.definition.is_local
        assert self.running and not self.drive and self.heads == ["local"] * DISKS
        assert not any(vm.folder.overlay(n).exists() for n in range(DISKS))
        assert self.locals == self.kept() == self.wanted


class Counted:
    """An owner whose deeds count."""

    def __init__(self, owner: handover.Owner, did: Callable[[Callable[[], Any]], Any]) -> None:
        self.owner, self.did = owner, did

    def moved(self) -> None:
        """As in `Owner`."""
        self.did(self.owner.moved)

    def opens(self, number: int) -> None:
        """As in `Owner`."""
        self.did(lambda: self.owner.opens(number))

    def merging(self, number: int) -> None:
        """As in `Owner`."""
        self.did(lambda: self.owner.merging(number))

    def merged(self, number: int) -> None:
        """As in `Owner`."""
        self.did(lambda: self.owner.merged(number))


def finished_copy(path: Path) -> None:
    """A copy with its sidecar, as hydration leaves it."""
    path.write_bytes(bytes(SIZE))
    path.chmod(0o444)
    described = Described("r", "srv", "0" * 32, "now", path.stem, "raw", SIZE, SIZE)
    with sidecar_path(path).open("w+b") as file:
        sidecar = Sidecar.create(file.fileno(), described)
        seen = Seen.of(path.stat(), finished=True).pack()
        sidecar.append([Entry(PIECES, 0, 1, digest(bytes(SIZE))), Entry(SEEN, 0, 0, seen)])


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr(handover, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(handover, "ENTER_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # of a thousand small files


def deeds(folder: Path) -> int:
    """How many things are done when nothing goes wrong."""
    world = World(folder)
    world.run(world.start())
    world.check_given_over()
    return world.count


def test_whoever_dies_at_any_step_loses_nothing(tmp_path: Path) -> None:
    for number in range(1, deeds(tmp_path / "whole") + 1):

        def dies(count: int, after: bool, number: int = number) -> None:
            if (count, after) == (number, True):  # having written something
                raise Died

        world = World(tmp_path / str(number), dies)
        with pytest.raises(Died):
            world.run(world.start())
        assert world.kept() == world.wanted, number
        world.run(world.start())  # as by `--resume`
        world.check_given_over()


@pytest.mark.parametrize("error", [QmpRefusedError("refused"), OSError(28, "No space left on device")])
def test_a_step_that_fails_is_tried_again(tmp_path: Path, error: Exception) -> None:
    for number in range(1, deeds(tmp_path / "whole") + 1):
        failed = []

        def fails(count: int, after: bool, number: int = number, failed: list[int] = failed) -> None:
            if count == number and not after:
                failed.append(count)
                raise error

        world = World(tmp_path / str(number), fails)
        world.run(world.start())
        assert failed == [number]
        world.check_given_over()


def test_a_job_that_fails_leaves_the_machine_on_its_overlay(tmp_path: Path) -> None:
    world = World(tmp_path / "w")
    way = world.start()
    ended = {"event": "BLOCK_JOB_COMPLETED", "data": {"device": "merge0", "error": "No space left"}}
    world.ready = False
    while world.job is None:
        way.step(world)  # type: ignore[arg-type]  # as much of a `Qmp` as it needs
    world.job, world.ready = None, True
    way.heard(ended)
    while "No space left" not in way.doing:
        way.step(world)  # type: ignore[arg-type]  # the same
    assert world.running and world.heads[0] == "overlay" and world.kept() == world.wanted
    world.run(way)
    world.check_given_over()


def test_a_machine_whose_disks_are_not_as_they_were_left(tmp_path: Path) -> None:
    world = World(tmp_path / "w")
    (vm,) = all_vms(world.environ)
    LocalDisks(vm, world.paths, lambda: None).moved()
    (vm,) = all_vms(world.environ)
    first, second = map(Path, world.paths)
    os.utime(first, (1, 1))  # it looks changed, and is not
    told: list[str] = []
    check_local(vm, told.append)
    assert len(told) == 1
    check_local(vm, told.append)
    assert len(told) == 1  # found out once
    second.chmod(0o600)
    second.write_bytes(b"x" * SIZE)
    with pytest.raises(DamagedError, match="copy1"):
        check_local(vm, told.append)
    with pytest.raises(CloudMountError, match="changed by somebody"):
        LocalDisks(vm, world.paths, lambda: None).opens(1)
    second.write_bytes(b"")
    with pytest.raises(NotFoundError, match="has 0 bytes"):
        check_local(vm, told.append)
    second.unlink()
    with pytest.raises(NotFoundError, match=r"copy1\.img is not there"):
        check_local(vm, told.append)


def test_of_a_machine_that_is_removed_whole_disks_stay(tmp_path: Path) -> None:
    world = World(tmp_path / "w")
    (vm,) = all_vms(world.environ)
    owner = LocalDisks(vm, world.paths, lambda: None)
    owner.moved()
    owner.opens(0)
    assert vm.half_merged == world.paths[:1] and vm.local_disks == []
    owner.opens(1)
    owner.merging(1)
    owner.merged(1)
    assert vm.half_merged == world.paths[:1] and vm.local_disks == world.paths[1:]
    vm.delete()
    assert [Path(path).exists() for path in world.paths] == [False, True]
