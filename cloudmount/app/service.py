"""Services: a drive that comes up with the computer, installed, taken away, looked at.

Decided here and only here: what an install makes in which order, that the repository was opened with these
credentials before anything is made, and that a failure half-way leaves nothing. What the service then starts
is `cloudmount mount` with the options that were given: it has none of its own. Belongs to one thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloudmount.app.opening import open_repository
from cloudmount.app.places import records_folder
from cloudmount.blobs.azure_place import without_secrets
from cloudmount.errors import CloudMountError, NotFoundError, UsageError
from cloudmount.mounts.lifecycle import unmount
from cloudmount.mounts.mountpoints import mounted_at, resolved
from cloudmount.service import credentials, fstab
from cloudmount.service.changes import FOLDER, Changes, Record, Records, take_away
from cloudmount.service.escaping import unit_stem
from cloudmount.service.systemctl import NoSystemdError, state, systemctl
from cloudmount.service.unit import UnitPlan, needed_folders, unit_text

ROOT = Path("/")
HALF = "half installed: 'cloudmount service remove' takes away what there is"
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be installed. `arguments` are options of `mount`; `needs` the folders among them.

    `keep` is "auto", "systemd" or "file"; `line` None for a unit, else "add" or "print" for fstab. `root` is
    where the system's files lie: another than / for a system that is not the running one.
    """

    address: str
    passphrase: str
    mountpoint: str
    arguments: Sequence[str] = ()
    needs: Sequence[str] = ()
    keep: str = "auto"
    line: str | None = None
    root: Path = ROOT


@dataclass(frozen=True, slots=True)
class Installed:
    """What was made. `not_started` says why it does not run yet, and what starts it."""

    unit: str
    mountpoint: str
    credentials: str
    files: list[str]
    line: str = ""
    not_started: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """An installed service: `state` as systemd tells it, `mounted` whether the drive is up."""

    unit: str
    mountpoint: str
    kind: str
    state: str
    enabled: str
    mounted: bool
    credentials: str
    files: list[str] = field(default_factory=list)


def program() -> list[str]:
    """What starts this program, wherever it is started from."""
    return [sys.executable, "-P", "-m", "cloudmount"]


def as_given_anywhere(address: str) -> str:
    """A repository's address that means the same in another folder."""
    return os.path.abspath(address) if "://" not in address else address


def variables_for(wanted: Wanted, environ: Mapping[str, str]) -> dict[str, str]:
    """What the service is given in its credential: address (it may hold a SAS), passphrase, and what a store
    in Azure is reached with."""
    own = {"CLOUDMOUNT_REPO": as_given_anywhere(wanted.address), "CLOUDMOUNT_PASSPHRASE": wanted.passphrase}
    return {**(credentials.worth_keeping(environ) if "://" in wanted.address else {}), **own}


def check_opens(wanted: Wanted, tell: Tell, environ: Mapping[str, str]) -> None:
    """Open the repository with these credentials, and close it. Errors as of `open_repository`."""
    opened = open_repository(wanted.address, wanted.passphrase, environ=environ, tell=tell, cached=False)
    opened.store.close()


def recorded(records: Records, name: str, mountpoint: str | None) -> Record:
    """The install called `name`; `NotFoundError` when there is none for this mount point."""
    record = records.read(name)
    if record is None:
        raise NotFoundError(
            f"no service is installed for {mountpoint}; 'cloudmount service status' tells which"
        )
    return record


def install(wanted: Wanted, tell: Tell, environ: Mapping[str, str] = os.environ) -> Installed:
    """Install a service. `TargetExistsError` when there is one for this mount point, or a file is in the way;
    whatever fails, nothing is left."""
    _check_root(wanted.root)
    for part in (wanted.mountpoint, *wanted.arguments):
        if "\0" in part:
            raise UsageError("a path can't hold a zero byte")
    check_opens(wanted, tell, environ)
    records = Records(wanted.root)
    name = unit_stem(wanted.mountpoint)
    data = credentials.as_bytes(variables_for(wanted, environ))
    try:
        if wanted.line is not None:
            return _in_fstab(wanted, records, name, data)
        return _as_unit(wanted, records, name, data, tell)
    except OSError as error:
        raise CloudMountError(
            f"{error.filename or wanted.root}: can't be written: {error.strerror}"
        ) from None


