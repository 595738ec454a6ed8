"""What people and scripts see.

Decided here and only here: results go to stdout, words to stderr; with `--json` stdout has exactly
one document; what a name could do to a terminal (escape sequences, line breaks) is shown, not done.
Words are never worth a failure: a stderr that can't be written to is given up.

Threading: `warn` and `say` from any thread, the rest from the command's own.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json as json_module
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cloudmount.errors import CloudMountError
from cloudmount.system import shown_path

# Control characters, and those that reorder what follows (a name "x[U+202E]gpj.exe" looks like "xexe.jpg").
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

stdout_closed = False
"""Whether the program was started without a standard output (`>&-`): nobody reads results."""


def size_text(size: float) -> str:
    """Bytes for people: `512 B`, `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def seconds_text(seconds: float) -> str:
    """A duration for people: `0.4 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def time_text(nanoseconds: int) -> str:
    """A time, given in nanoseconds since 1970 UTC, as in JSON: `2026-11-22T03:00:00Z`."""
    try:
        time = dt.datetime.fromtimestamp(nanoseconds // 10**9, dt.UTC)
    except (OverflowError, ValueError, OSError):  # beyond the years 1 to 9999
        time = dt.datetime.max if nanoseconds > 0 else dt.datetime.min
    return f"{time.year:04}-{time:%m-%dT%H:%M:%SZ}"


def plain(text: str) -> str:
    """`text` on one line, with what a terminal would obey made visible: `\\x1b`, `\\n`."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), shown_path(text))


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a long command is: bytes done of a total (0: not known yet), and what it does now."""

    done: int
    total: int
    doing: str


class Output:
    """The streams of one command."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose
        self._above: Callable[[str], None] | None = None
        """Prints a line above a bar that is being drawn."""

    def result(self, value: Any, text: str) -> bool:
        """The result: the JSON document, or `text` (of several lines, names in it made `plain`). False
        when its reader left: what was done is done, and ends with its own exit code."""
        if self.json:
            text = json_module.dumps(value, ensure_ascii=True, indent=None if self.quiet else 2)
        if not text:
            return True
        if stdout_closed:
            return False
        try:
            print(text if self.json else "\n".join(map(plain, text.split("\n"))), flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed later
            return False
        except OSError as error:
            raise CloudMountError(f"standard output can't be written to: {error.strerror}") from None
        return True

    def line(self, text: str) -> bool:
        """A line of a result, for people as it is found (not with `--json`); False when its reader left."""
        return self.json or self.result(None, text)

    def say(self, text: str) -> None:
        """A remark."""
        if not self.quiet:
            self._words(plain(text))

    def warn(self, text: str) -> None:
        """Something people should know; also when quiet."""
        self._words(f"cloudmount: {plain(text)}")

    def _words(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._above is not None:
                self._above(line)
            else:
                print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self, moment: Callable[[], Moment]) -> Iterator[None]:
        """Show how far it is, while the block runs."""
        if self.quiet:
            yield
            return
        from cloudmount.cli.progress import Display

        def above(write: Callable[[str], None] | None) -> None:
            self._above = write

        display = Display(moment, above)
        display.start()
        try:
            yield
        finally:
            display.stop()


def table(rows: list[list[str]], right: frozenset[int] = frozenset()) -> str:
    """Rows as aligned columns; those in `right` to the right."""
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def count_text(count: int, thing: str) -> str:
    """`1 disk`, `2 disks`."""
    return f"{count} {thing}{'s' * (count != 1)}"
