#!/usr/bin/env python3
"""How fast a disk comes back whole: `cloudmount hydrate` beside other ways, out of a folder and out of Azure.

    make bench      (or: .venv/bin/python benchmarks/hydrate.py [--repeat 3] [--only folder] [--json])

Decided here and only here: what is measured, in what order, and what counts as reached. The disk of
server_guest.py lies in a folder and in an Azurite, in repositories and as a plain file; both are on this
machine, there is no line in between. Each repetition brings it back once by each way into an empty folder,
another way first each time; times are of whole commands.

    cloudmount    `cloudmount hydrate`: the VHDX, every frame verified, synced, with a digest of each piece
    restic, borg  `restic restore`, `borg extract` (which knows no Azure)
    rclone        `rclone copy` of the plain file, neither sealed nor deduplicated
    cp            of the plain file, in the folder only; and with its fsync

What was made is compared with the original (not timed). One thread.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from benchmarks import drives
from benchmarks.archivers import Archiver, Borg, Cloudmount, Restic
from benchmarks.azurite import LINK_PORT, Azurite
from benchmarks.commands import (
    MIB,
    BenchmarkError,
    Run,
    end_cleanly,
    machine,
    median,
    program,
    run,
    settle,
    table,
    version,
)
from benchmarks.server_guest import cached_guest

FASTER = 2.0
"""How much faster than the fastest that deduplicates CloudMount shall be."""
COPY_SHARE = 0.9
"""Or which share of the speed of `cp`."""
DEDUPLICATING = ("restic", "borg")

Fill = Callable[[Path], tuple[Run, Path]]
"""Brings the disk back into an empty folder; where it lies then."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to bring the disk back; `kept` is what it reads, to be in memory before."""

    name: str
    version: str
    fill: Fill
    kept: Path | None = None


@contextlib.contextmanager
def folder_ways(image: Path, work: Path) -> Iterator[list[Way]]:
    """Repositories in folders, and the plain file."""
    note = work / "note.txt"
    note.write_text("Beside the disk\n")
    ways = []
    makers: tuple[type[Archiver], ...] = (Cloudmount, Restic, Borg)
    for maker in makers:
        archiver = maker(work / maker.__name__.lower())
        archiver.folder.mkdir()
        archiver.init()
        archiver.backup(image, note)
        print(f"hydrate: {archiver.name}: prepared", file=sys.stderr)

        def fill(target: Path, archiver: Archiver = archiver) -> tuple[Run, Path]:
            if isinstance(archiver, Cloudmount):
                return archiver.hydrate(target)
            return archiver.restore(image, target)

        ways.append(Way(archiver.name, archiver.version(), fill, archiver.repository))
    rclone = program("rclone", "rclone")

    def copied(*command: str | Path) -> Fill:
        return lambda target: (run([*command, image, target]), target / image.name)

    def synced(target: Path) -> tuple[Run, Path]:
        made = target / image.name
        script = 'cp --reflink=never "$0" "$1" && sync "$1"'
        return run(["sh", "-c", script, image, made]), made

    # As with the others, nothing of the user's is read.
    ways.append(Way("rclone", version([rclone, "version"]), copied(rclone, "--config", "", "copy"), image))
    ways.append(Way("cp", "", copied("cp", "--reflink=never"), image))
    ways.append(Way("cp and fsync", "", synced, image))
    yield ways


@contextlib.contextmanager
def azure_ways(image: Path, work: Path) -> Iterator[list[Way]]:
    """Repositories and the plain file in an Azurite."""
    with Azurite(work, LINK_PORT) as store:
        done: set[str] = set()
        ways = []
        for way in (drives.Cloudmount(image), drives.Restic(image), drives.Rclone(image)):
            way.prepare(work, done)
            print(f"hydrate: {way.name}: prepared in Azure", file=sys.stderr)
            ways.append(Way(way.name, way.version(), way.copied, store.blobs))
        yield ways


PLACES = {"folder": folder_ways, "azure": azure_ways}


def measure(ways: Sequence[Way], image: Path, place: str, repeat: int, work: Path) -> dict[str, list[Run]]:
    """Every way `repeat` times, in turn."""
    runs: dict[str, list[Run]] = {way.name: [] for way in ways}
    for number in range(repeat):
        first = number % len(ways)
        for way in [*ways[first:], *ways[:first]]:
            with tempfile.TemporaryDirectory(prefix="filled-", dir=work) as folder:
                settle(*([way.kept] if way.kept is not None else []))
                done, made = way.fill(Path(folder))
                _compare(way.name, image, made)
            runs[way.name].append(done)
            print(f"hydrate: {place:7} {way.name:20} {done.seconds:6.2f} s", file=sys.stderr)
    return runs


