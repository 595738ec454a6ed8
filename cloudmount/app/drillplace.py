"""Where a drill is done: caches and state of its own, empty at its beginning and gone at its end.

Decided here and only here: where such a place lies (`$XDG_STATE_HOME/cloudmount/drilling`), how a process
that was killed leaves nothing for good (the next drill clears what has no owner), and what of it is kept: the
traces, which make boots quicker. Belongs to one thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cloudmount.app.places import cache_folder, state_folder
from cloudmount.app.vms import all_vms
from cloudmount.errors import CloudMountError
from cloudmount.reader.filelock import locked_file

_LOCK = "lock"


class DrillPlace:
    """The place in the folder `path`."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.path = path
        self.environ = {
            **environ,
            "XDG_CACHE_HOME": str(path / "cache"),
            "XDG_STATE_HOME": str(path / "state"),
        }
        """What the drill's parts take for this machine's environment."""

    def keep_traces(self, environ: Mapping[str, str]) -> None:
        """Copy the traces of its boot to where boots look for them, as far as that works."""
        source = cache_folder(self.environ)
        with contextlib.suppress(OSError):
            for trace in source.glob("*/traces/*/*"):
                target = cache_folder(environ) / trace.relative_to(source)
                if trace.name.startswith(".") or target.exists():
                    continue
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                making = target.with_name(f".{target.name}")
                try:
                    shutil.copyfile(trace, making)
                    os.replace(making, target)
                except OSError:
                    making.unlink(missing_ok=True)
                    raise

    def remove(self) -> None:
        """End what runs in it, and remove it with all that a guest wrote. `CloudMountError` when that
        fails."""
        for vm in all_vms(self.environ):
            vm.delete()
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.exists():
            raise CloudMountError(f"{self.path} can't be removed entirely: a drill's machine was in it")


@contextlib.contextmanager
def drill_place(environ: Mapping[str, str], tell: Callable[[str], None]) -> Iterator[DrillPlace]:
    """A new place, as long as the block runs. What killed drills left is cleared first."""
    root = Path(os.path.realpath(state_folder(environ))) / "drilling"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear(root, environ, tell)
        path, held = _made(root)
    except OSError as error:
        raise CloudMountError(f"{root}: no place for a drill can be made: {error.strerror}") from None
    place = DrillPlace(path, environ)
    try:
        yield place
    finally:
        try:
            place.remove()
        finally:
            os.close(held)


def _made(root: Path) -> tuple[Path, int]:
    """A new folder, and its lock. Another drill may take it for a left one before it is locked."""
    while True:
        path = Path(tempfile.mkdtemp(prefix="drill-", dir=root))
        with contextlib.suppress(FileNotFoundError):
            held = locked_file(path / _LOCK)
            if held is not None:
                return path, held


def _clear(root: Path, environ: Mapping[str, str], tell: Callable[[str], None]) -> None:
    for path in sorted(root.iterdir()):
        try:
            held = locked_file(path / _LOCK)
        except OSError:
            continue  # it is being made, or removed
        if held is None:
            continue  # a drill is at work
        try:
            DrillPlace(path, environ).remove()
        except CloudMountError as error:
            tell(str(error))
        finally:
            os.close(held)
