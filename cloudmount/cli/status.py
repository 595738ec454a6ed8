"""`cloudmount status`."""

from __future__ import annotations

import click

from cloudmount.cli.options import output_options
from cloudmount.cli.output import Output, size_text, table


@click.command()
@output_options
def command(out: Output) -> None:
    """Show the drives that are up on this machine, the hydrations that go on, and its virtual machines."""
    from cloudmount.app.status import status
    from cloudmount.cli.vms import vms_table

    value = status()
    drives = [["DRIVE", "REPOSITORY", "SINCE", "STATE"]]
    drives += [[m["mountpoint"], m["repository"], m["since"], m["state"]] for m in value["mounts"]]
    copies = [["COPY", "DONE", "OF", "STATE"]]
    copies += [
        [h["path"], size_text(h["done_bytes"]), size_text(h["total_bytes"]), h["state"]]
        for h in value["hydrations"]
    ]
    told = [table(drives) if value["mounts"] else "No drive is up."]
    if value["hydrations"]:
        told.append(table(copies, right=frozenset({1, 2})))
    if value["vms"]:
        told.append(vms_table(value["vms"]))
    out.result(value, "\n\n".join(told))
