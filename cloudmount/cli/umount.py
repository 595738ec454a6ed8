"""`cloudmount umount`."""

from __future__ import annotations

import os

import click

from cloudmount.cli.options import output_options
from cloudmount.cli.output import Output


@click.command(short_help="Take a drive down, also when its store is gone.")
@output_options
@click.argument("folder", metavar="DIR")
def command(out: Output, folder: str) -> None:
    """Take the drive at DIR down, within seconds, also when its store is gone."""
    from cloudmount.app.places import records_folder
    from cloudmount.mounts import letters
    from cloudmount.mounts.lifecycle import unmount
    from cloudmount.mounts.mountpoints import resolved

    if letters.WINDOWS:
        at = letters.unmount(folder, records=records_folder(), tell=out.warn)
        out.result({"mountpoint": at}, "")
        return
    folder = os.path.abspath(folder)
    os.chdir("/")  # `umount .`: where we stand goes away
    unmount(folder, records=records_folder(), tell=out.warn)
    out.result({"mountpoint": resolved(folder)}, "")
