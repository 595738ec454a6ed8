r"""Names that Windows can't hold, made into names that it can, and back.

Decided here and only here: which names those are, what they become, and which names Windows takes for
equal. One character becomes one character, so a name of 255 stays one: what is not allowed becomes
U+F000 plus its code, as WSL, Cygwin and Samba have it (WSL and Cygwin show it as it was, Explorer a box):

* `< > : " | ? * \` and control characters;
* bytes that are no UTF-8 (U+DC80 to U+DCFF in a `str`, by `os.fsdecode`);
* a dot or a blank at the end, which Win32 would cut off: the last one;
* the first letter of a device's name (`CON`, `nul.txt`, `COM1 .log`), which Win32 would open instead.

What has U+F000 to U+F0FF of its own, or another half of a surrogate pair, becomes three of those
characters: U+F025 (never needed by the rule above: `%` is allowed), then the code's two bytes.

Standard library only. Stateless; safe on any thread.
"""

from __future__ import annotations

import re

UNITS = 255
"""UTF-16 code units of a name on NTFS, and of one that WinFsp takes."""
_BASE = 0xF000
_ODD = chr(_BASE + ord("%"))
_ONE = {c: chr(_BASE + ord(c)) for c in '<>:"|?*\\' + "".join(map(chr, range(1, 32)))} | {
    chr(c): chr(_BASE + (c & 0xFF)) for c in range(0xDC80, 0xDD00)
}
_MAPPED = re.compile(
    "[" + re.escape('<>:"|?*\\') + "\x01-\x1f\ud800-\udfff" + chr(_BASE) + "-" + chr(_BASE + 0xFF) + "]"
)
_ESCAPED = re.compile(f"{_ODD}[\uf000-\uf0ff]{{2}}|[\uf000-\uf0ff]")
_DEVICE = re.compile(r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9¹²³]) *(?:\.|\Z)", re.IGNORECASE)
"""Of an escaped name: it has no colon. Windows before 11 takes them with any ending."""


def escape(name: str) -> str:
    """The name as Windows can hold it; most are as they were. Different names stay different.

    `name` is one name of a tree: not empty, without `/` and NUL, not `.` or `..`.
    """
    shown = _MAPPED.sub(_escaped, name)
    if shown.endswith((".", " ")):
        shown = shown[:-1] + chr(_BASE + ord(shown[-1]))
    if _DEVICE.match(shown):
        shown = chr(_BASE + ord(shown[0])) + shown[1:]
    return shown


def unescape(shown: str) -> str | None:
    """The name that `escape` made into this one; None when there is none."""
    name = _ESCAPED.sub(_unescaped, shown)
    return name if escape(name) == shown else None


def _escaped(found: re.Match[str]) -> str:
    one = _ONE.get(found[0])
    if one is not None:
        return one
    code = ord(found[0])
    return _ODD + chr(_BASE + (code >> 8)) + chr(_BASE + (code & 0xFF))


def _unescaped(found: re.Match[str]) -> str:
    codes = [ord(c) - _BASE for c in found[0]]
    if len(codes) == 3:
        return chr(codes[1] << 8 | codes[2])
    return chr(codes[0] if codes[0] < 0x80 else 0xDC00 + codes[0])


def units(name: str) -> int:
    """Its length as Windows counts."""
    return len(name) + sum(c > "\uffff" for c in name)


def fold(name: str) -> str:
    """Equal for names (and paths) that Windows takes for equal: each UTF-16 unit in upper case.

    Python's table is newer than any of Windows', so a few more may be equal here; never fewer.
    """
    if name.isascii():
        return name.upper()
    return "".join(u if len(u := c.upper()) == 1 and c <= "\uffff" else c for c in name)
