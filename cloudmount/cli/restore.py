"""`cloudmount restore`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import Moment, seconds_text, size_text
from cloudmount.system import is_separator_end, long_path

INCOMPLETE = 9


@click.command(short_help="Restore a snapshot, or a part of it, into a folder.")
@repository_options(moves_data=True)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["vhdx", "vhd", "raw", "qcow2"]),
    help="What disks become; left out: what they were backed up from.",
)
@click.argument("what", metavar="SNAPSHOT[:PATH]")
@click.argument("target", metavar="TARGET")
def command(common: Common, format_: str | None, what: str, target: str) -> int:
    """Restore a snapshot, or a part of it, into the folder TARGET.

    TARGET is made, or empty, or holds an unfinished restore of the same, which goes on. A single
    file or disk may be given a new name. Every byte is verified.
    """
    from cloudmount.app.restore import RestoreProgress, restore
    from cloudmount.app.select import select

    out = common.out
    repository = common.open_repository()
    progress = RestoreProgress()
    selected = select(repository, what, os.environ)
    with out.progress(lambda: Moment(progress.done_bytes, progress.total_bytes, progress.current)):
        result = restore(
            repository,
            selected,
            Path(long_path(target)),
            into=is_separator_end(target),
            format=format_,
            progress=progress,
        )
    for note in result.notes[:20]:
        out.warn(note)
    if len(result.notes) > 20:
        out.warn(f"... and {len(result.notes) - 20} more of this kind")
    for path, why in result.skipped[:20]:
        out.warn(f"{path}: not restored: {why}")
    value = {
        "files": result.files,
        "bytes": result.bytes,
        "fetched_bytes": result.fetched_bytes,
        "seconds": round(result.seconds, 3),
    }
    text = (
        f"{result.files} file{'s' * (result.files != 1)}, {size_text(result.bytes)} restored to {target}, "
        f"{size_text(result.fetched_bytes)} fetched, in {seconds_text(result.seconds)}"
    )
    out.result(value, text)
    if result.skipped:
        out.warn(
            f"done, but incomplete: {len(result.skipped)} not restored, told above; one by one they can get "
            "other names (restore SNAPSHOT:PATH NEWNAME)"
        )
        return INCOMPLETE
    return 0