def _as_unit(wanted: Wanted, records: Records, name: str, data: bytes, tell: Tell) -> Installed:
    unit = f"{name}.service"
    record = Record("systemd", unit, wanted.mountpoint, arguments=list(wanted.arguments))
    elsewhere = wanted.root if wanted.root != ROOT else None
    not_started = ""
    kept = _encrypted(wanted, data, tell)
    with Changes(records, name, record) as changes:
        record.credentials = "file" if kept is None else "encrypted"
        below = _credential_file(name, kept is not None)
        changes.file(below, data if kept is None else kept, 0o600, folder_mode=0o700)
        plan = UnitPlan(
            mountpoint=wanted.mountpoint,
            program=program(),
            arguments=wanted.arguments,
            needs=needed_folders(wanted.mountpoint, *wanted.needs, _folder_of(wanted.address)),
            credential=f"/{below}",
            encrypted=kept is not None,
        )
        reload = lambda: _quietly("daemon-reload", root=elsewhere)  # noqa: E731  # undone after the file
        changes.then_undo(reload)
        path = changes.file(f"etc/systemd/system/{unit}", unit_text(plan).encode("utf-8"), 0o644)
        try:
            if elsewhere is None:
                systemctl("daemon-reload")
                changes.then_undo(lambda: _quietly("disable", "--now", "--", unit))
                systemctl("enable", "--now", "--", unit)
            else:
                systemctl("enable", "--", unit, root=elsewhere)
        except NoSystemdError as error:
            not_started = (
                f"{error}: {path} and {wanted.root / below} are written, and nothing starts them. Where "
                f"systemd runs: 'systemctl daemon-reload', then 'systemctl enable --now {_shown(unit)}'"
            )
        except CloudMountError as error:
            raise CloudMountError(
                f"the service does not start, and was taken away again: {error}; 'journalctl -u "
                f"{_shown(unit)}' tells why"
            ) from None
        changes.complete()
    return Installed(unit, wanted.mountpoint, record.credentials, records.files(record), "", not_started)


def _in_fstab(wanted: Wanted, records: Records, name: str, data: bytes) -> Installed:
    record = Record("fstab", fstab.SPEC + name, wanted.mountpoint, "file", list(wanted.arguments))
    line = fstab.line_for(name, wanted.mountpoint)
    helper = fstab.helper_text(program())
    with Changes(records, name, record) as changes:
        changes.file(_credential_file(name, False), data, 0o600, folder_mode=0o700)
        if _helpers(records, but=name) and (wanted.root / fstab.HELPER).read_bytes() == helper:
            changes.planned(fstab.HELPER, helper)  # others' too; it goes with the last of them
        else:
            changes.file(fstab.HELPER, helper, 0o755)
        if wanted.line == "add":
            record.line = line
            records.write(name, record)
            changes.then_undo(lambda: fstab.remove_line(wanted.root, line))
            fstab.add_line(wanted.root, line)
            _quietly("daemon-reload", root=wanted.root if wanted.root != ROOT else None)
        changes.complete()
    return Installed(record.unit, wanted.mountpoint, "file", records.files(record), line)


