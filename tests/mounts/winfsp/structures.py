"""What goes between WinFsp and a file system, and the rules that its driver has for it: statuses, file
information, listings, names in capitals, rights."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

READ, WRITE_DATA, DELETE, READ_ATTRIBUTES, EXECUTE = 0x120089, 0x2, 0x10000, 0x80, 0x1200A0
READ_CONTROL, WRITE_DAC, WRITE_OWNER = 0x20000, 0x40000, 0x80000
MAXIMUM_ALLOWED, ALL = 0x2000000, 0x1F01FF
ATTRIBUTE_READONLY, ATTRIBUTE_DIRECTORY = 0x1, 0x10
_RIGHTS = {"FR": READ, "FX": EXECUTE, "FW": 0x120116, "FA": ALL}
_ENTRY = struct.Struct("<H6xII7QII24x")


class NtError(Exception):
    """A status that is an error."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:#010x}")
        self.status = status


def upcase(name: str) -> str:
    """As the driver does, by a table that lacks what came to Unicode late and what is odd in it."""
    return "".join(
        u if len(u := c.upper()) == 1 and c not in "ıſ\u1c80ꞌ" and c <= "\uffff" else c for c in name
    )


def checked(status: int) -> int:
    """`NtError` for an error's."""
    if status >= 0x80000000:
        raise NtError(status)
    return status


@dataclass(frozen=True)
class Info:
    """`FSP_FSCTL_FILE_INFO`."""

    attributes: int
    reparse_tag: int
    allocation: int
    size: int
    creation: int
    access: int
    write: int
    change: int
    index: int

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return bool(self.attributes & ATTRIBUTE_DIRECTORY)


def info_of(info: Any) -> Info:
    return Info(
        info.FileAttributes, info.ReparseTag, info.AllocationSize, info.FileSize, info.CreationTime,
        info.LastAccessTime, info.LastWriteTime, info.ChangeTime, info.IndexNumber,
    )  # fmt: skip


def entries_of(buffer: bytes) -> tuple[list[tuple[str, Info]], bool]:
    """Those in a buffer, and whether there may be more."""
    entries, at = [], 0
    while at < len(buffer):
        if buffer[at : at + 2] == b"\0\0":
            return entries, False
        size, attributes, tag, *numbers, _links, _ea = _ENTRY.unpack_from(buffer, at)
        name = buffer[at + _ENTRY.size : at + size].decode("utf-16-le")
        entries.append((name, Info(attributes, tag, *numbers)))
        at += -(-size // 8) * 8
    return entries, True


def rights(descriptor: str, token: frozenset[str]) -> int:
    """The rights that a token has: the sum of what its ACEs allow, and an owner's own."""
    owner = re.match(r"O:([A-Z]{2}|S-[0-9-]+)", descriptor)
    assert owner is not None
    aces = re.findall(r"\(A;;([A-Z]+);;;([^)]+)\)", descriptor)
    owns = owner[1] in token
    found = 0
    for masks, who in aces:
        if who in token or (who == "OW" and owns):
            for mask in re.findall("..", masks):
                found |= _RIGHTS[mask]
    if owns and all(who != "OW" for _, who in aces):
        found |= READ_CONTROL | WRITE_DAC
    return found
