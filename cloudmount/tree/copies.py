"""The copies of stored disks in a folder of this machine.

Decided here and only here: where a disk's copy lies (`MACHINE/SNAPSHOT/` and its name on the drive), what
its sidecar says of it, and how a copy is used. Safe on any thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from cloudmount.disks.synthesis import VhdxPositions
from cloudmount.errors import DamagedError, TargetExistsError
from cloudmount.extents import BlockSource, Zeros
from cloudmount.reader.hydrating import LocalDisk
from cloudmount.reader.localcopy import LocalCopy
from cloudmount.reader.positions import Positions, Unmoved
from cloudmount.reader.sidecar import Described
from cloudmount.repo.structures import BLOCK_BYTES
from cloudmount.system import refused
from cloudmount.tree.snapshotdir import StoredDisk

Format = Literal["vhdx", "raw"]
ENDINGS: dict[Format, str] = {"vhdx": ".vhdx", "raw": ".img"}
MOST_PIECE = 1 << 20
"""Bytes: everything in a VHDX lies at multiples of it."""


class Hydrated(NamedTuple):
    """One copy: its file, its disk's place on the drive, bytes, and what goes on."""

    path: str
    snapshot: str
    disk: str
    done_bytes: int
    total_bytes: int
    state: str


class DiskCopy:
    """A stored disk's copy in `root`, in `format`; `folder` is what its snapshot's folder is called."""

    def __init__(self, root: Path, disk: StoredDisk, folder: str, format: Format) -> None:
        machine = disk.snapshot.machine
        if {machine, folder, *disk.path.split("/")} & {"", ".", ".."} or "/" in machine:
            raise DamagedError(f"{machine}/{folder}/{disk.path} is no name that a file can have")
        why = refused(f"{machine}/{folder}/{disk.path}")
        if why is not None:
            raise TargetExistsError(f"{machine}/{folder}/{disk.path} can't be a file here: {why}")
        self.disk = disk
        self._folder = root / machine
        self.path = root / machine / folder / f"{disk.path}{ENDINGS[format]}"
        self.snapshot = f"{machine}/{folder}"
        repository = disk.map.maps.repository
        vhdx = VhdxPositions(disk.presence, disk.identity) if format == "vhdx" else None
        size = int(disk.summary["size"])
        self.positions: Positions = vhdx or Unmoved()
        self.expected = vhdx.size if vhdx is not None else min(size, disk.blocks * BLOCK_BYTES)
        """Bytes of the file that are more than holes, at most."""
        self.described = Described(
            repository=repository.config.repo_id,
            machine=machine,
            snapshot=disk.snapshot.id,
            folder=folder,
            disk=disk.path,
            format=format,
            size=vhdx.size if vhdx is not None else size,
            piece=min(repository.geometry.frame, MOST_PIECE),
        )

    @property
    def blank(self) -> BlockSource:
        """The file of a disk of zeros with the same blocks: right where it is not the disk's own."""
        return self.disk.blank if self.described.format == "vhdx" else Zeros(self.described.size)

    def finished(self, local: LocalDisk) -> bool:
        """Have `local` use the finished copy, if there is one."""
        return self._use(local, LocalCopy.finished_at(self.path, self.described))

    def claim(self, local: LocalDisk, tell: Callable[[str], None]) -> None:
        """Have `local` use the copy, which may be filled. Errors are those of `LocalCopy.claim`.

        The machine's folder is made for its owner only: finished copies are readable, as on the drive.
        """
        with contextlib.suppress(OSError):  # `claim` tells of it
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._use(local, LocalCopy.claim(self.path, self.described, tell))

    def _use(self, local: LocalDisk, copy: LocalCopy | None) -> bool:
        if copy is not None:
            copy.positions = self.positions
        local.copy = copy
        return copy is not None
