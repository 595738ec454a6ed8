#!/usr/bin/env python3
"""How quick reads through the drive are: each driver, from memory and from a local copy, beside rclone.

    .venv/bin/python benchmarks/mount.py [--repeat 3] [--seconds 2] [--only WAY,...] [--json]

Decided here and only here: what is measured. A disk of 256 MiB that doesn't compress is backed up into
a folder, mounted as a user does, and read past the kernel's page cache by fio, with 1 and with 16 threads:
4 KiB at random, 1 MiB in sequence.

    refuse, native              from 16 MiB of the disk that were read before: memory
    refuse opening, native ...  from all of it: most frames must be opened anew
    refuse fetching, native ... the same without a cache on the disk: most must be fetched, from a folder
    refuse copy, native copy    a complete local copy, in the page cache, by a tree that offers it; natively
                                as when the file was open before the copy was complete: read by the driver
    pass-through                the same, the file opened when the copy was complete: read by the kernel
    rclone                      `rclone mount --vfs-cache-mode full` of the plain disk, all of it cached
    local                       the disk's own file

The last three and `copy` read one file on the disk: O_DIRECT has the kernel read it from there (pass-through
and local), while programs that read it for others have it in the page cache. Each repetition goes through
all, another first each time; ratios are of medians. One thread, beside the programs, all of which are ended
by their ids.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from benchmarks.commands import (
    MIB,
    BenchmarkError,
    cloudmount,
    end_cleanly,
    machine,
    median,
    new_repository,
    program,
    run,
    settle,
    stop,
    table,
    wait_up,
)

SIZE, HOT = 256 * MIB, 16 * MIB
LOADS = {
    "4 KiB, 1 reader": ("random", 1),
    "4 KiB, 16 readers": ("random", 16),
    "1 MiB, in sequence": ("sequential", 1),
}
UP_SECONDS = 60
Opened = Callable[[], contextlib.AbstractContextManager[Path]]


class Bench:
    """The disk, its repository, and the ways to read it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.image = work / "disk.img"
        with self.image.open("wb") as file:
            for _ in range(SIZE // MIB):
                file.write(os.urandom(MIB))
        self.environ = {
            **os.environ,
            "CLOUDMOUNT_REPO": str(work / "repository"),
            "CLOUDMOUNT_PASSPHRASE": "benchmark",
            "XDG_CACHE_HOME": str(work / "cache"),
            "XDG_STATE_HOME": str(work / "state"),
        }
        new_repository(self.environ)
        run([cloudmount(), "backup", "--name", "srv", self.image], env=self.environ)

    def ways(self) -> dict[str, tuple[Opened, int]]:
        """How each is opened, and of how many bytes."""
        found: dict[str, tuple[Opened, int]] = {}
        for driver in ("refuse", "native"):
            found[driver] = (functools.partial(self._mounted, driver), HOT)
            found[f"{driver} opening"] = (functools.partial(self._mounted, driver), SIZE)
            found[f"{driver} fetching"] = (
                functools.partial(self._mounted, driver, "--cache-size", "0"),
                SIZE,
            )
            found[f"{driver} copy"] = (functools.partial(self._copy, driver, late=True), SIZE)
        found["pass-through"] = (lambda: self._copy("native"), SIZE)
        found["rclone"] = (self._rclone, SIZE)
        found["local"] = (lambda: contextlib.nullcontext(self.image), SIZE)
        return found

    @contextlib.contextmanager
    def _mounted(self, driver: str, *options: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            command = [cloudmount(), "mount", folder, "--driver", driver, *options]
            with self._serving(command, Path(folder)):
                yield Path(folder) / "srv" / "latest" / "disk.img"

    @contextlib.contextmanager
    def _copy(self, driver: str, *, late: bool = False) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            server = Path(__file__).with_name("mount_server.py")
            command = [sys.executable, str(server), folder, driver, str(self.image), "late" if late else ""]
            with self._serving(command, Path(folder)):
                file = Path(folder) / "disk"
                with file.open("rb") if late else contextlib.nullcontext():
                    yield file

    @contextlib.contextmanager
    def _rclone(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            at, plain, cache = (Path(folder) / name for name in ("drive", "plain", "cache"))
            for path in (at, plain):
                path.mkdir()
            os.link(self.image, plain / "disk.img")
            (config := Path(folder) / "rclone.conf").touch()
            command = [program("rclone", "rclone"), "mount", str(plain), str(at), "--config", str(config)]
            with self._serving([*command, "--vfs-cache-mode", "full", "--cache-dir", str(cache)], at):
                settle(at / "disk.img")  # all of it is cached then
                yield at / "disk.img"

    @contextlib.contextmanager
    def _serving(self, command: list[str], at: Path) -> Iterator[None]:
        serving = subprocess.Popen(
            command, env=self.environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_up(serving, lambda: os.path.ismount(at), UP_SECONDS)
            yield
        finally:
            stop(serving)


def measure(file: Path, load: str, length: int, seconds: float) -> float:
    """Reads a second, or for sequential ones MB a second."""
    how, count = LOADS[load]
    command = [program("fio", "fio"), "--name=read", f"--filename={file}", "--readonly", "--ioengine=psync"]
    command += ["--direct=1", "--thread", "--group_reporting", "--output-format=json", "--invalidate=0"]
    command += ["--time_based", f"--runtime={round(1000 * seconds)}ms", f"--numjobs={count}"]
    command += [f"--size={length}"]
    if how == "random":
        command += ["--rw=randread", "--bs=4k", "--norandommap"]
    else:
        command += ["--rw=read", "--bs=1M"]
    with tempfile.TemporaryDirectory() as folder:
        told = json.loads(run(command, cwd=Path(folder)).output)["jobs"][0]["read"]
    return float(told["iops"] if how == "random" else told["bw_bytes"] / 1e6)


def campaign(
    bench: Bench, names: list[str], repeat: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """What each way gave, by load."""
    results: dict[str, dict[str, list[float]]] = {name: {load: [] for load in LOADS} for name in names}
    ways = bench.ways()
    for turn in range(repeat):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            opened, length = ways[name]
            with opened() as file:
                settle(bench.image)
                if length == HOT:
                    measure(file, "1 MiB, in sequence", HOT, 0.5)  # brings it into memory
                for load in LOADS:
                    results[name][load].append(measure(file, load, length, seconds))
    return results


def report(results: dict[str, dict[str, list[float]]]) -> str:
    """A table for people: medians, and in brackets the ratio to the same of refuse."""
    rows = [["", *LOADS]]
    for name, loads in results.items():
        peer = results.get(name.replace("native", "refuse"))
        row = [name]
        for load, values in loads.items():
            base = median(peer[load]) if peer is not None and name.startswith("native") else 0.0
            row.append(f"{median(values):,.0f}" + (f" ({median(values) / base:.1f} x)" if base else ""))
        rows.append(row)
    return table(rows)


def main() -> int:
    """The program of the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (default 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default 2)")
    parser.add_argument("--only", metavar="WAY,...")
    parser.add_argument("--work", type=Path, help="make the temporary folder here (needs 1 GB)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    given = parser.parse_args()
    end_cleanly()
    host = machine()
    try:
        with tempfile.TemporaryDirectory(prefix="cloudmount-bench-", dir=given.work) as folder:
            bench = Bench(Path(folder).resolve())
            names = given.only.split(",") if given.only else list(bench.ways())
            results = campaign(bench, names, given.repeat, given.seconds)
    except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
        print(f"mount: {error}", file=sys.stderr)
        return 1
    if given.json:
        medians = {name: {load: median(v) for load, v in loads.items()} for name, loads in results.items()}
        print(
            json.dumps({"benchmark": "mount", "machine": host, "runs": results, "medians": medians}, indent=1)
        )
    else:
        print(f"Reads a second, and MB/s in sequence; {host}\n\n{report(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
