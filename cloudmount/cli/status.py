"""`cloudmount status`."""

from __future__ import annotations

import click

from cloudmount.cli.options import output_options
from cloudmount.cli.output import Output, table


@click.command()
@output_options
def command(out: Output) -> None:
    """Show the drives that are up on this machine."""
    from cloudmount.app.status import status

    value = status()
    rows = [["DRIVE", "REPOSITORY", "SINCE", "STATE"]]
    rows += [[m["mountpoint"], m["repository"], m["since"], m["state"]] for m in value["mounts"]]
    out.result(value, table(rows) if value["mounts"] else "No drive is up.")
