"""What a copy brings, and what each thing is called here.

Decided here and only here: TARGET's meaning (as for `cp -r`: an existing folder gets the thing inside, else
it is the new name), that files which belong together come together, that a disk met in a folder comes once,
as one file, and that what is there already is never replaced: that is found before anything is fetched.
Belongs to one thread.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from cloudmount.app.browsing import Found, walk
from cloudmount.app.companions import companions, renamed
from cloudmount.app.unnameable import renaming
from cloudmount.errors import CloudMountError, NotFoundError, StoreError, TargetExistsError, UsageError
from cloudmount.nodes import Dir, File, Link, Node, Stored, is_dir, is_file, is_link
from cloudmount.system import held, refused
from cloudmount.tree.snapshotdir import StoredDisk, StoredFile

MEASURING_SECONDS = 2.0
"""How long maps are asked what files take; sizes must do for the rest."""
MOST_TOLD = 20
"""Names told of that are others here."""
N = TypeVar("N", bound=Node)


@dataclass(frozen=True, slots=True)
class Placed(Generic[N]):
    """Something of the drive, its path there, and where it goes."""

    path: str
    node: N
    target: Path


@dataclass(slots=True)
class CopyPlan:
    """What is to be made. Folders stand before what is in them. Sizes in bytes."""

    folders: list[Placed[Dir]] = field(default_factory=list)
    files: list[Placed[File]] = field(default_factory=list)
    links: list[Placed[Link]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """What is left out because it can't be read or made, by its path on the drive, and why."""
    notes: list[str] = field(default_factory=list)
    """What people should know: what comes along, what doesn't."""
    bytes: int = 0
    """Of the files' contents."""
    to_fetch: int = 0
    """About how much comes down at most."""


def target_of(name: str, target: Path, *, folder: bool, slash: bool) -> Path:
    """What a thing called `name` becomes with this TARGET; `slash`: it was written with one at its end.

    `TargetExistsError` where something else is in the way, `NotFoundError` where there is no folder for it.
    """
    if target.is_dir():
        why = refused(name)
        if why is not None:
            raise UsageError(f"{name!r}: {why}: give it another name")
        return target / (held(name) or name)
    if os.path.lexists(target):
        raise TargetExistsError(
            f"{target} exists{' and is not a folder' if folder else ''}; it is not overwritten: "
            "give another name, or a folder"
        )
    if slash and not folder:
        raise NotFoundError(
            f"there is no folder {target}: make it first, or leave the '/' out for a new name"
        )
    if not target.parent.is_dir():
        raise NotFoundError(f"{target.parent} is not a folder: nothing can be put there")
    return target


def plan_copy(
    disks: Sequence[StoredDisk], found: Found, target: Path, *, slash: bool = False, only: bool = False
) -> CopyPlan:
    """What copying `found`, of a snapshot with these `disks`, to TARGET makes.

    `TargetExistsError` when something of it is there already, naming that. `only`: nothing else comes along.
    """
    plan = CopyPlan()
    top = target_of(found.name, target, folder=is_dir(found.node), slash=slash)
    renames = [(found.name, top.name)] if target.is_dir() and top.name != found.name else []
    _add(disks, plan, found.path, found.node, top, renames)
    if not only and is_file(found.node):
        what, beside = companions(found.name, (name for name, _ in found.folder.list()))
        for name in beside:
            node = found.folder.lookup(name)
            if node is not None:
                folder = found.path.rpartition("/")[0]
                other = renamed(name, found.name, top.name)
                place = top.with_name(held(other) or other)
                _add(disks, plan, f"{folder}/{name}" if folder else name, node, place, renames)
        if beside:
            plan.notes.append(
                f"{found.name} is {what}: {', '.join(beside)} {'come' if len(beside) > 1 else 'comes'} along "
                "(--only leaves that out)"
            )
    plan.notes += map(renaming, renames[:MOST_TOLD])
    if len(renames) > MOST_TOLD:
        plan.notes.append(f"... and {len(renames) - MOST_TOLD} more names that Windows can't hold")
    _check_free(plan)
    until = time.monotonic() + MEASURING_SECONDS
    for file in plan.files:
        plan.bytes += file.node.attr().size
        plan.to_fetch += _to_fetch(file.node, time.monotonic() < until)
    return plan


