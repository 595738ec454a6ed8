"""What a drill makes of what it saw."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloudmount.app import drillrun
from cloudmount.app.drill import _leave_for_boots, _result, _spent
from cloudmount.app.drilldisks import Opened
from cloudmount.app.drillplace import drill_place
from cloudmount.app.drillrun import Seen, watch
from cloudmount.app.places import cache_folder, state_folder
from cloudmount.app.prices import prices
from cloudmount.app.vms import KILLED, Vm
from cloudmount.blobs.counting import Counts
from cloudmount.boot.proving import Evidence
from cloudmount.guest.marks import Mark
from cloudmount.repo.names import BOOT_PACKS
from tests.backup.lab import Lab
from tests.tree.test_bootlearning import boot, kept, lab, learning

__all__ = ["lab"]  # the fixture

SERIAL = Evidence("serial", "its serial line said 'x login:'")
JOURNAL = Mark("journal", "a new boot id", True)
HIVE = Mark("registry", "a hive was written", False)
WELL, BROKEN = Opened("d", "1-a", True, None), Opened("e", "2-b", False, "damaged")


def seen(state: str = "running", stage: Any = "ready", ready_ms: int | None = 5, by: str = "serial") -> Seen:
    """What watching told."""
    return Seen(state, stage, ready_ms, by, 1, 1)


@pytest.mark.parametrize(
    ("saw", "evidence", "marks", "words", "volumes", "problem", "expected"),
    [
        (seen(), [SERIAL], [], None, [WELL], "", ("proved", "ready")),
        (seen("powered off"), [SERIAL], [], None, [], "", ("proved", "ready")),
        (seen("powered off", "loader", 5, "power-off"), [], [], None, [], "", ("not proved", "loader")),
        (seen("running", "kernel", None, ""), [], [], None, [], "", ("not proved", "kernel")),
        (seen("booting", "loader", None, ""), [JOURNAL], [JOURNAL], None, [], "", ("proved", "services")),
        (seen("booting", "kernel", None, ""), [HIVE], [HIVE], None, [], "", ("proved", "kernel")),
        (seen("booting", "kernel", None, ""), [JOURNAL], [JOURNAL], "up", [], "", ("not proved", "services")),
        (seen(), [SERIAL], [], "x", [], "", ("proved", "ready")),
        (seen(), [SERIAL], [], None, [WELL, BROKEN], "", ("failed", "ready")),
        (seen(), [SERIAL], [], None, [], "its disks can't be looked at", ("failed", "ready")),
        (seen("paused: repository unreachable since x", "kernel", None, ""), [], [], None, [], "",
         ("failed", "kernel")),
        (seen("failed: QEMU ended", "firmware", None, ""), [], [], None, [], "", ("failed", "firmware")),
        (seen(KILLED), [SERIAL], [], None, [], "", ("failed", "ready")),
    ],
)  # fmt: skip
def test_only_evidence_proves(
    saw: Seen, evidence: list[Any], marks: list[Mark], words: str | None, volumes: list[Opened],
    problem: str, expected: tuple[str, str],
) -> None:  # fmt: skip
    looking: Any = SimpleNamespace(marks=marks, volumes=volumes, problem=problem)
    found = [e if isinstance(e, Evidence) else Evidence(e.kind, e.what) for e in evidence]
    result, stage, why = _result(saw, looking, found, words)
    assert (result, stage) == expected and bool(why) == (result != "proved")
    if BROKEN in volumes:
        assert "e, 2-b: damaged" in why


class FakeVm:
    """A VM whose state is what its test says, one after another; nobody serves its sockets."""

    def __init__(self, folder: Path, *states: Any) -> None:
        self.definition = SimpleNamespace(machine="srv")
        self.folder = SimpleNamespace(serial_log=folder / "serial.log", connect=self._connect)
        self._states = list(states)

    def _connect(self, name: str, seconds: float) -> None:
        raise ConnectionRefusedError

    @property
    def state(self) -> Any:
        return self._states.pop(0) if len(self._states) > 1 else self._states[0]

    @property
    def state_text(self) -> str:
        return str(self._states[0].state)

    looks = Vm.looks


def state(text: str = "booting", stage: str = "firmware", by: str = "", **more: Any) -> Any:
    """What a VM's process wrote."""
    ready = "2026-11-22T03:00:00Z" if by else None
    values = {
        "state": text,
        "stage": stage,
        "ready": ready,
        "ready_by": by,
        "seconds_to_ready": 2.5 if by else None,
    }
    return SimpleNamespace(**{**values, "fetched_bytes": 7, "reads": 3, **more})


