"""`cloudmount boot`."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudmount.app.sizes import parse_bytes
from cloudmount.boot.machine import BUSES, FIRMWARES, NETWORKS, Bus, Firmware, Network
from cloudmount.cli.logs import tell_logs
from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import Output, seconds_text, size_text
from cloudmount.errors import CloudMountError, UsageError
from cloudmount.system import WINDOWS

if TYPE_CHECKING:
    from cloudmount.app.vms import Vm

_LEAST_MEMORY = 16 << 20


@click.command(short_help="Start a machine from its backup.")
@repository_options(moves_data=True, optional=True)
@click.option("--resume", is_flag=True, help="Go on with a VM that there is, with all that it wrote.")
@click.option("--memory", metavar="SIZE", help="Such as 4GiB; left out: 4 GiB, or half of this computer's.")
@click.option(
    "--cpus", type=click.IntRange(1, 255), metavar="N", help="Left out: this computer's; at most 4."
)
@click.option(
    "--network",
    type=click.Choice(NETWORKS),
    help="none (the default), or user: it reaches the network through this computer, and nobody reaches it.",
)
@click.option(
    "--bus",
    type=click.Choice(BUSES),
    help="What its disks hang on; left out: ide, which needs no drivers. virtio is the quickest.",
)
@click.option("--firmware", type=click.Choice(FIRMWARES), help="Left out: as its disk's partitions tell.")
@click.option("--hydrate-to", metavar="D", help="Complete its disks in folder D, and have it run from there.")
@click.option("--ready", metavar="REGEX", help="It is ready when its serial line says so.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until it is ready.",
)
@click.option("--foreground", is_flag=True, help="Stay until the machine is off; Ctrl-C cuts its power.")
@click.argument("snapshot", metavar="SNAPSHOT")
def command(
    common: Common,
    resume: bool,
    memory: str | None,
    cpus: int | None,
    network: Network | None,
    bus: Bus | None,
    firmware: Firmware | None,
    hydrate_to: str | None,
    ready: str | None,
    timeout: float,
    foreground: bool,
    snapshot: str,
) -> None:
    """Start the machine of SNAPSHOT from its backup, and return when it is ready; it goes on in the
    background.

    Ready is a login prompt on its serial line, an answering QEMU guest agent, or its own power-off. What it
    writes is kept on this computer, also when it is switched off; --resume (with the VM's name for SNAPSHOT)
    goes on with that. With --hydrate-to its disks come to this computer while it runs, and when all are there
    it goes on with them alone: the repository is needed no longer.
    """
    if not timeout < float("inf"):  # nan is no number above 0, and not below it either
        raise UsageError(f"--timeout {timeout:g}: give seconds")
    if WINDOWS:
        raise UsageError("'boot' needs Linux; Hyper-V starts from what 'cloudmount hydrate' makes, a .vhdx")
    from cloudmount.app.boot import BootOptions, boot, log_file
    from cloudmount.app.vms import find_vm
    from cloudmount.boot.qemu import program
    from cloudmount.boot.readiness import pattern
    from cloudmount.mounts.lifecycle import in_background

    options = BootOptions(
        memory=_memory(memory),
        cpus=cpus,
        network=network,
        bus=bus,
        firmware=firmware,
        ready=ready,
        hydrate_to=Path(os.path.abspath(hydrate_to)) if hydrate_to is not None else None,
    )
    if ready is not None:
        pattern(ready)
    program()
    program("qemu-img")
    out = common.out
    local = resume and find_vm(snapshot).definition.is_local
    address, passphrase = ("", "") if local else (common.needed_address(), common.passphrase())
    began = time.monotonic()
    tell_logs(out, dated=not foreground)

    def run(up: Callable[[Vm], None]) -> None:
        boot(
            address,
            passphrase,
            snapshot,
            options,
            resume=resume,
            began=began,
            bandwidth=common.bandwidth,
            up=up,
            tell=out.warn,
        )

    if foreground:
        _stay(out, run, began + timeout)
        return
    name = in_background(lambda up: run(lambda vm: up(vm.name)), log_file())
    vm = find_vm(name)
    try:
        _await(out, vm, began + timeout)
    except KeyboardInterrupt:
        out.say(f"{name} goes on; 'cloudmount stop {shlex.quote(name)}' switches it off.")
        raise


def _memory(text: str | None) -> int | None:
    if text is None:
        return None
    size = parse_bytes(text)
    if size < _LEAST_MEMORY:
        raise UsageError(f"--memory {text}: no machine starts with less than {size_text(_LEAST_MEMORY)}")
    return size


def _await(out: Output, vm: Vm, until: float) -> None:
    """Wait until it is ready, telling how it is."""
    from cloudmount.app.vms import is_final

    told = ""
    for state, text in vm.looks():
        if state is not None and state.ready is not None:
            _tell_ready(out, vm)
            return
        if text != told and state is not None:
            slow = " (KVM can't be used here: emulated, several times slower)" * (state.accelerator == "tcg")
            out.say(f"{vm.name}: {text}" + slow * (not told))
            told = text
        if is_final(text):
            raise CloudMountError(f"{vm.name} did not get ready: {_how_far(vm)}")
        if time.monotonic() > until:
            raise CloudMountError(
                f"{vm.name} is not ready yet: {_how_far(vm)}. It goes on; "
                f"'cloudmount stop {shlex.quote(vm.name)}' switches it off"
            )


def _how_far(vm: Vm) -> str:
    from cloudmount.boot.readiness import last_line

    state = vm.state
    stage = f"; the stage it reached is {state.stage!r}" if state is not None and state.stage else ""
    line = last_line(vm.folder.serial_log)
    said = f", its last words there {line!r}" if line else ", where it said nothing"
    return f"{vm.state_text}{stage}; its serial line is in {vm.folder.serial_log}{said}"


def _tell_ready(out: Output, vm: Vm) -> None:
    told = vm.told()
    value = {k: told[k] for k in ("vm", "seconds_to_ready", "fetched_bytes", "reads", "state", "accelerator")}
    value |= {k: told[k] for k in ("pid", "serial_log", "screen")}
    name = shlex.quote(vm.name)
    out.result(
        value,
        f"{vm.name} is ready after {seconds_text(told['seconds_to_ready'])} ({told['state']}); "
        f"{size_text(told['fetched_bytes'])} were fetched in {told['reads']} requests.\n"
        f"'cloudmount console {name}' shows its serial line, a VNC viewer on {told['screen']} its screen, "
        f"'cloudmount stop {name}' switches it off.",
    )


def _stay(out: Output, run: Callable[[Callable[[Vm], None]], None], until: float) -> None:
    """Until the machine is off; telling meanwhile when it is ready, or isn't."""
    import threading

    vms: list[Vm] = []
    late: list[CloudMountError] = []

    def watch(vm: Vm) -> None:
        try:
            _await(out, vm, until)
        except CloudMountError as error:
            late.append(error)
            if vm.alive:
                out.warn(str(error))

    def up(vm: Vm) -> None:
        vms.append(vm)
        watching.append(threading.Thread(target=watch, args=(vm,), name="cloudmount-ready", daemon=True))
        watching[0].start()

    watching: list[threading.Thread] = []
    run(up)
    if watching:
        watching[0].join(2)
    if late:
        raise late[0]
