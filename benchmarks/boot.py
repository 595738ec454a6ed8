#!/usr/bin/env python3
"""How soon a server runs again out of Azure: boots over a slow line, CloudMount beside other ways.

    make bench      (or: .venv/bin/python benchmarks/boot.py [--repeat 3] [--aged] [--frames 256] [--json])

Decided here and only here: what is measured and in what order. The disk of server_guest.py lies in an
Azurite, whole or in a repository, behind a line of 100 Mbit/s down, 20 up and 40 ms (tests/wanlink.py).
Each repetition boots it once by each way (drives.py), every time with empty caches, another way first
each time; "booted before" with the trace that an earlier boot left in the repository, "after a drill" with
the boot pack that one leaves. Measured for each:
seconds until the drive is there, seconds from power-on to the guest's GUEST-READY, and, at that moment,
bytes that came down the line, requests, connections and the memory of what serves the disk. The store is
filled beforehand, without the line's limits. One thread, beside those of the line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from benchmarks import drives
from benchmarks.azurite import LINK_PORT, Azurite
from benchmarks.commands import MIB, BenchmarkError, end_cleanly, machine, median, settle, table
from benchmarks.drives import Way
from benchmarks.server_guest import cached_guest
from benchmarks.vm import boot
from cloudmount.boot.accelerator import Trial
from tests.wanlink import WanLink

RTT, DOWN_MBIT, UP_MBIT = 0.04, 100, 20
FIRST_AIM, KNOWN_AIM = 1.35, 1.1
"""Times the local boot that CloudMount's may take: the first one, and one whose reads are known."""
DAYS, SHARE = 60, 0.01

WAYS: dict[str, Callable[[Path], Way]] = {
    "local": drives.Local,
    "cloudmount": drives.Cloudmount,
    "learned": drives.Learned,
    "drilled": drives.Drilled,
    "rclone": drives.Rclone,
    "nbdkit": partial(drives.Nbdkit, cached=False),
    "nbdkit-cache": partial(drives.Nbdkit, cached=True),
    "restic": drives.Restic,
}


@dataclasses.dataclass(frozen=True)
class Boot:
    """One boot: seconds until the drive was there and from then to ready; what it took by then."""

    mount_seconds: float
    boot_seconds: float
    down_bytes: int
    requests: int
    connections: int
    memory_bytes: int


class Line:
    """The store at the end of the line."""

    def __init__(self, store: Azurite) -> None:
        self._store = store

    def quick(self) -> WanLink:
        """Without delay or limits, for filling the store."""
        return self._link(0, 0, 0)

    def slow(self) -> WanLink:
        """As measured."""
        return self._link(RTT, DOWN_MBIT, UP_MBIT)

    def requests(self) -> int:
        """How many were answered so far."""
        return self._store.requests()

    def _link(self, rtt: float, down: float, up: float) -> WanLink:
        target, listen = ("127.0.0.1", self._store.port), ("127.0.0.1", LINK_PORT)
        return WanLink(target, rtt=rtt, down_mbit=down, up_mbit=up, listen=listen)


def prepare(
    ways: Sequence[Way], line: Line, work: Path, benchmark: str = "boot"
) -> dict[str, dict[str, float]]:
    """Fill the store; what each way tells of it."""
    told: dict[str, dict[str, float]] = {}
    done: set[str] = set()
    try:
        with line.quick():
            for way in ways:
                began = time.monotonic()
                told[way.name] = way.prepare(work, done)
                print(
                    f"{benchmark}: {way.name}: prepared in {time.monotonic() - began:.0f} s", file=sys.stderr
                )
    except OSError as error:
        raise BenchmarkError(
            f"port {LINK_PORT} of loopback, where the tools look for the emulated Azure: {error}"
        ) from error
    return told


def measure(way: Way, line: Line, folder: Path, limit: float) -> Boot:
    """One boot by `way`, with empty caches in the empty `folder`."""
    taken: list[tuple[int, int, int, int]] = []
    with line.slow() as link:
        before = line.requests()

        def ready() -> None:
            traffic = link.traffic()
            taken.append((traffic.down_bytes, line.requests() - before, traffic.connections, way.memory()))

        settle(way.image if way.name == "local" else folder)
        began = time.monotonic()
        with way.opened(folder) as disk:
            mounted = time.monotonic() - began
            seconds = boot(disk, folder, limit, way.failed, ready)
    return Boot(mounted, seconds, *taken[0])


def campaign(ways: Sequence[Way], line: Line, work: Path, repeat: int, limit: float) -> dict[str, list[Boot]]:
    """Every way `repeat` times, in turn."""
    boots: dict[str, list[Boot]] = {way.name: [] for way in ways}
    for number in range(repeat):
        first = number % len(ways)
        for way in [*ways[first:], *ways[:first]]:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                done = measure(way, line, Path(folder), limit)
            boots[way.name].append(done)
            print(
                f"boot: {way.name:20} {done.mount_seconds:5.1f} + {done.boot_seconds:5.1f} s, "
                f"{done.down_bytes / 1e6:6.1f} MB in {done.requests} requests",
                file=sys.stderr,
            )
    return boots


