"""Traces: what a boot read of a disk, in order (FORMAT.md 6.7).

Decided here and only here: the content of trace objects. They only ever help to read sooner: what is wrong
with one is ignored. Pure but for the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from cloudmount.blobs.store import BlobInfo
from cloudmount.crypto.keyring import Keyring
from cloudmount.crypto.slots import canonical
from cloudmount.errors import BlobMissingError, DamagedError
from cloudmount.repo.names import TRACES, trace_prefix
from cloudmount.repo.objects import open_single, seal_single
from cloudmount.repo.repository import Repository
from cloudmount.repo.structures import KIND_TRACE

OBJECT_LIMIT = 1 << 20
MOST_RUNS = 1 << 16


@dataclass(frozen=True, slots=True)
class Trace:
    """What was read of `disk` (its path on the drive, without ending) of the snapshot with this id.

    `runs`: (first frame, frames, milliseconds since it was opened), in the order first read; `time` in
    whole seconds since 1970, `size` of the disk and `frame_bytes` in bytes.
    """

    disk: str
    snapshot: str
    time: int
    size: int
    frame_bytes: int
    runs: tuple[tuple[int, int, int], ...]


def seal_trace(keys: Keyring, tag: str, trace: Trace) -> tuple[str, bytes]:
    """A trace object of the machine with this tag: its name and bytes."""
    value = {
        "disk": trace.disk,
        "snapshot": trace.snapshot,
        "time": trace.time,
        "size": trace.size,
        "frame": trace.frame_bytes,
        "runs": [list(run) for run in trace.runs[:MOST_RUNS]],
    }
    return seal_single(keys, KIND_TRACE, trace_prefix(tag, trace.time), canonical(value))


def open_trace(keys: Keyring, name: str, data: bytes) -> Trace:
    """The trace in an object; `DamagedError` when it does not open under its name, or makes no sense."""
    if len(data) > OBJECT_LIMIT:
        raise DamagedError(f"{name} is larger than a trace is")
    try:
        value = json.loads(open_single(keys, KIND_TRACE, name, data))
        size, frame = int(value["size"]), int(value["frame"])
        runs = tuple((int(first), int(count), int(ms)) for first, count, ms in value["runs"])
        if frame <= 0 or any(first < 0 or count <= 0 for first, count, _ in runs):
            raise ValueError("a run that is none")
        return Trace(str(value["disk"]), str(value["snapshot"]), int(value["time"]), size, frame, runs)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{name} makes no sense: {error!r}") from None


def read_trace(repository: Repository, info: BlobInfo, *, deadline: float | None = None) -> Trace:
    """The trace in the object that a listing told of. Errors as of `open_trace` and the store."""
    if info.size > OBJECT_LIMIT:
        raise DamagedError(f"{info.name} is larger than a trace is")
    return open_trace(repository.keys, info.name, repository.store.read(info.name, deadline=deadline))


def damaged_traces(repository: Repository) -> Iterator[DamagedError]:
    """Why each trace object does not open that does not."""
    for info in repository.store.list(TRACES):
        try:
            read_trace(repository, info)
        except BlobMissingError:
            continue
        except DamagedError as error:
            yield error