def remove(mountpoint: str, tell: Tell, root: Path = ROOT) -> Record:
    """Stop a service and take away what its install made. `NotFoundError` when there is none."""
    _check_root(root)
    records = Records(root)
    name = unit_stem(mountpoint)
    record = recorded(records, name, mountpoint)
    elsewhere = root if root != ROOT else None
    try:
        if record.kind == "systemd":
            disable = ["disable", *([] if elsewhere is not None else ["--now"]), "--", record.unit]
            with contextlib.suppress(NoSystemdError):
                if os.path.lexists(root / f"etc/systemd/system/{record.unit}"):
                    systemctl(*disable, root=elsewhere)
        elif elsewhere is None and (found := mounted_at(resolved(mountpoint))) is not None and found.ours:
            unmount(mountpoint, records=records_folder(), tell=tell)
        if record.line and not fstab.remove_line(root, record.line):
            tell(f"{root / fstab.FSTAB}: its line was changed since: take it out by hand")
        if _helpers(records, but=name):
            record.files.pop(fstab.HELPER, None)
        for note in take_away(records, record):
            tell(note)
        _quietly("daemon-reload", root=elsewhere)
        _quietly("reset-failed", "--", record.unit, root=elsewhere)
        records.remove(name)
    except OSError as error:
        raise CloudMountError(f"{error.filename or root}: can't be removed: {error.strerror}") from None
    return record


def status(mountpoint: str | None, root: Path = ROOT) -> list[Status]:
    """The services installed, or the one for a mount point (`NotFoundError` when there is none)."""
    records = Records(root)
    found = []
    for name in [unit_stem(mountpoint)] if mountpoint is not None else records.names():
        record = recorded(records, name, mountpoint)
        known, enabled = ("", "yes" if record.line else "by hand")
        if record.kind == "systemd":
            known, enabled = state(record.unit)
        mounted = mounted_at(resolved(record.mountpoint))
        up = mounted is not None and mounted.ours
        known = known or ("mounted" if up else "not mounted")
        if not record.complete:
            known = HALF
        found.append(
            Status(
                *(record.unit, record.mountpoint, record.kind, known, enabled, up, record.credentials),
                records.files(record),
            )
        )
    return found


def mount_arguments(spec: str, root: Path = ROOT) -> tuple[list[str], dict[str, str]]:
    """For a line of fstab: the options of `mount`, and the variables in its credential."""
    records = Records(root)
    name = fstab.name_of(spec)
    record = records.read(name)
    if record is None or record.kind != "fstab":
        raise NotFoundError(f"{spec}: no such drive is installed; 'cloudmount service install --fstab' does")
    return record.arguments, credentials.read(root / _credential_file(name, False))


def _encrypted(wanted: Wanted, data: bytes, tell: Tell) -> bytes | None:
    """The credential encrypted for this computer; None where it is to be kept in a file, or has to be."""
    if wanted.keep == "file":
        return None
    if wanted.root != ROOT:
        if wanted.keep == "systemd":
            raise UsageError("credentials can be encrypted only by the computer that uses them")
        return None
    try:
        return credentials.encrypted(data)
    except CloudMountError as error:
        if wanted.keep == "systemd":
            raise
        tell(f"{error}; the credentials are kept in a file that only root can read")
        return None


def _credential_file(name: str, encrypted: bool) -> str:
    """Where a credential lies, below the root, by a name that a unit takes as it is."""
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        name = f"cloudmount-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"etc/credstore.encrypted/{name}" if encrypted else f"{FOLDER}/{name}.credentials"


def _helpers(records: Records, *, but: str) -> bool:
    """Whether another install needs mount(8)'s program."""
    others = (records.read(name) for name in records.names() if name != but)
    return any(fstab.HELPER in record.files for record in others if record is not None)


def _folder_of(address: str) -> str | None:
    """The folder that a repository's address names."""
    if address.lower().startswith("file://"):
        return address[len("file://") :]
    return (
        as_given_anywhere(address) if without_secrets(address) == address and "://" not in address else None
    )


def _shown(unit: str) -> str:
    """A unit's name as a shell takes it."""
    return unit.replace("\\", "\\\\")


def _quietly(*arguments: str, root: Path | None = None) -> None:
    if root is None:
        with contextlib.suppress(CloudMountError):
            systemctl(*arguments)


def _check_root(root: Path) -> None:
    if root == ROOT and hasattr(os, "geteuid") and os.geteuid() != 0:
        raise CloudMountError("a service is installed for the whole computer: run this as root (sudo)")
