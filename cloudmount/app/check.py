"""Check: proving a repository, and telling what is damaged by snapshot, file and range.

Decided here and only here: in which order things are looked at, what counts as damage
and what is only told (gaps, forks, room that nothing uses), and that damaged
frames and items are written down in the repository, so that the next backup stores them
anew (FORMAT.md 6.6). Nothing comes from caches. Belongs to one thread; reading has its own.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from cloudmount.app.sightings import Sightings
from cloudmount.blobs.store import BlobInfo
from cloudmount.errors import BlobMissingError, DamagedError, StoreError, UsageError
from cloudmount.memory import for_moving
from cloudmount.repo.bootpacks import damaged_boot_packs
from cloudmount.repo.config import configs_agree
from cloudmount.repo.damage import Damage, open_damage, write_damage
from cloudmount.repo.datacheck import DataCheck, References
from cloudmount.repo.findings import Finding, Findings, Spot
from cloudmount.repo.holders import Holders
from cloudmount.repo.mapcheck import MapCheck
from cloudmount.repo.names import (
    CONFIG,
    DAMAGE,
    INDEX,
    SNAPSHOTS,
    SnapshotKey,
    folders,
    pack_name,
    parse_snapshot_name,
)
from cloudmount.repo.packs import INDEX_LIMIT, PackTable, open_index
from cloudmount.repo.proofs import damaged_proofs
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import Snapshot
from cloudmount.repo.streams import MapCache
from cloudmount.repo.traces import damaged_traces
from cloudmount.repo.trust import Trust, look

WORKERS = 8
"""Threads that read and prove; in memory are at most as many ranges of 4 MiB."""

T = TypeVar("T")


@dataclass(slots=True)
class CheckProgress:
    """Counters of one check. The totals of frames and bytes are known once all maps were read."""

    snapshots: int = 0
    total_snapshots: int = 0
    frames: int = 0
    total_frames: int = 0
    """Distinct frames to read."""
    bytes: int = 0
    """Sealed bytes read of them."""
    total_bytes: int = 0
    current: str = ""
    """What is being looked at now."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read(self, frames: int, bytes: int) -> None:
        """So much more was read. On any thread."""
        with self.lock:
            self.frames += frames
            self.bytes += bytes


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found. `ok` without any damage; `damage` is sorted, and cut off at 10,000 ranges."""

    ok: bool
    damage: Sequence[Finding]
    more_damage: int
    """Ranges beyond those in `damage`."""
    notices: Sequence[str]
    """What is no damage and should be known: gaps, forks, what could not be written down."""
    snapshots: int
    packs: int
    maps: int
    indexes: int
    read_percent: float
    """Of the distinct frames that snapshots hold, the share drawn for reading; 0 when none were read."""
    frames_read: int
    bytes_read: int
    """Sealed bytes of packs and map objects read in full."""
    unreferenced_bytes: int
    """Length of the packs and map objects that no snapshot names."""
    unindexed_bytes: int
    """Of these, packs that no index object names either: nothing will ever use them."""
    recorded: str | None
    """The damage object written, if any."""
    seconds: float


class _Named(NamedTuple):
    """An opened snapshot and how people call it: MACHINE/FOLDER."""

    name: str
    snapshot: Snapshot


def check(
    repository: Repository,
    *,
    read_data: float | None = None,
    seed: int | None = None,
    progress: CheckProgress | None = None,
    environ: Mapping[str, str] | None = None,
) -> CheckResult:
    """Prove the repository. Maps are read whole; with `read_data` also that percentage of the distinct
    frames (drawn by `seed`, a fresh one each time when None), and at 100 every byte of every object.

    With `environ` what this machine remembers of the repository is compared too.
    `StoreError` when the store fails; `UsageError` for a percentage outside 0 to 100.
    """
    if read_data is not None and not 0 < read_data <= 100:
        raise UsageError(f"{read_data} % of the data can't be read: give a number above 0, at most 100")
    for_moving()
    return _Check(repository, read_data, seed, progress or CheckProgress(), environ).run()


class _Check:
    def __init__(
        self,
        repository: Repository,
        percent: float | None,
        seed: int | None,
        progress: CheckProgress,
        environ: Mapping[str, str] | None,
    ) -> None:
        self.notices: list[str] = []
        # Without its cache: what the store holds is to be proved.
        self.repository = Repository(repository.store, repository.config, tell=self.notices.append)
        self.sightings = Sightings(self.repository, environ) if environ is not None else None
        self.store = repository.store
        self.percent = percent
        self.seed = random.getrandbits(63) if seed is None else seed
        self.progress = progress
        self.findings = Findings()
        self.wrong_once = 0
        self.damage = Damage()
        """Found now."""
        self.recorded = Damage()
        """Told by damage objects."""

    def run(self) -> CheckResult:
        began = time.monotonic()
        wrong = configs_agree(self.store) and configs_agree(self.store)
        if wrong is not None:
            self.findings.add("", Spot(CONFIG, 0, 0, wrong))
        # Snapshots are listed first: what they name was written before them, so that it is in later
        # listings, also while backups go on.
        infos = list(self.store.list(SNAPSHOTS))
        indexes = list(self.store.list(INDEX))
        self._damage_objects()
        self._traces_and_proofs()
        trust = look(self.repository, self.recorded)
        snapshots = self._open(infos)
        named = {id for _, snapshot in snapshots for id in snapshot.dictionaries}
        for spot, counts in self.repository.dictionaries.damaged(named):
            if counts:
                self.findings.add("", spot)
            else:
                self.notices.append(f"{spot.path}: {spot.why}; no snapshot needs it yet")
        references = References(self.percent or 0.0, self.seed)
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="check")
        try:
            maps = MapCheck(self.repository, trust, self.damage, self.findings, references, pool)
            self._maps(snapshots, maps)
            indexed = self._indexes(indexes, trust)
            data = DataCheck(self.repository, self.damage, self.findings, self.progress.read, pool)
            if self.percent is not None:
                self._data(data, references, trust, snapshots)
            if self.percent == 100:  # every frame that needs one was met
                self.damage.dictionaries |= {id for id in named if self.repository.dictionaries.lost(id)}
        finally:
            pool.shutdown(cancel_futures=True)
            references.close()
        self._history(snapshots)
        wrong_once = self.wrong_once + maps.wrong_once + data.wrong_once
        if wrong_once:
            self.notices.append(
                f"{wrong_once} pieces came wrong, and right when read again: something alters them on the way"
            )
        spare = {pack: size for pack, size in trust.packs.items() if pack not in maps.used_packs}
        untold = sum(1 for pack in trust.packs if pack in maps.used_packs and pack not in indexed)
        if untold:
            self.notices.append(
                f"{untold} packs are named by no index object: what they hold is stored again when a new "
                "machine backs it up"
            )
        unused_maps = sum(size for map, size in trust.maps.items() if map not in maps.used_maps)
        recorded = self._record()
        damage = self.findings.all()
        return CheckResult(
            ok=not damage,
            damage=damage,
            more_damage=self.findings.dropped,
            notices=self.notices,
            snapshots=len(snapshots),
            packs=len(trust.packs),
            maps=len(trust.maps),
            indexes=len(indexes),
            read_percent=self.percent or 0.0,
            frames_read=self.progress.frames,
            bytes_read=self.progress.bytes,
            unreferenced_bytes=sum(spare.values()) + unused_maps,
            unindexed_bytes=sum(size for pack, size in spare.items() if pack not in indexed),
            recorded=recorded,
            seconds=time.monotonic() - began,
        )

    def _twice(self, attempt: Callable[[], T]) -> T:
        """What fails is read once more: it may be the line that altered it."""
        try:
            return attempt()
        except DamagedError:
            value = attempt()
            self.wrong_once += 1
            return value

    def _damage_objects(self) -> None:
        for info in self.store.list(DAMAGE):
            try:
                one = self._twice(partial(open_damage, self.repository, info))
            except (DamagedError, BlobMissingError) as error:
                self.findings.add("", Spot(info.name, 0, info.size, _short(error, info.name)))
            else:
                self.recorded.add(one)

    def _traces_and_proofs(self) -> None:
        for error in damaged_traces(self.repository):
            self.notices.append(f"{error}; it is ignored, a boot may take longer")
        for error in damaged_proofs(self.repository):
            self.notices.append(f"{error}; it proves nothing, and is no damage to any backup")
        whole = self.percent is not None and self.percent >= 100
        for error in damaged_boot_packs(self.repository, whole=whole):
            self.notices.append(f"{error}; it is not used, a boot may take longer")

    def _open(self, infos: Sequence[BlobInfo]) -> list[_Named]:
        """Every snapshot that opens, by machine and age, of its newest layout; what doesn't is damage."""
        by_tag: dict[str, dict[SnapshotKey, list[tuple[int, BlobInfo]]]] = {}
        for info in infos:
            told = parse_snapshot_name(info.name)
            if told is None:
                self.notices.append(f"{info.name}: not a snapshot's name; ignored")
            else:
                layouts = by_tag.setdefault(told.tag, {}).setdefault(told.key, [])
                layouts.append((told.generation, info))
        self.progress.total_snapshots = sum(map(len, by_tag.values()))
        found = []
        for tag, keys in by_tag.items():
            opened: dict[SnapshotKey, Snapshot] = {}
            failed: list[tuple[SnapshotKey, str]] = []
            for key, layouts in keys.items():
                for _, info in sorted(layouts, key=lambda layout: layout[0]):
                    try:
                        opened[key] = self._twice(partial(self.repository.load, info))
                    except (DamagedError, BlobMissingError) as error:
                        failed.append((key, str(error)))
            machine = next((s.machine for s in opened.values()), tag)
            named = {key: f"{machine}/{folder}" for folder, key in folders(list(keys)).items()}
            for key, why in failed:
                self.findings.add(named[key], Spot("", 0, 0, why))
            if opened and self.sightings is not None:
                self.sightings.saw(opened[max(opened)])
            found += [_Named(named[key], opened[key]) for key in sorted(opened)]
        return found

    def _maps(self, snapshots: Sequence[_Named], maps: MapCheck) -> None:
        for name, snapshot in snapshots:
            self.progress.current = name
            try:
                for spot in maps.snapshot(snapshot):
                    self.findings.add(name, spot)
            except BlobMissingError as error:
                self.findings.add(name, Spot("", 0, 0, f"it was removed while it was checked: {error}"))
            self.progress.snapshots += 1

    def _indexes(self, infos: Sequence[BlobInfo], trust: Trust) -> set[bytes]:
        """The packs that index objects name."""
        indexed: set[bytes] = set()
        for info in infos:
            self.progress.current = info.name
            try:
                if info.size > INDEX_LIMIT:
                    raise DamagedError(f"{info.name} is larger than an index object is")
                tables = self._twice(partial(self._index, info.name))
            except (DamagedError, BlobMissingError) as error:
                self.findings.add("", Spot(info.name, 0, info.size, _short(error, info.name)))
                continue
            for table in tables:
                indexed.add(table.id)
                size = trust.packs.get(table.id)
                if size is None:
                    why = "missing from the store"
                elif size != table.size:
                    why = f"it has {size} bytes where {table.size} belong"
                else:
                    continue
                self.findings.add("", Spot(pack_name(table.id), min(size or 0, table.size), 0, why))
        return indexed

    def _index(self, name: str) -> list[PackTable]:
        return open_index(self.repository.keys, name, self.store.read(name))

    def _data(
        self, data: DataCheck, references: References, trust: Trust, snapshots: Sequence[_Named]
    ) -> None:
        whole = self.percent is not None and self.percent >= 100
        self.progress.total_frames, self.progress.total_bytes = references.totals()
        if whole:
            self.progress.total_bytes = sum(trust.packs.values()) + sum(trust.maps.values())
        self.progress.current = "packs"
        data.frames(references, trust.packs, whole)
        if whole:
            self.progress.current = "map objects"
            data.maps(trust.maps)
        if data.bad:
            holders = Holders(MapCache(self.repository), data.bad)
            for name, snapshot in snapshots:
                self.progress.current = name
                for spot in holders.in_snapshot(snapshot):
                    self.findings.add(name, spot)

    def _history(self, snapshots: Sequence[_Named]) -> None:
        """Gaps and forks of each machine's line of snapshots."""
        by_machine: dict[str, list[_Named]] = {}
        for named in snapshots:
            by_machine.setdefault(named.snapshot.machine, []).append(named)
        for machine, line in by_machine.items():
            ids = {s.snapshot.id for s in line}
            numbers: dict[int, list[str]] = {}
            for name, snapshot in line:
                numbers.setdefault(snapshot.key.sequence, []).append(name)
                before = snapshot.summary["previous"]
                if before is not None and before not in ids:
                    self.notices.append(
                        f"{name} follows a snapshot that is not here or doesn't open: {before[:8]}"
                    )
            last = 0
            for number, names in sorted(numbers.items()):
                if number > last + 1:
                    which = f"{last + 1}" if number == last + 2 else f"{last + 1} to {number - 1}"
                    self.notices.append(
                        f"{machine}: no snapshot with number {which} is here before {names[0]}"
                    )
                if len(names) > 1:
                    self.notices.append(
                        f"{machine}: a fork, several with number {number}: {', '.join(names)}"
                    )
                last = number

    def _record(self) -> str | None:
        """Write down what was found and is not yet, for writers."""
        new = self.damage.beyond(self.recorded)
        if not new:
            return None
        try:
            return write_damage(self.repository, new)
        except StoreError as error:
            self.notices.append(
                f"the damage could not be written down in the repository ({error}): backups may go on using "
                "damaged parts; run 'cloudmount check' again with a credential that may create"
            )
            return None


def _short(error: Exception, name: str) -> str:
    return str(error).removeprefix(f"{name}: ").removeprefix(f"{name} ")
