"""A drill: the newest backup of a machine is started, isolated and from nothing, and what proves it is kept.

Decided here and only here: what a drill does in which order, and what its result is. Only evidence
(`boot.proving`, `guest.marks`) makes it "proved"; where a pattern was stated, by `--ready` or in the file of
its machine, that has to be among it. The machine is off, and what it wrote is gone, however a drill ends.

`drill` belongs to the main thread of a process, before any other was started.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from cloudmount import __version__
from cloudmount.app.boot import BootOptions
from cloudmount.app.bootpacks import leave_boot_pack
from cloudmount.app.drilldisks import MarkSearch, Opened, open_volumes
from cloudmount.app.drillplace import DrillPlace, drill_place
from cloudmount.app.drillreport import PNG, Facts, Report, Result, write_report
from cloudmount.app.drillrun import Bandwidth, Seen, switched_on, watch
from cloudmount.app.looking import in_order
from cloudmount.app.machinefile import hardware_of
from cloudmount.app.opening import (
    default_cache_bytes,
    disk_cache,
    frames_folder,
    looking_inside,
    open_repository,
)
from cloudmount.app.places import cache_folder, make_folders
from cloudmount.app.prices import is_billed, prices
from cloudmount.app.proofs import keep_proof
from cloudmount.app.select import select, split_path
from cloudmount.app.sightings import Sightings
from cloudmount.app.stop import stop
from cloudmount.app.vms import KILLED, Vm
from cloudmount.blobs.counting import CountingStore, Counts
from cloudmount.boot.picture import PICTURE
from cloudmount.boot.proving import Evidence, Stage, serial_evidence
from cloudmount.boot.readiness import last_line, pattern
from cloudmount.boot.running import FAILED, PAUSED, POWERED_OFF
from cloudmount.errors import CloudMountError, UsageError
from cloudmount.guest.marks import Mark
from cloudmount.repo.proofs import MOST_SCREENSHOT, Proof
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import Snapshot
from cloudmount.tree.bootlearning import BootLearning

if TYPE_CHECKING:
    from cloudmount.tree.drive import Drive
    from cloudmount.tree.snapshotdir import StoredDisk

OFF_SECONDS, HUNG_OFF_SECONDS = 60.0, 20.0
"""How long a guest gets to power off; and one that was never ready."""


@dataclass(frozen=True, slots=True)
class Drill:
    """A drill that is over. `proof`: the name of its object, None when it could be kept nowhere."""

    facts: Facts
    report: Report
    proof: str | None


def drill(
    address: str,
    passphrase: str,
    text: str,
    *,
    ready: str | None = None,
    timeout: float = 600.0,
    bandwidth: Bandwidth = (None, None),
    began: float | None = None,
    say: Callable[[str], None],
    tell: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> Drill:
    """Drill the newest snapshot of the machine `text` (or the snapshot it names). Errors as of `boot`; that a
    guest does not come up is none, but a result. `began`: in `time.monotonic`."""
    if split_path(text)[1]:
        raise UsageError(f"a drill takes a machine or a snapshot, not a path in one: {text!r}")
    began, clock = time.monotonic() if began is None else began, int(time.time())
    make_folders(environ)
    with drill_place(environ, tell) as place, contextlib.ExitStack() as held:
        looking = _Looking(address, passphrase, place, bandwidth, tell, held)
        options = BootOptions(network="none", ready=ready)
        on = switched_on(
            place, address, passphrase, text, options,
            began=began, bandwidth=bandwidth, tell=tell, environ=environ,
        )  # fmt: skip
        with on as vm:
            peek = None if ready is not None else lambda: looking.peek(vm)
            seen = watch(vm, began=began, until=began + timeout, peek=peek, say=say)
            stop(
                vm,
                timeout=OFF_SECONDS if seen.ready_ms is not None else HUNG_OFF_SECONDS,
                delete=False,
                tell=say,
            )
        looking.look(vm)
        assert looking.snapshot is not None
        if text.removesuffix("/latest") == looking.snapshot.machine:  # else an older one was meant
            Sightings(looking.repository, environ).saw(looking.snapshot)
        facts = _facts(vm, seen, looking, ready, clock, int((time.monotonic() - began) * 1000))
        screenshot = _screenshot(vm)
        proof = _keep(looking.repository, looking.snapshot, facts, screenshot, tell, environ)
        _leave_for_boots(place, environ, looking if facts.result == "proved" else None, tell)
        facts = replace(facts, **_spent(vm, looking))
        return Drill(facts, write_report(facts, screenshot, proof, environ), proof)


def _leave_for_boots(
    place: DrillPlace, environ: Mapping[str, str], proved: _Looking | None, tell: Callable[[str], None]
) -> None:
    """What a drill leaves that makes later boots quicker: its trace lies in the repository already, where the
    credential may write; and, when it proved something, what it read as a boot pack."""
    place.keep_traces(environ)
    if proved is None or proved.snapshot is None or proved.drive is None:
        return
    repository, folder = proved.repository, frames_folder(proved.repository, place.environ)
    cache = disk_cache(folder, default_cache_bytes(folder), tell)
    traces = cache_folder(place.environ) / repository.config.repo_id / "traces"
    learning = BootLearning(repository, proved.drive.reader, traces)
    for disk in proved.disks:
        trace = learning.newest(disk)
        if trace is not None:
            leave_boot_pack(repository, proved.snapshot, trace, cache=cache, tell=tell)


class _Looking:
    """The repository as this process reads it, opened when it is first needed."""

    def __init__(
        self,
        address: str,
        passphrase: str,
        place: DrillPlace,
        bandwidth: Bandwidth,
        tell: Callable[[str], None],
        held: contextlib.ExitStack,
    ) -> None:
        self._address, self._passphrase, self._place = address, passphrase, place
        self._bandwidth, self._tell, self._held = bandwidth, tell, held
        self._repository: Repository | None = None
        self._search: MarkSearch | None = None
        self.snapshot: Snapshot | None = None
        self.drive: Drive | None = None
        self.disks: list[StoredDisk] = []
        self.marks: list[Mark] = []
        self.volumes: list[Opened] = []
        self.problem = ""
        """Why the disks could not be looked at."""

    @property
    def repository(self) -> Repository:
        """The repository; errors as of `open_repository`."""
        if self._repository is None:
            self._repository = open_repository(
                self._address,
                self._passphrase,
                environ=self._place.environ,
                bandwidth=self._bandwidth,
                tell=self._tell,
            )
            self._held.callback(self._repository.store.close)
        return self._repository

    @property
    def counts(self) -> Counts:
        """What was asked of the store here."""
        store = self._repository.store if self._repository is not None else None
        return store.snapshot() if isinstance(store, CountingStore) else Counts()

    def peek(self, vm: Vm) -> list[Mark]:
        """The marks on the disks of a machine that runs; none where a pattern was stated: it counts alone."""
        with contextlib.suppress(CloudMountError):
            search = self._opened(vm)
            if self.snapshot is not None and hardware_of(self.snapshot.summary).ready is None:
                return search.found()
        return []

    def look(self, vm: Vm) -> None:
        """Open the disks that the machine did not start from, and look for marks on all. Only a snapshot that
        can't be opened at all is an error."""
        try:
            search = self._opened(vm)
            hardware = vm.definition.hardware
            first = next((n for n, disk in enumerate(hardware.disks) if disk.bootable), 0)
            self.volumes = list(open_volumes([d for n, d in enumerate(self.disks) if n != first]))
            self.marks = search.found()
        except CloudMountError as error:
            if self.snapshot is None:
                raise
            self.problem = f"its disks can't be looked at: {error}"

    def _opened(self, vm: Vm) -> MarkSearch:
        if self._search is None:
            d = vm.definition
            selected = select(self.repository, f"{d.machine}/{d.snapshot}")
            if selected.snapshot.id != d.snapshot_id:
                selected = select(self.repository, d.snapshot_id)
            self.snapshot = selected.snapshot
            self.drive = drive = self._held.enter_context(
                looking_inside(self.repository, self._place.environ)
            )
            self.disks = in_order(drive.opened(self.snapshot).disks, hardware_of(self.snapshot.summary))
            overlays = [vm.folder.overlay(number) for number in range(len(self.disks))]
            self._search = MarkSearch(drive, self.disks, overlays)
        return self._search


