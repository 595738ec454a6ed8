"""`cloudmount show`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import seconds_text, size_text


@click.command()
@repository_options()
@click.argument("snapshot", metavar="SNAPSHOT")
def command(common: Common, snapshot: str) -> None:
    """Show everything about one snapshot."""
    from cloudmount.app.select import select, split_path
    from cloudmount.app.snapshots import show_json
    from cloudmount.errors import UsageError

    if split_path(snapshot)[1]:
        raise UsageError(f"show takes a whole snapshot, not a path in it: see 'cloudmount ls {snapshot}'")
    repository = common.open_repository()
    s = show_json(repository, select(repository, snapshot, os.environ))
    lines = [
        f"{s['machine']}/{s['name']}",
        f"  id          {s['id']}",
        f"  number      {s['sequence']}, after {s['previous'][:8] if s['previous'] else 'none'}",
        f"  made by     {s['program']} on {s['host']} in {seconds_text(s['seconds'])}",
        f"  state       {'consistent' if s['consistent'] else 'something changed while it was read'}"
        f"{', incomplete' if s['incomplete'] else ''}",
        f"  files       {s['files']} ({size_text(s['file_bytes'])})",
    ]
    for d in s["disks"]:
        sectors = f"{d['logical_sector']} B sectors"
        lines += [
            f"  disk        {d['name']}: {size_text(d['size'])}, {size_text(d['stored_bytes'])} stored",
            f"              {d['source_format']} {d['original']}, {sectors}, {d['disk_id']}",
        ]
    lines += _drill(s)
    lines += [f"  problem     {p['path']}: {p['why']}" for p in s["problems"]]
    common.out.result(s, "\n".join(lines))


def _drill(s: Mapping[str, Any]) -> list[str]:
    """What its newest drill found."""
    if s["drilled"] is None:
        return ["  drill       none yet: nothing proves that it boots"]
    lines = [f"  drill       {'proved' if s['proved'] else 'NOT PROVED'} {s['drilled']}"]
    drill = s["drill"] or {}
    if drill.get("why"):
        lines.append(f"              {drill['stage']}: {drill['why']}")
    if drill.get("ready_ms") is not None:
        lines[0] += f", up after {seconds_text(drill['ready_ms'] / 1000)}"
    return lines + [f"              {e['kind']}: {e['what']}" for e in drill.get("evidence", ())]
