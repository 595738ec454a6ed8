"""When a guest is ready, and how far it came, by what it says on its serial line.

Decided here and only here: what a login prompt looks like, what is remembered of the line, and how the
stages of a boot are told apart: firmware, loader, kernel, services. Belongs to one thread.
"""

from __future__ import annotations

import re
from pathlib import Path

from cloudmount.errors import UsageError

_KEPT = 64 << 10
"""Characters of the line that a pattern may reach back."""
_SHOWN = 200
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?=]*[A-Za-z]|[()][A-Z0-9]|[=>78cM])")
LOGIN = re.compile(r"(?<!Last )\blogin:[ \t]*$", re.MULTILINE)
_KERNEL = re.compile(r"^\[ *\d+\.\d{6}\] |^Linux version |Decompressing Linux|EFI stub:", re.MULTILINE)
_SERVICES = re.compile(
    r"^\[(?:  OK  |FAILED|DEPEND)\] |systemd\[1\]: |^Welcome to .*!$|^INIT: ", re.MULTILINE
)


def pattern(text: str) -> re.Pattern[str]:
    """The regular expression of `--ready`; `^` and `$` stand for a line's ends."""
    try:
        return re.compile(text, re.MULTILINE)
    except re.error as error:
        raise UsageError(f"--ready {text!r} is not a regular expression: {error}") from None


class SerialLine:
    """The end of what a guest says from now on into the file `log`, as far as it was read."""

    def __init__(self, log: Path, ready: re.Pattern[str] | None = None, *, whole: bool = False) -> None:
        """`ready`: what it says when it is ready; None: a login prompt. `whole`: what it said before counts
        too."""
        self._log, self._ready = log, ready or LOGIN
        self._at = log.stat().st_size if log.exists() and not whole else 0
        self._text = ""
        self._stage = "firmware"
        self.ready = False
        """Whether the guest ever said so."""

    def read(self) -> None:
        """Take in what is new."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except OSError:
            return
        if not new:
            return
        self._at += len(new)
        self._text = plain_text(self._text + new.decode("utf-8", "replace"))[-_KEPT:]
        self.ready = self.ready or self._ready.search(self._text) is not None
        if _SERVICES.search(self._text):
            self._stage = "services"
        elif self._stage != "services" and _KERNEL.search(self._text):
            self._stage = "kernel"

    def stage(self, read_bytes: int) -> str:
        """How far the guest is, when it has read so much of its disks."""
        if self._stage == "firmware" and read_bytes > 1 << 20:
            return "loader"  # or a kernel that says nothing here
        return self._stage


def plain_text(said: str) -> str:
    """What was said, without carriage returns and what moves a terminal's cursor."""
    return _ESCAPES.sub("", said.replace("\r", ""))


def last_line(log: Path) -> str:
    """The last words of a serial line, for people."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            text = file.read().decode("utf-8", "replace").replace("\r", "\n")
    except OSError:
        return ""
    lines = (" ".join(line.split()) for line in reversed(_ESCAPES.sub("", text).split("\n")))
    return next((line for line in lines if line), "")[-_SHOWN:]
