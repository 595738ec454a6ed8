"""What tests do with running VMs."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from cloudmount.boot.folder import SERIAL, VmFolder
from tests.cli.console import Console


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def the_vm(console: Console) -> dict[str, Any]:
    """The only one, as `vms` tells it."""
    (vm,) = console.json("vms")
    assert isinstance(vm, dict)
    return vm


class Serial:
    """A VM's serial line, spoken to."""

    def __init__(self, folder: str) -> None:
        self._line: socket.socket = VmFolder(Path(folder)).connect(SERIAL, 60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def send(self, text: str) -> None:
        """Type it."""
        self._line.sendall(text.encode())

    def expect(self, pattern: str) -> str:
        """What matches, as soon as it was said."""
        said = ""
        while (found := re.search(pattern, said)) is None:
            more = self._line.recv(4096)
            assert more, f"the line ended before {pattern!r}: {said!r}"
            said += more.decode()
        return found[0]

    def ask(self, text: str) -> str:
        """What the tiny guest answers to a letter."""
        self.send(text)
        return self.expect(r"[^\n]\n")[0]
