#!/usr/bin/env python3
"""How soon one deleted file is back out of a server's disk in Azure, CloudMount beside other ways.

    make bench      (or: .venv/bin/python benchmarks/files.py [--repeat 3] [--only NAME,...] [--json])
                    --fragmented: of a volume where the file lies in some 600 pieces

Decided here and only here: what is measured. The volume of volume.py lies in an Azurite, whole or in a
repository, behind the line of boot.py (100 Mbit/s down, 20 up, 40 ms). By each way, with empty caches:
mounting, the listing of the company file's folder (cloudmount's command has nothing mounted before it), then
copying the file, compared with what it was. Measured: seconds, bytes that came down the line, requests.

    cloudmount          `cloudmount ls`, then `cloudmount cp`
    cloudmount drive    `cloudmount mount`, then ls and cp in its folder of the disk's inside
    rclone              ntfs-3g over the image on `rclone mount --vfs-cache-mode full`
    nbdkit              ntfs-3g over nbdkit's curl plugin, shown as a file by qemu-storage-daemon
    restic              ntfs-3g over the image in `restic mount`

rclone and nbdkit neither encrypt nor deduplicate. The store is filled beforehand, without the line's limits.
One thread, beside those of the line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from benchmarks import drives, volume
from benchmarks.azurite import Azurite
from benchmarks.boot import DOWN_MBIT, RTT, UP_MBIT, Line, prepare
from benchmarks.commands import (
    BenchmarkError,
    end_cleanly,
    machine,
    median,
    program,
    run,
    settle,
    stop,
    table,
    wait_up,
)
from benchmarks.volume import FOLDER, LABEL, QBW, mounted

_UP_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Files:
    """Opening (mounting), one listing and one copy: seconds, bytes that came down, and requests of each."""

    open_seconds: float
    open_bytes: int
    open_requests: int
    list_seconds: float
    list_bytes: int
    list_requests: int
    copy_seconds: float
    copy_bytes: int
    copy_requests: int


class Opened(ABC):
    """The volume, by one way, while it is open."""

    @abstractmethod
    def names(self) -> list[str]:
        """What lies in FOLDER."""

    @abstractmethod
    def copy(self, to: Path) -> None:
        """Copy the company file."""


class Reader(ABC):
    """One way to files in the disk that `way` keeps in the store."""

    name: str

    def __init__(self, way: drives.Way) -> None:
        self.way = way
        self.name = way.name

    @abstractmethod
    def opened(self, folder: Path) -> contextlib.AbstractContextManager[Opened]:
        """The volume, while the block runs; `folder` is empty and for caches and mounts."""


class _Folder(Opened):
    """A mounted volume."""

    def __init__(self, at: Path) -> None:
        self._at = at

    def names(self) -> list[str]:
        return os.listdir(self._at / FOLDER)

    def copy(self, to: Path) -> None:
        run(["cp", self._at / QBW, to])


class Commands(Reader, Opened):
    """Ours, without a mount."""

    def __init__(self, way: drives.Cloudmount) -> None:
        super().__init__(way)
        self._cloudmount = way
        self._path = f"server:{way.image.stem}/1-{LABEL}"
        self._environ: dict[str, str] = {}

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Opened]:
        self._environ = self._cloudmount.environ(folder)
        yield self

    def names(self) -> list[str]:
        done = run([self._cloudmount.program, "ls", f"{self._path}/{FOLDER}", "--json"], env=self._environ)
        return [entry["name"] for entry in json.loads(done.output)]

    def copy(self, to: Path) -> None:
        command: list[str | Path] = [self._cloudmount.program, "cp", f"{self._path}/{QBW}", to, "--only"]
        run(command, env=self._environ)


class Drive(Reader):
    """Ours, mounted."""

    def __init__(self, way: drives.Cloudmount) -> None:
        super().__init__(way)
        self.name = "cloudmount drive"

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Opened]:
        with self.way.opened(folder) as disk:
            yield _Folder(Path(disk.name).with_suffix("") / f"1-{LABEL}")


class Mounted(Reader):
    """ntfs-3g over the image on the way's drive."""

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Opened]:
        at = folder / "volume"
        at.mkdir()
        with self.way.opened(folder) as disk, self._file(disk.name, folder) as image:
            with mounted(image, at, "ro"):
                yield _Folder(at)

    @contextlib.contextmanager
    def _file(self, name: str, folder: Path) -> Iterator[Path]:
        yield Path(name)


class Exported(Mounted):
    """The same over a block device at a socket, shown as a file."""

    def __init__(self, way: drives.Nbdkit) -> None:
        super().__init__(way)
        self._nbdkit = way

    @contextlib.contextmanager
    def _file(self, name: str, folder: Path) -> Iterator[Path]:
        image = folder / "image"
        image.touch()
        was = image.stat().st_size
        server = f"driver=nbd,node-name=disk,read-only=on,server.type=unix,server.path={self._nbdkit.socket}"
        command = [program("qemu-storage-daemon", "qemu-system-common"), "--blockdev", server]
        command += ["--export", f"type=fuse,id=file,node-name=disk,mountpoint={image},writable=off"]
        serving = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            wait_up(serving, lambda: image.stat().st_size != was, _UP_SECONDS)
            yield image
        finally:
            stop(serving)


