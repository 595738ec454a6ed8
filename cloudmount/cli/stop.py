"""`cloudmount stop`."""

from __future__ import annotations

import click

from cloudmount.cli.options import output_options
from cloudmount.cli.output import Output
from cloudmount.errors import UsageError


@click.command(short_help="Switch a virtual machine off.")
@output_options
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long its guest may take to power off by itself; its power is cut then.",
)
@click.option("--delete", is_flag=True, help="Remove it afterwards, with all that it wrote.")
@click.argument("name", metavar="VM")
def command(out: Output, timeout: float, delete: bool, name: str) -> None:
    """Switch VM off, as by its power button. What it wrote is kept, 'cloudmount boot --resume' goes on with
    it."""
    if not timeout < float("inf"):
        raise UsageError(f"--timeout {timeout:g}: give seconds, 0 or more")
    from cloudmount.app.stop import stop
    from cloudmount.app.vms import find_vm

    vm = find_vm(name)
    disks = vm.local_disks
    state = stop(vm, timeout=timeout, delete=delete, tell=out.warn)
    told = f"{vm.name}: {state}"
    if delete:
        told += "; removed" + (f"; its disks stay: {', '.join(disks)}" if disks else " with all it wrote")
    out.result({"vm": vm.name, "state": state, "deleted": delete}, told)
