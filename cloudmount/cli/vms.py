"""`cloudmount vms`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from cloudmount.cli.options import output_options
from cloudmount.cli.output import Output, size_text, table


@click.command(short_help="Show the virtual machines of this computer.")
@output_options
def command(out: Output) -> None:
    """Show the virtual machines that were started from backups on this computer, also those that are off."""
    from cloudmount.app.vms import all_vms

    found = [vm.told() for vm in all_vms()]
    out.result(found, vms_table(found) if found else "There is no VM.")


def vms_table(found: Sequence[dict[str, Any]]) -> str:
    """VMs, as `Vm.told` tells them, for people."""
    rows = [["VM", "SINCE", "WROTE", "FETCHED", "DISKS", "STATE"]]
    rows += [
        [
            vm["vm"],
            vm["since"] or "",
            size_text(vm["written_bytes"]),
            size_text(vm["fetched_bytes"]),
            _disks(vm),
            vm["state"],
        ]
        for vm in found
    ]
    return table(rows, right=frozenset({2, 3}))


def _disks(vm: dict[str, Any]) -> str:
    """Where its disks are."""
    hydration = vm["hydration"]
    if hydration is None:
        return "here" if vm["local"] else "in the repository"
    done = f"{size_text(hydration['done_bytes'])} of {size_text(hydration['total_bytes'])} here"
    return f"{done} ({hydration['state']})"
