"""Damage to container files: every declared field, and what must come of it.

A damaged field is `checked` when a reader can notice or doesn't need it: then
the content is right or there is one clear error. The others (a size, a block
state: nothing in the file contradicts another valid value) may give other
content, but never another exception, a hang or a heap of memory.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloudmount.disks import vhd_records, vhdx_records
from cloudmount.disks.detect import open_disk
from cloudmount.errors import UnreadableInputError
from cloudmount.records import Record
from tests.disks import vhd_writer, vhdx_writer
from tests.disks.disk_model import Model, check_extents
from tests.disks.vhd_writer import DIFFERENCING, FIXED, VhdFile
from tests.disks.vhdx_writer import KIB, Log, VhdxFile

Seals = tuple[tuple[int, int, int], ...]
SECONDS = 10.0  # for opening and reading a small damaged disk, however busy the machine


@dataclass(frozen=True)
class Field:
    """One field in a file, in all its copies, and the checksums over it that are made right again.

    `seals`: (offset of a structure, its length, where in it its checksum is); those
    of big-endian fields are a VHD's, the others CRC-32C.
    """

    name: str
    places: tuple[int, ...]
    length: int
    big: bool
    checked: bool
    seals: Seals = ()

    def values(self, path: Path, rng: random.Random) -> Iterator[bytes]:
        """Values to try: the limits, one more, one less, flipped bits, something random: eight in all."""
        with path.open("rb") as f:
            f.seek(self.places[0])
            now = f.read(self.length)
        order: Literal["big", "little"] = "big" if self.big else "little"
        number, mask = int.from_bytes(now, order), (1 << 8 * self.length) - 1
        tries = [number - 1, number * 2, number // 2, 1 << (8 * self.length - 1)]
        tries += [number ^ 1 << rng.randrange(8 * self.length), rng.getrandbits(8 * self.length)]
        tries += [number + 4096, number + (1 << 20), number - (1 << 20)]
        tries = [0, mask, number + 1, *rng.sample(tries, 5)]
        for value in dict.fromkeys(t & mask for t in tries):
            if value != number:
                yield value.to_bytes(self.length, order)

    @contextmanager
    def put(self, path: Path, value: bytes) -> Iterator[None]:
        """Within it, the value is in every copy and sealed; afterwards the file is as it was."""
        ranges = [(p, self.length) for p in self.places] + [(at + c, 4) for at, _, c in self.seals]
        with path.open("r+b", buffering=0) as f:
            before = [(at, os.pread(f.fileno(), n, at)) for at, n in ranges]
            for place in self.places:
                os.pwrite(f.fileno(), value, place)
            for at, length, checksum in self.seals:
                data = os.pread(f.fileno(), length, at)
                right = vhd_writer.sealed(data, checksum) if self.big else vhdx_writer.sealed(data)
                os.pwrite(f.fileno(), right[checksum : checksum + 4], at + checksum)
            yield
            for at, data in before:
                os.pwrite(f.fileno(), data, at)


def _fields(
    kind: type[Record],
    name: str,
    places: tuple[int, ...],
    seals: Seals = (),
    *,
    big: bool = False,
    unchecked: tuple[str, ...] = (),
) -> Iterator[Field]:
    for f in kind.FIELDS:
        at = tuple(p + f.offset for p in places)
        length = min(f.length, 32)  # of long reserved areas the start is enough
        yield Field(f"{name} {f.name}", at, length, big, f.name not in unchecked, seals)


def vhdx_fields(file: VhdxFile, log: Log | None = None, entries: tuple[int, ...] = ()) -> list[Field]:
    """Every field of a written VHDX; of its log's `entries` too (positions of untorn ones)."""
    r, lay = vhdx_records, file.layout

    fields = [*_fields(r.FileTypeIdentifier, "file type identifier", (0,))]
    fields += _fields(
        r.Header,
        "header",
        lay.headers,
        tuple((at, 4 * KIB, 4) for at in lay.headers),
        unchecked=() if log is None else ("log_guid",),  # zero means that the log is done with
    )
    fields += _fields(r.Header, "first header", lay.headers[:1])
    table = tuple((at, 64 * KIB, 4) for at in lay.region_tables)
    fields += _fields(r.RegionTableHeader, "region table", lay.region_tables, table)
    for i in range(2):
        entries_at = tuple(t + 16 + 32 * i for t in lay.region_tables)
        # Where the BAT is said to be something else may lie that is a BAT as well.
        free = ("guid", "file_offset") if i == 0 else ()
        fields += _fields(r.RegionTableEntry, f"region {i}", entries_at, table, unchecked=free)
    fields += _fields(r.MetadataTableHeader, "metadata table", (lay.metadata,))
    for i, (name, (at, length)) in enumerate(lay.items.items()):
        fields += _fields(r.MetadataTableEntry, f"item {name}", (lay.metadata + 32 + 32 * i,))
        if name == "parent locator":
            fields += _fields(r.ParentLocatorHeader, name, (at,))
            for k in range(len(file.parent or ())):
                fields += _fields(r.ParentLocatorEntry, f"{name} entry {k}", (at + 20 + 12 * k,))
        elif name == "file parameters":
            fields += _fields(r.FileParameters, name, (at,), unchecked=("block_size",))
        else:
            checked = name not in ("virtual disk size", "logical sector size")
            fields.append(Field(name, (at,), length, False, checked))
    for block in list(lay.payload)[:3]:
        at = lay.bat + 8 * r.payload_index(block, file.ratio)
        fields.append(Field(f"BAT entry of block {block}", (at,), 8, False, False))
        fields.append(Field(f"BAT offset of block {block}", (at + 2,), 6, False, False))
    for position in entries if log is not None else ():
        assert log is not None
        at = file.log_offset + position
        length = int.from_bytes(log.ring[position + 8 : position + 12], "little")
        fields += _fields(r.LogEntryHeader, f"log entry at {position}", (at,), ((at, length, 4),))
        descriptor = at + 64
        fields += _fields(
            r.LogDataDescriptor,
            f"log descriptor at {position}",
            (descriptor,),
            ((at, length, 4),),
            unchecked=("trailing_bytes", "leading_bytes", "file_offset"),
        )
    return fields