def watched(vm: FakeVm, until: float, peek: Any = None) -> Seen:
    """What `watch` tells of it."""
    machine: Any = vm
    return watch(machine, began=0.0, until=until, peek=peek, say=lambda text: None)


def test_it_is_watched_until_it_is_ready(tmp_path: Path) -> None:
    vm = FakeVm(tmp_path, state(), state(stage="kernel"), state("running", "ready", "agent"))
    assert watched(vm, float("inf")) == Seen("running", "ready", 2500, "agent", 7, 3)


def test_a_power_off_is_no_stage(tmp_path: Path) -> None:
    (tmp_path / "serial.log").write_bytes(b"[    0.000000] Linux version 6.1\r\n")
    vm = FakeVm(tmp_path, state("powered off", "ready", "power-off"))
    assert watched(vm, float("inf")) == Seen("powered off", "kernel", 2500, "power-off", 7, 3)


def test_who_says_nothing_is_given_up_or_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = FakeVm(tmp_path, state())
    assert watched(vm, 0.0) == Seen("booting", "firmware", None, "", 7, 3)
    monkeypatch.setattr(drillrun, "PEEK_SECONDS", 0.0)
    monkeypatch.setattr(drillrun, "SETTLE_SECONDS", 0.0)
    peeks = iter([[], [HIVE], [JOURNAL]])  # a hive may be written by a kernel that comes no further
    found = watched(vm, float("inf"), lambda: next(peeks))
    assert found.stage == "services" and found.ready_ms is not None and next(peeks, None) is None


def test_a_place_is_empty_and_gone_afterwards(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "X": "y"}
    told: list[str] = []
    with drill_place(environ, told.append) as place:
        assert place.environ["X"] == "y" and not state_folder(place.environ).exists()
        trace = Path("r" * 32, "traces", "t" * 32, "0001-id")
        for name in (trace, trace.with_name(".unfinished")):
            file = cache_folder(place.environ) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"sealed")
        place.keep_traces(environ)
        place.keep_traces(environ)
        with drill_place(environ, told.append) as other:  # it leaves ours alone
            assert other.path != place.path and place.path.is_dir()
        left = place.path.with_name("left")  # by a process that was killed
        left.mkdir()
        (left / "lock").touch()
        with drill_place(environ, told.append):
            assert not left.exists()
    kept = [p.relative_to(cache_folder(environ)) for p in cache_folder(environ).rglob("*") if p.is_file()]
    assert kept == [trace] and os.listdir(place.path.parent) == [] and told == []


def test_one_that_proves_leaves_what_makes_boots_quicker(lab: Lab, tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    told: list[str] = []

    def left() -> int:
        return len(list(lab.store.list(BOOT_PACKS)))

    with drill_place(environ, told.append) as place:
        traces = cache_folder(place.environ) / lab.repository.config.repo_id / "traces"
        with learning(lab, traces) as tree:
            boot(tree)
        assert len(kept(lab)) == 1
        with learning(lab, None) as tree:
            snapshot = tree.repository.latest("srv")
            looking: Any = SimpleNamespace(
                repository=tree.repository, snapshot=snapshot, drive=tree, disks=tree.opened(snapshot).disks
            )
            _leave_for_boots(place, environ, None, told.append)
            assert left() == 0
            _leave_for_boots(place, environ, looking, told.append)
            assert left() == 1
    assert told == [] and len(list(cache_folder(environ).glob("*/traces/*/*"))) == 1


def test_what_is_stored_counts_too() -> None:
    vm: Any = SimpleNamespace(state=SimpleNamespace(fetched_bytes=50_000_000, reads=40))
    before = Counts(read=5, list=1, bytes_down=1_000_000)
    told = {}
    for counts in (before, replace(before, create=3, bytes_up=48_000_000)):
        config = SimpleNamespace(tier="cold")
        repository = SimpleNamespace(store=SimpleNamespace(address="azure://backups"), config=config)
        looking: Any = SimpleNamespace(counts=counts, repository=repository)
        told[counts.writes] = _spent(vm, looking)
    read = prices().cost("cold", reads=46, bytes_down=51_000_000)
    assert told[0] == {"total_bytes": 51_000_000, "requests": 46, "cost": round(read.total * 10**6)}
    stored = read + prices().cost("hot", writes=3)
    assert told[3] == {"total_bytes": 51_000_000, "requests": 49, "cost": round(stored.total * 10**6)}
    assert stored.total > read.total
    looking.repository.store.address = "/a/folder"
    assert _spent(vm, looking)["cost"] is None
