"""Services on Windows: installed, taken away, looked at, run. **Not run on Windows.**

Decided here and only here: where they lie (`%PROGRAMDATA%\\cloudmount\\services`, for SYSTEM and
administrators only), what they are called, and what Windows starts. Otherwise as `app/service.py`: the
repository is opened first, a failure leaves nothing. Belongs to one thread, but `run`, which is the main
thread of a service's process.
"""

from __future__ import annotations

import hashlib
import ntpath
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cloudmount.app.service import (
    HALF,
    Installed,
    Status,
    Tell,
    Wanted,
    check_opens,
    recorded,
    variables_for,
)
from cloudmount.errors import CloudMountError, NotFoundError, UsageError
from cloudmount.service import credentials, notify
from cloudmount.service.changes import Changes, Record, Records, take_away
from cloudmount.service.winapi import RUNNING, STOPPED, Api, Dlls, windows
from cloudmount.service.winmain import Service, ask_main_thread_to_end, end_now

FOLDER = "cloudmount/services"
PREFIX = "cloudmount-"
UP_SECONDS, DOWN_SECONDS = 90.0, 15.0
_LETTER = re.compile(r"(?:\\\\[.?]\\)?([A-Za-z]):[\\/]?")
_STATES = {1: "stopped", 2: "starting", 3: "stopping", 4: "running", 5: "resuming", 6: "pausing", 7: "paused"}


def drive_of(folder: str) -> str:
    """A mount point as it was typed, or absolute where it is a folder: `X:` means no folder on X."""
    return folder if _LETTER.fullmatch(folder) else os.path.abspath(folder)


def service_name(mountpoint: str) -> str:
    """`cloudmount-X` for a letter; for a folder its name and a hash of its path."""
    letter = _LETTER.fullmatch(mountpoint)
    if letter is not None:
        return PREFIX + letter[1].upper()
    path = ntpath.normcase(ntpath.normpath(mountpoint))
    last = re.sub("[^A-Za-z0-9]+", "-", ntpath.basename(path)).strip("-")[:40]
    return f"{PREFIX}{last or 'folder'}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def starts(name: str) -> list[str]:
    """What Windows starts: no secret, no environment. In a virtual environment python.exe only starts another
    process, which the service manager would not know: so that one, with the environment's folder."""
    run = ["service", "manager", name]
    if sys.prefix == sys.base_prefix:
        return [sys.executable, "-P", "-X", "utf8", "-m", "cloudmount", *run]
    site = next((p for p in sys.path if os.path.basename(p) == "site-packages"), sys.prefix)
    start = "import site,sys;site.addsitedir(sys.argv.pop(1));from cloudmount.cli.main import main;main()"
    base = str(getattr(sys, "_base_executable", sys.executable))
    return [base, "-I", "-X", "utf8", "-c", start, site, *run]


def command_line(name: str) -> str:
    """`starts`, quoted as Windows' programs read it: a path with blanks is never cut at one."""
    return subprocess.list2cmdline(starts(name))


def _records(environ: Mapping[str, str]) -> Records:
    shared = environ.get("PROGRAMDATA", "")
    if not shared:
        raise CloudMountError("%PROGRAMDATA% is not set: services have no place")
    return Records(Path(shared), FOLDER)


