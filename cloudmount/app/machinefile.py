"""What a machine is beside its disks: a file that its administrator writes, kept in `machine.json`.

Decided here and only here: the file's form (TOML; `docs/cli.md`), what is allowed in it, and how it is kept.
Everything may be left out. What is wrong in it is told with its line. Pure but for reading the file.
"""

from __future__ import annotations

import base64
import re
import tomllib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cloudmount.app.sizes import parse_bytes
from cloudmount.boot.machine import BUSES, FIRMWARES, Bus, Firmware
from cloudmount.errors import CloudMountError, UnreadableInputError, UsageError

_MOST_NVRAM = 16 << 20
_MOST_KEPT = 128 << 10
"""Bytes of deflated variables; OVMF's 540,672 with Microsoft's keys become 6,610."""
_MOST_FILE = 1 << 20
_LEAST_MEMORY = 16 << 20
_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What was said of a machine; None and empty: nothing. `memory` in bytes."""

    firmware: Firmware | None = None
    secure_boot: bool = False
    memory: int | None = None
    cpus: int | None = None
    clock: Literal["utc", "local"] | None = None
    ready: str | None = None
    """A regular expression, as of `--ready`."""
    disks: tuple[tuple[str, Bus | None], ...] = ()
    """In order; each by its name on the drive, without ending."""
    macs: tuple[str, ...] = ()
    nvram: bytes | None = None
    """The UEFI's variables."""

    def kept(self) -> dict[str, Any]:
        """As in `machine.json`."""
        found: dict[str, Any] = {
            name: value
            for name in ("firmware", "memory", "cpus", "clock", "ready")
            if (value := getattr(self, name)) is not None
        }
        if self.secure_boot:
            found["secure_boot"] = True
        if self.disks:
            found["disks"] = [
                {"name": n} if bus is None else {"name": n, "bus": bus} for n, bus in self.disks
            ]
        if self.macs:
            found["nics"] = [{"mac": mac} for mac in self.macs]
        if self.nvram is not None:
            found["nvram"] = base64.b64encode(zlib.compress(self.nvram, 9)).decode()
        return found


def disk_path(summary: Mapping[str, Any]) -> str:
    """A disk's name on the drive, without ending."""
    return f"{summary['path']}/{summary['name']}" if summary["path"] else str(summary["name"])


def is_called(path: str, name: str) -> bool:
    """Whether a file's `name`, with or without an ending, means the disk at `path`."""
    return path == name or path == name.rpartition(".")[0]


class _WrongError(Exception):
    """Why an entry is wrong; the key that it is under, and where that lies."""

    def __init__(self, why: str, key: str = "", table: str = "", number: int = 0) -> None:
        super().__init__(why)
        self.why, self.key, self.table, self.number = why, key, table, number


