"""Opening a repository for a command.

Decided here and only here: how store, passphrase and caches come together. Pure but for the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cloudmount.app.places import cache_folder, connect
from cloudmount.blobs.retrying import TRANSFER, RetryPolicy
from cloudmount.repo.repository import Repository, SealedCache

GIB = 1 << 30
METADATA_CACHE_BYTES = 256 << 20
"""The cache of commands that read maps and snapshots only."""


def disk_cache(folder: Path, limit: int, tell: Callable[[str], None]) -> SealedCache:
    """The disk cache of sealed pieces in `folder`."""
    from cloudmount.reader.diskcache import DiskCache

    return DiskCache(os.fspath(folder), limit, tell)


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