class _Spent(TypedDict):
    total_bytes: int
    requests: int
    cost: int | None


def _spent(vm: Vm, looking: _Looking) -> _Spent:
    """What the drill has asked for so far, and what that costs, in millionths. What it stores is hot."""
    state, counts = vm.state, looking.counts
    assert state is not None
    total, reads = state.fetched_bytes + counts.bytes_down, state.reads + counts.reads
    cost = None
    if is_billed(looking.repository.store.address):
        table, tier = prices(), looking.repository.config.tier
        parts = table.cost(tier, reads=reads, bytes_down=total) + table.cost("hot", writes=counts.writes)
        cost = round(parts.total * 10**6)
    return {"total_bytes": total, "requests": reads + counts.writes, "cost": cost}


def _facts(vm: Vm, seen: Seen, looking: _Looking, ready: str | None, clock: int, ended_ms: int) -> Facts:
    assert looking.snapshot is not None
    snapshot = looking.snapshot
    words = ready if ready is not None else hardware_of(snapshot.summary).ready
    evidence = list(_evidence(vm, seen, looking, pattern(words) if words is not None else None))
    result, stage, why = _result(seen, looking, evidence, words)
    state = vm.state
    assert state is not None
    return Facts(
        machine=snapshot.machine,
        snapshot=vm.definition.snapshot,
        snapshot_id=snapshot.id,
        snapshot_time=str(snapshot.summary["time"]),
        time=clock,
        result=result,
        stage=stage,
        why=why,
        ready_ms=seen.ready_ms if evidence else None,  # a power-off alone shows nothing
        ended_ms=ended_ms,
        fetched_bytes=seen.bytes,
        reads=seen.reads,
        **_spent(vm, looking),
        currency=prices().currency,
        accelerator=state.accelerator,
        evidence=tuple(evidence),
        volumes=tuple(looking.volumes),
        last_line=last_line(vm.folder.serial_log),
        host=platform.node(),
        program=f"cloudmount {__version__}",
    )


