"""`cloudmount nbd`."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudmount.app.sizes import parse_bytes
from cloudmount.cli.logs import tell_logs
from cloudmount.cli.options import Common, repository_options
from cloudmount.errors import UsageError

if TYPE_CHECKING:
    from cloudmount.app.nbd import Served


@click.command(short_help="Serve disks to NBD clients.")
@repository_options(moves_data=True)
@click.option(
    "--listen",
    metavar="PLACE",
    default="127.0.0.1:10809",
    show_default=True,
    help="unix:PATH, or an address of this computer itself and a port (0: any).",
)
@click.option("--cache-dir", metavar="FOLDER", help="Where fetched pieces are kept, encrypted.")
@click.option(
    "--cache-size", metavar="SIZE", help="At most so much; left out: 10 GiB, or a quarter of the free space."
)
@click.option("--io-timeout", type=click.FloatRange(1), default=60.0, show_default=True, metavar="SECONDS",
              help="How long a read waits for the store before it fails.")  # fmt: skip
@click.argument("snapshot", metavar="SNAPSHOT[:DISK]")
def command(
    common: Common,
    listen: str,
    cache_dir: str | None,
    cache_size: str | None,
    io_timeout: float,
    snapshot: str,
) -> None:
    """Serve the disks of SNAPSHOT to NBD clients (QEMU, nbd-client, WNBD), read-only, until Ctrl-C."""
    if not io_timeout < float("inf"):
        raise UsageError(f"--io-timeout {io_timeout:g}: give seconds, 1 or more")
    from cloudmount.app.nbd import parse_place, serve_nbd

    place = parse_place(listen)
    out = common.out
    cache_bytes = parse_bytes(cache_size) if cache_size is not None else None
    passphrase = common.passphrase()
    tell_logs(out, dated=False)

    def up(served: list[Served]) -> None:
        exports = [{"name": s.name, "uri": s.uri, "size": s.size} for s in served]
        text = "\n".join(s.uri for s in served)
        out.result({"uri": served[0].uri, "exports": exports, "pid": os.getpid()}, text)
        out.say("Served until Ctrl-C.")
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            threading.Event().wait()

    serve_nbd(
        common.address,
        passphrase,
        snapshot,
        place,
        cache_dir=Path(cache_dir) if cache_dir is not None else None,
        cache_bytes=cache_bytes,
        io_timeout=io_timeout,
        bandwidth=common.bandwidth,
        up=up,
        tell=out.warn,
    )
