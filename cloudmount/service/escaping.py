"""Paths and words as systemd's unit files, unit names and fstab write them.

Decided here and only here: what is quoted how (systemd.unit(5), systemd.service(5), systemd.exec(5),
fstab(5)). Pure; safe on any thread.
"""

from __future__ import annotations

import os
import re

from cloudmount.errors import UsageError

PREFIX = "cloudmount-"
_LONGEST = 255
"""Bytes of a unit's name (UNIT_NAME_MAX less one)."""
_KEPT = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\", "%": "%%", "$": "$$"}


def unit_stem(path: str) -> str:
    """The name of the unit for the absolute mount point `path`, without `.service`: `cloudmount-` and the
    path as `systemd-escape --path` gives it. `UsageError` when that is longer than a name may be."""
    raw = os.fsencode(os.path.normpath(path)).strip(b"/")
    found = "".join(
        "-" if byte == 0x2F else chr(byte) if byte in _KEPT and (at or byte != 0x2E) else f"\\x{byte:02x}"
        for at, byte in enumerate(raw)
    )
    stem = PREFIX + (found or "-")
    if len(stem) + len(".service") > _LONGEST:
        raise UsageError(f"{path} is too long for the name of a unit: choose a shorter mount point")
    return stem


def quoted(word: str) -> str:
    """One word of a command line in a unit file: quoted, nothing in it expanded. Bytes that are no text
    become `\\xNN`. A zero byte can be in no path."""
    out = []
    for c in word:
        if c in _SHORT:
            out.append(_SHORT[c])
        elif c < " " or c == "\x7f":
            out.append(f"\\x{ord(c):02x}")
        elif "\udc80" <= c <= "\udcff":
            out.append(f"\\x{ord(c) - 0xDC00:02x}")
        else:
            out.append(c)
    return '"' + "".join(out) + '"'


def required_path(path: str) -> str | None:
    """A path for `RequiresMountsFor=`, where no escapes but those of quotes and backslashes are known; None
    when it can't be written there."""
    if re.search("[\x00-\x1f\x7f\udc80-\udcff]", path):
        return None
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def told(text: str) -> str:
    """Text for people in a unit file (`Description=`): one line, nothing expanded."""
    shown = re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\\\]", "?", text)
    return shown.replace("%", "%%")


def fstab_field(text: str) -> str:
    """A field of fstab: blanks, line feeds and backslashes in octal, and `#`, which begins a comment when a
    line begins with it."""
    return re.sub(r"[\\#\x00-\x20\x7f]", lambda m: "".join(f"\\{b:03o}" for b in os.fsencode(m[0])), text)
