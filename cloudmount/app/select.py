"""Which snapshot, disk or path a user means by what was typed.

Decided here and only here: the forms of SNAPSHOT, DISK and SNAPSHOT:PATH (`cli.md`), and
what is said when there is no such thing. Pure but for the store.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from cloudmount.app.sightings import Sightings
from cloudmount.errors import DamagedError, NotFoundError, UsageError
from cloudmount.repo.names import SNAPSHOTS, SnapshotKey, folders, parse_snapshot_name
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import Snapshot
from cloudmount.system import means_this_computer, typed_path

LATEST = "latest"
_ID = re.compile("[0-9a-f]{8,32}")


@dataclass(frozen=True, slots=True)
class Selected:
    """A snapshot, its folder's name on the drive, and the path behind the colon (empty without one)."""

    snapshot: Snapshot
    folder: str
    path: str


def machine_name(name: str) -> str:
    """A machine's name as it is kept (Unicode form NFC); `UsageError` for one that can't be."""
    name = unicodedata.normalize("NFC", name)
    if not name or any(c in "/:\\" or unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise UsageError(f"{name!r} can't be a machine's name: it has no '/', ':', '\\' or control character")
    if name in (".", "..") or len(name.encode("utf-8")) > 255:
        raise UsageError(
            f"{name!r} can't be a machine's name: it must do as a folder's, of at most 255 bytes"
        )
    return name


def split_path(text: str) -> tuple[str, str]:
    """SNAPSHOT and PATH of `SNAPSHOT[:PATH]`; the path without leading and trailing slashes."""
    snapshot, _, path = text.partition(":")
    return snapshot, typed_path(path).strip("/")


def select(repository: Repository, text: str, environ: Mapping[str, str] | None = None) -> Selected:
    """What `SNAPSHOT[:PATH]` names; `NotFoundError` says what there is instead. With `environ` a latest
    snapshot is compared with what this machine remembers."""
    name, path = split_path(text)
    machine, slash, which = name.partition("/")
    machine = unicodedata.normalize("NFC", machine)
    infos = repository.listed(repository.keys.tag(machine)) if machine else {}
    if infos:
        named = folders(list(infos))
        if which in ("", LATEST):
            newest = repository.newest(repository.keys.tag(machine))
            if newest is None:
                raise DamagedError(f"no snapshot of {machine!r} opens; run 'cloudmount check'")
            snapshot = newest[0]
            if environ is not None:
                Sightings(repository, environ).saw(snapshot)
            return Selected(snapshot, next(f for f, k in named.items() if k == snapshot.key), path)
        if which in named:
            _tell_gap(repository, machine, named[which], infos)
            return Selected(repository.load(infos[named[which]]), which, path)
        near = difflib.get_close_matches(which, named, 1, 0.0)
        raise NotFoundError(
            f"{machine!r} has no snapshot {which!r}; it has {len(named)}, the nearest name is {near[0]}"
        )
    if not slash and _ID.fullmatch(name.lower()):
        return _by_id(repository, name.lower(), path)
    names = [m.name for m in repository.machines()]
    if not names:
        raise NotFoundError(
            "there are no snapshots in this repository yet; make one with 'cloudmount backup'"
        )
    hint = "; SNAPSHOT is no path of this computer" if means_this_computer(text) else ""
    raise NotFoundError(f"there is no machine called {machine!r}; there is {', '.join(names[:10])}{hint}")


def _tell_gap(
    repository: Repository, machine: str, key: SnapshotKey, infos: Mapping[SnapshotKey, object]
) -> None:
    """Names of one second are counted (`-2`): when one is missing, a name may mean another snapshot."""
    if key.sequence > 1 and not any(k.sequence == key.sequence - 1 for k in infos):
        repository.warn(
            f"{machine}: the snapshot before {key.folder} (number {key.sequence}) is missing from the store; "
            "if both are of one second, this name was the other's: 'cloudmount show' tells its id"
        )


def _by_id(repository: Repository, prefix: str, path: str) -> Selected:
    found = {}
    for info in repository.store.list(SNAPSHOTS):
        told = parse_snapshot_name(info.name)
        if told is not None and told.key.id.startswith(prefix):
            found[told.key.id] = told
    if not found:
        raise NotFoundError(f"there is no machine called {prefix!r}, and no snapshot whose id begins so")
    if len(found) > 1:
        raise NotFoundError(f"{len(found)} snapshots have an id that begins with {prefix}: give more digits")
    told = next(iter(found.values()))
    infos = repository.listed(told.tag)
    folder = next(f for f, k in folders(list(infos)).items() if k == told.key)
    return Selected(repository.load(infos[told.key]), folder, path)