def _compare(name: str, image: Path, made: Path) -> None:
    """A VHDX that was synthesised is not the same file: it is the same disk."""
    command: list[str | Path] = ["cmp", "--quiet", image, made]
    if name == "cloudmount":
        formats = ["-f", image.suffix[1:], "-F", made.suffix[1:]]
        command = [program("qemu-img", "qemu-utils"), "compare", *formats, image, made]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{name} made something else of it: {done.stdout}{done.stderr}")


def seconds(runs: dict[str, list[Run]], name: str) -> float:
    """The median; 0 when it was not measured."""
    return median(done.seconds for done in runs.get(name, []))


def verdict(runs: dict[str, dict[str, list[Run]]]) -> list[dict[str, Any]]:
    """Whether the aim is reached, at each place, by the medians."""
    aims = []
    for place, here in runs.items():
        ours = seconds(here, "cloudmount")
        peers = [s for name in DEDUPLICATING if (s := seconds(here, name))]
        if not ours or not peers:
            continue
        ratio, share = min(peers) / ours, seconds(here, "cp") / ours
        aims.append(
            {
                "place": place,
                "to the fastest": round(ratio, 2),
                "to cp": round(share, 2),
                "to cp and fsync": round(seconds(here, "cp and fsync") / ours, 2),
                "met": ratio >= FASTER or share >= COPY_SHARE,
            }
        )
    return aims


def report(runs: dict[str, dict[str, list[Run]]], versions: dict[str, str]) -> str:
    """The tables, for people."""
    rows = [["", *(f"{place}, least and most" for place in runs), "memory"]]
    for name in dict.fromkeys(name for here in runs.values() for name in here):
        cells, memory = [], 0.0
        for here in runs.values():
            every = [done.seconds for done in here.get(name, [])]
            memory = max(memory, median(done.peak_bytes for done in here.get(name, [])))
            span = f" ({min(every):.2f} - {max(every):.2f})" if every else ""
            cells.append(f"{seconds(here, name):.2f} s{span}" if every else "")
        rows.append([f"{name} {versions[name]}".strip(), *cells, f"{memory / MIB:.0f} MiB"])
    aims = [["aim", "asked", "measured", "met"]]
    for aim in verdict(runs):
        asked = f"{FASTER} x the fastest, or {COPY_SHARE} x cp"
        measured = f"{aim['to the fastest']} x"
        if aim["to cp"]:
            measured += f", {aim['to cp']} x cp ({aim['to cp and fsync']} x cp and fsync)"
        aims.append([aim["place"], asked, measured, "yes" if aim["met"] else "NO"])
    return "\n\n".join([table(rows), table(aims)])


def main() -> int:
    """The program of the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (default 3)")
    parser.add_argument("--only", choices=list(PLACES), help="at one of the places only")
    parser.add_argument("--disk", type=Path, help="another VHDX than the guest of server_guest.py")
    parser.add_argument("--work", type=Path, help="make the temporary folder here (needs 20 GB)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    given = parser.parse_args()
    end_cleanly()
    if given.repeat < 1:
        parser.error("--repeat is at least 1")
    host = machine()
    runs: dict[str, dict[str, list[Run]]] = {}
    versions: dict[str, str] = {}
    try:
        image = given.disk.resolve() if given.disk else cached_guest()
        for place in [given.only] if given.only else PLACES:
            with tempfile.TemporaryDirectory(prefix="cloudmount-bench-", dir=given.work) as folder:
                work = Path(folder).resolve()
                with PLACES[place](image, work) as ways:
                    versions |= {way.name: way.version for way in ways}
                    runs[place] = measure(ways, image, place, given.repeat, work)
    except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
        print(f"hydrate: {error}", file=sys.stderr)
        return 1
    if given.json:
        result = {
            "benchmark": "hydrate",
            "machine": host,
            "image_bytes": image.stat().st_size,
            "versions": versions,
            "runs": {
                p: {n: [dataclasses.asdict(r) for r in rs] for n, rs in here.items()}
                for p, here in runs.items()
            },
            "aims": verdict(runs),
        }
        print(json.dumps(result, indent=1))
    else:
        print(report(runs, versions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
