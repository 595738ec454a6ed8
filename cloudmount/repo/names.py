"""Names of objects (FORMAT.md section 2).

Decided here and only here: how an object is called, and how a snapshot's name
sorts. Pure.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import NamedTuple

CONFIG, CONFIG_COPY = "config", "config.copy"
PACKS, MAPS, INDEX, SNAPSHOTS, DAMAGE = "packs/", "maps/", "index/", "snapshots/", "damage/"
TRACES, PROOFS = "traces/", "proofs/"
BOOT_PACKS = "boot/"
DICTIONARIES, COPY = "dictionaries/", ".copy"
_MAX_SEQUENCE, _MAX_TIME = 2**64 - 1, 2**40 - 1
_MAX_GENERATION = 2**32 - 1
_KEY = "([0-9a-f]{16})-([0-9a-f]{10})-([0-9a-f]{32})"


def pack_name(pack: bytes) -> str:
    """The object name of the pack with this 16-byte id."""
    text = pack.hex()
    return f"{PACKS}{text[:2]}/{text}"


def map_name(map: bytes) -> str:
    """The object name of the map object with this 16-byte id."""
    return MAPS + map.hex()


def pack_id(name: str) -> bytes | None:
    """The id in a pack's name; None when it is no pack's name."""
    match = re.fullmatch(r"packs/([0-9a-f]{2})/(\1[0-9a-f]{30})", name)
    return bytes.fromhex(match[2]) if match else None


def dictionary_names(id: int) -> tuple[str, str]:
    """The object names of the dictionary with this zstd id, and of its copy."""
    name = f"{DICTIONARIES}{id:08x}"
    return name, name + COPY


def dictionary_id(name: str) -> int | None:
    """The zstd id in the name of a dictionary, or of its copy; None when it is no such name."""
    match = re.fullmatch(r"dictionaries/([0-7][0-9a-f]{7})(\.copy)?", name)
    return int(match[1], 16) if match else None


def traces_of(tag: str) -> str:
    """What the names of a machine's traces begin with; they sort newest first."""
    return f"{TRACES}{tag}/"


def trace_prefix(tag: str, seconds: int) -> str:
    """What the name of a trace made at this time (whole seconds since 1970 UTC) begins with."""
    return f"{traces_of(tag)}{_MAX_TIME - seconds:010x}-"


def boot_packs_of(tag: str) -> str:
    """What the names of a machine's boot packs begin with; they sort newest first."""
    return f"{BOOT_PACKS}{tag}/"


def boot_pack_prefix(tag: str, seconds: int) -> str:
    """What the name of a boot pack made at this time (whole seconds since 1970 UTC) begins with."""
    return f"{boot_packs_of(tag)}{_MAX_TIME - seconds:010x}-"


class ProofName(NamedTuple):
    """What a proof's name tells; `mark` is a MAC, which says how the drill ended."""

    tag: str
    time: int
    """Whole seconds since 1970 UTC."""
    snapshot: str
    mark: str
    id: str
    """These three are 32 hex digits each."""

    @property
    def name(self) -> str:
        """The object name; a machine's sort newest first."""
        return f"{self.prefix}{self.id}"

    @property
    def prefix(self) -> str:
        """The object name without its id."""
        return f"{proofs_of(self.tag)}{_MAX_TIME - self.time:010x}-{self.snapshot}-{self.mark}-"


def proofs_of(tag: str) -> str:
    """What the names of a machine's proofs begin with."""
    return f"{PROOFS}{tag}/"


def parse_proof_name(name: str) -> ProofName | None:
    """A proof's object name taken apart; None when it has another form."""
    hex32 = "([0-9a-f]{32})"
    match = re.fullmatch(rf"proofs/{hex32}/([0-9a-f]{{10}})-{hex32}-{hex32}-{hex32}", name)
    if not match:
        return None
    tag, time, snapshot, mark, id = match.groups()
    return ProofName(tag, _MAX_TIME - int(time, 16), snapshot, mark, id)


class SnapshotKey(NamedTuple):
    """What a snapshot's name tells; in ascending order of age these sort oldest first."""

    sequence: int
    time: int
    """Whole seconds since 1970 UTC."""
    id: str
    """32 hex digits."""

    def name(self, tag: str) -> str:
        """The object name under the machine's tag."""
        return f"{SNAPSHOTS}{tag}/{_MAX_SEQUENCE - self.sequence:016x}-{_MAX_TIME - self.time:010x}-{self.id}"

    @property
    def folder(self) -> str:
        """The time as a folder is called, before any `-2`: `2026-11-22T03-00-00Z`."""
        return folder_time(self.time)


class SnapshotName(NamedTuple):
    """An object name of a snapshot taken apart: `generation` of its layout, 0 for the first."""

    tag: str
    key: SnapshotKey
    generation: int


def parse_snapshot_name(name: str) -> SnapshotName | None:
    """A snapshot's object name taken apart; None when it has another form."""
    match = re.fullmatch(rf"snapshots/([0-9a-f]{{32}})/{_KEY}(?:\.([0-9a-f]{{8}}))?", name)
    if not match:
        return None
    tag, sequence, time, id, generation = match.groups()
    key = SnapshotKey(_MAX_SEQUENCE - int(sequence, 16), _MAX_TIME - int(time, 16), id)
    return SnapshotName(tag, key, _MAX_GENERATION - int(generation, 16) if generation else 0)


def folder_time(seconds: int) -> str:
    """A folder's name for a time: `2026-11-22T03-00-00Z`."""
    try:
        return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H-%M-%SZ}"
    except (OverflowError, ValueError, OSError):
        return f"time-{seconds}"


def iso_time(seconds: int) -> str:
    """A time as in JSON: `2026-11-22T03:00:00Z`."""
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def folders(keys: list[SnapshotKey]) -> dict[str, SnapshotKey]:
    """Each of a machine's snapshots by its folder's name, oldest first, `-2` where a second has several."""
    seen: dict[str, int] = {}
    named = {}
    for key in sorted(keys):
        n = seen[key.folder] = seen.get(key.folder, 0) + 1
        named[key.folder if n == 1 else f"{key.folder}-{n}"] = key
    return named
