"""`cloudmount versions`."""

from __future__ import annotations

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import table, time_text
from cloudmount.errors import CloudMountError

INCOMPLETE = 9


@click.command(short_help="Which snapshots hold which version of a file.")
@repository_options(moves_data=True)
@click.option(
    "--content", "read", is_flag=True, help="Read the files whose versions only their content can tell apart."
)
@click.argument("what", metavar="MACHINE:PATH")
def command(common: Common, read: bool, what: str) -> int:
    """Which snapshots of a machine hold which version of a file, inside its disks too.

    Snapshots without it are left out. Versions are told apart without reading them, where that can be.
    """
    from cloudmount.app.opening import looking_inside
    from cloudmount.app.versions import versions

    out = common.out
    repository = common.open_repository()
    missed = []

    def failed(where: str, error: CloudMountError) -> None:
        missed.append(where)
        out.warn(f"{where}: not looked into: {error}")

    with looking_inside(repository) as drive:
        found = versions(drive, what, read=read, failed=failed)
    value = []
    rows = []
    first: dict[str, str] = {}
    """For each content the snapshot that had it first."""
    for v in found:
        time = v.snapshot.summary["time"]
        mtime = time_text(v.mtime_ns)
        value.append(
            {
                "snapshot": v.snapshot.id,
                "name": v.folder,
                "time": time,
                "type": v.type,
                "size": v.size,
                "mtime": mtime,
                "content": v.content,
            }
        )
        if v.content is None:
            note = "" if v.type == "dir" else "(--content tells whether it differs)"
        else:
            before = first.setdefault(v.content, v.folder)
            note = f"same as {before}" if before != v.folder else ""
        rows.append([v.folder, str(v.size) if v.type == "file" else v.type, mtime, note])
    out.result(value, table([["snapshot", "size", "modified", ""], *rows], frozenset({1})))
    if missed:
        out.warn("done, but incomplete: not every snapshot could be looked into")
        return INCOMPLETE
    return 0