def readers(image: Path, names: Sequence[str]) -> list[Reader]:
    """Those of `names`."""
    found: list[Reader] = []
    ours = drives.Cloudmount(image)
    for name in names:
        if name == "cloudmount":
            found.append(Commands(ours))
        elif name == "drive":
            found.append(Drive(ours))
        elif name == "rclone":
            found.append(Mounted(drives.Rclone(image)))
        elif name == "nbdkit":
            found.append(Exported(drives.Nbdkit(image, cached=False)))
        elif name == "restic":
            found.append(Mounted(drives.Restic(image)))
        else:
            raise BenchmarkError(f"--only {name}: none of {', '.join(NAMES)}")
    return found


NAMES = ("cloudmount", "drive", "rclone", "nbdkit", "restic")


def measure(reader: Reader, line: Line, folder: Path, was: bytes) -> Files:
    """One listing and copy by `reader`, with empty caches in the empty `folder`."""
    settle(folder)
    copy = folder / "company.QBW"
    with line.slow() as link:
        took: list[tuple[float, int, int]] = []

        def note() -> None:
            took.append((time.monotonic(), link.traffic().down_bytes, line.requests()))

        note()
        with reader.opened(folder) as opened:
            note()
            if "company.QBW" not in opened.names():
                raise BenchmarkError(f"{reader.name}: {FOLDER} has no company.QBW")
            note()
            opened.copy(copy)
            note()
    if copy.read_bytes() != was:
        raise BenchmarkError(f"{reader.name}: the copy is not what it was")
    numbers = [b - a for i in (0, 1, 2) for a, b in zip(took[i], took[i + 1], strict=True)]
    return Files(*numbers)  # type: ignore[arg-type]  # seconds are floats, the others counts


def report(files: dict[str, list[Files]], versions: dict[str, str]) -> str:
    """The table, for people."""
    rows = [["", "mounted", "listing", "came", "requests", "copy", "came", "requests", "together", "came"]]
    for name, several in files.items():
        m = [median(getattr(f, field.name) for f in several) for field in dataclasses.fields(Files)]
        rows.append(
            [
                f"{name} {versions[name]}".strip(),
                f"{m[0]:.1f} s",
                f"{m[3]:.1f} s",
                f"{(m[1] + m[4]) / 1e6:.1f} MB",
                f"{m[2] + m[5]:.0f}",
                f"{m[6]:.1f} s",
                f"{m[7] / 1e6:.1f} MB",
                f"{m[8]:.0f}",
                f"{m[0] + m[3] + m[6]:.1f} s",
                f"{(m[1] + m[4] + m[7]) / 1e6:.1f} MB",
            ]
        )
    return table(rows)


def main() -> int:
    """The program of the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (default 3)")
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--work", type=Path, help="make the temporary folder here (needs 15 GB)")
    parser.add_argument("--fragmented", action="store_true", help="the file lies in some 600 pieces")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    given = parser.parse_args()
    end_cleanly()
    host = machine()
    files: dict[str, list[Files]] = {}
    try:
        image = volume.cached_volume(fragmented=given.fragmented)
        chosen = readers(image, given.only.split(",") if given.only else NAMES)
        ways = {reader.way.name: reader.way for reader in chosen}
        was = volume.company()
        with tempfile.TemporaryDirectory(prefix="cloudmount-bench-", dir=given.work) as place:
            work = Path(place).resolve()
            with Azurite(work) as store:
                line = Line(store)
                told = prepare(list(ways.values()), line, work, "files")
                for number in range(given.repeat):
                    first = number % len(chosen)
                    for reader in [*chosen[first:], *chosen[:first]]:
                        with tempfile.TemporaryDirectory(dir=work) as folder:
                            done = measure(reader, line, Path(folder), was)
                        files.setdefault(reader.name, []).append(done)
                        print(
                            f"files: {reader.name:17} {done.open_seconds:5.1f} + {done.list_seconds:5.1f} + "
                            f"{done.copy_seconds:5.1f} s, {(done.open_bytes + done.list_bytes) / 1e6:5.1f} + "
                            f"{done.copy_bytes / 1e6:5.1f} MB",
                            file=sys.stderr,
                        )
    except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
        print(f"files: {error}", file=sys.stderr)
        return 1
    files = {reader.name: files[reader.name] for reader in chosen}
    versions = {reader.name: reader.way.version() for reader in chosen}
    if given.json:
        result: dict[str, Any] = {
            "benchmark": "files",
            "machine": host,
            "link": {"rtt_seconds": RTT, "down_mbit": DOWN_MBIT, "up_mbit": UP_MBIT},
            "file_bytes": len(was),
            "fragmented": given.fragmented,
            "versions": versions,
            "prepared": told,
            "files": {name: [dataclasses.asdict(f) for f in several] for name, several in files.items()},
        }
        print(json.dumps(result, indent=1))
    else:
        print(report(files, versions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
