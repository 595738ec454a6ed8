"""Hand-overs that are killed: a guest writes all the time, and at a random step, or any moment, everything of
its VM dies (or QEMU alone), and again while it is resumed. What was flushed must be there, and in the end the
VM must be on its local disks alone. `count` is how many machines are tried.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.boot.conftest import end_all
from tests.boot.machines import Serial, the_vm, until
from tests.boot.tiny import tiny_disk
from tests.cli.console import Console

QUICK = ("--memory", "32M", "--cpus", "1")
SECTOR = 5 * 512
STEPS = [
    "moving disk 1", "moving disk 2", "leaving the drive",
    *(f"{what} disk {n}" for n in (1, 2)
      for what in ("opening", "merging", "switching", "entering", "leaving the overlay of")),
]  # fmt: skip
LATER = STEPS[3:]
"""Those that a VM which was resumed may meet again."""


class Writer:
    """A guest that writes one letter after the other; the last that it flushed, and one that it may have."""

    def __init__(self, folder: str, flushed: str) -> None:
        self.flushed, self.begun = flushed, flushed
        self.ended = False
        self._serial = Serial(folder)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AssertionError), self._serial as serial:
            assert serial.ask("d") == self.flushed  # and the rest of the sector is as it was
            while not self.ended:
                self.begun = chr(ord("A") + (ord(self.flushed) - ord("A") + 1) % 26)
                assert serial.ask("w" + self.begun) == "w"
                self.flushed = self.begun

    def end(self) -> set[str]:
        """What may be read now."""
        self.ended = True
        self._thread.join(60)
        assert not self._thread.is_alive(), "its guest does not answer"
        return {self.flushed, self.begun}


def campaign(seed: int, count: int) -> str:
    """So many machines."""
    rng = random.Random(seed)
    died: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="handover-") as folder:
        root = Path(folder).resolve()
        console = Console(root / "home", str(root / "repo"))
        console.run("init")
        disks = [tiny_disk(root / "system.img", size=1100), tiny_disk(root / "z.img", 4, seed=2)]
        console.run("backup", "--name", "srv", *map(str, disks))
        try:
            for number in range(count):
                _one(console, root / f"local{number}", disks, rng, died)
        finally:
            end_all(console)
    told = ", ".join(f"{n} at {step!r}" for step, n in sorted(died.items()))
    return f"{count} machines died {sum(died.values())} times ({told}) and lost nothing"


def _one(console: Console, to: Path, disks: list[Path], rng: random.Random, died: Counter[str]) -> None:
    go = to.with_suffix(".go")
    step = rng.choice([*STEPS, "any moment"])
    how = rng.choice(["kill", "kill-qemu"])
    faults = {"moving disk 1": f"until {go}"}
    if step != "any moment":
        faults[step] = "\n".join([*([faults[step]] if step in faults else []), how])
    _boot(console, faults, "srv", "--hydrate-to", str(to))
    vm = the_vm(console)
    writer = Writer(vm["folder"], "-")
    go.touch()
    if step == "any moment":
        time.sleep(rng.random() * 1.5)
        _kill(vm)
    _until_dead(console)
    died[step] += 1
    may = writer.end()
    while rng.random() < 0.4:  # while it is resumed, from where it was
        step = rng.choice(LATER)
        _boot(console, {step: rng.choice(["kill", "kill-qemu"])}, "--resume", "srv", ready=False)
        until(lambda: _is_dead(console) or _is_over(console), 60, "its end, or that of the hand-over")
        if not _is_dead(console):
            _kill(the_vm(console))
            step = "the end"
        died[step] += 1
        _until_dead(console)
    told = console.json("boot", "--resume", "srv", *QUICK)
    assert told["state"] == "running"
    with Serial(vm["folder"]) as serial:
        found = serial.ask("d")
    assert found in may, f"{found!r}, not one of {may}"
    writer = Writer(vm["folder"], found)
    until(lambda: _is_over(console), 60, "the end of the hand-over")
    may = writer.end()
    with Serial(vm["folder"]) as serial:
        assert serial.ask("d") in may
    console.run("stop", "srv", "--timeout", "0")
    for before, after in zip(disks, the_vm(console)["local_disks"], strict=True):
        wanted, got = bytearray(before.read_bytes()), Path(after).read_bytes()
        if before == disks[0]:
            assert chr(got[SECTOR]) in may
            wanted[SECTOR] = got[SECTOR]
        assert got == wanted, after
        os.unlink(after)
    console.run("stop", "srv", "--delete")


def _boot(console: Console, faults: dict[str, str], *arguments: str, ready: bool = True) -> None:
    command = [sys.executable, "-m", "tests.boot.handover_program", json.dumps(faults), "boot"]
    done = subprocess.run(
        [*command, *arguments, *QUICK],
        env=console.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0 or not ready, done.stderr


def _kill(vm: dict[str, Any]) -> None:
    state = json.loads((Path(vm["folder"]) / "state.json").read_text())
    for pid in (state["qemu_pid"], state["pid"]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_dead(console: Console) -> bool:
    return the_vm(console)["pid"] is None


def _is_over(console: Console) -> bool:
    return len(the_vm(console)["local_disks"]) == 2


def _until_dead(console: Console) -> None:
    until(lambda: _is_dead(console), 60, "its end")
