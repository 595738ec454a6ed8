"""`cloudmount verify-local`."""

from __future__ import annotations

from pathlib import Path

import click

from cloudmount.cli.options import output_options
from cloudmount.cli.output import Moment, Output, size_text
from cloudmount.errors import DamagedError

UNFINISHED = 9


@click.command("verify-local", short_help="Prove a hydrated copy, without the repository.")
@output_options
@click.argument("file", metavar="FILE")
def command(out: Output, file: str) -> int:
    """Compare the copy FILE, made by 'hydrate' or 'mount --hydrate-to', with the digests kept beside it.

    Needs no store and no passphrase. Exits with 4 when it is damaged, with 9 when it is sound but unfinished.
    """
    from cloudmount.reader.soundness import verify_file

    at = [0, 0]

    def progress(done: int, total: int) -> None:
        at[:] = done, total

    with out.progress(lambda: Moment(at[0], at[1], file)):
        found = verify_file(Path(file), progress)
    value = {
        "ok": found.ok,
        "bytes": found.bytes,
        "done_bytes": found.done,
        "damage": [{"path": file, "offset": at, "length": n, "why": why} for at, n, why in found.damage],
    }
    lines = [f"DAMAGED: {file}: {n} bytes at {at}: {why}" for at, n, why in found.damage[:100]]
    if len(found.damage) > 100:
        lines.append(f"... and {len(found.damage) - 100} more")
    if found.damage:
        lines.append("Run 'cloudmount hydrate' again: it fetches what is damaged.")
    elif not found.ok:
        lines = [
            f"{file} is unfinished: {size_text(found.done)} of {size_text(found.bytes)}, which are sound"
        ]
    else:
        lines = [f"{file} is sound: {size_text(found.bytes)}"]
    out.result(value, "\n".join(lines))
    if found.damage:
        return DamagedError.exit_code
    return 0 if found.ok else UNFINISHED
