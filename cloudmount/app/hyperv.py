"""A Hyper-V VM from a snapshot: a folder with its script, which on Windows is run.

Decided here and only here: which way a VM gets its disks when nobody says (`auto`), which snapshots Hyper-V
or Windows can't hold, what lies in the folder, and in which order script and hydration take turns. **Not run
on Windows.** Belongs to the command's own thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cloudmount import __version__
from cloudmount.app.hydrate import HydrateProgress, hydrate
from cloudmount.app.hypervpreflight import kept_result
from cloudmount.app.looking import firmware_of, in_order, look_at
from cloudmount.app.machinefile import hardware_of
from cloudmount.app.opening import looking_inside
from cloudmount.app.places import make_folders, state_folder
from cloudmount.app.select import Selected
from cloudmount.boot.hyperv.literals import script
from cloudmount.boot.hyperv.machine import COPIES, VIAS, HypervMachine, NamedDisk, Via, safe_name, table
from cloudmount.boot.hyperv.powershell import Runner
from cloudmount.boot.machine import MOST_CPUS, MOST_MEMORY, Machine
from cloudmount.errors import (
    CloudMountError,
    NotFoundError,
    TargetExistsError,
    UnreadableInputError,
    UsageError,
)
from cloudmount.repo.repository import Repository
from cloudmount.system import OPEN, long_path, try_lock, windows_refuses
from cloudmount.tree.snapshotdir import StoredDisk

Asked = Literal["auto", "drive", "local"]
ASKED: tuple[Asked, ...] = ("auto", "drive", "local")
SCRIPT = "boot.ps1"
RECORD = "hyperv.json"
_MOST_RECORD = 1 << 20
Shown = Callable[[HydrateProgress], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Way:
    """How the VM gets its disks, and why; `host`: the only computer that is known to stand it, empty: any."""

    via: Via
    why: str
    host: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """A VM's folder. `ran`: whether the script was run, and the VM is on."""

    folder: Path
    script: Path
    vm: str
    way: Way
    ran: bool


def choose(asked: Asked, *, here: str | None, tell: Callable[[str], None], environ: Mapping[str, str]) -> Way:
    """The way that was asked for; `auto`: the fastest that a host's kept preflight has proved. `here`: this
    computer's name where the script is run here; None where it is only written, for another."""
    if asked != "auto":
        return Way(asked, "")
    try:
        result = kept_result(environ)
    except UnreadableInputError as error:
        tell(f"the kept preflight of Hyper-V is not used: {error}")
        result = None
    if result is None:
        return Way("local", "no preflight of a Hyper-V host is kept here ('cloudmount hyperv preflight')")
    if result.via != "drive":
        return Way("local", f"the preflight on {result.host} has not proved a start from the drive")
    if here is not None and here.casefold() != result.host.casefold():
        return Way("local", f"the preflight that is kept was done on {result.host}, and this is {here}")
    return Way("drive", f"the preflight on {result.host} ({result.time}) has proved it", result.host)


def hyperv_boot(
    repository: Repository,
    selected: Selected,
    asked: Asked,
    output: Path | None,
    *,
    runner: Runner | None,
    shown: Shown = lambda progress: contextlib.nullcontext(),
    say: Callable[[str], None] = lambda line: None,
    tell: Callable[[str], None] = lambda line: None,
    environ: Mapping[str, str] = os.environ,
) -> Made:
    """Make the folder of a VM (`output`; None: one in the state folder) and, with a `runner`, start it and
    bring it onto complete local copies; what was made before goes on.

    `NotFoundError` when there are no disks, `TargetExistsError` when something else is in the way or a name
    can't be one on Windows, `CloudMountError` when Hyper-V can't have such a machine, or said no.
    """
    if selected.path:
        raise UsageError("Hyper-V starts whole snapshots: leave out what follows the colon")
    made = _machine(repository, selected, tell, environ)
    here = environ.get("COMPUTERNAME", "") if runner is not None else None
    way = choose(asked, here=here, tell=tell, environ=environ)
    if output is None:
        make_folders(environ)
        output = state_folder(environ) / "hyperv" / safe_name(made.snapshot.replace("/", " "))
    folder = Path(os.path.abspath(output))
    identity = {"repository": repository.config.repo_id, "snapshot": selected.snapshot.id}
    try:
        way = _taken(folder, identity, asked, way)
        filled = table(made, via=way.via, program=_program(runner), version=__version__, proved_host=way.host)
        _replace(folder / SCRIPT, script(SCRIPT, filled))
    except OSError as error:
        raise TargetExistsError(f"{folder} can't be written to: {error.strerror}") from None
    done = Made(folder, folder / SCRIPT, made.name, way, runner is not None)
    if runner is not None:
        with _alone(folder):
            _run(runner, done, repository, selected, shown, say, tell, environ)
    return done