def _add(
    disks: Sequence[StoredDisk],
    plan: CopyPlan,
    path: str,
    node: Node,
    target: Path,
    renames: list[tuple[str, str]],
) -> None:
    """Plan `node` and what is in it; what gets another name here is added to `renames`."""
    _add_one(plan, path, node, target)
    if not is_dir(node):
        return
    once = _Disks(disks, plan.notes.append)

    def failed(where: str, error: CloudMountError) -> None:
        plan.skipped.append((where, str(error)))

    places = {path: target}
    for below, child in walk(node, path, failed, once.enters):
        if once.shown_otherwise(below):
            continue
        folder, _, name = below.rpartition("/")
        why = refused(name)
        if why is not None:
            plan.skipped.append((below, why))
        if why is not None or folder not in places:
            continue
        shown = held(name) or name
        if shown != name:
            renames.append((below, shown))
        if is_dir(child):
            places[below] = places[folder] / shown
        _add_one(plan, below, child, places[folder] / shown)


def _add_one(plan: CopyPlan, path: str, node: Node, target: Path) -> None:
    if is_dir(node):
        plan.folders.append(Placed(path, node, target))
    elif is_link(node):
        plan.links.append(Placed(path, node, target))
    elif isinstance(node, StoredFile) and node.entry.type != "file":
        plan.skipped.append((path, f"a {node.entry.type}, not a file: 'cloudmount restore' makes it"))
    elif is_file(node):
        plan.files.append(Placed(path, node, target))


class _Disks:
    """That each disk in a folder comes once: as its `.vhdx`, or `.img` where it has none."""

    def __init__(self, disks: Sequence[StoredDisk], tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._instead: dict[str, str] = {}
        """What stands for each of the other ways in which a disk shows."""
        for disk in disks:
            if disk.vhdx_bytes() is None:
                self._instead[disk.path] = f"{disk.path}.img"
            else:
                self._instead[disk.path] = self._instead[f"{disk.path}.img"] = f"{disk.path}.vhdx"

    def enters(self, path: str) -> bool:
        """Whether a folder is walked."""
        return path not in self._instead

    def shown_otherwise(self, path: str) -> bool:
        """Whether it is another form of a disk that comes."""
        instead = self._instead.get(path)
        if instead is not None and path.endswith(".img"):
            self._tell(f"the disk {path.removesuffix('.img')} comes once, as {instead}")
        return instead is not None


def _check_free(plan: CopyPlan) -> None:
    """`TargetExistsError` when something is in the way; folders go into those that are there."""
    taken = [f.target for f in plan.folders if not stat.S_ISDIR(_mode(f.target) or stat.S_IFDIR)]
    taken += [f.target for f in plan.files if _mode(f.target) is not None]
    taken += [k.target for k in plan.links if _mode(k.target) is not None]
    if taken:
        more = f" (and {len(taken) - 1} more are there)" if len(taken) > 1 else ""
        raise TargetExistsError(
            f"{taken[0]} exists; it is not overwritten{more}: move it away, or choose another target"
        )


def _mode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_mode
    except OSError:  # nothing there, or a name that can't be, which is told when it is made
        return None


def _to_fetch(file: File, measured: bool) -> int:
    """What it takes, by its map where that is to be `measured`, else by its size."""
    attr = file.attr()
    if measured and isinstance(file, Stored):
        try:
            return file.stored_bytes()
        except StoreError:
            raise
        except CloudMountError:  # told when it is read
            return 0
    return min(attr.size, attr.allocated or attr.size)
