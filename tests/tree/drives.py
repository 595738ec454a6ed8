"""A repository filled by the real backup, and its drive, mounted or looked at as a tree."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudmount.blobs.store import BlobStore
from cloudmount.mounts.driver import DriveOptions, Space
from cloudmount.nodes import Dir, File, Link, Node
from cloudmount.reader.stored import FrameReader
from cloudmount.tree.drive import Drive
from tests.backup.lab import Lab
from tests.disks.oracles import run
from tests.mounts.drivers import DRIVERS
from tests.mounts.mounting import Mounted, mounted

MIB = 1 << 20


def raw_disk(path: Path, size: int = 24 * MIB, seed: int = 1) -> Path:
    """A raw disk with a boot signature, scattered data, and most of it never written."""
    rng = random.Random(seed)
    with path.open("wb") as f:
        f.truncate(size)
        f.seek(510)
        f.write(b"\x55\xaa")
        for _ in range(20):
            f.seek(rng.randrange(size // 4096 - 10) * 4096)
            f.write(rng.randbytes(rng.choice((4096, 12288, 5000))))
        f.seek(size - 4096)
        f.write(rng.randbytes(4096))
    return path


def vhdx_disk(path: Path, seed: int = 1, size: int = 24 * MIB) -> Path:
    """A raw disk, as VHDX at `path`; the raw one stays beside it with the ending `.source`."""
    raw = raw_disk(path.with_suffix(".source"), size, seed)
    run("qemu-img", "convert", "-f", "raw", "-O", "vhdx", raw, path)
    return raw


@contextmanager
def drive(lab: Lab, store: BlobStore | None = None, io_timeout: float = 10) -> Iterator[Drive]:
    """The tree, of a repository opened anew."""
    repository = lab.reopened(store)
    reader = FrameReader(repository, io_timeout=io_timeout)
    tree = Drive(repository, reader)
    try:
        yield tree
    finally:
        tree.close()
        reader.close()


@contextmanager
def mounted_drive(
    lab: Lab, at: Path, driver: str, store: BlobStore | None = None, io_timeout: float = 10
) -> Iterator[Mounted]:
    """The same, mounted."""
    with drive(lab, store, io_timeout) as tree:
        options = DriveOptions(space=lambda: Space(*tree.space()))
        with mounted(DRIVERS[driver], tree, at, options) as mount:
            yield mount


def node(root: Dir, path: str) -> Node:
    """As the kernel finds it: each part looked up and its attributes asked for, links followed."""
    here: Node = root
    parts = path.split("/")
    while parts:
        parent: Dir = here  # type: ignore[assignment]  # a test's path goes through folders
        found = parent.lookup(parts.pop(0))
        assert found is not None, path
        found.attr()
        if hasattr(found, "target"):
            link: Link = found  # type: ignore[assignment]  # seen by its method
            parts = [*link.target().split("/"), *parts]
            continue
        here = found
    return here


def read(root: Dir, path: str, offset: int = 0, length: int | None = None) -> bytes:
    """Bytes of a file; to the end when no length is given."""
    file: File = node(root, path)  # type: ignore[assignment]  # a test's path is a file's
    source = file.open()
    try:
        return source.read_at(offset, source.size - offset if length is None else length)
    finally:
        source.close()


def names(at: Path) -> list[str]:
    """A listing, sorted."""
    return sorted(os.listdir(at))