def _machine(
    repository: Repository, selected: Selected, tell: Callable[[str], None], environ: Mapping[str, str]
) -> HypervMachine:
    """What the snapshot's machine is in Hyper-V."""
    snapshot = selected.snapshot
    kept = hardware_of(snapshot.summary)
    name = f"{snapshot.machine}/{selected.folder}"
    with looking_inside(repository, environ) as drive:
        disks = in_order(drive.opened(snapshot).disks, kept)
        if not disks:
            raise NotFoundError(f"{name} has no disks to start a machine from")
        _check_names(name, disks)
        looks = [look_at(disk) for disk in disks]
    if kept.nvram is not None:
        tell("the machine's UEFI variables can't be given to Hyper-V: it starts with new ones")
    machine = Machine(
        firmware_of(kept, looks),
        kept.memory or MOST_MEMORY,
        kept.cpus or MOST_CPUS,
        (),
        macs=kept.macs,
        secure_boot=kept.secure_boot,
    )
    named = tuple(
        NamedDisk(disk.path, int(disk.summary["logical_sector"]), look.boots is not None)
        for disk, look in zip(disks, looks, strict=True)
    )
    made = HypervMachine(name, machine, named, any(look.windows for look in looks))
    made.places()  # whether Hyper-V can have it at all, before anything is made
    return made


def _check_names(name: str, disks: list[StoredDisk]) -> None:
    """`TargetExistsError` for names that Windows can't hold: drive and copies have these very names."""
    seen: dict[str, str] = {}
    for disk in disks:
        for part in f"{name}/{disk.path}.vhdx".split("/"):
            why = windows_refuses(part)
            if why is not None:
                raise TargetExistsError(
                    f"{name}/{disk.path} can't be a file on Windows ({part!r}: {why}): restore the disk "
                    "under another name ('cloudmount restore')"
                )
        other = seen.setdefault(disk.path.casefold(), disk.path)
        if other != disk.path:
            raise TargetExistsError(
                f"{name} has disks {other!r} and {disk.path!r}, which are one name on Windows: restore them "
                "into folders of their own ('cloudmount restore')"
            )
        if disk.vhdx_bytes() is None:
            raise CloudMountError(f"{name}/{disk.path} is larger than a VHDX can be (64 TiB)")


def _taken(folder: Path, identity: dict[str, str], asked: Asked, way: Way) -> Way:
    """Take the folder for this VM, and the way that it was made for when it is there already."""
    record = folder / RECORD
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with record.open("rb") as file:
            found: Any = json.loads(file.read(_MOST_RECORD))
        old = Way(found["via"], str(found["why"]), str(found["host"]))
        if {k: found[k] for k in identity} != identity or old.via not in VIAS:
            raise TargetExistsError(f"{folder} is the folder of another VM: choose an empty one by --output")
    except FileNotFoundError:
        if any(folder.iterdir()):
            raise TargetExistsError(f"{folder} is not empty: choose another by --output") from None
        value = {**identity, "via": way.via, "why": way.why, "host": way.host}
        _replace(record, json.dumps(value, indent=1).encode())
        return way
    except (ValueError, KeyError, TypeError):
        raise TargetExistsError(f"{record} is damaged: choose an empty folder by --output") from None
    if asked not in ("auto", old.via):
        raise TargetExistsError(
            f"{folder} is that of a VM made with --via {old.via}: leave --via out, or choose an empty one by "
            "--output"
        )
    return old


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Have the folder's VM for this process, while the block runs."""
    fd = os.open(folder / RECORD, os.O_RDWR | OPEN)
    try:
        if not try_lock(fd):
            raise TargetExistsError(f"{folder}: another process starts this VM")
        yield
    finally:
        os.close(fd)


def _replace(path: Path, data: bytes) -> None:
    """Give a file this content, whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _program(runner: Runner | None) -> str:
    """The program's path where the script is run by it, else its name."""
    beside = Path(sys.executable).with_name("cloudmount.exe")
    return str(beside) if runner is not None and beside.exists() else "cloudmount"


def _run(
    runner: Runner,
    made: Made,
    repository: Repository,
    selected: Selected,
    shown: Shown,
    say: Callable[[str], None],
    tell: Callable[[str], None],
    environ: Mapping[str, str],
) -> None:
    """Start the VM, and have its disks complete on this computer: before that, or while it runs."""

    def run(*arguments: str) -> None:
        for line in runner(made.script, arguments).splitlines():
            say(line)

    def complete() -> None:
        progress = HydrateProgress()
        target = Path(long_path(str(made.folder / COPIES)))
        with shown(progress):
            hydrate(repository, selected, target, progress=progress, tell=tell, environ=environ)

    if made.way.via == "local":
        complete()
        run("-Action", "Start", "-Verified")
        return
    run("-Action", "Start")
    say(
        "The VM is on. Its disks complete themselves now; run the same command again if this is ended before."
    )
    complete()
    run("-Action", "GoLocal", "-Verified")
