"""`cloudmount find`."""

from __future__ import annotations

import os
from typing import Any

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import size_text, time_text
from cloudmount.errors import CloudMountError

INCOMPLETE = 9


@click.command(short_help="Find names in a snapshot, inside its disks too.")
@repository_options()
@click.argument("what", metavar="SNAPSHOT[:PATH]")
@click.argument("pattern", metavar="PATTERN")
def command(common: Common, what: str, pattern: str) -> int:
    """Find names in a snapshot (or below PATH), inside its disks too.

    PATTERN is a shell's, such as '*.qbw', and held against names; with a '/' in it, against whole paths.
    Capitals don't count. What is found can be given to 'cloudmount cp'.
    """
    from cloudmount.app.browsing import find_path
    from cloudmount.app.find import Pattern, find
    from cloudmount.app.opening import looking_inside
    from cloudmount.app.select import select

    out = common.out
    wanted = Pattern(pattern)
    repository = common.open_repository()
    selected = select(repository, what, os.environ)
    value: list[dict[str, Any]] = []
    missed = []

    def failed(path: str, error: CloudMountError) -> None:
        missed.append(path)
        out.warn(f"{path}: not looked into: {error}")

    found = 0
    with looking_inside(repository) as drive:
        for match in find(find_path(drive, selected), wanted, failed):
            found += 1
            time = time_text(match.mtime_ns)
            if out.json:
                value.append({"path": match.path, "type": match.type, "size": match.size, "mtime": time})
                continue
            size = size_text(match.size) if match.type == "file" else match.type
            if not out.line(f"{size:>10}  {time}  {match.path}{'/' * (match.type == 'dir')}"):
                return 0
    if out.json:
        out.result(value, "")
    if not found:
        out.say("nothing is called so")
    if missed:
        out.warn(f"done, but incomplete: {len(missed)} could not be looked into, told above")
        return INCOMPLETE
    return 0
