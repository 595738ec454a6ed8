#!/usr/bin/env python3
"""How fast and small backups are: CloudMount beside restic and borg, on the guest of server_guest.py.

    make bench      (or: .venv/bin/python benchmarks/backup.py [--repeat 3] [--frames 256] [--json])

Decided here and only here: what is measured, in what order, and what counts as reached. Each
repetition has new repositories in folders, and goes step by step, all programs in turn at each step,
another one first each time: so that a slow minute of the machine meets all of them.

    first       a backup of the disk image into an empty repository
    touched     again, the image's times new, its content the same, so that all of it must be read
    untouched   again, nothing changed
    restore     the image into an empty folder, beside `cp` of the image

Every restored image is compared with the original (not timed). Times are of whole commands. One thread.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from benchmarks.archivers import Archiver, Borg, Cloudmount, Restic
from benchmarks.commands import MIB, BenchmarkError, end_cleanly, machine, median, run, settle, table
from benchmarks.server_guest import cached_guest

MEASURES = ("first", "touched", "untouched", "stored", "restore", "memory")
PEERS = ("restic", "borg")

FASTER = 1.5
"""First, touched and restore: how much faster than the fastest peer CloudMount shall be."""
UNTOUCHED_SECONDS = 1.5
COPY_SHARE = 0.9
"""Restore is also good enough at this share of the speed of `cp`."""


class Results:
    """What was measured, per program and measure, one value a repetition: seconds and bytes."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = {}

    def add(self, name: str, measure: str, value: float) -> None:
        """One more value."""
        self.values.setdefault(name, {}).setdefault(measure, []).append(value)

    def median(self, name: str, measure: str) -> float:
        """The median; 0 when it was not measured."""
        return median(self.values.get(name, {}).get(measure, ()))


@dataclasses.dataclass(frozen=True)
class Aim:
    """One line of the verdict: what is asked, what was measured, whether that is enough."""

    measure: str
    asked: str
    measured: str
    met: bool


def measure(image: Path, makers: Sequence[Callable[[Path], Archiver]], repeat: int, work: Path) -> Results:
    """Everything, `repeat` times. `image` is copied, as its times are changed."""
    results = Results()
    source = work / image.name
    run(["cp", "--reflink=never", image, source])
    _touch(source)
    for number in range(repeat):
        with _folder(work / "repositories") as folder:
            archivers = [maker(folder / str(n)) for n, maker in enumerate(makers)]
            for archiver in archivers:
                archiver.folder.mkdir()
                archiver.init()

            def each(
                step: Callable[[Archiver], None], archivers: list[Archiver] = archivers, number: int = number
            ) -> None:
                first = number % len(archivers)
                for archiver in archivers[first:] + archivers[:first]:
                    step(archiver)

            each(partial(_backup, results, source, "first"))
            for archiver in archivers:
                results.add(archiver.name, "stored", archiver.stored())
            _touch(source)
            each(partial(_backup, results, source, "touched"))
            each(partial(_backup, results, source, "untouched"))
            each(partial(_restore, results, source, work / "restored"))
            _copy(results, source, work / "restored")
    return results


def _touch(source: Path) -> None:
    """New times for the image, and then for the small file beside it (see archivers.py)."""
    os.utime(source)
    time.sleep(0.05)  # several ticks of the file system's clock
    _beside(source).write_text(f"The server's disk as of {time.time()}\n")


def _beside(source: Path) -> Path:
    return source.with_name("note.txt")


def _backup(results: Results, source: Path, step: str, archiver: Archiver) -> None:
    settle(source)
    done = archiver.backup(source, _beside(source))
    _note(results, archiver.name, step, done.seconds)
    results.add(archiver.name, f"memory {step}", done.peak_bytes)


def _restore(results: Results, source: Path, target: Path, archiver: Archiver) -> None:
    with _folder(target):
        settle(archiver.repository)
        done, restored = archiver.restore(source, target)
        archiver.verify(source, restored)
    _note(results, archiver.name, "restore", done.seconds)
    results.add(archiver.name, "memory restore", done.peak_bytes)


def _copy(results: Results, source: Path, target: Path) -> None:
    copied = target / source.name
    command = ["cp", "--reflink=never", str(source), str(copied)]
    for name, whole in (
        ("cp", command),
        ("cp and fsync", ["sh", "-c", '"$@" && sync "$0"', str(copied), *command]),
    ):
        with _folder(target):
            settle(source)
            _note(results, name, "restore", run(whole).seconds)


