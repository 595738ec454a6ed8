"""A VM's folder: what lies in it, and how its sockets are reached.

Decided here and only here: the names of the files that QEMU is given. QEMU runs in the folder and names are
relative to it: a socket's path may have 107 bytes only, and home folders are as long as they please.
Stateless.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

DRIVE = "drive"
"""Where the snapshot's disks are mounted, for this VM alone."""
SERIAL_LOG = "serial.log"
QEMU_LOG = "qemu.log"
VARS = "firmware-vars.fd"
CONTROL, SERIAL, AGENT, SCREEN = "control.sock", "serial.sock", "agent.sock", "screen.sock"


@dataclass(frozen=True, slots=True)
class VmFolder:
    """The folder at `path`."""

    path: Path

    @property
    def drive(self) -> Path:
        """The private mount point."""
        return self.path / DRIVE

    @property
    def serial_log(self) -> Path:
        """Everything that the guest ever said on its serial line."""
        return self.path / SERIAL_LOG

    @property
    def qemu_log(self) -> Path:
        """What QEMU itself said."""
        return self.path / QEMU_LOG

    @property
    def screen(self) -> Path:
        """Where a VNC viewer finds the guest's screen."""
        return self.path / SCREEN

    def overlay(self, number: int) -> Path:
        """Where the writes to disk `number` (from 0) go."""
        return self.path / overlay_name(number)

    def written_bytes(self) -> int:
        """What the overlays take of this computer's disk."""
        return sum(f.stat().st_blocks * 512 for f in self.path.glob("disk*.qcow2"))

    def connect(self, name: str, seconds: float | None = None) -> socket.socket:
        """A connection to a socket in the folder; `OSError` when nobody serves it."""
        at = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(seconds)
            connection.connect(f"/proc/self/fd/{at}/{name}")
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(at)
        return connection


def overlay_name(number: int) -> str:
    """The file of disk `number` (from 0)."""
    return f"disk{number + 1}.qcow2"
