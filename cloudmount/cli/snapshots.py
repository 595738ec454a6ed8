"""`cloudmount snapshots`."""

from __future__ import annotations

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import size_text, table


@click.command()
@repository_options()
@click.argument("machine", required=False, metavar="[M]")
def command(common: Common, machine: str | None) -> None:
    """List the snapshots of machine M, or of all, newest last."""
    from cloudmount.app.select import machine_name
    from cloudmount.app.snapshots import snapshots

    repository = common.open_repository()
    found = snapshots(repository, machine_name(machine) if machine is not None else None)
    rows = [["SNAPSHOT", "ID", "DISKS", "FILES", "STATE"]]
    for s in found:
        disks = ", ".join(f"{d['name']} ({size_text(d['size'])})" for d in s["disks"]) or "-"
        flags = ["" if s["consistent"] else "changed while read", "incomplete" if s["incomplete"] else ""]
        state = ", ".join(f for f in flags if f) or "ok"
        if s["drilled"] is not None:
            state += f", {'proved' if s['proved'] else 'NOT PROVED'} {s['drilled'][:10]}"
        rows.append([f"{s['machine']}/{s['name']}", s["id"][:8], disks, str(s["files"]), state])
    text = table(rows, frozenset({3})) if found else "There are no snapshots yet."
    common.out.result(found, text)
