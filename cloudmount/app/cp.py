"""Copying files out of a snapshot, out of its disks too, without a mount.

Decided here and only here: that several files are read at once (small ones cost a round trip each), what is
kept beside content (times and modes; owners for root), that holes stay holes, and what happens when something
can't be read or made: it is told, the rest comes. What goes where is `copyplan`, how a file gets its
name `newfile`.

Threading: `copy` belongs to one thread and has its own to read with.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from cloudmount.app.browsing import find_path
from cloudmount.app.copyplan import CopyPlan, Placed, plan_copy
from cloudmount.app.newfile import NewFile
from cloudmount.app.select import Selected
from cloudmount.app.unnameable import TOO_LARGE, UNNAMEABLE, Unnameable
from cloudmount.app.writing import write_content
from cloudmount.blobs.counting import CountingStore
from cloudmount.errors import CloudMountError, NoRoomError, StoreError, TargetExistsError, UsageError
from cloudmount.nodes import Dir, File, Link, Node
from cloudmount.system import DISK_FULL, WINDOWS, is_root, set_times
from cloudmount.tree.drive import Drive
from cloudmount.tree.inside import MadeFile
from cloudmount.tree.snapshotdir import OpenedSnapshot

THREADS = 16
ENDING_SECONDS = 2.0
"""How long files being written get to take themselves away when a copy ends early."""


@dataclass(slots=True)
class CopyProgress:
    """Counters of one copy, in bytes of content but for files."""

    total_bytes: int = 0
    done_bytes: int = 0
    files: int = 0
    current: str = ""


@dataclass(frozen=True, slots=True)
class CopyResult:
    """A finished copy. `bytes` of content, `fetched_bytes` from the store; `skipped` by path on the drive."""

    files: int
    bytes: int
    fetched_bytes: int
    seconds: float
    skipped: list[tuple[str, str]] = field(default_factory=list)


def copy(
    drive: Drive,
    selected: Selected,
    target: Path,
    *,
    slash: bool = False,
    only: bool = False,
    begins: Callable[[CopyPlan], None] = lambda plan: None,
    progress: CopyProgress | None = None,
) -> CopyResult:
    """Copy what `selected` names to TARGET (`copyplan.target_of`); `begins` is told before data is read.

    `TargetExistsError` when something is there already, `NoRoomError` when there is no room: no file is
    left half. One file that can't be read is its own error; those in a folder are `skipped`.
    """
    began = time.monotonic()
    if not selected.path:
        raise UsageError(
            "which file or folder? write SNAPSHOT:PATH ('cloudmount restore' brings a whole snapshot)"
        )
    store = drive.repository.store
    fetched = store.snapshot().bytes_down if isinstance(store, CountingStore) else 0
    found = find_path(drive, selected)
    plan = plan_copy(OpenedSnapshot(drive, selected.snapshot).disks, found, target, slash=slash, only=only)
    progress = progress or CopyProgress()
    progress.total_bytes = plan.bytes
    begins(plan)
    skipped = carry_out(plan, progress, drive.reader.close)
    if isinstance(store, CountingStore):
        fetched = store.snapshot().bytes_down - fetched
    return CopyResult(progress.files, progress.done_bytes, fetched, time.monotonic() - began, skipped)


def carry_out(plan: CopyPlan, progress: CopyProgress, give_up: Callable[[], None]) -> list[tuple[str, str]]:
    """Make what is planned; what was skipped. `give_up` ends reads that wait, when the copy ends early."""
    copying = _Copying(plan, progress)
    try:
        copying.run(give_up)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise NoRoomError(
                f"{error.filename}: no room left; make room and copy what is missing: the {progress.files} "
                "files copied so far are whole"
            ) from None
        raise TargetExistsError(f"{error.filename}: can't be written: {error.strerror}") from None
    return plan.skipped + copying.skipped


class _Stopped(Exception):
    """The copy ends; this file is given up."""


class _Copying:
    """One copy under way."""

    def __init__(self, plan: CopyPlan, progress: CopyProgress) -> None:
        self._plan, self._progress = plan, progress
        self._names = Unnameable()
        self._made: list[Placed[Dir]] = []
        self._single = len(plan.files) == 1 and not plan.folders
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._skipped: list[tuple[str, str]] = []

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """What was not copied, by its path on the drive or here, and why."""
        return self._skipped + [(os.fspath(path), why) for path, why in self._names.skipped]

    def run(self, give_up: Callable[[], None]) -> None:
        """Make everything."""
        for folder in self._plan.folders:
            if not self._names.nowhere(folder.target):
                self._names.made(folder.target, functools.partial(self._folder, folder))
        self._contents(give_up)
        for link in self._plan.links:
            if not self._names.nowhere(link.target):
                self._names.made(link.target, functools.partial(self._link, link))
        for folder in reversed(self._made):
            _keep(folder.node, folder.target, 0o777 & ~self._umask)

    def _folder(self, folder: Placed[Dir]) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder.target, 0o700)
            self._made.append(folder)
            return
        if not stat.S_ISDIR(os.lstat(folder.target).st_mode):  # it came since the plan was made
            raise TargetExistsError(f"{folder.target} exists and is not a folder")

    def _link(self, link: Placed[Link]) -> None:
        try:
            os.symlink(link.node.target(), link.target)
        except OSError as error:
            # Windows makes links for administrators only, and answers with numbers of its own.
            if error.errno not in (errno.EPERM, errno.EEXIST) and not WINDOWS:
                raise
            self._skip(link.path, f"{link.target}: not made: {error.strerror}")
            return
        _keep(link.node, link.target, 0o777)

    def _skip(self, path: str, why: str) -> None:
        with self._lock:
            self._skipped.append((path, why))

    # Contents

    def _contents(self, give_up: Callable[[], None]) -> None:
        waiting = iter(self._plan.files)
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="copy")
        work = [pool.submit(self._work, waiting) for _ in range(min(THREADS, len(self._plan.files)))]
        try:
            for one in wait(work, return_when=FIRST_EXCEPTION).done:
                one.result()
        except BaseException:
            self._stopped.set()
            give_up()
            wait(work, ENDING_SECONDS)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, waiting: Iterator[Placed[File]]) -> None:
        while not self._stopped.is_set():
            with self._lock:
                file = next(waiting, None)
            if file is None:
                return
            try:
                self._file(file)
            except _Stopped:
                return
            except BaseException:
                self._stopped.set()
                raise

    def _file(self, file: Placed[File]) -> None:
        if self._names.nowhere(file.target):
            return
        self._progress.current = os.fspath(file.target)
        written = [0]
        try:
            self._write(file, written)
        except CloudMountError as error:
            if isinstance(error, StoreError) or self._single:
                raise
            self._skip(file.path, str(error))
        except FileExistsError:
            self._skip(file.path, f"{file.target} is there since, or has another's name but for case")
        except OSError as error:
            if error.errno == errno.EFBIG:
                self._skip(file.path, f"{file.target}: {TOO_LARGE}")
            elif error.errno in UNNAMEABLE:
                self._skip(file.path, f"{file.target}: the file system there can't hold this name")
            else:
                error.filename = os.fspath(file.target)
                raise
        else:
            with self._lock:
                self._progress.files += 1
            return
        with self._lock:
            self._progress.done_bytes -= written[0]
            self._progress.total_bytes -= file.node.attr().size

    def _write(self, file: Placed[File], written: list[int]) -> None:
        def wrote(length: int) -> None:
            if self._stopped.is_set():
                raise _Stopped
            written[0] += length
            with self._lock:
                self._progress.done_bytes += length

        source = file.node.open()
        try:
            with NewFile(file.target) as new:
                write_content(new.fd, source, wrote)
                # A disk holds secrets: its copy is for its owner, as restored ones are.
                disk = isinstance(file.node, MadeFile)
                mode = 0o600 if disk else 0o666 & ~self._umask
                new.keep(functools.partial(_keep, file.node, without_owner=mode))
                if self._stopped.is_set():
                    raise _Stopped
                new.name()
        finally:
            source.close()


def _keep(node: Node, place: Path | int, without_owner: int) -> None:
    """Give what lies at `place` the times, mode and, for root, owner of `node`, as far as it can. What has no
    owner (Windows' rights mean nothing here, the drive's own files are read-only) gets `without_owner`."""
    attr = node.attr()
    link = isinstance(place, Path) and place.is_symlink()
    mode = without_owner
    with contextlib.suppress(PermissionError):  # vfat has no owners, and few modes
        if attr.uid is not None and attr.gid is not None:
            mode = attr.mode & 0o777
            if is_root():
                if isinstance(place, int):
                    os.fchown(place, attr.uid, attr.gid)
                else:
                    os.chown(place, attr.uid, attr.gid, follow_symlinks=False)
                mode = attr.mode & 0o7777
    set_times(place, attr.mtime_ns, link=link)  # before the mode: read-only forbids it on Windows
    if not link:
        with contextlib.suppress(PermissionError):
            os.chmod(place, mode)