def vhd_fields(file: VhdFile) -> list[Field]:
    """Every field of a written VHD."""
    r = vhd_records

    end = file.model.size if file.kind == FIXED else file.end
    footers = (end,) if file.kind == FIXED else (end, 0)
    # Sizes and types are any writer's choice; geometry counts for QEMU's own images only.
    free = ("current_size", "disk_type", "creator_application", "cylinders", "heads", "sectors_per_track")
    seals = tuple((at, 512, 64) for at in footers)
    fields = [*_fields(r.Footer, "footer", footers, seals, big=True, unchecked=free)]
    fields += _fields(r.Footer, "unsealed footer", footers[:1], big=True)
    if file.kind == FIXED:
        return fields
    at = file.header_at
    fields += _fields(
        r.DynamicHeader,
        "dynamic header",
        (at,),
        ((at, 1024, 36),),
        big=True,
        # Another table offset finds other entries; a parent's id and time are only its own.
        unchecked=("block_size", "table_offset", "parent_time_stamp"),
    )
    if file.kind == DIFFERENCING:
        locators = at + next(f.offset for f in r.DynamicHeader.FIELDS if f.name == "locators")
        for i in range(len(file.locators)):
            fields += _fields(
                r.ParentLocator, f"locator {i}", (locators + 24 * i,), ((at, 1024, 36),), big=True
            )
    for block in list(file.payload)[:3]:
        place = (file.bat_at + 4 * block,)
        fields.append(Field(f"BAT entry of block {block}", place, 4, True, False))
    return fields


def outcome(path: Path, model: Model, *, checked: bool) -> str:
    """ "right", "other" (only if not `checked`) or the error's text; an assertion for all else."""
    began = time.monotonic()
    try:
        with open_disk(path) as disk:
            right = disk.source.size == model.size
            if right and checked:
                check_extents(disk.source, 0, model.size, model)
            elif not right and disk.source.size <= 4 * model.size:
                disk.source.read_at(0, disk.source.size)
            if right:
                right = disk.source.read_at(0, model.size) == model.read(0, model.size)
    except UnreadableInputError as error:
        text = str(error)
        assert str(path.parent) in text, f"which file? {text}"
        right = False
    else:
        text = "right" if right else "other"
    assert time.monotonic() - began < SECONDS, f"took {time.monotonic() - began:.1f} s: {text}"
    assert not checked or text != "other", "wrong content, and no error"
    return text
