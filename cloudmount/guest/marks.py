"""Marks that a system leaves in its own file systems when it runs, and that nothing else leaves.

Decided here and only here: which those are, and what of two looks at a volume, before and after, is one: the
journal of systemd was written to under another boot id, Windows' System.evtx has a record of a higher number,
a registry hive was written anew. What could not be read before proves nothing afterwards. Stateless.
"""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from cloudmount.errors import DamagedError, UnreadableInputError
from cloudmount.guest.volume import Volume
from cloudmount.nodes import Kind

_JOURNALS = (("var", "log", "journal"), ("log", "journal"))
"""From the root of a volume; /var may be a volume of its own."""
_MOST_MACHINES = 16
_EVENTS = ("Windows", "System32", "winevt", "Logs", "System.evtx")
_HIVES = ("Windows", "System32", "config")
_HIVE_NAMES = ("SYSTEM", "SOFTWARE")
_CHUNK, _FIRST_CHUNK = 65536, 4096
_EPOCH = 116_444_736_000_000_000  # 1970 in units of 100 ns since 1601

T = TypeVar("T")


class Mark(NamedTuple):
    """One that is new. `running`: whether it shows that the system's services ran, not only its kernel."""

    kind: Literal["journal", "event log", "registry"]
    what: str
    running: bool


@dataclass(frozen=True, slots=True)
class Marks:
    """What a volume holds of them; None: it could not be read."""

    journals: Mapping[str, str] | None
    """By machine id, the boot id under which the journal was written to last."""
    record: int | None
    """The highest number of a record in System.evtx; 0 without any."""
    hives: Mapping[str, tuple[int, int]] | None
    """By name, a hive's sequence number, and when it was written (100 ns since 1601)."""


def marks_of(volume: Volume) -> Marks:
    """Look for them. Failures of the store are raised."""
    return Marks(
        _readable(lambda: dict(_journals(volume))),
        _readable(lambda: _last_record(volume)),
        _readable(lambda: dict(_hives(volume))),
    )


def new_marks(before: Marks, after: Marks) -> list[Mark]:
    """What is in the second that was not in the first."""
    found: list[Mark] = []
    if before.journals is not None and after.journals is not None:
        for machine, boot in after.journals.items():
            if before.journals.get(machine) != boot:
                what = (
                    f"systemd's journal of machine {machine[:8]} was written to under a new boot id, {boot}"
                )
                found.append(Mark("journal", what, True))
    if before.record is not None and after.record is not None and after.record > before.record:
        what = f"Windows' System event log has a new record, number {after.record} (it had {before.record})"
        found.append(Mark("event log", what, True))
    if before.hives is not None and after.hives is not None:
        for name, (sequence, written) in after.hives.items():
            if name in before.hives and before.hives[name] != (sequence, written):
                what = f"the registry hive {name} was written anew ({_time(written)} by the guest's clock)"
                found.append(Mark("registry", what, False))
    return found


def _readable(look: Callable[[], T]) -> T | None:
    try:
        return look()
    except (UnreadableInputError, DamagedError, struct.error):
        return None


def _time(written: int) -> str:
    try:
        return f"{dt.datetime.fromtimestamp((written - _EPOCH) / 10**7, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (OverflowError, ValueError, OSError):
        return "an odd time"


def _folder(volume: Volume, path: tuple[str, ...]) -> int | None:
    """The number of the folder at `path`; None when there is none. Links are not followed."""
    number = volume.root
    for depth, name in enumerate(path):
        entry = volume.lookup(path[:depth], number, name)
        if entry is None or entry.kind is not Kind.DIR:
            return None
        number = entry.number
    return number


def _begin(volume: Volume, path: tuple[str, ...], length: int) -> tuple[int, bytes] | None:
    """The number of the file at `path`, and its first `length` bytes; None when there is none so long."""
    folder = _folder(volume, path[:-1])
    entry = volume.lookup(path[:-1], folder, path[-1]) if folder is not None else None
    if entry is None or entry.kind is not Kind.FILE or entry.size < length:
        return None
    return entry.number, volume.open(entry).read_at(0, length)


def _journals(volume: Volume) -> Iterator[tuple[str, str]]:
    """systemd's docs/JOURNAL_FILE_FORMAT.md, Header: `tail_entry_boot_id` (`boot_id` before 254) is that of
    the last entry; 24 bytes from 152 on are the numbers of entries, and of the last and the first one."""
    for path in _JOURNALS:
        number = _folder(volume, path)
        if number is None:
            continue
        folders = [e for e in volume.folder(path, number).values() if e.kind is Kind.DIR]
        for folder in folders[:_MOST_MACHINES]:
            found = _begin(volume, (*path, folder.name, "system.journal"), 208)
            if found is None or found[1][:8] != b"LPKSHHRH":
                continue
            boot, entries = found[1][56:72], int.from_bytes(found[1][152:160], "little")
            if any(boot) and entries:
                yield folder.name, boot.hex()


def _last_record(volume: Volume) -> int:
    """The EVTX format: a header of 4096 bytes, then chunks of 65536 in a ring. The header may be older than
    the chunks: from the one that it calls the last they are followed as long as their numbers rise."""
    found = _begin(volume, _EVENTS, _FIRST_CHUNK)
    if found is None:
        return 0
    number, header = found
    if header[:8] != b"ElfFile\0":
        return 0
    last, chunks = struct.unpack_from("<Q", header, 16)[0], struct.unpack_from("<H", header, 42)[0]
    highest = 0
    for step in range(chunks):
        at = _FIRST_CHUNK + (last + step) % chunks * _CHUNK
        try:
            chunk = volume.read(number, at, 128)
        except UnreadableInputError:
            if not step:
                raise
            break
        newest = struct.unpack_from("<Q", chunk, 32)[0]
        if chunk[:8] != b"ElfChnk\0" or newest <= highest:
            break
        highest = newest
    return int(highest)


def _hives(volume: Volume) -> Iterator[tuple[str, tuple[int, int]]]:
    """A hive's base block: two sequence numbers, the time of its last writing, a checksum over 508 bytes."""
    for name in _HIVE_NAMES:
        found = _begin(volume, (*_HIVES, name), 512)
        if found is None:
            continue
        block = found[1]
        told = 0
        for (word,) in struct.iter_unpack("<I", block[:508]):
            told ^= word
        if block[:4] == b"regf" and told in (struct.unpack_from("<I", block, 508)[0], 0, 0xFFFFFFFF):
            yield name, (struct.unpack_from("<I", block, 4)[0], struct.unpack_from("<Q", block, 12)[0])
