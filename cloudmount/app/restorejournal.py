"""What an unfinished restore has done, in a file beside its outputs.

Decided here and only here: the journal's form (a line of JSON each: the header with what
is restored, then outputs that are to be made, that are whole, and how far the one being written is), that
nothing is made before it is entered, and entered as whole only when it is on the disk: so what an unfinished
restore finds in its way is its own when its journal says so, and else somebody's. A restore that made
nothing leaves no journal. Belongs to one thread.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cloudmount.errors import TargetExistsError
from cloudmount.system import OPEN

NAME = ".cloudmount-restore"


class RestoreJournal:
    """The journal of one restore in `folder`; `single` names the one output of a restore to a new name."""

    def __init__(self, folder: Path, what: str, single: str | None) -> None:
        self._path = folder / (f"{NAME}-{single}" if single else NAME)
        self._what = what
        self.done: set[str] = set()
        """Outputs that are whole."""
        self.reached: dict[str, int] = {}
        """For disks begun: up to which of their bytes they are written and synced."""
        self._started: set[str] = set()
        self.found = self._read()
        self._before = frozenset(self._started | self.done | set(self.reached))
        self._fd = -1

    def _read(self) -> bool:
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return False
        for line in lines[:-1]:  # what follows the last line feed was cut by a power failure
            try:
                value: Any = json.loads(line)
            except ValueError:
                break
            if "restore" in value and value["restore"] != self._what:
                raise TargetExistsError(
                    f"{self._path.parent} holds an unfinished restore of something else; "
                    "choose another folder, or empty this one"
                )
            self._started.update(value.get("start", ()))
            if "done" in value:
                self.done.add(value["done"])
            if "reached" in value:
                self.reached[value["path"]] = value["reached"]
        return True

    def __enter__(self) -> Self:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | OPEN, 0o600)
        if not self.found:
            self._write({"restore": self._what})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if error is not None and not (self.found or self._started or self.done or self.reached):
            self.remove()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def begun(self, below: str) -> bool:
        """Whether an earlier run of this restore began the output, or was about to."""
        return below in self._before

    def started(self, below: str) -> bool:
        """Whether it was entered as about to be made."""
        return below in self._started

    def start(self, below: list[str]) -> None:
        """Outputs are about to be made."""
        new = [b for b in below if b not in self._started]
        if new:
            self._started.update(new)
            self._write({"start": new})

    def _write(self, value: dict[str, Any]) -> None:
        os.write(self._fd, json.dumps(value).encode("ascii") + b"\n")
        os.fsync(self._fd)

    def reaches(self, below: str, offset: int) -> None:
        """A disk is written and synced up to its byte `offset`."""
        self.reached[below] = offset
        self._write({"path": below, "reached": offset})

    def finished(self, below: str) -> None:
        """The output is whole and on the disk."""
        self.done.add(below)
        self._write({"done": below})

    def finished_many(self, below: list[str]) -> None:
        """Several outputs are whole and on the disk."""
        lines = b"".join(json.dumps({"done": b}).encode("ascii") + b"\n" for b in below)
        self.done.update(below)
        os.write(self._fd, lines)
        os.fsync(self._fd)

    def remove(self) -> None:
        """The whole restore is done."""
        self._close()  # Windows removes nothing that is open
        self._path.unlink(missing_ok=True)
