"""Which hydrations go on on this machine, each process's in a small file: for `status`.

Decided here and only here: what is recorded of them, and that a record is of use only as long as its process
lives. Files are replaced atomically, at most once a second; a folder that can't be written only loses
`status`. Safe on any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cloudmount.app.places import state_folder
from cloudmount.mounts.records import start_time
from cloudmount.tree.copies import Hydrated

SECONDS = 1.0


def _folder(environ: Mapping[str, str]) -> Path:
    return state_folder(environ) / "hydrations"


@contextlib.contextmanager
def announced(states: Callable[[], list[Hydrated]], environ: Mapping[str, str]) -> Iterator[None]:
    """While the block runs, others see what `states` gives."""
    file = _folder(environ) / f"{os.getpid()}.json"
    ended = threading.Event()
    written: list[Hydrated] = []

    def write() -> None:
        nonlocal written
        now = states()
        if now == written:
            return
        value = {
            "pid": os.getpid(),
            "started": start_time(os.getpid()),
            "hydrations": [state._asdict() for state in now],
        }
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(value))
            os.replace(part, file)
            written = now

    def run() -> None:
        write()
        while not ended.wait(SECONDS):
            write()

    thread = threading.Thread(target=run, name="cloudmount-records", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2)
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def hydrations(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every hydration of this user's on this machine, sorted by path; records of processes that are gone are
    cleared."""
    found = []
    folder = _folder(environ)
    for file in folder.glob("*.json") if folder.is_dir() else ():
        try:
            value = json.loads(file.read_text())
            if start_time(int(value["pid"])) != value["started"]:
                file.unlink(missing_ok=True)
                continue
            found += [{"pid": value["pid"], **Hydrated(**h)._asdict()} for h in value["hydrations"]]
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return sorted(found, key=lambda h: str(h["path"]))
