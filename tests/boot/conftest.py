"""A program that starts VMs, none of which outlives its test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.console import Console


def end_all(console: Console) -> None:
    """Kill every VM's processes, by their ids, and take their drives down."""
    for file in (console.home / "state/cloudmount/vms").glob("*/state.json"):
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(file.read_text())
            for pid in (state["pid"], state["qemu_pid"]):
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if pid and (b"cloudmount" in command or b"qemu" in command or b"tests.boot" in command):
                        os.kill(pid, signal.SIGKILL)
        subprocess.run(
            ["fusermount3", "-u", "-z", str(file.parent / "drive")], check=False, capture_output=True
        )


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    """Commands against a repository in a folder, made already."""
    made = Console(tmp_path / "home", str(tmp_path / "repo"))
    made.run("init")
    try:
        yield made
    finally:
        end_all(made)
