"""What a drill reads of a machine's disks once it ran: that file systems open, and what the guest left there.

Decided here and only here: that the disks which the machine did not start from are opened as they are in the
snapshot, and that every volume of every disk is looked at for marks (`guest.marks`), before and after, the
latter through its overlay. Belongs to one thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cloudmount.disks.partitions import Partition, read_partitions
from cloudmount.disks.qcow2 import Overlay
from cloudmount.errors import DamagedError, UnreadableInputError
from cloudmount.extents import BlockSource, Layout, Piece
from cloudmount.guest.marks import Mark, Marks, marks_of, new_marks
from cloudmount.guest.recognise import recognise
from cloudmount.guest.volume import KeptFolders, Volume
from cloudmount.tree.drive import Drive
from cloudmount.tree.inside import MOST_PARTITIONS, GuestDir
from cloudmount.tree.snapshotdir import StoredDisk


class Opened(NamedTuple):
    """A volume that was to be opened; `problem`: why that failed, None when it did not, or when there is
    nothing in it that this program opens (`opens` is false then)."""

    disk: str
    volume: str
    opens: bool
    problem: str | None


def open_volumes(disks: Sequence[StoredDisk]) -> Iterator[Opened]:
    """Open every file system of these disks and list its root. Failures of the store are raised."""
    for disk in disks:
        try:
            children = disk.inside.children()
        except (UnreadableInputError, DamagedError) as error:
            yield Opened(disk.path, "", False, str(error))
            continue
        for name, node in children.items():
            if not isinstance(node, GuestDir):
                yield Opened(disk.path, name, False, None)
                continue
            try:
                for _ in itertools.islice(node.list(), 1):
                    pass
            except (UnreadableInputError, DamagedError) as error:
                yield Opened(disk.path, name, False, str(error))
            else:
                yield Opened(disk.path, name, True, None)


class MarkSearch:
    """Looks for marks in the overlays of a machine's `disks`, which are in their files' order."""

    def __init__(self, drive: Drive, disks: Sequence[StoredDisk], overlays: Sequence[Path]) -> None:
        self._drive = drive
        self._disks = list(zip(disks, overlays, strict=True))
        self._before: dict[tuple[int, int], Marks] = {}

    def found(self) -> list[Mark]:
        """What is new by now. Failures of the store are raised; what can't be read has no marks."""
        marks: list[Mark] = []
        for number, (disk, path) in enumerate(self._disks):
            below = disk.quiet()
            try:
                overlay = Overlay(path, below)
            except (UnreadableInputError, DamagedError):
                continue
            try:
                marks += self._of_disk(number, disk, below, overlay)
            except (UnreadableInputError, DamagedError):
                continue
            finally:
                overlay.close()
        return marks

    def _of_disk(
        self, number: int, disk: StoredDisk, below: BlockSource, overlay: BlockSource
    ) -> Iterator[Mark]:
        sector = int(disk.summary["logical_sector"])
        old = {p.number: p for p in _partitions(below, sector)}
        for partition in _partitions(overlay, sector):
            if partition.number not in old:
                continue  # made by the guest, or by nobody: there is no before
            before = self._before.get((number, partition.number))
            if before is None:
                before = self._marks(disk, below, old[partition.number])
                if before is None:
                    continue
                self._before[number, partition.number] = before
            after = self._marks(disk, overlay, partition)
            if after is not None:
                yield from new_marks(before, after)

    def _marks(self, disk: StoredDisk, source: BlockSource, partition: Partition) -> Marks | None:
        start = min(partition.start, source.size)
        part = Layout([Piece(min(partition.length, source.size - start), source, start)])
        parser = recognise(part, partition).parser
        if parser is None or parser.startswith("fat"):
            return None
        where = f"{disk.path}, partition {partition.number}"
        return marks_of(Volume(self._drive.parsers, part, parser, where, KeptFolders()))


def _partitions(source: BlockSource, sector: int) -> list[Partition]:
    table = read_partitions(source, sector)
    if table.kind == "none":
        return [Partition(1, 0, source.size, "")]
    return [p for p in table.partitions if p.type not in ("0x05", "0x0f", "0x85")][:MOST_PARTITIONS]
