"""Listing snapshots, and everything about one.

Decided here and only here: what a snapshot looks like as JSON, whether its newest drill proved it, and what
is told of a machine's history (forks, gaps, snapshots that do not open).
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cloudmount.app.proofs import drills, proof_of
from cloudmount.app.select import Selected
from cloudmount.app.sightings import Sightings
from cloudmount.blobs.store import BlobInfo
from cloudmount.errors import BlobMissingError, CloudMountError, DamagedError, NotFoundError
from cloudmount.repo.names import SNAPSHOTS, folders, iso_time
from cloudmount.repo.proofs import Drilled
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import Snapshot


def snapshot_json(snapshot: Snapshot, folder: str, drilled: Drilled | None) -> dict[str, Any]:
    """A snapshot as `snapshots --json` lists it; `drilled`: its newest drill."""
    s = snapshot.summary
    return {
        "id": snapshot.id,
        "machine": snapshot.machine,
        "name": folder,
        "time": s["time"],
        "sequence": snapshot.key.sequence,
        "disks": [
            {"name": f"{d['path']}/{d['name']}" if d["path"] else d["name"], "size": d["size"]}
            for d in s["disks"]
        ],
        "files": s["files"]["count"],
        "consistent": s["consistent"],
        "incomplete": s["incomplete"],
        "proved": drilled is not None and drilled.proved,
        "drilled": iso_time(drilled.time) if drilled is not None else None,
    }


def show_json(
    repository: Repository, selected: Selected, environ: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """Everything about one snapshot, and what its newest drill found. A proof that does not open is told."""
    snapshot = selected.snapshot
    s = snapshot.summary
    drilled = drills(repository, snapshot.tag, environ).get(snapshot.id)
    value = snapshot_json(snapshot, selected.folder, drilled)
    proof: Mapping[str, Any] | None = None
    if drilled is not None:
        try:
            proof = proof_of(repository, drilled, environ).facts
        except (DamagedError, BlobMissingError) as error:
            repository.warn(f"what the drill found is lost: {error}")
    for disk, told, root in zip(value["disks"], s["disks"], snapshot.roots, strict=True):
        disk |= {k: v for k, v in told.items() if k not in ("name", "path", "size")}
        disk |= {"stored_bytes": root.sealed, "frames": root.frames}
    value |= {
        "previous": s["previous"],
        "host": s["host"],
        "program": s["program"],
        "file_bytes": s["files"]["bytes"],
        "source_bytes": s["source_bytes"],
        "read_bytes": s["read_bytes"],
        "seconds": s["seconds"],
        "problems": s["problems"],
        "problem_count": s["problem_count"],
        "drill": proof,
    }
    return value


def snapshots(
    repository: Repository, machine: str | None, environ: Mapping[str, str] = os.environ
) -> list[dict[str, Any]]:
    """Every snapshot of a machine, or of all, newest last. What does not open is told."""
    sightings = Sightings(repository, environ)
    tags = (
        [repository.keys.tag(machine)]
        if machine is not None
        else list(repository.store.list_folders(SNAPSHOTS))
    )
    lines: list[list[tuple[Snapshot, str]]] = []
    unusable = 0
    with ThreadPoolExecutor(8) as pool:
        for tag in tags:
            line, failed = opened_line(repository, tag, pool)
            unusable += failed
            _history(repository, [s for s, _ in line])
            if line:
                sightings.saw(line[-1][0])
                lines.append(line)
    if machine is not None and not lines:
        raise no_line(repository, machine, unusable)
    # By time over machines, but each machine's own in their order, whatever its clock did.
    merged = heapq.merge(*lines, key=lambda pair: pair[0].key.time)
    told = drills(repository, tags[0] if machine is not None else None, environ) if lines else {}
    return [snapshot_json(s, folder, told.get(s.id)) for s, folder in merged]


def opened_line(
    repository: Repository, tag: str, pool: ThreadPoolExecutor
) -> tuple[list[tuple[Snapshot, str]], int]:
    """A machine's snapshots that open with their folders' names, oldest first, and how many don't, told."""

    def load(info: BlobInfo) -> Snapshot | None:
        try:
            return repository.load(info)
        except (DamagedError, BlobMissingError) as error:
            repository.warn(f"a snapshot is unusable: {error}")
            return None

    infos = repository.listed(tag)
    named = folders(list(infos))
    opened = list(pool.map(load, (infos[key] for key in named.values())))
    line = [(s, folder) for s, folder in zip(opened, named, strict=True) if s is not None]
    return line, len(named) - len(line)


def no_line(repository: Repository, machine: str, unusable: int) -> CloudMountError:
    """Why a machine has no snapshot that opens."""
    if unusable:
        return DamagedError(f"none of the {unusable} snapshots of {machine!r} opens")
    names = [m.name for m in repository.machines()]
    return NotFoundError(f"there is no machine called {machine!r}; there is {', '.join(names) or 'none'}")


def _history(repository: Repository, line: list[Snapshot]) -> None:
    """Tell forks and gaps in a machine's snapshots, oldest first."""
    if line and line[0].key.sequence > 1:
        repository.warn(
            f"{line[0].machine}: the snapshots before number {line[0].key.sequence} "
            f"({line[0].key.folder}) are missing from the store"
        )
    for before, after in itertools.pairwise(line):
        if after.key.sequence == before.key.sequence:
            repository.warn(
                f"{after.machine}: two snapshots have number {after.key.sequence} "
                f"({before.key.folder}, {after.key.folder}): two backups ran at once; both stand"
            )
        elif after.key.sequence > before.key.sequence + 1:
            repository.warn(
                f"{after.machine}: between number {before.key.sequence} ({before.key.folder}) and "
                f"{after.key.sequence} ({after.key.folder}) snapshots are missing from the store"
            )
