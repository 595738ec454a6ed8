"""The names in a folder of FAT.

Decided here and only here: a name is the long one before it, else the short one, whose bytes beyond ASCII are
taken for code page 850 (FAT does not say; 437 and 850 agree on the letters of most languages). Layout: the
Microsoft FAT specification, 1.03, sections 6 and 7. Pure; runs in the child.
"""

from __future__ import annotations

_DELETED, _END = 0xE5, 0x00
_LONG, _LABEL = 0x0F, 0x08
_LOWER_BASE, _LOWER_ENDING = 0x08, 0x10


def fat_names(raw: bytes) -> list[tuple[str, int]]:
    """(name, size) of all in a folder with these bytes, in its order; without `.`, `..` and a label."""
    found: list[tuple[str, int]] = []
    parts: dict[int, bytes] = {}
    checksum = -1
    for at in range(0, len(raw) - 31, 32):
        entry = raw[at : at + 32]
        if entry[0] == _END:
            break
        if entry[0] == _DELETED:
            parts = {}
        elif entry[11] & 0x3F == _LONG:
            if entry[0] & 0x40:
                parts, checksum = {}, entry[13]
            parts[entry[0] & 0x3F] = entry[1:11] + entry[14:26] + entry[28:32]
        else:
            if not entry[11] & _LABEL and entry[:11].rstrip() not in (b".", b".."):
                whole = parts and sorted(parts) == list(range(1, len(parts) + 1))
                fits = whole and checksum == _checksum(entry[:11])
                name = _long(parts) if fits else _short(entry)
                found.append((name, int.from_bytes(entry[28:32], "little")))
            parts = {}
    return found


def _checksum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total >> 1 | total << 7) + byte) & 0xFF
    return total


def _long(parts: dict[int, bytes]) -> str:
    units = b"".join(parts[n] for n in sorted(parts))
    end = next((i for i in range(0, len(units), 2) if units[i : i + 2] == b"\0\0"), len(units))
    name = units[:end].decode("utf-16-le", "surrogatepass")
    return name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def _short(entry: bytes) -> str:
    base = (b"\xe5" if entry[0] == 0x05 else entry[:1]) + entry[1:8]
    name = base.rstrip(b" ").decode("cp850")
    ending = entry[8:11].rstrip(b" ").decode("cp850")
    name = name.lower() if entry[12] & _LOWER_BASE else name
    ending = ending.lower() if entry[12] & _LOWER_ENDING else ending
    return f"{name}.{ending}" if ending else name
