"""`cloudmount cp`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import Moment, count_text, seconds_text, size_text
from cloudmount.system import is_separator_end, long_path

if TYPE_CHECKING:
    from cloudmount.app.copyplan import CopyPlan

INCOMPLETE = 9


@click.command(short_help="Copy a file or folder out of a snapshot, out of its disks too.")
@repository_options(moves_data=True)
@click.option("--only", is_flag=True, help="That file only, not those that belong to it.")
@click.argument("what", metavar="SNAPSHOT:PATH")
@click.argument("target", metavar="TARGET")
def command(common: Common, only: bool, what: str, target: str) -> int:
    """Copy a file or folder out of a snapshot, out of its disks too.

    Into the folder TARGET if there is one, else TARGET is its new name, as for 'cp -r'. Nothing is
    overwritten. Files that are of no use alone come with their companions: a QuickBooks .QBW with its .TLG,
    .ND and .DSN.
    """
    from cloudmount.app.cp import CopyProgress, copy
    from cloudmount.app.opening import looking_inside
    from cloudmount.app.select import select

    out = common.out
    repository = common.open_repository()
    progress = CopyProgress()
    selected = select(repository, what, os.environ)

    def begins(plan: CopyPlan) -> None:
        for note in plan.notes:
            out.say(note)
        out.say(
            f"{count_text(len(plan.files), 'file')}, {size_text(plan.bytes)}: at most about "
            f"{size_text(plan.to_fetch)} will come down"
        )

    with looking_inside(repository) as drive:
        with out.progress(lambda: Moment(progress.done_bytes, progress.total_bytes, progress.current)):
            result = copy(
                drive, selected, Path(long_path(target)), slash=is_separator_end(target), only=only,
                begins=begins, progress=progress,
            )  # fmt: skip
    for path, why in result.skipped[:20]:
        out.warn(f"{path}: not copied: {why}")
    if len(result.skipped) > 20:
        out.warn(f"... and {len(result.skipped) - 20} more of this kind")
    value = {
        "files": result.files,
        "bytes": result.bytes,
        "fetched_bytes": result.fetched_bytes,
        "seconds": round(result.seconds, 3),
        "skipped": [{"path": path, "why": why} for path, why in result.skipped],
    }
    text = (
        f"{count_text(result.files, 'file')}, {size_text(result.bytes)} copied to {target}, "
        f"{size_text(result.fetched_bytes)} fetched, in {seconds_text(result.seconds)}"
    )
    out.result(value, text)
    if result.skipped:
        out.warn(f"done, but incomplete: {len(result.skipped)} not copied, told above")
        return INCOMPLETE
    return 0
