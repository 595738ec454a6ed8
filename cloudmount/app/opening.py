"""Opening a repository for a command.

Decided here and only here: how store, passphrase and caches come together. Pure but for the store.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cloudmount.app.places import cache_folder, connect, free_bytes, make_folders
from cloudmount.blobs.retrying import TRANSFER, RetryPolicy
from cloudmount.blobs.store import BlobStore
from cloudmount.errors import NoRepositoryError, TargetExistsError
from cloudmount.repo.repository import Repository, SealedCache

if TYPE_CHECKING:
    from cloudmount.tree.drive import Drive

MOST_CACHE = 10 << 30
KEEP_SECONDS = 1.0
"""How long a command that ends lets what it read reach the disk cache."""
WORKERS = 16
"""Requests at once of commands that read contents."""
METADATA_CACHE_BYTES = 256 << 20
"""The cache of commands that read maps and snapshots only."""


def disk_cache(folder: Path, limit: int, tell: Callable[[str], None]) -> SealedCache:
    """The disk cache of sealed pieces in `folder`."""
    from cloudmount.reader.diskcache import DiskCache

    return DiskCache(os.fspath(folder), limit, tell)


def default_cache_bytes(folder: Path) -> int:
    """10 GiB, or a quarter of what is free where the cache lies."""
    return min(MOST_CACHE, free_bytes(folder) // 4)


def frames_folder(repository: Repository, environ: Mapping[str, str] = os.environ) -> Path:
    """Where drives, and commands that look inside disks, keep pieces of them."""
    return cache_folder(environ) / repository.config.repo_id / "frames"


@contextlib.contextmanager
def looking_inside(repository: Repository, environ: Mapping[str, str] = os.environ) -> Iterator[Drive]:
    """The drive of a repository as a tree whose contents, those inside disks too, can be read.

    It waits out outages, and shares the drive's cache: another snapshot of a machine costs the difference.
    """
    from cloudmount.reader.stored import FrameReader
    from cloudmount.tree.drive import Drive

    folder = frames_folder(repository, environ)
    cache = disk_cache(folder, default_cache_bytes(folder), repository.warn)
    assert TRANSFER.total is not None
    reader = FrameReader(repository, cache=cache, io_timeout=TRANSFER.total, workers=WORKERS)
    drive = Drive(repository, reader)
    try:
        yield drive
    finally:
        drive.close()
        reader.settle(KEEP_SECONDS)
        reader.close()


def check_there(address: str, environ: Mapping[str, str] = os.environ) -> None:
    """`NoRepositoryError` when there is no repository at `address`: to be known before asking a person
    for a passphrase. One request."""
    with connect(address, environ) as store:
        if not _is_there(store):
            raise NoRepositoryError(f"there is no repository at {store.address}")


def check_free(address: str, environ: Mapping[str, str] = os.environ) -> None:
    """`TargetExistsError` when there is a repository at `address` already. One request."""
    with connect(address, environ) as store:
        with contextlib.suppress(NoRepositoryError):
            if _is_there(store):
                raise TargetExistsError(f"a repository is already at {store.address}; choose an empty place")


def _is_there(store: BlobStore) -> bool:
    return next(store.list("config", limit=1), None) is not None


def open_repository(
    address: str,
    passphrase: str,
    *,
    environ: Mapping[str, str] = os.environ,
    policy: RetryPolicy = TRANSFER,
    bandwidth: tuple[float | None, float | None] = (None, None),
    tell: Callable[[str], None],
    cached: bool = True,
    connections: int = 16,
) -> Repository:
    """The repository at `address`. `cached` keeps snapshots and maps between commands."""
    make_folders(environ)
    store = connect(address, environ, policy=policy, bandwidth=bandwidth, connections=connections)
    try:
        repository = Repository.open(store, passphrase, tell=tell)
    except BaseException:
        store.close()
        raise
    if cached:
        folder = cache_folder(environ) / repository.config.repo_id / "maps"
        repository.cache = disk_cache(folder, METADATA_CACHE_BYTES, tell)
    return repository
