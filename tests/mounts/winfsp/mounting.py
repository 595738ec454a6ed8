"""Drives of the double for tests: always ended, also when the test fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cloudmount.mounts import winfsp_driver
from cloudmount.mounts.driver import DriveOptions
from cloudmount.mounts.winfsp_driver import WinFspDrive
from cloudmount.nodes import Dir
from tests.mounts.winfsp.bindings import winfspy_here
from tests.mounts.winfsp.machine import Machine
from tests.mounts.winfsp.volume import Volume
from tests.mounts.winfsp.windows_os import DrivePath

ACCOUNT = "S-1-5-21-1-2-3-1001"
END_SECONDS = 60.0


class Mounted:
    """A drive served by a thread of this process; what `tests.mounts.mounting.Mounted` is for FUSE."""

    def __init__(self, machine: Machine, drive: WinFspDrive, letter: str) -> None:
        self.drive = drive
        self.letter = letter
        self.volume: Volume = machine.volume(letter)
        self.path = DrivePath(self.volume)
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="test-drive", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.drive.run()
        except BaseException as error:
            self.failure = error

    def detach(self) -> None:
        """What `umount` asks for."""
        self.drive.unmount()

    def end(self) -> float:
        """Unmount; the seconds until `run` returned."""
        began = time.monotonic()
        self.detach()
        self.thread.join(END_SECONDS)
        assert not self.thread.is_alive(), "the drive goes on after it was unmounted"
        assert self.volume.stopped
        assert not self.volume.mixed, "bytes of two files under one path"
        return time.monotonic() - began


class Letters:
    """Mounts trees on a machine, each at a letter of its own."""

    def __init__(self, machine: Machine, ending: ExitStack) -> None:
        self.machine = machine
        self._ending = ending
        self._free = iter("XYZWVUTSRQPONMLKJIHGFED")

    def mount(
        self,
        root: Dir,
        options: DriveOptions | None = None,
        letter: str | None = None,
    ) -> Mounted:
        """Up and answering."""
        at = letter or f"{next(self._free)}:"
        drive = WinFspDrive(root, at, options or DriveOptions())
        mounted = Mounted(self.machine, drive, at)
        self._ending.callback(mounted.end)
        assert drive.up.wait(60), "the drive does not come up"
        return mounted


class _Unhandled(logging.Handler):
    """What winfspy logs: only what a callback should not have raised."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Kept."""
        self.told.append(self.format(record))


@contextmanager
def windows(tmp_path: Path, patch: pytest.MonkeyPatch, machine: Machine | None = None) -> Iterator[Letters]:
    """A machine with winfspy, for a `with`; leaves nothing behind."""
    machine = machine or Machine()
    patch.setattr(winfsp_driver, "account_sid", lambda: ACCOUNT)
    patch.setattr(winfsp_driver, "_stat", machine.stat)
    unhandled = _Unhandled()
    with winfspy_here(machine, tmp_path / "WinFsp"), ExitStack() as ending:
        logging.getLogger("winfspy").addHandler(unhandled)
        ending.callback(logging.getLogger("winfspy").removeHandler, unhandled)
        yield Letters(machine, ending)
    assert not machine.volumes
    assert unhandled.told == [], "an exception that winfspy had to answer by itself"
