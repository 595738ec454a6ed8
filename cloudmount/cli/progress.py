"""How far a long command is: a bar on a terminal, else a line now and then.

Decided here and only here: what is shown of it, and how speed and time left are told (over the last
`WINDOW` seconds: a part that was skipped as unchanged says little about the rest). Drawn by a
thread of its own from plain counters, on stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from cloudmount.cli.output import Moment, plain, seconds_text, size_text

LINE_SECONDS = 30.0
"""How often progress is told where there is no terminal."""
FRAME_SECONDS = 0.2
FIRST_SECONDS = 0.3
"""What is done sooner gets no bar: it would only flicker."""
WINDOW = 20.0
WIDEST = 110


class Pace:
    """Bytes a second, and seconds left, from what was done in the last `WINDOW` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque([(clock(), 0)])

    def at(self, moment: Moment) -> tuple[float, float | None]:
        """(speed, time left or None when nobody can tell)."""
        now = self._clock()
        while len(self._seen) > 1 and self._seen[1][0] < now - WINDOW:
            self._seen.popleft()
        began, before = self._seen[0]
        if now - self._seen[-1][0] >= FRAME_SECONDS:
            self._seen.append((now, moment.done))
        rate = (moment.done - before) / (now - began) if now > began else 0.0
        left = (moment.total - moment.done) / rate if rate > 0 and moment.total >= moment.done else None
        return rate, left


def progress_text(moment: Moment, rate: float, left: float | None) -> str:
    """`1.2 GiB of 4.0 GiB  103.0 MiB/s  0 min 28 s left`."""
    if not moment.total and not moment.done:
        return "looking at what there is"
    if 0 < moment.total <= moment.done:
        return f"{size_text(moment.done)}  finishing"
    parts = [size_text(moment.done) + (f" of {size_text(moment.total)}" if moment.total else "")]
    parts.append(f"{size_text(rate)}/s")
    if left is not None and left < 100 * 24 * 3600:
        parts.append(f"{seconds_text(left)} left")
    return "  ".join(parts)


class Display:
    """Shows `moment()` until stopped. `above` is given a way to print lines above the bar, then None."""

    def __init__(
        self, moment: Callable[[], Moment], above: Callable[[Callable[[str], None] | None], None]
    ) -> None:
        self._moment, self._above = moment, above
        self._ended = threading.Event()
        bar = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
        self._thread = threading.Thread(target=self._run, args=(bar,), name="progress", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; the bar is gone when it returns."""
        self._ended.set()
        self._thread.join(2)

    def _run(self, bar: bool) -> None:
        with contextlib.suppress(OSError, ValueError):  # a stderr that is gone
            if bar:
                self._bar()
            else:
                self._lines()

    def _lines(self) -> None:
        pace = Pace()
        while not self._ended.wait(LINE_SECONDS):
            moment = self._moment()
            text = progress_text(moment, *pace.at(moment))
            doing = f": {plain(moment.doing)}" if moment.doing else ""
            print(f"{text}{doing}", file=sys.stderr, flush=True)

    def _bar(self) -> None:
        if self._ended.wait(FIRST_SECONDS):
            return
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        console = Console(stderr=True)
        pace = Pace()

        def picture() -> Group:
            moment = self._moment()
            width = min(console.width - 1, WIDEST)
            row = Table.grid(padding=(0, 2, 0, 0))
            row.add_column(width=5, justify="right")
            text = progress_text(moment, *pace.at(moment))
            percent = f"{100 * moment.done / moment.total:.0f} %" if moment.total > moment.done else ""
            bar = ProgressBar(
                total=moment.total or None, completed=moment.done, width=max(6, width - len(text) - 9)
            )
            row.add_row(percent, bar, Text(text, no_wrap=True))
            doing = plain(moment.doing)
            most = max(8, width - 7)
            if len(doing) > most:
                doing = f"...{doing[3 - most :]}"
            return Group(row, Text(f"       {doing}", style="dim", no_wrap=True, overflow="crop"))

        def above(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        with Live(picture(), console=console, transient=True, auto_refresh=False) as live:
            self._above(above)
            try:
                while not self._ended.wait(FRAME_SECONDS):
                    live.update(picture(), refresh=True)
            finally:
                self._above(None)
