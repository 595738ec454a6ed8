"""What people and scripts see.

Decided here and only here: results go to stdout, words and progress to stderr; with
`--json` stdout has exactly one document; bars and colour only on a terminal. Progress is drawn by
a thread of its own from plain counters.
"""

from __future__ import annotations

import contextlib
import json as json_module
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

PLAIN_SECONDS = 30.0
"""How often progress is told where there is no terminal."""


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


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a long command is: bytes done of a total (0: not known yet), and what it does now."""

    done: int
    total: int
    doing: str


@dataclass(frozen=True, slots=True)
class Output:
    """The streams of one command."""

    json: bool
    quiet: bool
    verbose: bool

    def result(self, value: Any, text: str) -> None:
        """The result: the JSON document, or `text`."""
        if self.json:
            print(json_module.dumps(value, ensure_ascii=True, indent=None if self.quiet else 2), flush=True)
        elif text:
            print(text, flush=True)

    def say(self, text: str) -> None:
        """A remark."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Something people should know; also when quiet."""
        print(f"cloudmount: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self, moment: Callable[[], Moment]) -> Iterator[None]:
        """Show how far it is, while the block runs."""
        if self.quiet:
            yield
            return
        shown = _bar if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else _lines
        done = threading.Event()
        thread = threading.Thread(target=shown, args=(moment, done), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(1)


def _lines(moment: Callable[[], Moment], done: threading.Event) -> None:
    began = time.monotonic()
    while not done.wait(PLAIN_SECONDS):
        m = moment()
        rate = m.done / (time.monotonic() - began)
        left = f", {seconds_text((m.total - m.done) / rate)} left" if rate and m.total > m.done else ""
        print(
            f"{size_text(m.done)} of {size_text(m.total)}, {size_text(rate)}/s{left}: {m.doing}",
            file=sys.stderr,
            flush=True,
        )


def _bar(moment: Callable[[], Moment], done: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=5) as bar:
        task = bar.add_task("", total=None)
        while not done.wait(0.2):
            m = moment()
            doing = m.doing if len(m.doing) <= 40 else f"...{m.doing[-37:]}"
            bar.update(task, completed=m.done, total=m.total or None, description=doing)


def table(rows: list[list[str]], right: frozenset[int] = frozenset()) -> str:
    """Rows as aligned columns; those in `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