def _note(results: Results, name: str, step: str, seconds: float) -> None:
    results.add(name, step, seconds)
    print(f"backup: {step:9} {name:20} {seconds:6.2f} s", file=sys.stderr)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A new folder, gone afterwards."""
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def memory(results: Results, name: str) -> float:
    """The most that any step of a program needed, of the medians."""
    steps = ("first", "touched", "untouched", "restore")
    return max(results.median(name, f"memory {step}") for step in steps)


def verdict(results: Results) -> list[Aim]:
    """Which aims are reached, by the medians."""
    ours, peers = "cloudmount", [p for p in PEERS if p in results.values]
    if ours not in results.values or not peers:
        return []
    aims = []
    for step in ("first", "touched"):
        ratio = min(results.median(p, step) for p in peers) / results.median(ours, step)
        aims.append(Aim(step, f"{FASTER} x the fastest", f"{ratio:.2f} x", ratio >= FASTER))
    seconds = results.median(ours, "untouched")
    aims.append(Aim("untouched", f"{UNTOUCHED_SECONDS} s", f"{seconds:.2f} s", seconds <= UNTOUCHED_SECONDS))
    share = results.median(ours, "stored") / min(results.median(p, "stored") for p in peers)
    aims.append(Aim("stored", "1.0 x the smallest", f"{share:.3f} x", share <= 1))
    ratio = min(results.median(p, "restore") for p in peers) / results.median(ours, "restore")
    copy = results.median("cp", "restore") / results.median(ours, "restore")
    aims.append(
        Aim(
            "restore",
            f"{FASTER} x the fastest, or {COPY_SHARE} x cp",
            f"{ratio:.2f} x, {copy:.2f} x cp",
            ratio >= FASTER or copy >= COPY_SHARE,
        )
    )
    return aims


def report(results: Results, versions: dict[str, str]) -> str:
    """The tables, for people."""

    def cell(name: str, measure: str) -> str:
        value = memory(results, name) if measure == "memory" else results.median(name, measure)
        if not value:
            return ""
        if measure == "stored":
            return f"{value / 1e6:.0f} MB"
        return f"{value / MIB:.0f} MiB" if measure == "memory" else f"{value:.2f} s"

    head = ["", *MEASURES]
    rows = [
        [f"{name} {versions.get(name, '')}".strip(), *(cell(name, m) for m in MEASURES)]
        for name in results.values
    ]
    aims = [["aim", "asked", "measured", "met"]]
    aims += [[a.measure, a.asked, a.measured, "yes" if a.met else "NO"] for a in verdict(results)]
    spread = [["least and most", *(m for m in MEASURES if m not in ("stored", "memory"))]]
    for name, values in results.values.items():
        spread.append([name, *(_span(values.get(m, [])) for m in spread[0][1:])])
    return "\n\n".join([table([head, *rows]), table(spread), table(aims)])


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.2f} - {max(values):.2f}" if values else ""


def document(results: Results, versions: dict[str, str], image: Path, host: dict[str, Any]) -> dict[str, Any]:
    """Everything, for programs: seconds and bytes, each repetition's."""
    return {
        "benchmark": "backup",
        "machine": host,
        "image_bytes": image.stat().st_size,
        "versions": versions,
        "values": results.values,
        "medians": {n: {m: median(v) for m, v in values.items()} for n, values in results.values.items()},
        "aims": [dataclasses.asdict(aim) for aim in verdict(results)],
    }


def main() -> int:
    """The program of the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (default 3)")
    parser.add_argument("--only", metavar="NAME,...", help="of cloudmount, restic, borg")
    parser.add_argument(
        "--frames", type=int, nargs="+", default=[], metavar="KIB", help="CloudMount with these frames too"
    )
    parser.add_argument("--disk", type=Path, help="another disk image than the guest of server_guest.py")
    parser.add_argument("--work", type=Path, help="make the temporary folder here (needs 15 GB)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    given = parser.parse_args()
    end_cleanly()
    makers: dict[str, Callable[[Path], Archiver]] = {"cloudmount": Cloudmount, "restic": Restic, "borg": Borg}
    if given.only:
        unknown = set(given.only.split(",")) - set(makers)
        if unknown:
            parser.error(f"--only {','.join(sorted(unknown))}: none of {', '.join(makers)}")
        makers = {name: makers[name] for name in makers if name in given.only.split(",")}
    for kib in given.frames:
        makers[f"cloudmount {kib} KiB"] = partial(Cloudmount, frame_kib=kib)
    if given.repeat < 1:
        parser.error("--repeat is at least 1")
    host = machine()
    try:
        image = given.disk.resolve() if given.disk else cached_guest()
        with tempfile.TemporaryDirectory(prefix="cloudmount-bench-", dir=given.work) as folder:
            versions = {name: make(Path(folder)).version() for name, make in makers.items()}
            results = measure(image, list(makers.values()), given.repeat, Path(folder).resolve())
    except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
        print(f"backup: {error}", file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps(document(results, versions, image, host), indent=1))
    else:
        print(report(results, versions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
