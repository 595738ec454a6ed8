"""The program, whose hand-overs meet what is asked for at a step.

python -m tests.boot.handover_program FAULTS ARGUMENT...

FAULTS is JSON: what happens when a `HandOver` says so of itself for the first time: "kill" (the VM's process
is killed, and QEMU with it), "kill-qemu", or "until PATH": the step fails as long as there is no such file.
Two of them are parted by a line feed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import cloudmount.boot.handover
from cloudmount.boot.handover import HandOver
from cloudmount.cli.main import main
from cloudmount.errors import CloudMountError


def _kill_qemu() -> None:
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"qemu-system" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)


def _with(faults: dict[str, str]) -> None:
    at = HandOver._at

    def met(self: HandOver, doing: str) -> None:
        at(self, doing)
        for what in faults.get(doing, "").splitlines():
            if what.startswith("until ") and not os.path.exists(what.removeprefix("until ")):
                raise CloudMountError("as the test wants")
            if what.startswith("kill"):
                _kill_qemu()
                del faults[doing]
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)

    HandOver._at = met  # type: ignore[method-assign]


if __name__ == "__main__":
    cloudmount.boot.handover.AGAIN_SECONDS = 0.2
    _with(json.loads(sys.argv.pop(1)))
    main()
