"""A drive as a process of its own, as `cloudmount mount` is one: started by the tests of its life.

Prints a line of JSON for each thing that happens; ends as the command does, by `os._exit`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cloudmount.errors import CloudMountError
from cloudmount.mounts.driver import DriveOptions, Space
from cloudmount.mounts.lifecycle import in_background, serve
from cloudmount.nodes import Node
from tests.mounts.drivers import DRIVERS
from tests.trees.memory_tree import MemoryDir, MemoryFile, Pattern, Watched

STUCK = 16
SIZE = 1 << 20


def _for_ever(*_: object) -> None:
    threading.Event().wait()


class _StuckDir(MemoryDir):
    def lookup(self, name: str) -> Node | None:
        _for_ever()
        return None


def tree(kind: str) -> MemoryDir:
    """`plain`, `stuck` (reads and look-ups never come back), or `dies` (with its process)."""
    if kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    root = MemoryDir({"f": MemoryFile(b"hello\n"), "big": MemoryFile(Pattern(SIZE))})
    if kind == "stuck":
        stuck = {f"s{i}": MemoryFile(Watched(Pattern(SIZE), _for_ever)) for i in range(STUCK)}
        root.children |= stuck | {"d": _StuckDir()}
    return root


def say(**what: object) -> None:
    """One line; written at once."""
    os.write(1, json.dumps(what).encode() + b"\n")


def children() -> list[str]:
    """Process ids of this process's children, zombies too."""
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        found += (task / "children").read_text().split()
    return found


def main() -> int:
    """See `cloudmount mount`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--tree", default="plain")
    parser.add_argument("--driver", required=True)
    parser.add_argument("--daemon", type=Path)
    given = parser.parse_args()

    def run(ready: Callable[[str], None]) -> None:
        def up(path: str) -> None:
            say(ready=path, pid=os.getpid())
            ready(path)

        serve(
            DRIVERS[given.driver], tree(given.tree), given.mountpoint,
            DriveOptions(space=lambda: Space(SIZE, 2)),
            records=given.records, repository="a repository", ready=up, tell=lambda text: say(told=text),
        )  # fmt: skip

    began = time.monotonic()
    try:
        if given.daemon is not None:
            in_background(run, given.daemon)
            say(returned=time.monotonic() - began, children=children())
        else:
            run(lambda path: None)
            say(ended=True)
    except CloudMountError as error:
        say(error=str(error), kind=type(error).__name__, children=children())
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
