"""`cloudmount hydrate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import Moment, count_text, seconds_text, size_text
from cloudmount.system import long_path

if TYPE_CHECKING:
    from cloudmount.tree.copies import Format


@click.command(short_help="Complete local copies of a snapshot's disks.")
@repository_options(moves_data=True)
@click.option("--to", "target", required=True, metavar="D", help="The folder that holds the copies.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["vhdx", "raw"]),
    default="vhdx",
    show_default=True,
    help="What the copies are: as the drive's NAME.vhdx, or its NAME.img.",
)
@click.argument("what", metavar="SNAPSHOT[:DISK]")
def command(common: Common, target: str, format_: Format, what: str) -> None:
    """Complete copies of a snapshot's disks, or of one of them, in D/MACHINE/SNAPSHOT/.

    It may be ended at any time, and goes on when it is run again. A copy is the same bytes as on the
    drive; 'cloudmount verify-local' proves it without the repository.
    """
    from cloudmount.app.hydrate import HydrateProgress, hydrate
    from cloudmount.app.select import select

    out = common.out
    repository = common.open_repository()
    progress = HydrateProgress()
    selected = select(repository, what, os.environ)
    with out.progress(lambda: Moment(progress.done_bytes, progress.total_bytes, progress.doing)):
        result = hydrate(
            repository, selected, Path(long_path(target)), format=format_, progress=progress, tell=out.warn
        )
    value = {
        "files": result.files,
        "bytes": result.bytes,
        "fetched_bytes": result.fetched_bytes,
        "seconds": round(result.seconds, 3),
    }
    text = (
        f"{count_text(result.files, 'disk')}, {size_text(result.bytes)} complete in {target}, "
        f"{size_text(result.fetched_bytes)} fetched, in {seconds_text(result.seconds)}"
    )
    out.result(value, text)