def middle(boots: Sequence[Boot]) -> Boot:
    """The median of each number."""
    return Boot(*(median(getattr(b, f.name) for b in boots) for f in dataclasses.fields(Boot)))  # type: ignore[arg-type]  # medians of counts may be halves


def verdict(boots: dict[str, list[Boot]]) -> list[dict[str, Any]]:
    """Whether CloudMount's boots take no more times the local one than is asked of them; aged ones are held
    against fresh ones."""
    if not boots.get("local"):
        return []
    local = middle(boots["local"]).boot_seconds
    found = []
    for name, several in boots.items():
        if "cloudmount" in name and "days" not in name:
            ratio = middle(several).boot_seconds / local
            aim = KNOWN_AIM if "," in name else FIRST_AIM
            found.append({"way": name, "aim": aim, "ratio": round(ratio, 2), "met": ratio <= aim})
    return found


def report(boots: dict[str, list[Boot]], versions: dict[str, str], image: Path) -> str:
    """The tables, for people."""
    local = middle(boots["local"]).boot_seconds if boots.get("local") else 0.0
    rows = [["", "mount", "boot", "least and most", "to local", "down", "requests", "connections", "memory"]]
    for name, several in boots.items():
        m = middle(several)
        seconds = [b.boot_seconds for b in several]
        rows.append(
            [
                f"{name} {versions[name]}".strip(),
                f"{m.mount_seconds:.1f} s",
                f"{m.boot_seconds:.1f} s",
                f"{min(seconds):.1f} - {max(seconds):.1f}",
                f"{m.boot_seconds / local:.2f}" if local else "",
                f"{m.down_bytes / 1e6:.1f} MB",
                f"{m.requests:.0f}",
                f"{m.connections:.0f}",
                f"{m.memory_bytes / MIB:.0f} MiB",
            ]
        )
    if local:
        size = image.stat().st_size
        computed = local + size * 8 / DOWN_MBIT / 1e6
        row = ["download, then boot (computed)", "", f"{computed:.1f} s", "", f"{computed / local:.2f}"]
        rows.append([*row, f"{size / 1e6:.1f} MB", "", "", ""])
    aims = [["aim", "asked", "measured", "met"]]
    for aim in verdict(boots):
        aims.append(
            [aim["way"], f"{aim['aim']} x local", f"{aim['ratio']:.2f} x", "yes" if aim["met"] else "NO"]
        )
    return "\n\n".join([table(rows), table(aims)])


def chosen(given: argparse.Namespace, image: Path) -> list[Way]:
    """The ways that the command line asks for."""
    names = given.only.split(",") if given.only else list(WAYS)
    if unknown := set(names) - set(WAYS):
        raise BenchmarkError(f"--only {','.join(sorted(unknown))}: none of {', '.join(WAYS)}")
    ways = [WAYS[name](image) for name in WAYS if name in names]
    ways += [drives.Cloudmount(image, kib) for kib in given.frames]
    if given.aged:
        sizes = [None, *given.frames]
        ways += [drives.Aged(image, given.days, given.share / 100, kib) for kib in sizes]
        ways.append(drives.AgedDrilled(image, given.days, given.share / 100))
    return ways


def main() -> int:
    """The program of the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (default 3)")
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(WAYS)}")
    parser.add_argument(
        "--frames", type=int, nargs="+", default=[], metavar="KIB", help="CloudMount with these frames too"
    )
    parser.add_argument("--aged", action="store_true", help="also after many backups of a changing disk")
    parser.add_argument("--days", type=int, default=DAYS, help=f"how many, for --aged (default {DAYS})")
    parser.add_argument(
        "--share", type=float, default=SHARE * 100, metavar="PERCENT", help="changed each day (default 1)"
    )
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one boot (default 600)")
    parser.add_argument("--disk", type=Path, help="another VHDX; its guest must say GUEST-READY on ttyS0")
    parser.add_argument("--work", type=Path, help="make the temporary folder here (needs 30 GB)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    given = parser.parse_args()
    end_cleanly()
    host = machine()
    try:
        image = given.disk.resolve() if given.disk else cached_guest()
        ways = chosen(given, image)
        with tempfile.TemporaryDirectory(prefix="cloudmount-bench-", dir=given.work) as folder:
            work = Path(folder).resolve()
            with Azurite(work) as store:
                line = Line(store)
                told = prepare(ways, line, work)
                boots = campaign(ways, line, work, given.repeat, given.timeout)
    except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
        print(f"boot: {error}", file=sys.stderr)
        return 1
    versions = {way.name: way.version() for way in ways}
    if given.json:
        host["accelerator"] = Trial().result()
        result = {
            "benchmark": "boot",
            "machine": host,
            "link": {"rtt_seconds": RTT, "down_mbit": DOWN_MBIT, "up_mbit": UP_MBIT},
            "image_bytes": image.stat().st_size,
            "versions": versions,
            "prepared": told,
            "boots": {name: [dataclasses.asdict(b) for b in several] for name, several in boots.items()},
            "medians": {name: dataclasses.asdict(middle(several)) for name, several in boots.items()},
            "aims": verdict(boots),
        }
        print(json.dumps(result, indent=1))
    else:
        print(report(boots, versions, image))
    return 0


if __name__ == "__main__":
    sys.exit(main())
