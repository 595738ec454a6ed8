"""systemd's own reading of a unit: what a manager in test mode says that it loaded."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_NOBODY = 65534
_ESCAPED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
_OTHERS = ("basic.target", "sysinit.target", "shutdown.target", "default.target", "network-online.target")


@dataclass(frozen=True, slots=True)
class Seen:
    """A unit as systemd holds it; of the command line `$` is still doubled."""

    command: list[str]
    required: list[str]
    description: str


def parsed_by_systemd(text: str) -> Seen:
    """The unit `text`, read by `systemd --test --user`, which root may not start."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:  # where nobody may read
        folder = Path(made)
        units, home = folder / "units", folder / "home"
        units.mkdir()
        home.mkdir()
        (units / "cloudmount-x.service").write_text(text)
        for other in _OTHERS:
            (units / other).write_text("[Unit]\nDescription=another\n")
        for path in (folder, units):
            path.chmod(0o755)
        nobody: dict[str, int] = {}
        if os.geteuid() == 0:
            os.chown(home, _NOBODY, _NOBODY)
            nobody = {"user": _NOBODY, "group": _NOBODY}
        done = subprocess.run(
            ["/lib/systemd/systemd", "--test", "--user", "--unit=cloudmount-x.service"],
            env={"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "SYSTEMD_UNIT_PATH": str(units)},
            capture_output=True,
            timeout=60,
            check=False,
            **nobody,
        )
    said = done.stdout.decode(errors="surrogateescape") + done.stderr.decode(errors="surrogateescape")
    begin = said.index("-> Unit cloudmount-x.service:")
    about = re.split(r"\n\t?-> Unit ", said[begin + 3 :])[0]
    (command,) = re.findall("\t\t\tCommand Line: (.*)\n", about)
    (description,) = re.findall("\tDescription: (.*)\n", about)
    return Seen(_words(command), re.findall(r"RequiresMountsFor: (.*) \(origin-file\)\n", about), description)


def _words(line: str) -> list[str]:
    """Words as systemd's messages quote them."""
    found = re.findall(r'"((?:[^"\\]|\\.)*)"(?: |$)|([^ ]+)(?: |$)', line)
    return [_unescaped(quoted) if quoted else plain for quoted, plain in found]


def _unescaped(text: str) -> str:
    raw = re.sub(
        rb"\\(x[0-9a-f]{2}|[0-7]{3}|.)",
        lambda m: _byte(m[1].decode("latin-1")),
        text.encode("utf-8", "surrogateescape"),
    )
    return raw.decode("utf-8", "surrogateescape")


def _byte(code: str) -> bytes:
    if len(code) == 3:
        return bytes([int(code[1:], 16) if code[0] == "x" else int(code, 8)])
    return _ESCAPED.get(code, code).encode("latin-1")