def install(
    wanted: Wanted,
    tell: Tell,
    environ: Mapping[str, str] = os.environ,
    dlls: Dlls | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Installed:
    """As `service.install`; it returns when the drive is up."""
    if wanted.line is not None or wanted.keep == "systemd" or wanted.root != Path(wanted.root.anchor):
        raise UsageError("--fstab, --root and --credentials systemd are for Linux")
    check_opens(wanted, tell, environ)
    api, records, name = Api(dlls or windows()), _records(environ), service_name(wanted.mountpoint)
    record = Record("windows", name, wanted.mountpoint, "dpapi", list(wanted.arguments))
    try:
        for folder in (records.folder.parent, records.folder):
            api.private_folder(os.fspath(folder))
        with Changes(records, name, record) as changes:
            sealed = api.protect(credentials.as_bytes(variables_for(wanted, environ)))
            changes.file(f"{FOLDER}/{name}.credentials", sealed, 0o600)
            shown = f"CloudMount drive {wanted.mountpoint}"
            told = "Shows backups of CloudMount as a drive. 'cloudmount service remove' takes it away."
            api.create_service(name, shown[:256], told, command_line(name))
            changes.then_undo(lambda: api.delete_service(name))
            api.start_service(name)
            changes.then_undo(lambda: _stop(api, name, sleep))
            _wait_up(api, name, sleep)
            changes.complete()
    except OSError as error:
        raise CloudMountError(
            f"{error.filename or records.folder}: can't be written: {error.strerror}"
        ) from None
    return Installed(name, wanted.mountpoint, "dpapi", records.files(record))


def _wait_up(api: Api, name: str, sleep: Callable[[float], None]) -> None:
    until = time.monotonic() + UP_SECONDS
    while True:
        status = api.query(name)
        if status.dwCurrentState == RUNNING:
            return
        if status.dwCurrentState == STOPPED or time.monotonic() > until:
            code = status.dwServiceSpecificExitCode or status.dwWin32ExitCode
            raise CloudMountError(
                f"the service does not start (code {code}), and was taken away again; "
                "%PROGRAMDATA%\\cloudmount\\mount.log tells why"
            )
        sleep(0.2)


def _stop(api: Api, name: str, sleep: Callable[[float], None]) -> None:
    api.stop_service(name)
    until = time.monotonic() + DOWN_SECONDS
    while api.query(name).dwCurrentState != STOPPED and time.monotonic() < until:
        sleep(0.1)


def remove(
    mountpoint: str,
    tell: Tell,
    environ: Mapping[str, str] = os.environ,
    dlls: Dlls | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Record:
    """As `service.remove`."""
    records, name = _records(environ), service_name(mountpoint)
    record = recorded(records, name, mountpoint)
    api = Api(dlls or windows())
    try:
        _stop(api, name, sleep)
        api.delete_service(name)
    except NotFoundError:
        pass  # a power cut came between the record and the service
    try:
        for note in take_away(records, record):
            tell(note)
        records.remove(name)
    except OSError as error:
        raise CloudMountError(f"{error.filename}: can't be removed: {error.strerror}") from None
    return record


def status(
    mountpoint: str | None, environ: Mapping[str, str] = os.environ, dlls: Dlls | None = None
) -> list[Status]:
    """As `service.status`; that it runs means that its drive is up."""
    records = _records(environ)
    found = []
    for name in [service_name(mountpoint)] if mountpoint is not None else records.names():
        record = recorded(records, name, mountpoint)
        try:
            told = Api(dlls or windows()).query(name)
            known = _STATES.get(told.dwCurrentState, f"state {told.dwCurrentState}")
            if told.dwServiceSpecificExitCode:
                known += f" (exit code {told.dwServiceSpecificExitCode})"
            up = told.dwCurrentState == RUNNING
        except NotFoundError:
            known, up = HALF, False
        files = records.files(record)
        found.append(Status(name, record.mountpoint, "windows", known, "yes", up, "dpapi", files))
    return found


def run(
    name: str,
    mount: Callable[[Sequence[str], dict[str, str]], int],
    environ: Mapping[str, str] = os.environ,
    dlls: Dlls | None = None,
) -> int:
    """What the service manager starts: `mount` with the options and credentials of the install `name`."""
    records, using = _records(environ), dlls or windows()
    service = Service(name, using)
    notify.when_ready(service.ready)

    def work() -> int:
        record = records.read(name)
        if record is None:
            raise NotFoundError(f"no service {name} is installed")
        sealed = (records.folder / f"{name}.credentials").read_bytes()
        variables = credentials.parsed(Api(using).unprotect(sealed))
        return mount([*record.arguments, "--", record.mountpoint], variables)

    return service.serve(work, ask_main_thread_to_end, end_now)
