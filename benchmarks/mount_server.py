"""A program that mounts one file by a driver, as it is when a complete local copy of it exists.

    mount_server.py MOUNTPOINT native|refuse IMAGE [late]

Shows IMAGE as the file `disk`. Decided here and only here: a source with a local copy, which `refuse` reads
by Python's `os.pread`; `late`: a copy that is complete only once the file was opened. Serves until unmounted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from cloudmount.extents import Extent, check_range
from cloudmount.mounts.driver import DriveOptions
from cloudmount.mounts.lifecycle import serve
from cloudmount.nodes import Attr, Kind, Node
from tests.mounts.drivers import DRIVERS


class Copied:
    """A file, its source and its copy."""

    def __init__(self, path: str, late: bool) -> None:
        self._path = path
        self._asked = not late
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size

    def attr(self) -> Attr:
        """Of a file."""
        return Attr(Kind.FILE, self.size, 0, 0o444, 2, allocated=self.size)

    def open(self) -> Copied:
        """Itself: what it holds never changes."""
        return self

    def read_at(self, offset: int, length: int) -> bytes:
        """From the copy."""
        check_range(self.size, offset, length)
        return os.pread(self._fd, length, offset)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """All data."""
        yield Extent(offset, length, True)

    def local_path(self) -> str | None:
        """The copy."""
        asked, self._asked = self._asked, True
        return self._path if asked else None

    def close(self) -> None:
        """Stays open for the next."""


class Root:
    """The folder around it."""

    def __init__(self, file: Copied) -> None:
        self._file = file

    def attr(self) -> Attr:
        """Of a folder."""
        return Attr(Kind.DIR, 0, 0, 0o555, 1, nlink=2)

    def lookup(self, name: str) -> Node | None:
        """The one file."""
        return self._file if name == "disk" else None

    def list(self) -> Iterator[tuple[str, Node]]:
        """The one file."""
        yield "disk", self._file


def main() -> None:
    """The program of the module docstring."""
    mountpoint, driver, image, *late = sys.argv[1:]
    serve(
        DRIVERS[driver], Root(Copied(image, "late" in late)), mountpoint, DriveOptions(),
        records=Path(mountpoint).parent / "records", repository="", ready=lambda _: None, tell=print,
    )  # fmt: skip


if __name__ == "__main__":
    main()
