"""Drives and readers as processes, all ended by their ids when the test ends, however it does."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cloudmount.mounts.records import read_records
from tests.mounts.mounting import within

PROJECT = Path(__file__).parents[2]


class Started:
    """A process; what it prints comes as values."""

    def __init__(
        self, *command: str | Path, cwd: Path = PROJECT, environment: dict[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said: list[dict[str, Any]] = []
        self.errors = ""
        self._lines: queue.Queue[str] = queue.Queue()
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._read, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as out:
            for line in out:
                self._lines.put(line)
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as out:
            self.errors = out.read()

    def until(self, key: str, seconds: float = 15) -> Any:
        """The value of the next line with `key`."""
        ends = time.monotonic() + seconds
        while True:
            line = self._lines.get(timeout=max(0.01, ends - time.monotonic()))
            assert line, f"ended without {key!r}: {self.said} {self.errors}"
            self.said.append(json.loads(line))
            if key in self.said[-1]:
                return self.said[-1][key]

    def ends(self, seconds: float) -> int:
        """Its exit code; waits that long."""
        code = self.process.wait(seconds)
        for thread in self._threads:
            thread.join(5)
        while not self._lines.empty():
            line = self._lines.get()
            if line:
                self.said.append(json.loads(line))
        return code

    def finish(self) -> None:
        """Killed if it still runs, and reaped."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)
        for thread in self._threads:
            thread.join(5)


class Processes:
    """Everything one test starts, below one folder."""

    def __init__(self, folder: Path, driver: str = "refuse") -> None:
        self.folder = folder
        self.driver = driver
        self.records = folder / "records"
        self.at = folder / "drive"
        self._started: list[Started] = []

    def start(self, *command: str | Path, cwd: Path = PROJECT) -> Started:
        """Any program."""
        self._started.append(Started(*command, cwd=cwd))
        return self._started[-1]

    def drive(self, *more: str | Path, at: Path | None = None) -> Started:
        """`serving` at `at`."""
        return self.start(
            sys.executable, "-m", "tests.mounts.serving", at or self.at, "--records", self.records,
            "--driver", self.driver, *more
        )  # fmt: skip

    def up(self, *more: str | Path) -> Started:
        """The same, once it is ready."""
        started = self.drive(*more)
        assert started.until("ready") == str(self.at)
        return started

    def mounts(self) -> list[str]:
        """Mount points below the folder."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        points = [re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), p) for p in points]
        return [p for p in points if p.startswith(str(self.folder))]

    def living(self) -> list[int]:
        """Processes that were started with the folder in their command line."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if str(self.folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def finish(self) -> None:
        """End everything."""
        for record in read_records(self.records):
            if record.alive:
                os.kill(record.pid, signal.SIGKILL)
        for started in self._started:
            if started.process.poll() is None:
                started.process.kill()
        for _ in range(10):  # mounts may lie on one another
            for point in self.mounts():
                subprocess.run(["umount", "-l", point], check=False, timeout=10)
            if not self.mounts():
                break
        for started in self._started:
            started.finish()
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert within(5, lambda: not self.living())
        assert not self.mounts()
