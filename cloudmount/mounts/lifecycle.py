"""The life of a mount: put up, served, taken down, always within seconds.

Decided here and only here: what happens at start, at the end and on signals. A drive ends
when it is unmounted from outside, on SIGINT, SIGTERM or SIGHUP; when reads hang on a
dead link it is unmounted all the same (lazily) and the process does not wait for them:
`serve` returns while threads are still stuck. Where it is mounted is a `Site`: a folder, or a
letter on Windows. `serve` belongs to the main thread and is the process's last job: whatever
the caller does after it (closing a store that hangs), the process is gone `END_SECONDS` after
the drive's end began.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from cloudmount.errors import CloudMountError, NotFoundError, UsageError
from cloudmount.mounts.driver import DriveOptions, Driver
from cloudmount.mounts.folders import FolderSite, ours
from cloudmount.mounts.looking import look
from cloudmount.mounts.mountpoints import detach, mounted_at
from cloudmount.mounts.records import MountRecord, find_record, remove_record, start_time, write_record
from cloudmount.mounts.site import Site
from cloudmount.nodes import Dir
from cloudmount.system import KILL

GRACE_SECONDS = 3.0
"""How long requests under way may take to come back once the drive is unmounted."""
END_SECONDS = 4.2
"""From the end of a mount, or the signal, to the end of its process at the latest."""
UP_SECONDS = 20.0
_UP = b"up "
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
]
"""SIGBREAK is Windows': Ctrl-Break, and a console that is closed."""


@contextlib.contextmanager
def signalled(again: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
    """While the block runs, an event that SIGINT, SIGTERM and SIGHUP set; by the second one the process ends
    at once, after `again`. On the main thread."""
    stop = threading.Event()

    def asked(number: int, frame: FrameType | None) -> None:
        if stop.is_set():  # asked twice: not one more second
            again()
            os._exit(130)
        stop.set()

    before = {s: signal.signal(s, asked) for s in _SIGNALS}
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def serve(
    driver: Driver,
    root: Dir,
    mountpoint: str,
    options: DriveOptions,
    *,
    records: Path,
    repository: str,
    driver_name: str = "",
    site: Site | None = None,
    ready: Callable[[str], None],
    staying: Callable[[threading.Event], None] = lambda stop: None,
    ending: Callable[[], None] = lambda: None,
    tell: Callable[[str], None],
) -> None:
    """Mount `root` and serve it until it is unmounted. `ready` is called once it is up, and `ending` before
    it goes: what uses it ends there, within a second or two. `staying` is called when it was unmounted, and
    returns when the process is to end, soon after its event is set (by a signal).

    `records` is the folder of mount records, `repository` how people name what is shown; it is recorded
    with `driver_name`. `site` is the place, unless that is the folder `mountpoint`.
    """
    site = site or FolderSite(mountpoint, records)
    path = site.path
    site.take(tell)
    with contextlib.ExitStack() as held:
        held.callback(site.leave)
        stop = held.enter_context(signalled(lambda: _let_go(site)))
        drive = driver(root, path, options)
        site.attached(drive)
        ended = threading.Event()
        failure: list[BaseException] = []

        def run() -> None:
            try:
                drive.run()
            except BaseException as error:
                failure.append(error)
            finally:
                ended.set()

        threading.Thread(target=run, name="cloudmount-drive", daemon=True).start()
        try:
            _wait_up(drive.up, ended, path)
            pid = os.getpid()
            record = MountRecord(
                pid,
                start_time(pid),
                path,
                repository,
                time.time(),
                site.made,
                driver_name,
                drive.pass_through,
            )
            write_record(records, record)
            ready(path)
            while not (stop.wait(0.25) or ended.is_set()) and site.stays():
                pass
            staying(stop)
        finally:
            end_for_certain()
            ending()
            _take_down(site, ended)
            remove_record(records, path)
            if not ended.is_set():
                hung = drive.waiting(GRACE_SECONDS)
                tell(f"{path}: ended while " + (f"{hung} requests hung" if hung else "it was in use"))
        if failure:
            raise CloudMountError(f"the drive at {path} ended: {failure[0]}")


def _let_go(site: Site) -> None:
    site.detach(lazy=True)


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _wait_up(up: threading.Event, ended: threading.Event, path: str) -> None:
    until = time.monotonic() + UP_SECONDS
    while not up.wait(0.05):
        if ended.is_set() or time.monotonic() > until:
            raise CloudMountError(f"the drive at {path} did not come up")


def _take_down(site: Site, ended: threading.Event) -> None:
    if site.there() and not ended.is_set() and site.detach(lazy=False) is not None:
        site.detach(lazy=True)  # somebody's shell stands in it, or a read hangs
    ended.wait(GRACE_SECONDS)


def end_for_certain() -> None:
    """Have the process gone `END_SECONDS` from now on, whatever still hangs."""

    def end() -> None:
        time.sleep(END_SECONDS)
        os._exit(0)  # without a word: the terminal may be what hangs

    threading.Thread(target=end, name="cloudmount-end", daemon=True).start()


def unmount(mountpoint: str, *, records: Path, tell: Callable[[str], None]) -> None:
    """Take a drive of ours down, within 5 s whatever its reads do.

    `NotFoundError` when nothing is mounted there, `UsageError` when it is not a drive of ours.
    """
    began = time.monotonic()
    place = look(mountpoint)
    path = place.path
    found = mounted_at(path)
    if found is None:
        raise NotFoundError(f"nothing is mounted at {path}")
    if not found.ours:
        raise UsageError(f"{path}: what is mounted there ({found.kind}) is not a drive of CloudMount's")
    record = find_record(records, path)
    if place.lost:
        tell(f"{path}: its process was killed; the mount it left is cleared")
        why = detach(path, lazy=True)
    elif place.errno is None or (why := detach(path, lazy=False)) is not None:
        tell(f"{path} is in use; it disappears now, and open files end with it")
        why = detach(path, lazy=True)
    if why is not None and ours(path):
        raise CloudMountError(f"{path} can't be unmounted: {why}")
    if record is not None and record.alive:
        end_process(record, began)
    remove_record(records, path)
    if record is not None and record.made:
        _remove(path)  # its process did that, unless it was killed


def end_process(record: MountRecord, began: float) -> None:
    """Wait for a drive's process, which was asked to end when it `began`; one that does not end is ended."""
    for after, number in ((3.6, signal.SIGTERM), (4.1, KILL), (4.8, None)):
        while record.alive and time.monotonic() - began < after:
            time.sleep(0.02)
        if not record.alive:
            return
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, number)


