"""Mounting: repository, caches and tree put together and served.

Decided here and only here: the sizes of a drive's caches, where its records lie, and which driver is
taken when none is asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cloudmount.app.hydrations import announced
from cloudmount.app.opening import default_cache_bytes, disk_cache, frames_folder
from cloudmount.app.places import cache_folder, connect, make_folders, records_folder, state_folder
from cloudmount.app.sightings import Sightings
from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.retrying import TRANSFER
from cloudmount.errors import UsageError
from cloudmount.memory import for_serving
from cloudmount.mounts import host, letters, libfuse
from cloudmount.mounts.driver import DriveOptions, Driver, Space
from cloudmount.mounts.lifecycle import serve
from cloudmount.reader.stored import FrameReader
from cloudmount.repo.repository import Repository
from cloudmount.tree.bootlearning import BootLearning
from cloudmount.tree.copies import Format
from cloudmount.tree.drive import Drive
from cloudmount.tree.hydrator import REQUESTS, Hydrator

MEMORY_BYTES = 24 << 20
"""Of opened frames, most of them ahead of their readers: what was read, the kernel keeps."""
WORKERS = 8


def log_file(environ: Mapping[str, str] = os.environ) -> Path:
    """What drives in the background write to."""
    return state_folder(environ) / "mount.log"


def _driver(name: str | None) -> tuple[str, Driver]:
    if name is not None and (name == "winfsp") != letters.WINDOWS:
        raise UsageError(f"--driver {name}: not on this system")
    if letters.WINDOWS:
        from cloudmount.mounts.winfsp_driver import WinFspDrive

        return "winfsp", WinFspDrive
    from cloudmount.mounts.native_driver import NativeDrive, installed

    if name == "native" or (name is None and installed()):
        return "native", NativeDrive
    from cloudmount.mounts.refuse_driver import RefuseDrive

    return "refuse", RefuseDrive


def drive_ready() -> None:
    """`CloudMountError` naming what is missing on this computer before a drive can be put up."""
    if letters.WINDOWS:
        from cloudmount.mounts.winfsp_driver import require

        require()
        return
    host.require(allow_other=False)
    if _driver(None)[0] == "refuse":
        libfuse.load()


@dataclass(frozen=True, slots=True)
class OpenedDrive:
    """A repository with all that a drive needs, not yet mounted."""

    repository: Repository
    store: CountingStore
    drive: Drive
    driver_name: str
    driver: Driver
    hydrator: Hydrator | None = None


@contextlib.contextmanager
def opened_drive(
    address: str,
    passphrase: str,
    *,
    cache_dir: Path | None = None,
    cache_bytes: int | None = None,
    io_timeout: float = 60.0,
    driver: str | None = None,
    bandwidth: tuple[float | None, float | None] = (None, None),
    hydrate_to: Path | None = None,
    hydrate_form: Format | None = None,
    tell: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> Iterator[OpenedDrive]:
    """The repository's drive, as long as the block runs; the options are those of `mount`, and the form of
    the copies that are made, when it matters."""
    for_serving()
    name, make_drive = _driver(driver)
    make_folders(environ)
    store = connect(
        address,
        environ,
        policy=TRANSFER.reading(io_timeout),
        bandwidth=bandwidth,
        connections=WORKERS + 2 + (REQUESTS if hydrate_to is not None else 0),
    )
    repository = Repository.open(store, passphrase, tell=tell)
    folder = cache_dir or frames_folder(repository, environ)
    limit = cache_bytes if cache_bytes is not None else default_cache_bytes(folder)
    repository.cache = disk_cache(folder, limit, tell)
    reader = FrameReader(
        repository,
        memory_bytes=MEMORY_BYTES,
        cache=repository.cache,
        io_timeout=io_timeout,
        workers=WORKERS,
    )
    drive = Drive(repository, reader, Sightings(repository, environ).saw)
    with contextlib.ExitStack() as ending:
        ending.callback(reader.close)
        ending.callback(drive.close)
        traces = cache_folder(environ) / repository.config.repo_id / "traces"
        drive.learning = BootLearning(repository, reader, traces)
        ending.callback(drive.learning.close)
        hydrator = None
        if hydrate_to is not None:
            root = Path(os.path.abspath(hydrate_to))
            hydrator = Hydrator(root, drive, reader, tell, form=hydrate_form)
            drive.local = hydrator
            ending.callback(hydrator.close)
            ending.enter_context(announced(hydrator.states, environ))
        yield OpenedDrive(repository, store, drive, name, make_drive, hydrator)


def mount(
    address: str,
    passphrase: str,
    mountpoint: str,
    *,
    cache_dir: Path | None = None,
    cache_bytes: int | None = None,
    io_timeout: float = 60.0,
    allow_other: bool = False,
    driver: str | None = None,
    bandwidth: tuple[float | None, float | None] = (None, None),
    hydrate_to: Path | None = None,
    ready: Callable[[str], None],
    tell: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Serve the repository at `mountpoint` until it is unmounted. Threads may be stuck when it returns.

    The disks that are read are completed in the folder `hydrate_to`.
    `driver` is "native" or "refuse", on Windows "winfsp"; None: the best that is installed.
    """
    site = letters.LetterSite(mountpoint, records_folder(environ)) if letters.WINDOWS else None
    with opened_drive(
        address,
        passphrase,
        cache_dir=cache_dir,
        cache_bytes=cache_bytes,
        io_timeout=io_timeout,
        driver=driver,
        bandwidth=bandwidth,
        hydrate_to=hydrate_to,
        tell=tell,
        environ=environ,
    ) as opened:
        drive = opened.drive
        serve(
            opened.driver,
            drive,
            mountpoint,
            DriveOptions(allow_other=allow_other, space=lambda: Space(*drive.space())),
            records=records_folder(environ),
            repository=opened.store.address,
            driver_name=opened.driver_name,
            site=site,
            ready=ready,
            tell=tell,
        )
