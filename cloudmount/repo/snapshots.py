"""Snapshot objects: the summary of what was backed up, and the layout of where it lies.

Decided here and only here: the form of FORMAT.md sections 6.1 and 6.2. Values are
immutable; pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudmount.crypto.keyring import SEAL_BYTES, Keyring
from cloudmount.crypto.slots import canonical
from cloudmount.errors import DamagedError
from cloudmount.repo.locations import Birth
from cloudmount.repo.names import SnapshotKey, iso_time, parse_snapshot_name
from cloudmount.repo.objects import SectionReader, seal_sections
from cloudmount.repo.pages import ItemRef
from cloudmount.repo.payload import encode_payload
from cloudmount.repo.structures import HEADER_BYTES, KIND_SNAPSHOT

Section = int
"""A section's number in the same snapshot object."""


@dataclass(frozen=True, slots=True)
class PageRef:
    """Where a stream's page and its digests lie: a section or an item each, None when nothing in it is
    present; its present blocks of 2 MiB, and of 32 MiB."""

    page: Section | ItemRef | None
    digests: Section | ItemRef | None
    blocks: int
    large_blocks: int


@dataclass(frozen=True, slots=True)
class StreamRoot:
    """The root of a stream's map. `sealed` bytes and `frames` stored, in all its pages."""

    pages: Sequence[PageRef]
    sealed: int
    frames: int

    @property
    def blocks(self) -> int:
        """2 MiB blocks present in the stream."""
        return sum(p.blocks for p in self.pages)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An opened snapshot: `summary` as in FORMAT.md 6.1, its disks' roots in the summary's order, the
    section of the parts' index."""

    name: str
    tag: str
    key: SnapshotKey
    summary: Mapping[str, Any]
    roots: Sequence[StreamRoot]
    files: Section | None
    section_lengths: Sequence[int] = field(repr=False)
    lead: int
    dictionaries: Sequence[int] = ()
    """Ids of those that were there when it was written: its frames may need any of them."""

    @property
    def id(self) -> str:
        """32 hex digits, derived from content and creation."""
        return self.key.id

    @property
    def machine(self) -> str:
        """The machine's name."""
        return str(self.summary["machine"])

    @property
    def total_length(self) -> int:
        """Length of the whole object in bytes."""
        return HEADER_BYTES + self.lead + sum(self.section_lengths)

    def section_range(self, number: Section) -> tuple[int, int]:
        """(offset, length) of a section in the object; `DamagedError` when there is none such."""
        if not 1 <= number <= len(self.section_lengths):
            raise DamagedError(f"{self.name} has no section {number}")
        start = HEADER_BYTES + self.lead + sum(self.section_lengths[: number - 1])
        return start, self.section_lengths[number - 1]


class MapRows:
    """The table of map objects that JSON references name by number."""

    def __init__(self, rows: Sequence[Sequence[Any]] = ()) -> None:
        self._rows = [Birth(int(epoch), bytes.fromhex(salt)) for epoch, salt in rows]
        self._numbers = {row: i for i, row in enumerate(self._rows)}

    def to_json(self) -> list[list[Any]]:
        """The rows as in JSON."""
        return [[birth.epoch, birth.salt.hex()] for birth in self._rows]

    def ref(self, item: ItemRef | Section | None) -> Any:
        """A reference as in JSON."""
        if item is None or isinstance(item, int):
            return item
        row = item.birth
        if row not in self._numbers:
            self._numbers[row] = len(self._rows)
            self._rows.append(row)
        return [self._numbers[row], item.offset, item.length, item.number]

    def item(self, value: Any) -> ItemRef:
        """The item a JSON reference names; `ValueError` when it is none."""
        row, offset, length, number = (int(v) for v in value)
        if not 0 <= row < len(self._rows) or min(offset, length, number) < 0:
            raise ValueError("a reference to a map object that is not listed")
        return ItemRef(self._rows[row], offset, length, number)

    def item_or_section(self, value: Any) -> ItemRef | Section | None:
        """A section's number, the item a reference names, or None."""
        return value if value is None or type(value) is int else self.item(value)

    def root_to_json(self, root: StreamRoot) -> dict[str, Any]:
        """A stream's root as in JSON."""
        return {
            "pages": [[self.ref(p.page), self.ref(p.digests), p.blocks, p.large_blocks] for p in root.pages],
            "sealed": root.sealed,
            "frames": root.frames,
        }

    def root(self, value: Any) -> StreamRoot:
        """A stream's root from JSON."""
        pages = [
            PageRef(self.item_or_section(page), self.item_or_section(digests), int(blocks), int(large))
            for page, digests, blocks, large in value["pages"]
        ]
        return StreamRoot(pages, int(value["sealed"]), int(value["frames"]))


