"""Which snapshots of a machine hold which version of a file.

Decided here and only here: what makes two versions the same: their contents, by what the maps know of them.
Where maps can't tell (some files inside disks) nobody claims it, unless all is read (`read`), and then by the
same digest that ordinary files have. Belongs to one thread, and has others look.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cloudmount.app.browsing import Found, Missing, look_up, top_of
from cloudmount.app.select import machine_name, split_path
from cloudmount.app.sightings import Sightings
from cloudmount.app.snapshots import no_line, opened_line
from cloudmount.crypto.keyring import ZERO_ID
from cloudmount.errors import CloudMountError, DamagedError, NotFoundError, StoreError, UsageError
from cloudmount.extents import BlockSource
from cloudmount.nodes import File, Identified, Kind, Node, is_file
from cloudmount.repo.frames import content_digest, segment_digest
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import Snapshot
from cloudmount.tree.drive import Drive

THREADS = 4
RESIDENT = 1024
"""Bytes of files that lie in their file system's own tables: they were read with what tells of them."""
CANONICAL = 32
"""Length of a content's name that is another's for another content, always."""


@dataclass(frozen=True, slots=True)
class Version:
    """A file in a snapshot. `size` in bytes; equal `content` means equal bytes; None: not known."""

    snapshot: Snapshot
    folder: str
    type: str
    size: int
    mtime_ns: int
    content: str | None


def versions(
    drive: Drive,
    text: str,
    *,
    read: bool = False,
    failed: Callable[[str, CloudMountError], None],
    environ: Mapping[str, str] = os.environ,
) -> list[Version]:
    """What the snapshots of a machine hold at the path of `text` (`MACHINE:PATH`), oldest first.

    Snapshots without it are left out; `NotFoundError` when all are. Where it can't be told, `failed` is.
    """
    name, path = split_path(text)
    if "/" in name or not path:
        raise UsageError("all snapshots of a machine are looked through: write MACHINE:PATH")
    machine = machine_name(name)
    repository = drive.repository
    with ThreadPoolExecutor(THREADS) as pool:
        line, unusable = opened_line(repository, repository.keys.tag(machine), pool)
        if not line:
            raise no_line(repository, machine, unusable)
        if unusable:
            failed(machine, DamagedError(f"{unusable} of its snapshots can't be opened, told above"))
        Sightings(repository, environ).saw(line[-1][0])

        def look(one: tuple[Snapshot, str]) -> Version | Missing | CloudMountError:
            try:
                return _version(drive, *one, path, read)
            except StoreError:
                raise
            except CloudMountError as error:
                return error

        seen = list(pool.map(look, line))
    found = []
    for (_, folder), one in zip(line, seen, strict=True):
        if isinstance(one, Version):
            found.append(one)
        elif isinstance(one, CloudMountError):
            failed(f"{machine}/{folder}", one)
    if not found and isinstance(seen[-1], Missing):
        raise NotFoundError(f"no snapshot of {machine!r} has {path!r}{seen[-1].hint()}")
    if not found:
        raise NotFoundError(f"no snapshot of {machine!r} has {path!r} that could be looked at")
    return found


def _version(drive: Drive, snapshot: Snapshot, folder: str, path: str, read: bool) -> Version | Missing:
    found = look_up(top_of(drive, snapshot), path)
    if not isinstance(found, Found):
        return found
    attr = found.node.attr()
    size = 0 if attr.kind is Kind.DIR else attr.size
    content = _content(found.node)
    small = content is None and size <= RESIDENT
    if is_file(found.node) and (small or (read and (content is None or len(content) != CANONICAL))):
        content = _read(drive.repository, found.node)
    return Version(snapshot, folder, attr.kind.value, size, attr.mtime_ns, content)


def _content(node: Node) -> str | None:
    return node.content() if isinstance(node, Identified) else None


def _read(repository: Repository, file: File) -> str:
    source = file.open()
    try:
        return digest_of(repository, source)
    finally:
        source.close()


def digest_of(repository: Repository, source: BlockSource) -> str:
    """The content digest that `source` would have as an ordinary file, from all its bytes but known holes."""
    keys, geometry = repository.keys, repository.geometry
    zeros = bytes(geometry.frame)
    data = [e for e in source.extents(0, source.size) if e.data]

    def segments() -> Iterator[bytes]:
        ids: list[bytes] = []
        i = 0
        for at in range(0, source.size, geometry.frame):
            length = min(geometry.frame, source.size - at)
            while i < len(data) and data[i].end <= at:
                i += 1
            hole = i == len(data) or data[i].offset >= at + length
            plain = b"" if hole else source.read_at(at, length)
            ids.append(ZERO_ID if plain == zeros[: len(plain)] else keys.content_id(plain))
            if len(ids) == geometry.segment_frames:
                yield segment_digest(keys, ids)
                ids = []
        if ids:
            yield segment_digest(keys, ids)

    return content_digest(keys, source.size, geometry.frame, segments()).hex()