def read_machine_file(path: str) -> Hardware:
    """What the file at `path` says; `UnreadableInputError` names the line that is wrong."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST_FILE + 1)
        if len(data) > _MOST_FILE:
            raise UnreadableInputError(f"{path} is longer than any description of a machine")
        text = data.decode("utf-8")
        value = tomllib.loads(text)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            raise UnreadableInputError(f"{path} can't be read: {error.strerror}") from None
        raise UnreadableInputError(f"{path} is not TOML: {error}") from None
    try:
        nvram = _nvram(Path(path).parent, value.pop("nvram", None))
        return _checked(value, nvram)
    except _WrongError as wrong:
        line = _line(text, wrong)
        raise UnreadableInputError(f"{path}, line {line}: {wrong.why}") from None


def hardware_of(summary: Mapping[str, Any]) -> Hardware:
    """What a snapshot's summary has of its machine's file."""
    value = dict(summary.get("hardware") or {})
    try:
        kept = value.pop("nvram", None)
        nvram = zlib.decompress(base64.b64decode(kept)) if kept is not None else None
        return _checked(value, nvram)
    except (_WrongError, ValueError, TypeError, zlib.error) as error:
        why = error.why if isinstance(error, _WrongError) else str(error)
        raise CloudMountError(f"machine.json says what this program does not know: {why}") from None


def _line(text: str, wrong: _WrongError) -> int:
    """Where a key stands, as well as can be told; the first line without one."""
    lines = text.splitlines()
    first = 0
    if wrong.table:
        heads = [n for n, line in enumerate(lines) if re.match(rf"\s*\[\[\s*{wrong.table}\s*\]\]", line)]
        if wrong.number < len(heads):
            first = heads[wrong.number]
        else:
            first = next((n for n, line in enumerate(lines) if re.match(rf"\s*{wrong.table}\b", line)), 0)
    if wrong.key:
        key = re.escape(wrong.key)
        for number in range(first, len(lines)):
            if re.match(rf"""\s*\[*\s*["']?{key}\b""", lines[number]):
                return number + 1
    return first + 1


def _nvram(folder: Path, value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise _WrongError("nvram is the path of a file, in quotes", "nvram")
    try:
        with (folder / value).open("rb") as file:
            data = file.read(_MOST_NVRAM + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _WrongError(f"nvram {value!r} can't be read: {why}", "nvram") from None
    if b"_FVH" not in data[:64]:
        raise _WrongError(f"nvram {value!r} holds no variables of a UEFI (no firmware volume)", "nvram")
    if len(data) > _MOST_NVRAM or len(zlib.compress(data, 9)) > _MOST_KEPT:
        raise _WrongError(f"nvram {value!r} is larger than a UEFI's variables are", "nvram")
    return data


def _checked(value: dict[str, Any], nvram: bytes | None) -> Hardware:
    """The entries, each of which must be known and right."""
    found: dict[str, Any] = {}
    for key, entry in value.items():
        check = _ENTRIES.get(key)
        if check is None:
            known = ", ".join([*_ENTRIES, "nvram"])
            raise _WrongError(f"{key!r} is not known; there is {known}", key)
        name, found_value = check(key, entry)
        found[name] = found_value
    hardware = Hardware(**found, nvram=nvram)
    if hardware.firmware == "bios" and (hardware.secure_boot or nvram is not None):
        key = "secure_boot" if hardware.secure_boot else "nvram"
        raise _WrongError(f"{key} is a UEFI's, and the firmware is a BIOS", key)
    return hardware


_Check = Callable[[str, Any], tuple[str, Any]]


def _one_of(*allowed: str) -> _Check:
    def check(key: str, value: Any) -> tuple[str, Any]:
        if value not in allowed:
            raise _WrongError(f"{key} is one of {', '.join(map(repr, allowed))}, not {value!r}", key)
        return key, value

    return check


def _truth(key: str, value: Any) -> tuple[str, Any]:
    if not isinstance(value, bool):
        raise _WrongError(f"{key} is true or false, not {value!r}", key)
    return key, value


def _memory(key: str, value: Any) -> tuple[str, Any]:
    try:
        size = parse_bytes(value) if isinstance(value, str) else value
    except UsageError as error:
        raise _WrongError(f"memory: {error}", key) from None
    if not isinstance(size, int) or isinstance(size, bool) or not _LEAST_MEMORY <= size <= 1 << 44:
        raise _WrongError(f"memory {value!r} is no size that a machine has; write '8GiB'", key)
    return key, size


def _cpus(key: str, value: Any) -> tuple[str, Any]:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 255:
        raise _WrongError(f"cpus is a number from 1 to 255, not {value!r}", key)
    return key, value


def _ready(key: str, value: Any) -> tuple[str, Any]:
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise _WrongError(f"ready is no regular expression: {error}", key) from None
    return key, value


def _tables(key: str, value: Any, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise _WrongError(f"{key} are tables: write each under [[{key}]]", key)
    for number, entry in enumerate(value):
        for name in entry.keys() - set(fields):
            raise _WrongError(f"{name!r} is not known; {key} have {', '.join(fields)}", name, key, number)
    return value


def _disks(key: str, value: Any) -> tuple[str, Any]:
    found: list[tuple[str, Bus | None]] = []
    for number, entry in enumerate(_tables(key, value, ("name", "bus"))):
        name, bus = entry.get("name"), entry.get("bus")
        if not isinstance(name, str) or not name:
            raise _WrongError("a disk has a name, as on the drive, in quotes", "name", key, number)
        if name in (n for n, _ in found):
            raise _WrongError(f"the disk {name!r} is named twice", "name", key, number)
        if bus is not None and bus not in BUSES:
            raise _WrongError(
                f"a bus is one of {', '.join(map(repr, BUSES))}, not {bus!r}", "bus", key, number
            )
        found.append((name, bus))
    return "disks", tuple(found)


def _nics(key: str, value: Any) -> tuple[str, Any]:
    macs = []
    for number, entry in enumerate(_tables(key, value, ("mac",))):
        mac = entry.get("mac")
        if not isinstance(mac, str) or not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
            raise _WrongError(f"a mac is like '00:15:5d:01:02:03', not {mac!r}", "mac", key, number)
        macs.append(mac.lower())
    return "macs", tuple(macs)


_ENTRIES: dict[str, _Check] = {
    "firmware": _one_of(*FIRMWARES),
    "secure_boot": _truth,
    "memory": _memory,
    "cpus": _cpus,
    "clock": _one_of("utc", "local"),
    "ready": _ready,
    "disks": _disks,
    "nics": _nics,
}
