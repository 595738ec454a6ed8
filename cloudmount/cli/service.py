"""`cloudmount service install, remove, status`, and what services start (`run`, `fstab`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cloudmount.cli.mount import command as mount
from cloudmount.cli.options import Common, output_options, repository_options
from cloudmount.cli.output import Output, table
from cloudmount.errors import CloudMountError
from cloudmount.system import WINDOWS

FOLDERS = ("cache_dir", "hydrate_to")
"""Options of `mount` that name a folder: given to a service whole."""
_NOT_FOR_SERVICES = ("daemon", "folder")
_ROOT = click.option(
    "--root", metavar="FOLDER", default="/", help="Of a system whose files lie in FOLDER, not of this one."
)


@click.group(short_help="A drive that comes up with the computer.")
def command() -> None:
    """Install the drive as a service: a systemd unit, or a line in fstab."""


def options_given(context: click.Context) -> tuple[list[str], list[str]]:
    """The options of `mount` among those of `context` that were given, as its command line has them, and the
    folders among them."""
    given, folders = [], []
    for option in mount.params:
        name = option.name or ""
        if not isinstance(option, click.Option) or name in _SHARED:
            continue
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if option.is_flag:
            given += [option.opts[0]] if value else []
            continue
        if name in FOLDERS:
            value = os.path.abspath(value)
            folders.append(value)
        given.append(f"{option.opts[0]}={value}")
    return given, folders


@command.command("install", short_help="Have a drive come up with the computer.")
@repository_options()
@click.option(
    "--credentials",
    "keep",
    type=click.Choice(["auto", "systemd", "file"]),
    default="auto",
    help="Encrypted by systemd-creds, or in a file for root only; auto: the first where it works.",
)
@click.option(
    "--fstab",
    type=click.Choice(["add", "print"]),
    help="No unit but a line in /etc/fstab, added or only printed.",
)
@_ROOT
@click.argument("folder", metavar="DIR")
def install(common: Common, keep: str, fstab: str | None, root: str, folder: str, **of_mount: Any) -> None:
    """Have the drive at DIR come up with the computer, with these options of `mount`.

    The repository is opened once with the passphrase and the AZURE_STORAGE_ variables there are now; the
    service gets these, and nobody else.
    """
    from cloudmount.app import service, winservice
    from cloudmount.app.sizes import parse_bytes

    context = click.get_current_context()
    given, folders = options_given(context)
    if of_mount.get("cache_size") is not None:
        parse_bytes(of_mount["cache_size"])
    out = common.out
    wanted = service.Wanted(
        address=common.address,
        passphrase=common.passphrase(),
        mountpoint=winservice.drive_of(folder) if WINDOWS else os.path.abspath(folder),
        arguments=given,
        needs=folders,
        keep=keep,
        line=fstab,
        root=Path(os.path.abspath(root)),
    )
    made = (winservice if WINDOWS else service).install(wanted, out.warn)
    value = {
        "unit": made.unit,
        "mountpoint": made.mountpoint,
        "credentials": made.credentials,
        "files": made.files,
        "fstab": made.line or None,
        "started": fstab is None and not made.not_started and wanted.root == Path(wanted.root.anchor),
    }
    if fstab == "print" and not out.json:
        out.result(None, made.line)
    else:
        out.result(value, f"{made.unit} is installed for {made.mountpoint}")
    if fstab is not None:
        out.say(f"'mount {folder}' mounts it now" + ("" if fstab == "add" else ", once the line is in fstab"))
    if made.not_started:
        raise CloudMountError(made.not_started)


@command.command("remove", short_help="Undo an install.")
@output_options
@_ROOT
@click.argument("folder", metavar="DIR")
def remove(out: Output, root: str, folder: str) -> None:
    """End the service for DIR, and take away what its install made."""
    from cloudmount.app import service, winservice

    if WINDOWS:
        record = winservice.remove(winservice.drive_of(folder), out.warn)
    else:
        record = service.remove(os.path.abspath(folder), out.warn, Path(os.path.abspath(root)))
    out.result({"unit": record.unit, "mountpoint": record.mountpoint}, f"{record.unit} is removed")


@command.command("status", short_help="The services installed here.")
@output_options
@_ROOT
@click.argument("folder", metavar="[DIR]", required=False)
def status(out: Output, root: str, folder: str | None) -> None:
    """Tell of each service, or of the one for DIR: its unit, its state, and whether its drive is up."""
    from cloudmount.app import service, winservice

    if WINDOWS:
        found = winservice.status(winservice.drive_of(folder) if folder is not None else None)
    else:
        place = os.path.abspath(folder) if folder is not None else None
        found = service.status(place, Path(os.path.abspath(root)))
    value = [
        {
            "unit": s.unit,
            "mountpoint": s.mountpoint,
            "kind": s.kind,
            "state": s.state,
            "enabled": s.enabled,
            "mounted": s.mounted,
            "credentials": s.credentials,
            "files": s.files,
        }
        for s in found
    ]
    rows = [[s.unit, s.mountpoint, s.state, "mounted" if s.mounted else "not mounted"] for s in found]
    out.result(value, table([["unit", "drive", "state", ""], *rows]) if rows else "no service is installed")


@command.command("run", hidden=True)
@click.option("--credentials", "file", required=True)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(file: str, arguments: Sequence[str]) -> Any:
    """What a service is: `mount` with these arguments and the credentials in a file."""
    from cloudmount.service.credentials import read

    return _mount(arguments, read(Path(file)))


@command.command("manager", hidden=True)
@click.argument("name")
def manager(name: str) -> int:
    """What Windows' service manager starts: `mount` as the install `name` says."""
    from cloudmount.app.winservice import run as serve
    from cloudmount.cli.main import run as run_command

    def work(arguments: Sequence[str], variables: dict[str, str]) -> int:
        os.environ.update(variables)
        return run_command(["mount", *arguments])

    _into_log()
    return serve(name, work)


def _into_log() -> None:
    """A service has no streams: what it says goes where drives in the background write to."""
    from cloudmount.app.mount import log_file

    log = log_file()
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = open(log, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  # ours to the end


@command.command("fstab", hidden=True, context_settings={"ignore_unknown_options": True})
@_ROOT
@click.option("-f", "fake", is_flag=True)
@click.argument("spec")
@click.argument("folder")
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
def of_fstab(root: str, fake: bool, spec: str, folder: str, rest: Sequence[str]) -> Any:
    """What mount(8) starts for a line of fstab; its own options (`-o ...`) say nothing that was not said."""
    from cloudmount.app.service import mount_arguments

    arguments, variables = mount_arguments(spec, Path(root))
    return None if fake else _mount(["--daemon", *arguments, "--", folder], variables)


def _mount(arguments: Sequence[str], variables: dict[str, str]) -> Any:
    os.environ.update(variables)
    with mount.make_context("cloudmount mount", list(arguments)) as context:
        return mount.invoke(context)


_SHARED = {p.name for p in install.params} | set(_NOT_FOR_SERVICES)
install.params += [p for p in mount.params if p.name not in _SHARED]
