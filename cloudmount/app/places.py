"""Where things lie on this machine: caches, state, and a repository's address.

Decided here and only here: the folders of `cli.md`, and how a store is wrapped
for what is to be done. Pure but for the environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from cloudmount.blobs.address import open_store
from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.limited import LimitedStore
from cloudmount.blobs.retrying import TRANSFER, RetryingStore, RetryPolicy
from cloudmount.blobs.store import BlobStore
from cloudmount.system import kept_below


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Caches and traces: losing them costs time only."""
    return Path(kept_below("XDG_CACHE_HOME", ".cache", environ)) / "cloudmount"


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The rest that is kept; nothing there is needed to restore."""
    return Path(kept_below("XDG_STATE_HOME", os.path.join(".local", "state"), environ)) / "cloudmount"


def make_folders(environ: Mapping[str, str] = os.environ) -> None:
    """Make both, for their owner only (docs/security.md). Where that fails nothing is kept."""
    for folder in (cache_folder(environ), state_folder(environ)):
        with contextlib.suppress(OSError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)


def free_bytes(folder: Path) -> int:
    """What is free where `folder` lies, or would lie."""
    there = Path(os.path.abspath(folder))
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def records_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where records of mounts lie."""
    return state_folder(environ) / "mounts"


def connect(
    address: str,
    environ: Mapping[str, str] = os.environ,
    *,
    policy: RetryPolicy = TRANSFER,
    bandwidth: tuple[float | None, float | None] = (None, None),
    connections: int = 16,
) -> CountingStore:
    """The store at `address`: counted, retrying, and limited to (up, down) bytes a second."""
    store: BlobStore = open_store(address, environ, connections=connections)
    if bandwidth != (None, None):
        store = LimitedStore(store, up=bandwidth[0], down=bandwidth[1])
    return CountingStore(RetryingStore(store, policy))
