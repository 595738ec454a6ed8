"""Running whole commands, measured.

Decided here and only here: what a measurement is. The time is that from starting a program to its
end; the memory is the largest resident size that any one process of it had (`ru_maxrss` of wait4), as
the kernel tells. Linux counts a new program's memory from that of the process which started it, so a
benchmark stays small itself: what needs libraries runs as a program of its own. Before a measured
command everything written by earlier ones is on the disk, and the files it will read are in memory:
so no tool pays for another's writes, nor for being first. One thread.
"""

from __future__ import annotations

import compileall
import dataclasses
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

MIB = 1 << 20
_LAST_WORDS = 2000


class BenchmarkError(Exception):
    """The benchmark can't go on; the text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished command: wall-clock seconds, peak memory of one process in bytes, what it printed."""

    seconds: float
    peak_bytes: int
    output: str


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Run:
    """Run `command`, measured. BenchmarkError, with its last words, unless it ends with 0."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        began = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in command],
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=complained,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C, or an alarm: the command must not outlive the benchmark
            stop(process)
            raise
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)  # reaped here, not by Popen
        for stream in (said, complained):
            stream.seek(0)
        output = said.read().decode(errors="replace")
        if process.returncode:
            words = (output + complained.read().decode(errors="replace")).strip()[-_LAST_WORDS:]
            raise BenchmarkError(
                f"{' '.join(map(str, command))}\nended with exit code {process.returncode}: {words}"
            )
    return Run(seconds, usage.ru_maxrss * 1024, output)


def stop(process: subprocess.Popen[bytes], *, ask: int = signal.SIGTERM, patience: float = 15) -> None:
    """End a process that the benchmark started, by its id: asked first, then made to."""
    if process.poll() is None:
        process.send_signal(ask)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_up(
    serving: subprocess.Popen[bytes], up: Callable[[], bool], seconds: float, said: IO[bytes] | None = None
) -> None:
    """Wait until what `serving` serves is `up`. BenchmarkError, with the last words of what it `said`, when
    it ended instead, or takes longer."""
    limit = time.monotonic() + seconds
    while not up():
        if time.monotonic() > limit or serving.poll() is not None:
            words = ""
            if said is not None:
                said.seek(0)
                words = ": " + said.read().decode(errors="replace").strip()[-_LAST_WORDS:]
            raise BenchmarkError(f"{serving.args!r}\ndid not come up, exit code {serving.poll()}{words}")
        time.sleep(0.01)


def end_cleanly() -> None:
    """Let SIGTERM and SIGHUP end the benchmark as Ctrl-C does: what it started is stopped."""

    def raise_exit(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, raise_exit)


def settle(*read: Path) -> None:
    """Bring earlier writes to the disk, and what lies at `read` (files, folders) into memory."""
    os.sync()
    buffer = bytearray(4 * MIB)
    for file in files(read):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def files(paths: Iterable[Path]) -> list[Path]:
    """All regular files at and below `paths`."""
    found: list[Path] = []
    for path in paths:
        found += [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return found


def stored_bytes(*folders: Path) -> int:
    """The sizes of all files below `folders`, summed."""
    return sum(file.stat().st_size for file in files(folders))


def program(name: str, package: str) -> str:
    """Where the program `name` is; BenchmarkError names the Debian package that has it."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    if found := shutil.which(name, path=path):
        return found
    raise BenchmarkError(
        f"{name} is not installed: apt-get install {package} (or scripts/setup.sh bench, which installs "
        "all that the benchmarks compare with)"
    )


def cloudmount() -> str:
    """The console script of this checkout's virtual environment."""
    path = Path(sys.executable).with_name("cloudmount")
    if not path.exists():
        raise BenchmarkError(f"{path} is missing: run the benchmarks by `make bench`, or make setup first")
    # As an installed program: with PYTHONDONTWRITEBYTECODE set it would be compiled anew at each start.
    compileall.compile_dir(Path(__file__).resolve().parents[1] / "cloudmount", quiet=2)
    return str(path)


def new_repository(environ: Mapping[str, str], frame_kib: int | None = None) -> None:
    """Make the repository that `environ` names, as `cloudmount init` does, or with frames of `frame_kib`."""
    if frame_kib is None:
        run([cloudmount(), "init", "--json", "--quiet"], env=environ)
    else:
        script = Path(__file__).with_name("init_repository.py")
        address = environ["CLOUDMOUNT_REPO"]
        run([sys.executable, script, address, "--frame-kib", str(frame_kib)], env=environ)


def version(command: Sequence[str]) -> str:
    """The first number with dots that a program says about itself."""
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+(\.\d+)*", said.stdout + said.stderr)
    return found[0] if found else "?"


def median(values: Iterable[float]) -> float:
    """The median; 0 of nothing."""
    known = list(values)
    return statistics.median(known) if known else 0.0


def machine() -> dict[str, str | int]:
    """What the numbers were measured on, as far as it matters to them."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal: *(\d+)", Path("/proc/meminfo").read_text())
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count() or 0,
        "memory_mib": int(memory[1]) // 1024 if memory else 0,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0]),
    }


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head, the first column words, the others numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return f"| {' | '.join(cells)} |"

    rule = f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (w + 1) + ':' for w in widths[1:])}|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])
