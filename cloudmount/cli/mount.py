"""`cloudmount mount`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from cloudmount.cli.options import Common, parse_bytes, repository_options


@click.command(short_help="Show the repository as a drive.")
@repository_options(moves_data=True)
@click.option("--cache-dir", metavar="FOLDER", help="Where fetched pieces are kept, encrypted.")
@click.option(
    "--cache-size", metavar="SIZE", help="At most so much; left out: 10 GiB, or a quarter of the free space."
)
@click.option(
    "--driver", type=click.Choice(["refuse"]), default="refuse", show_default=True, help="How it is mounted."
)
@click.option("--io-timeout", type=click.FloatRange(1), default=60.0, show_default=True, metavar="SECONDS",
              help="How long a read waits for the store before it fails.")  # fmt: skip
@click.option("--allow-other", is_flag=True, help="Other users see the drive too.")
@click.option("--daemon", is_flag=True, help="Return when it is up; go on in the background.")
@click.argument("folder", metavar="DIR")
def command(
    common: Common,
    cache_dir: str | None,
    cache_size: str | None,
    driver: str,
    io_timeout: float,
    allow_other: bool,
    daemon: bool,
    folder: str,
) -> None:
    """Show the repository as a drive at DIR, until it is unmounted or Ctrl-C."""
    from cloudmount.app.mount import log_file, mount
    from cloudmount.mounts.lifecycle import in_background
    from cloudmount.mounts.mountpoints import resolved

    out = common.out
    passphrase = common.passphrase()
    cache_bytes = parse_bytes(cache_size) if cache_size is not None else None

    def serve(up: Callable[[], None]) -> None:
        def ready(path: str) -> None:
            out.say(f"The drive is at {path}; 'cloudmount umount {path}' ends it.")
            up()

        mount(
            common.address,
            passphrase,
            folder,
            cache_dir=Path(cache_dir) if cache_dir is not None else None,
            cache_bytes=cache_bytes,
            io_timeout=io_timeout,
            allow_other=allow_other,
            bandwidth=common.bandwidth,
            ready=ready,
            tell=out.warn,
        )

    if daemon:
        in_background(serve, log_file())
    else:
        serve(lambda: None)
    if common.out.json:
        out.result({"mountpoint": resolved(folder)}, "")
