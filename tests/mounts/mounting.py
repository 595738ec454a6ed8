"""Mounts for tests: in this process, always taken down, also when the test fails.

The tree's threads need the interpreter's lock, so a test must never hold it while it touches the
mount. `os.stat`, `os.pread`, `os.listdir` and the like let go of it; page faults of an `mmap` and
`DirEntry.stat` (so `os.walk`, `shutil`) don't: those go through `outside`.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudmount.mounts.driver import DriveOptions, Driver
from cloudmount.mounts.mountpoints import mounted_at
from cloudmount.nodes import Dir

BUSY = 10.0  # seconds that a machine with other work may add to what a test waits for
END_SECONDS = 5.0 + BUSY


class Mounted:
    """A drive served by a thread of this process."""

    def __init__(self, driver: Driver, root: Dir, path: Path, options: DriveOptions) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.drive = driver(root, str(path), options)
        self.thread = threading.Thread(target=self.drive.run, name="test-drive", daemon=True)
        self.thread.start()

    def detach(self) -> None:
        """Unmount lazily, if it still is mounted."""
        if mounted_at(str(self.path)) is not None:
            subprocess.run(["fusermount3", "-u", "-z", "--", str(self.path)], check=True, timeout=10)

    def end(self) -> float:
        """Unmount; the seconds until `run` returned."""
        began = time.monotonic()
        self.detach()
        self.thread.join(END_SECONDS)
        assert not self.thread.is_alive(), "the drive goes on after it was unmounted"
        return time.monotonic() - began


@contextmanager
def mounted(driver: Driver, root: Dir, path: Path, options: DriveOptions | None = None) -> Iterator[Mounted]:
    """Mount for a `with`; leaves nothing behind."""
    mount = Mounted(driver, root, path, options or DriveOptions())
    try:
        assert mount.drive.up.wait(10), "the drive does not come up"
        yield mount
    finally:
        mount.end()


def outside(script: str, *arguments: object, timeout: float = 60) -> str:
    """What a Python of its own prints for `script` (arguments in `sys.argv[1:]`); its stderr on failure."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def within(seconds: float, what: Callable[[], bool]) -> bool:
    """Whether it comes true in that time, or in what a busy machine adds."""
    until = time.monotonic() + seconds + BUSY
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