class _StartedElsewhereError(CloudMountError):
    """What a background process failed with, told by its parent."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # of this one failure


Ready = Callable[[str], None]
"""What a background process calls when it is up, with a word for who started it."""


def in_background(run: Callable[[Ready], None], log: Path) -> str:
    """Do `run(ready)` in a process of its own; return once it called `ready`, with the word it gave.

    Its failure before that is raised here, with its exit code. Afterwards its output goes to the file `log`.
    Call it before any thread is started and any store opened.
    """
    if not hasattr(os, "fork"):
        raise UsageError("--daemon needs Linux; 'cloudmount service install' keeps a drive up on Windows")
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os.setsid()
        if os.fork():
            os._exit(0)  # so that the drive is nobody's child and nobody's session leader
        os._exit(_background(run, log, writing))
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    with contextlib.suppress(ChildProcessError):
        os.wait()
    if told.startswith(_UP):
        return os.fsdecode(told[len(_UP) :])
    try:
        value = json.loads(told)
        message, code = str(value["error"]), int(value["exit_code"])
    except (ValueError, KeyError):
        message, code = f"the drive's process ended before it was up; see {log}", 1
    raise _StartedElsewhereError(message, code)


def _background(run: Callable[[Ready], None], log: Path, writing: int) -> int:
    def ready(word: str) -> None:
        os.write(writing, _UP + os.fsencode(word))
        os.close(writing)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        out = null
        with contextlib.suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        up.append(True)

    up: list[bool] = []
    try:
        run(ready)
        return 0
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        if not up:
            told = {"error": str(error) or type(error).__name__, "exit_code": code}
            with contextlib.suppress(OSError):
                os.write(writing, json.dumps(told).encode())
        else:
            print(f"cloudmount: error: {error}", file=sys.stderr, flush=True)
        return int(code)
