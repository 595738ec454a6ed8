"""`cloudmount ls`."""

from __future__ import annotations

import os

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import table, time_text


@click.command()
@repository_options()
@click.argument("what", metavar="SNAPSHOT[:PATH]")
def command(common: Common, what: str) -> None:
    """List a snapshot's folder, or one inside a disk (srv:disk/3-DATA/Users), as on the drive."""
    from cloudmount.app.ls import ls
    from cloudmount.app.select import select

    repository = common.open_repository()
    value = []
    rows = []
    for entry in ls(repository, select(repository, what, os.environ)):
        time = time_text(entry.mtime_ns)
        line = {"name": entry.name, "type": entry.type, "size": entry.size, "mtime": time}
        if entry.original is not None:
            line["original"] = entry.original
        if entry.target is not None:
            line["target"] = entry.target
        if entry.unreadable is not None:
            line["unreadable"] = entry.unreadable
        value.append(line)
        size = str(entry.size) if entry.type == "file" else "-"
        shown = entry.name + ("/" if entry.type == "dir" else "")
        rows.append([entry.type, size, time, f"{shown}  {entry.note}"])
    common.out.result(value, table(rows, frozenset({1})) if rows else "")
