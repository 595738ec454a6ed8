"""A hydration in a process of its own, to be killed (`tests.warm`).

The arguments: repository folder, target folder, format, bytes a second from the store, the step at which it
dies (0: none), a seed. A step is a call that changes a file or brings one to the disk. Dying at a step
is a power cut as bad as can be: of what was written and not yet synced a random part is undone first, each
write for itself. Prints "STEPS n" and "done" at its end.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloudmount.app.hydrate import hydrate
from cloudmount.app.select import select
from cloudmount.blobs.limited import LimitedStore
from cloudmount.blobs.local import LocalStore
from cloudmount.reader import alone, piecewriter, sidecar
from cloudmount.repo.repository import Repository
from tests.backup.lab import PASSPHRASE


class PowerCut:
    """Counts steps, knows what is not on the disk yet, and ends the process."""

    def __init__(self, at: int, seed: int, below: str) -> None:
        self.at, self.steps = at, 0
        self.below = below
        """Where files lie whose writes are undone."""
        self.rng = random.Random(seed)
        self.pending: list[tuple[tuple[int, int], str, int, bytes, int]] = []
        """(inode, path, position, what was there before, size before) of each write that is not synced."""
        self.pwrite, self.ftruncate = os.pwrite, os.ftruncate
        self.lock = threading.RLock()
        """Pieces are written by several threads; the power goes for all at once."""

    def install(self, also: Sequence[str] = ()) -> None:
        """`also` are more calls that count as steps."""
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._synced(getattr(os, name)))
        sidecar._sync = os.fdatasync
        os.pwrite = self._pwrite
        os.ftruncate = self._ftruncate
        for name in ("fchmod", "utime", "chmod", *also):
            setattr(os, name, self._counted(getattr(os, name)))

    def _step(self) -> None:
        with self.lock:
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

    def _pwrite(self, fd: int, data: Any, at: int) -> int:
        status = os.fstat(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        if not path.startswith(self.below):
            return self.pwrite(fd, data, at)
        with open(path, "rb") as file:
            file.seek(at)
            before = file.read(len(memoryview(data).cast("B")))
        done = self.pwrite(fd, data, at)
        with self.lock:
            self.pending.append(((status.st_dev, status.st_ino), path, at, before, status.st_size))
        self._step()  # written, but not on the disk
        return done

    def _ftruncate(self, fd: int, size: int) -> None:
        self.ftruncate(fd, size)
        self._step()

    def _synced(self, real: Any) -> Any:
        def sync(fd: int) -> None:
            self._step()
            status = os.fstat(fd)
            at = (status.st_dev, status.st_ino)
            with self.lock:
                done = {id(p) for p in self.pending if p[0] == at}
            real(fd)
            with self.lock:
                self.pending = [p for p in self.pending if id(p) not in done]
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
    piecewriter.COMMIT_BYTES, piecewriter.COMMIT_SECONDS = 256 << 10, 0.05
    repository = Repository.open(LimitedStore(LocalStore(Path(folder)), down=float(speed)), PASSPHRASE)
    selected = select(repository, "srv")
    cut = PowerCut(int(step), int(seed), target)
    cut.install()
    if cut.rng.random() < 0.5:
        alone._IN_OPEN = 0x400  # (IN_DELETE_SELF) as if nobody had it open, which `PowerCut` has
    environ = {"XDG_STATE_HOME": f"{target}-state"}
    hydrate(repository, selected, Path(target), format=form, environ=environ)  # type: ignore[arg-type]
    print("STEPS", cut.steps, flush=True)
    print("done", flush=True)
