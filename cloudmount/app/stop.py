"""Switching a VM off, and removing it.

Decided here and only here: that a guest is asked first, as by its power button, and how long it gets; and
that what it wrote goes only when that was said. Belongs to one thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from cloudmount.app.vms import Vm
from cloudmount.boot.folder import CONTROL
from cloudmount.boot.qmp import Qmp, QmpError
from cloudmount.boot.running import PAUSED
from cloudmount.errors import CloudMountError, TargetExistsError
from cloudmount.system import KILL

_CONNECT_SECONDS = 5.0
_QUIT_SECONDS = 20.0
"""How long QEMU and the VM's process may take to end once they were told to; reads under way end first."""
_SIGNAL_SECONDS = 6.0


def stop(vm: Vm, *, timeout: float, delete: bool, tell: Callable[[str], None]) -> str:
    """Switch a VM off; how it was left. A guest that has not powered off after `timeout` seconds loses its
    power. With `delete` what it wrote is removed; else `boot --resume` goes on with it."""
    if vm.alive:
        _switch_off(vm, timeout, tell)
    lock = vm.claim()
    if lock is None:
        raise TargetExistsError(f"{vm.name} is just being switched on; try again")
    try:
        vm.clear()
        state = vm.state_text
        if delete:
            vm.delete()
        return state
    finally:
        os.close(lock)


def _switch_off(vm: Vm, timeout: float, tell: Callable[[str], None]) -> None:
    with contextlib.suppress(OSError, QmpError):  # it ends just now
        control = Qmp(vm.folder.connect(CONTROL, _CONNECT_SECONDS), seconds=_CONNECT_SECONDS)
        try:
            if not vm.state_text.startswith(PAUSED):
                control.execute("system_powerdown")
                if vm.ended(timeout):
                    return
                tell(f"{vm.name}: its guest did not power off within {timeout:g} s; its power is cut")
            control.execute("quit")
        finally:
            control.close()
    if vm.ended(_QUIT_SECONDS):
        return
    state = vm.state
    for number in (signal.SIGTERM, KILL):
        if state is not None and vm.alive:
            with contextlib.suppress(OSError):
                os.kill(state.pid, number)
        if vm.ended(_SIGNAL_SECONDS):
            return
    raise CloudMountError(f"{vm.name} can't be switched off: its process {state.pid if state else ''} stays")