def _evidence(vm: Vm, seen: Seen, looking: _Looking, ready: re.Pattern[str] | None) -> Iterator[Evidence]:
    said = serial_evidence(vm.folder.serial_log, ready)
    if said is not None:
        yield said
    if seen.ready_by == "agent":
        yield Evidence("agent", "its guest agent answered")
    for mark in looking.marks:
        yield Evidence(mark.kind, mark.what)


def _result(
    seen: Seen, looking: _Looking, evidence: list[Evidence], words: str | None
) -> tuple[Result, Stage, str]:
    """How it ended, the stage it reached, and why it is not proved."""
    stage: Stage = seen.stage
    if stage != "ready" and any(m.running for m in looking.marks):
        stage = "services"
    if seen.state.startswith((FAILED, PAUSED)) or seen.state == KILLED:
        return "failed", stage, f"the machine was not left running: {seen.state}"
    if words is not None and not any(e.kind == "serial" for e in evidence):
        return "not proved", stage, f"its serial line never said {words!r}"
    if not evidence:
        how = "it powered itself off" if seen.state == POWERED_OFF else "it was given up"
        return "not proved", stage, f"{how}, and nothing shows that its system ran"
    broken = [v for v in looking.volumes if v.problem is not None]
    if broken:
        what = f"{broken[0].disk}, {broken[0].volume}" if broken[0].volume else broken[0].disk
        return (
            "failed",
            stage,
            f"of its other disks {len(broken)} file systems don't open: {what}: {broken[0].problem}",
        )
    if looking.problem:
        return "failed", stage, looking.problem
    return "proved", stage, ""


def _screenshot(vm: Vm) -> bytes | None:
    try:
        with (vm.folder.path / PICTURE).open("rb") as file:
            data = file.read(MOST_SCREENSHOT + 1)
    except OSError:
        return None
    return data if data.startswith(PNG) and len(data) <= MOST_SCREENSHOT else None


def _keep(
    repository: Repository,
    snapshot: Snapshot,
    facts: Facts,
    screenshot: bytes | None,
    tell: Callable[[str], None],
    environ: Mapping[str, str],
) -> str | None:
    proof = Proof(snapshot.id, facts.time, facts.result == "proved", facts.sealed(), screenshot)
    try:
        name, why = keep_proof(repository, snapshot.tag, proof, environ)
    except CloudMountError as error:
        tell(str(error))
        return None
    if why is not None:
        tell(f"the proof is kept on this machine only, the repository did not take it: {why}")
    return name