def snapshot_id(keys: Keyring, summary: bytes) -> str:
    """The id of a snapshot with this summary."""
    return keys.digest("snapshot", [summary]).hex()


def seal_snapshot(
    keys: Keyring,
    tag: str,
    time: int,
    summary: Mapping[str, Any],
    roots: Sequence[StreamRoot],
    files: Section | None,
    sections: Sequence[bytes],
    dictionaries: Sequence[int] = (),
) -> tuple[str, bytes, SnapshotKey]:
    """A snapshot object: its name, bytes and key. `sections` are the plain sections 1, 2, ...; its frames
    need no other `dictionaries` than these."""
    first = canonical(summary)
    key = SnapshotKey(summary["sequence"], time, snapshot_id(keys, first))
    payloads = [encode_payload(s) for s in sections]
    rows = MapRows()
    layout = {
        "sections": [len(p) + SEAL_BYTES for p in payloads],
        "disks": [rows.root_to_json(root) for root in roots],
        "files": files,
        "dictionaries": [f"{id:08x}" for id in dictionaries],
    }
    layout["maps"] = rows.to_json()
    head = len(first).to_bytes(4, "little") + first + canonical(layout)
    name = key.name(tag)
    return name, seal_sections(keys, KIND_SNAPSHOT, name, encode_payload(head), payloads), key


def open_snapshot(keys: Keyring, name: str, data: bytes) -> tuple[Snapshot, SectionReader]:
    """The snapshot from its object's first bytes, which must hold section 0; `DamagedError` when they
    don't open, or are not what the name says."""
    told = parse_snapshot_name(name)
    if told is None:
        raise DamagedError(f"{name} is not a snapshot's name")
    tag, key, _ = told
    reader = SectionReader(keys, KIND_SNAPSHOT, name, data)
    plain = reader.first(data)
    length = int.from_bytes(plain[:4], "little")
    first, rest = plain[4 : 4 + length], plain[4 + length :]
    try:
        summary, layout = json.loads(first), json.loads(rest)
        if snapshot_id(keys, first) != key.id:
            raise DamagedError(f"{name}: its id is not that of its content")
        if summary["sequence"] != key.sequence or summary["time"] != iso_time(key.time):
            raise DamagedError(f"{name}: its name disagrees with its content")
        if keys.tag(summary["machine"]) != tag:
            raise DamagedError(f"{name}: it stands under another machine's name")
        rows = MapRows(layout["maps"])
        roots = [rows.root(r) for r in layout["disks"]]
        lengths = [int(n) for n in layout["sections"]]
        dictionaries = [int(id, 16) for id in layout.get("dictionaries", [])]
        if len(roots) != len(summary["disks"]) or min(lengths, default=0) < 0:
            raise DamagedError(f"{name}: its layout disagrees with its summary")
        files = layout["files"]
        snapshot = Snapshot(name, tag, key, summary, roots, files, lengths, reader.lead, dictionaries)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{name} makes no sense: {error!r}") from None
    return snapshot, reader
