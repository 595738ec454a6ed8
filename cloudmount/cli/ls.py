"""`cloudmount ls`."""

from __future__ import annotations

import datetime as dt

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import table


@click.command()
@repository_options()
@click.argument("what", metavar="SNAPSHOT[:PATH]")
def command(common: Common, what: str) -> None:
    """List a snapshot's folder, as on the drive."""
    from cloudmount.app.ls import ls
    from cloudmount.app.select import select

    repository = common.open_repository()
    found = ls(repository, select(repository, what))
    value = []
    rows = []
    for entry in found:
        time = dt.datetime.fromtimestamp(entry.mtime_ns // 10**9, dt.UTC)
        value.append(
            {
                "name": entry.name,
                "type": entry.type,
                "size": entry.size,
                "mtime": f"{time:%Y-%m-%dT%H:%M:%SZ}",
            }
        )
        size = str(entry.size) if entry.type == "file" else "-"
        shown = entry.name + ("/" if entry.type == "dir" else "")
        rows.append([entry.type, size, f"{time:%Y-%m-%d %H:%M}", f"{shown}  {entry.note}".rstrip()])
    common.out.result(value, table(rows, frozenset({1})) if rows else "")
