"""A letter of the double as a process of its own, as `cloudmount mount X:` is one on Windows.

Prints a line of JSON for each thing that happens; ends as the command does, by `os._exit`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudmount.errors import CloudMountError
from cloudmount.mounts import lifecycle
from cloudmount.mounts.driver import DriveOptions
from cloudmount.mounts.letters import LetterSite
from cloudmount.mounts.winfsp_driver import WinFspDrive
from tests.mounts.mounting import within
from tests.mounts.serving import say, tree
from tests.mounts.winfsp.machine import Machine
from tests.mounts.winfsp.mounting import windows
from tests.mounts.winfsp.structures import NtError

READERS = 8


def main() -> int:
    """See `cloudmount mount`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("letter")
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--tree", default="plain")
    given = parser.parse_args()
    machine = Machine()
    site = LetterSite(given.letter, given.records)

    def up(path: str) -> None:
        volume = machine.volume(path)
        if given.tree == "stuck":
            opened = [volume.open(f"\\s{number}") for number in range(READERS)]  # so that all at work read

            def read(number: int) -> None:
                try:
                    volume.read(opened[number], 0, 4096)
                except NtError as error:
                    say(status=error.status)

            pool = ThreadPoolExecutor(READERS)
            for number in range(READERS):
                pool.submit(read, number)
            assert volume.dispatcher is not None
            dispatcher = volume.dispatcher
            assert within(60, lambda: dispatcher.at_work == READERS)
        say(ready=path, pid=os.getpid(), size=volume.info("\\f").size)

    try:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            for bound in ("END_SECONDS", "GRACE_SECONDS"):  # what happens, not how quickly
                patch.setattr(lifecycle, bound, 60.0)
            with windows(Path(folder), patch, machine):
                lifecycle.serve(
                    WinFspDrive, tree(given.tree), given.letter, DriveOptions(), records=given.records,
                    repository="a repository", driver_name="winfsp", site=site, ready=up,
                    tell=lambda text: say(told=text),
                )  # fmt: skip
        say(ended=True, letters=sorted(machine.letters), threads=threading.active_count())
    except CloudMountError as error:
        say(error=str(error), kind=type(error).__name__)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
