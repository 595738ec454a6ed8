"""`cloudmount mount`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import click

from cloudmount.app.sizes import parse_bytes
from cloudmount.cli.logs import tell_logs
from cloudmount.cli.options import Common, repository_options
from cloudmount.errors import UsageError


@click.command(short_help="Show the repository as a drive.")
@repository_options(moves_data=True)
@click.option("--cache-dir", metavar="FOLDER", help="Where fetched pieces are kept, encrypted.")
@click.option(
    "--cache-size", metavar="SIZE", help="At most so much; left out: 10 GiB, or a quarter of the free space."
)
@click.option(
    "--driver",
    type=click.Choice(["native", "refuse", "winfsp"]),
    help="How it is mounted; left out: native where cloudmount-native is installed, else refuse; on Windows"
    " winfsp.",
)
@click.option("--io-timeout", type=click.FloatRange(1), default=60.0, show_default=True, metavar="SECONDS",
              help="How long a read waits for the store before it fails.")  # fmt: skip
@click.option(
    "--hydrate-to", metavar="D", help="Complete the disks that are read in folder D, and use what is there."
)
@click.option("--allow-other", is_flag=True, help="Other users see the drive too.")
@click.option("--daemon", is_flag=True, help="Return when it is up; go on in the background.")
@click.argument("folder", metavar="DIR")
def command(
    common: Common,
    cache_dir: str | None,
    cache_size: str | None,
    driver: str | None,
    io_timeout: float,
    hydrate_to: str | None,
    allow_other: bool,
    daemon: bool,
    folder: str,
) -> None:
    """Show the repository as a drive at DIR, until it is unmounted or Ctrl-C.

    On Windows DIR is a letter that is free, such as X:, and the drive is made with WinFsp - Windows File
    System Proxy, Copyright (C) Bill Zissimopoulos, https://github.com/winfsp/winfsp.
    """
    if not io_timeout < float("inf"):  # nan is no number above 1, and not below it either
        raise UsageError(f"--io-timeout {io_timeout:g}: give seconds, 1 or more")
    from cloudmount.app.mount import log_file, mount
    from cloudmount.mounts import letters
    from cloudmount.mounts.lifecycle import in_background
    from cloudmount.service.notify import ready as tell_ready

    out = common.out
    cache_bytes = parse_bytes(cache_size) if cache_size is not None else None
    passphrase = common.passphrase()
    tell_logs(out, dated=daemon)

    def serve(up: Callable[[str], None]) -> None:
        def ready(path: str) -> None:
            how = f"'cloudmount umount {shlex.quote(path)}'" + ("" if daemon else ", or Ctrl-C here,")
            out.say(f"The drive is at {path}; {how} ends it.")
            if letters.WINDOWS:
                from cloudmount.mounts.winfsp_driver import NOTICE

                out.say(NOTICE)
            if out.json:
                out.result({"mountpoint": path, "pid": os.getpid()}, "")
            up(path)
            tell_ready()

        mount(
            common.address,
            passphrase,
            folder,
            cache_dir=Path(cache_dir) if cache_dir is not None else None,
            cache_bytes=cache_bytes,
            io_timeout=io_timeout,
            allow_other=allow_other,
            driver=driver,
            bandwidth=common.bandwidth,
            hydrate_to=Path(hydrate_to) if hydrate_to is not None else None,
            ready=ready,
            tell=out.warn,
        )

    if daemon:
        in_background(serve, log_file())
    else:
        serve(lambda path: None)
