"""What is kept of a VM while it is given over to disks of this computer's: see `boot.handover`.

Decided here and only here: what `vm.json` says at each step (each disk's `path` and `overlay`), and when a
copy of a stored disk becomes a VM's disk. From then on its sidecar is gone: nothing may take what the guest
writes for what was backed up, or "mend" it.

    path on the drive, overlay    as it was started
    path here, overlay            the overlay counts, over the copy; once that has no sidecar any more, it may
                                  hold a part of what the overlay does
    path here, no overlay         the disk is all there is

Threading: `boot.handover.Owner`'s; the rest is for a VM that is off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cloudmount.app.vms import Definition, Vm
from cloudmount.errors import DamagedError, NotFoundError, TargetExistsError
from cloudmount.reader.filelock import locked_file
from cloudmount.reader.sidecar import SEEN, Entry, Seen, Sidecar, sidecar_path
from cloudmount.reader.soundness import verify_file
from cloudmount.system import sync_folder


class LocalDisks:
    """The `boot.handover.Owner` of a VM, whose disks are to be those at `paths`; `leave` does without its
    drive, and may be called again when it raised."""

    def __init__(self, vm: Vm, paths: Sequence[str], leave: Callable[[], None]) -> None:
        self._vm, self._paths, self._leave = vm, paths, leave

    def moved(self) -> None:
        """As in `Owner`."""
        definition = self._vm.definition
        for number, path in enumerate(self._paths):
            definition = _with(definition, number, path, overlay=True)
        self._vm.definition = definition
        self._vm.write_definition()
        self._leave()

    def opens(self, number: int) -> None:
        """As in `Owner`."""
        path = Path(self._paths[number])
        beside = sidecar_path(path)
        if beside.exists():
            lock = locked_file(beside)
            if lock is None:
                raise TargetExistsError(f"{path} is in use by another process")
            try:
                if not _is_untouched(path, lock):
                    raise DamagedError(
                        f"{path} was changed by somebody; 'stop' and 'boot --resume' look at it"
                    )
                beside.unlink()
            finally:
                os.close(lock)
        sync_folder(os.fspath(path.parent))
        path.chmod(0o600)

    def merging(self, number: int) -> None:
        """As in `Owner`."""
        self._vm.prepare_definition(_with(self._vm.definition, number, self._paths[number], overlay=False))

    def merged(self, number: int) -> None:
        """As in `Owner`."""
        self._vm.enter_prepared()
        self._vm.definition = _with(self._vm.definition, number, self._paths[number], overlay=False)
        clear_overlays(self._vm)


def clear_overlays(vm: Vm) -> None:
    """Remove the overlays that no longer count."""
    for number, disk in enumerate(vm.definition.hardware.disks):
        if not disk.overlay:
            with contextlib.suppress(OSError):
                vm.folder.overlay(number).unlink(missing_ok=True)


def check_local(vm: Vm, tell: Callable[[str], None]) -> None:
    """That the disks of a VM are there, on this computer, as they were left; `NotFoundError` when one is not,
    `DamagedError` when one that was not written to yet is not what was copied."""
    for number, disk in enumerate(vm.definition.hardware.disks):
        path = Path(disk.path)
        size = path.stat().st_size if path.is_file() else None
        if size != disk.size:
            why = "is not there" if size is None else f"has {size} bytes, not the {disk.size} that it had"
            raise NotFoundError(f"{vm.name} can't go on: its disk {path} {why}")
        if disk.overlay and not vm.folder.overlay(number).exists():
            raise NotFoundError(f"{vm.name} can't go on: {vm.folder.overlay(number)} is not there")
        if disk.overlay and sidecar_path(path).exists():
            _check_copy(path, tell)


def _check_copy(path: Path, tell: Callable[[str], None]) -> None:
    with sidecar_path(path).open("rb") as beside:
        if _is_untouched(path, beside.fileno()):
            return
    tell(f"{path} looks otherwise than it was left; it is compared with its digests")
    verdict = verify_file(path, lambda done, total: None)
    if not verdict.ok:
        raise DamagedError(
            f"{path} is not what was copied from the repository any more; restore it from a backup"
        )
    path.chmod(0o444)
    lock = locked_file(sidecar_path(path))
    if lock is None:
        raise TargetExistsError(f"{path} is in use by another process")
    try:
        sidecar = Sidecar.open(lock)
        assert sidecar is not None
        list(sidecar.entries())  # so that it knows its end
        sidecar.cut()
        sidecar.append([Entry(SEEN, 0, 0, Seen.of(path.stat(), finished=True).pack())])
    finally:
        os.close(lock)


def _is_untouched(path: Path, beside: int) -> bool:
    """Whether a copy is finished, and looks as its open sidecar says."""
    sidecar = Sidecar.open(beside)
    last = None
    for entry in sidecar.entries() if sidecar is not None else ():
        last = Seen.unpack(entry.data) if entry.kind == SEEN else last
    return last is not None and last == Seen.of(path.stat(), finished=True)


def _with(definition: Definition, number: int, path: str, *, overlay: bool) -> Definition:
    disks = list(definition.hardware.disks)
    disks[number] = dataclasses.replace(disks[number], path=path, overlay=overlay)
    return dataclasses.replace(
        definition, hardware=dataclasses.replace(definition.hardware, disks=tuple(disks))
    )
