"""Processes that begin at once, to be killed by the thousand: forked from one that has imported everything.

    with Warm("tests.reader.hydrating_process") as warm:
        child = warm.start("arg", ...)     # that module's main(*arguments)
        child.kill()
        status, said = child.wait()

Decided here and only here: how that goes. The process in between has one thread, opens nothing, and waits for
a child only when asked: until then its number is nobody else's. What a child says lies in a file. It ends
its children when it ends.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[1]


class Child:
    """A process that runs a module's `main`."""

    def __init__(self, warm: Warm, pid: int, said: Path) -> None:
        self.pid = pid
        self._warm, self._said = warm, said

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._said.read_text()

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> tuple[int, str]:
        """Wait for its end; its return code, as of `Popen`, and what it printed."""
        code = int(self._warm.ask({"wait": self.pid}))
        return code, self.said


class Warm:
    """Runs `main` of `module` in as many processes as are asked for."""

    def __init__(self, module: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: dict[str, object]) -> str:
        """One line in, one line out."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks has ended"
        return answer

    def start(self, *arguments: object) -> Child:
        """Run `main` with these arguments, as strings."""
        self._count += 1
        said = Path(self._folder.name) / str(self._count)
        said.touch()
        pid = self.ask({"start": [str(a) for a in arguments], "said": os.fspath(said)})
        return Child(self, int(pid), said)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        self._folder.cleanup()


def _child(module: str, arguments: list[str], said: str) -> None:
    code = 1
    try:
        fd = os.open(said, os.O_WRONLY | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, target in ((null, 0), (fd, 1), (fd, 2)):
            os.dup2(number, target)
        importlib.import_module(module).main(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(module: str) -> None:
    """The process in between."""
    importlib.import_module(module)
    children: set[int] = set()
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if not pid:
                _child(module, request["start"], request["said"])
            children.add(pid)
            print(pid, flush=True)
        else:
            _, status = os.waitpid(request["wait"], 0)
            children.discard(request["wait"])
            print(os.waitstatus_to_exitcode(status), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sys.argv[1])
