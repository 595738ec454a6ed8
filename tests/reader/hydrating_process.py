"""A hydration in a process of its own, to be killed: `python -m tests.reader.hydrating_process ...`.

The arguments: repository folder, target folder, format, bytes a second from the store, the step at which it
dies (0: none), a seed. A step is a call that changes a file or brings one to the disk. Dying at a step
is a power cut as bad as can be: of what was written and not yet synced a random part is undone first, each
write for itself. Prints "begins", then "STEPS n" and "done" at its end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

from cloudmount.app.hydrate import hydrate
from cloudmount.app.select import select
from cloudmount.blobs.limited import LimitedStore
from cloudmount.blobs.local import LocalStore
from cloudmount.reader import localcopy, sidecar
from cloudmount.repo.repository import Repository
from tests.backup.lab import PASSPHRASE


class PowerCut:
    """Counts steps, knows what is not on the disk yet, and ends the process."""

    def __init__(self, at: int, seed: int) -> None:
        self.at, self.steps = at, 0
        self.rng = random.Random(seed)
        self.pending: list[tuple[tuple[int, int], str, int, bytes, int]] = []
        """(inode, path, position, what was there before, size before) of each write that is not synced."""
        self.pwrite, self.ftruncate = os.pwrite, os.ftruncate

    def install(self) -> None:
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._synced(getattr(os, name)))
        sidecar._sync = os.fdatasync
        os.pwrite = self._pwrite
        os.ftruncate = self._ftruncate
        for name in ("fchmod", "utime", "chmod"):
            setattr(os, name, self._counted(getattr(os, name)))

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self.at:
            self._die()

    def _die(self) -> None:
        for _, path, position, before, size in reversed(self.pending):
            if self.rng.random() < 0.5 and os.path.exists(path):
                os.chmod(path, 0o600) if not os.access(path, os.W_OK) else None
                fd = os.open(path, os.O_WRONLY)
                self.pwrite(fd, before, position)
                if os.fstat(fd).st_size > size and self.rng.random() < 0.5:
                    self.ftruncate(fd, max(size, position + len(before)))
                os.close(fd)
        os.kill(os.getpid(), signal.SIGKILL)

    def _remember(self, fd: int, position: int, length: int) -> None:
        status = os.fstat(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        with open(path, "rb") as file:
            file.seek(position)
            before = file.read(length)
        self.pending.append(((status.st_dev, status.st_ino), path, position, before, status.st_size))

    def _pwrite(self, fd: int, data: Any, at: int) -> int:
        self._remember(fd, at, len(memoryview(data).cast("B")))
        done = self.pwrite(fd, data, at)
        self._step()  # written, but not on the disk
        return done

    def _ftruncate(self, fd: int, size: int) -> None:
        self.ftruncate(fd, size)
        self._step()

    def _synced(self, real: Any) -> Any:
        def sync(fd: int) -> None:
            self._step()
            real(fd)
            status = os.fstat(fd)
            at = (status.st_dev, status.st_ino)
            self.pending = [p for p in self.pending if p[0] != at]
            self._step()

        return sync

    def _counted(self, real: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            value = real(*given, **named)
            self._step()
            return value

        return call


def main(folder: str, target: str, form: str, speed: str, step: str, seed: str) -> None:
    """Hydrate."""
    localcopy.COMMIT_BYTES, localcopy.COMMIT_SECONDS = 256 << 10, 0.05
    repository = Repository.open(LimitedStore(LocalStore(Path(folder)), down=float(speed)), PASSPHRASE)
    selected = select(repository, "srv")
    cut = PowerCut(int(step), int(seed))
    cut.install()
    print("begins", flush=True)
    environ = {"XDG_STATE_HOME": f"{target}-state"}
    hydrate(repository, selected, Path(target), format=form, environ=environ)  # type: ignore[arg-type]
    print("STEPS", cut.steps, flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
