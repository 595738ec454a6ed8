"""What is a disk, and opening it: the rule of `cli.md`, "What is a disk and what it is called".

Decided here and only here: whether a path is a raw disk, a VHD or a VHDX, what
is kept of a disk's identity, and which containers are merely parents of others.
Formats are never guessed by another program.

Threading: functions are pure; an `OpenDisk`'s source may be read from any thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

from cloudmount.disks import vhdx_records
from cloudmount.disks.chain import Chain, open_chain
from cloudmount.disks.partitions import BIOS_BOOT, ESP, read_partitions
from cloudmount.disks.raw import RawDisk
from cloudmount.disks.signatures import file_system
from cloudmount.disks.vhd import VhdImage, find_footer
from cloudmount.disks.vhdx import VhdxImage
from cloudmount.errors import UnreadableInputError
from cloudmount.extents import BlockSource

RAW_ENDINGS = (".raw", ".img")


class DiskKind(StrEnum):
    """How a disk is stored; the value is its `source_format`."""

    RAW = "raw"
    VHD = "vhd"
    VHDX = "vhdx"


@dataclass(frozen=True)
class DiskIdentity:
    """What a disk is beside its content: sector sizes in bytes, and what names it.

    `source_format`: "raw", "vhd" or "vhdx". `generation`: that of the Hyper-V
    machine it belongs to as far as the disk tells, 1 or 2.
    """

    logical_sector: int
    physical_sector: int
    virtual_disk_id: UUID | None
    source_format: str
    generation: int | None


@dataclass(frozen=True)
class OpenDisk:
    """A disk's content as one `BlockSource`, chains flattened; `files`: all of its chain, child first.

    A context manager that closes the source.
    """

    source: BlockSource
    identity: DiskIdentity
    files: tuple[Path, ...]

    def close(self) -> None:
        """Close every file."""
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def detect(path: str | os.PathLike[str], *, named: bool) -> DiskKind | None:
    """The kind of disk that `path` is; None for whatever is no disk.

    `named`: given on the command line, not met while walking a folder.
    `UnreadableInputError` when it can't be looked at.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableInputError(f"{path}: can't look at it: {why}") from None
    if stat.S_ISBLK(mode):
        return DiskKind.RAW if named else None
    if not stat.S_ISREG(mode):
        return None
    file = RawDisk(path)
    try:
        return _kind(file, named)
    finally:
        file.close()


def _kind(file: RawDisk, named: bool) -> DiskKind | None:
    if file.size >= 8 and file.read_at(0, 8) == vhdx_records.FILE_SIGNATURE:
        return DiskKind.VHDX
    if find_footer(file) is not None:
        return DiskKind.VHD
    if not file.size or file.size % 512 or file.path.suffix.lower() not in RAW_ENDINGS:
        return None
    if named or read_partitions(file).kind != "none" or file_system(file) is not None:
        return DiskKind.RAW
    return None


def open_disk(path: str | os.PathLike[str], *, named: bool = True) -> OpenDisk:
    """The disk at `path`, checked and flattened, ready to be read.

    `UnreadableInputError` when it is no disk, is broken, or its chain is.
    """
    path = Path(path)
    kind = detect(path, named=named)
    if kind is None:
        raise UnreadableInputError(f"{path}: not a disk: no VHD or VHDX, and no raw disk by its name")
    if kind is DiskKind.RAW:
        return _open_raw(path)
    chain = open_chain(path, VhdxImage if kind is DiskKind.VHDX else VhdImage)
    try:
        return OpenDisk(chain, _identity(chain), tuple(image.path for image in chain.images))
    except BaseException:
        chain.close()
        raise


def _open_raw(path: Path) -> OpenDisk:
    disk = RawDisk(path)
    try:
        logical, physical = disk.sector_sizes()
        if not disk.is_block_device:
            table = read_partitions(disk)
            if table.kind != "none" and table.sector != logical:
                logical = physical = table.sector  # an image of a disk with 4 KiB sectors
        generation = _generation(disk, logical)
        return OpenDisk(disk, DiskIdentity(logical, physical, None, "raw", generation), (disk.path,))
    except BaseException:
        disk.close()
        raise


def _identity(chain: Chain) -> DiskIdentity:
    """A VHD's id is that of its chain's last file, which stays when children are merged into it."""
    child, base = chain.images[0], chain.images[-1]
    if isinstance(child, VhdxImage):
        p = child.parameters
        generation = _generation(chain, p.logical_sector)
        return DiskIdentity(p.logical_sector, p.physical_sector, p.virtual_disk_id, "vhdx", generation)
    assert isinstance(base, VhdImage)
    return DiskIdentity(512, 512, base.unique_id, "vhd", 1)  # generation 2 takes VHDX only


def _generation(source: BlockSource, logical_sector: int) -> int | None:
    """2 when only UEFI can boot it, 1 when only a BIOS can, else None."""
    table = read_partitions(source, logical_sector)
    types = {p.type for p in table.partitions}
    if table.kind == "gpt" and ESP in types and BIOS_BOOT not in types:
        return 2
    if table.kind == "mbr" and any(p.active for p in table.partitions) and "0xef" not in types:
        return 1
    return None


def parents_in(paths: Iterable[str | os.PathLike[str]]) -> set[Path]:
    """Those of `paths` that are parents, near or far, of another of them.

    A child whose chain is broken makes nobody a parent: what it was made on is
    then the best that is left. Paths that are no containers, or can't be read,
    count for nothing here.
    """
    by_identity: dict[tuple[int, int], list[Path]] = {}
    containers: list[tuple[Path, DiskKind]] = []
    for path in map(Path, paths):
        try:
            kind = detect(path, named=False)
            status = os.stat(path)
        except (UnreadableInputError, OSError):
            continue
        if kind in (DiskKind.VHD, DiskKind.VHDX):
            by_identity.setdefault((status.st_dev, status.st_ino), []).append(path)
            containers.append((path, kind))
    verified: set[tuple[int, int]] = set()
    found: set[Path] = set()
    for path, kind in containers:
        try:
            chain = open_chain(path, VhdxImage if kind is DiskKind.VHDX else VhdImage, verified)
        except UnreadableInputError:
            continue
        chain.close()
        for image in chain.images:
            verified.add(image.identity)
        for image in chain.images[1:]:
            found.update(by_identity.get(image.identity, ()))
    return found
