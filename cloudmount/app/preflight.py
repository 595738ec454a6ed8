"""Whether a snapshot's machine will run on this PC: how long it takes, what comes down, what that costs.

Decided here and only here: the stages (opening, boot, hydration) and how each is estimated. The opening is
measured, and so is the line; the rest is arithmetic over what the maps say. Nothing is written, here or
there: neither caches nor what was seen are kept. Belongs to one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cloudmount.app.boot import BootOptions, machine_of
from cloudmount.app.bootneeds import boot_needs
from cloudmount.app.findings import Finding, judged, will_run
from cloudmount.app.linkspeed import Link, Range, measure
from cloudmount.app.looking import in_order, look_at
from cloudmount.app.machinefile import hardware_of
from cloudmount.app.places import cache_folder, connect
from cloudmount.app.prices import Cost, Prices, is_billed, prices
from cloudmount.app.select import Selected, select
from cloudmount.app.thispc import ThisPc
from cloudmount.app.vms import vm_of
from cloudmount.blobs.counting import CountingStore, Counts
from cloudmount.blobs.retrying import TRANSFER
from cloudmount.boot.machine import Machine, default_cpus, default_memory
from cloudmount.errors import CloudMountError, NotFoundError, UsageError
from cloudmount.reader.bulk import LONGEST
from cloudmount.reader.runs import coalesce
from cloudmount.reader.stored import FrameReader
from cloudmount.repo.names import pack_name
from cloudmount.repo.repository import Repository
from cloudmount.tree.bootlearning import BootLearning
from cloudmount.tree.drive import Drive
from cloudmount.tree.snapshotdir import StoredDisk

IO_TIMEOUT = 30.0
DISK_SPEED = 300e6
"""Bytes a second that a copy is written and verified with on an ordinary SSD: a faster line gains nothing."""
READY_SECONDS = 600.0
"""What `boot` waits, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Stage:
    """`opening` (measured), `boot` (until the machine is ready) or `hydration` (until its disks are here).
    Seconds and bytes of it alone; `cost` None where nothing is billed."""

    stage: str
    seconds: float
    bytes: int
    requests: int
    cost: Cost | None


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found. `traced`: whether the boot is known from an earlier one; `prices` None where nothing is
    billed; `fetched_bytes` and `reads` are what knowing it took."""

    snapshot: str
    machine: Machine
    findings: tuple[Finding, ...]
    stages: tuple[Stage, ...]
    traced: bool
    link: Link | None
    prices: Prices | None
    tier: str
    fetched_bytes: int
    reads: int

    @property
    def ok(self) -> bool:
        """Whether it will run."""
        return will_run(self.findings)


def preflight(
    address: str,
    passphrase: str,
    text: str,
    look: Callable[[], ThisPc],
    *,
    bandwidth: tuple[float | None, float | None] = (None, None),
    tell: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> Preflight:
    """Compare the machine of the snapshot `text` with the PC that `look` tells of."""
    pc = look()
    began = time.monotonic()
    with connect(address, environ, policy=TRANSFER.reading(IO_TIMEOUT), bandwidth=bandwidth) as store:
        repository = Repository.open(store, passphrase, tell=tell)
        return compared(repository, store, text, pc, began=began, environ=environ)


def compared(
    repository: Repository,
    store: CountingStore,
    text: str,
    pc: ThisPc,
    *,
    began: float,
    environ: Mapping[str, str],
) -> Preflight:
    """As `preflight`, of an opened repository; `began`: when opening it did, in `time.monotonic`."""
    selected = select(repository, text)
    if selected.path:
        raise UsageError(f"preflight takes a whole snapshot, not {selected.path!r} in it")
    reader = FrameReader(repository, io_timeout=IO_TIMEOUT)
    drive = Drive(repository, reader)
    try:
        return _Comparison(repository, store, drive, selected, pc, began, environ).result()
    finally:
        drive.close()
        reader.close()


class _Comparison:
    def __init__(
        self,
        repository: Repository,
        store: CountingStore,
        drive: Drive,
        selected: Selected,
        pc: ThisPc,
        began: float,
        environ: Mapping[str, str],
    ) -> None:
        self._repository, self._store, self._selected, self._pc = repository, store, selected, pc
        self._snapshot, self._environ = selected.snapshot, environ
        self._kept = hardware_of(self._snapshot.summary)
        self._disks = in_order(drive.opened(self._snapshot).disks, self._kept)
        if not self._disks:
            name = f"{self._snapshot.machine}/{selected.folder}"
            raise NotFoundError(f"{name} has no disks to start a machine from")
        self._looks = [look_at(disk) for disk in self._disks]
        self._opening = time.monotonic() - began
        self._opened = store.snapshot()
        traces = cache_folder(environ) / repository.config.repo_id / "traces"
        self._learning = BootLearning(repository, drive.reader, traces)
        billed = is_billed(repository.store.address)
        self._prices = prices() if billed else None

    def result(self) -> Preflight:
        pc, kept = self._pc, self._kept
        options = BootOptions(
            memory=kept.memory or default_memory(pc.memory), cpus=kept.cpus or default_cpus(pc.cpus)
        )
        machine = machine_of(self._disks, options, kept)
        link, link_finding = self._link()
        needs = boot_needs(self._disks, self._looks, self._learning.newest)
        windows = any(look.windows for look in self._looks)
        stages = self._stages(link, needs.seconds(link, pc.accelerator, windows), needs.bytes, needs.requests)
        findings = [
            *judged(
                machine,
                pc,
                variables=len(kept.nvram) if kept.nvram is not None else None,
                copy_bytes=sum(_copy_bytes(disk) for disk in self._disks),
            ),
            link_finding,
            *self._patience(stages[1]),
            *self._of_the_snapshot(),
        ]
        counts = self._store.snapshot()
        return Preflight(
            f"{self._snapshot.machine}/{self._selected.folder}",
            machine,
            tuple(findings),
            stages,
            needs.traced,
            link,
            self._prices,
            self._repository.config.tier,
            counts.bytes_down,
            counts.reads,
        )

    def _link(self) -> tuple[Link | None, Finding]:
        try:
            link = measure(self._store, _ranges(self._disks))
        except CloudMountError as error:
            advice = "look at the line, and try again"
            return None, Finding("link", "warn", f"its speed could not be measured: {error}", advice)
        if link is None:
            return None, Finding("link", "ok", "nothing is stored of its disks: nothing to measure it with")
        text = (
            f"{link.bytes_per_second / 1e6:.1f} MB/s, {link.round_trip * 1000:.0f} ms a round trip "
            f"(measured by reading {link.fetched_bytes / 1e6:.1f} MB in {link.requests} requests)"
        )
        return link, Finding("link", "ok", text)

    def _stages(self, link: Link | None, boot_seconds: float, boot: int, requests: int) -> tuple[Stage, ...]:
        stored = sum(disk.root.sealed for disk in self._disks)
        asked = sum(-(-disk.root.sealed // LONGEST) for disk in self._disks)
        plain = sum(disk.root.frames for disk in self._disks) * self._repository.geometry.frame
        copying = max(link.seconds(stored) if link is not None else 0.0, plain / DISK_SPEED)
        tier = self._repository.config.tier
        return (
            Stage("opening", self._opening, self._opened.bytes_down, self._opened.reads,
                  self._opening_cost(self._opened)),
            Stage("boot", boot_seconds, boot, requests, self._cost(tier, boot, requests)),
            Stage("hydration", copying, stored, asked, self._cost(tier, stored, asked)),
        )  # fmt: skip

    def _cost(self, tier: str, size: int, reads: int, listings: int = 0) -> Cost | None:
        if self._prices is None:
            return None
        return self._prices.cost(tier, reads=reads, bytes_down=size, listings=listings)

    def _opening_cost(self, counts: Counts) -> Cost | None:
        """Maps and snapshots are in the hot tier, whatever packs are in."""
        return self._cost("hot", counts.bytes_down, counts.read, counts.list + counts.list_folders)

    def _patience(self, boot: Stage) -> Iterator[Finding]:
        if boot.seconds > READY_SECONDS:
            text = f"the boot takes about {boot.seconds / 60:.0f} minutes"
            advice = (
                f"boot --timeout {round(2 * boot.seconds)} waits for it; "
                "'cloudmount hydrate' first makes it as quick as from a local disk"
            )
            yield Finding("patience", "warn", text, advice)

    def _of_the_snapshot(self) -> Iterator[Finding]:
        summary = self._snapshot.summary
        if not summary["consistent"]:
            text = "its disks changed while they were backed up: the guest may have to mend its file systems"
            yield Finding("snapshot", "warn", text, "an older snapshot may be whole: 'cloudmount snapshots'")
        vm = vm_of(self._snapshot.id, self._environ)
        if vm is not None:
            text = f"it has a VM here already, {vm.name} ({vm.state_text})"
            yield Finding("vm", "warn", text, f"'cloudmount boot --resume {vm.name}' goes on with it")


def _copy_bytes(disk: StoredDisk) -> int:
    """What a complete copy of it takes."""
    size = disk.vhdx_bytes()
    return size if size is not None else disk.root.frames * disk.map.frame_bytes


def _ranges(disks: Sequence[StoredDisk]) -> Iterator[Range]:
    """Where stored frames of the disks lie; a request for each segment that is looked up."""
    for disk in disks:
        for number in range(disk.map.segments):
            segment = disk.map.segment(number)
            if segment is not None:
                for run in coalesce(segment.locations(), lambda at: at, longest=LONGEST):
                    yield Range(pack_name(run.pack), run.offset, run.length)
