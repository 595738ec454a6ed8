"""`cloudmount check`."""

from __future__ import annotations

import os

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import Moment, seconds_text, size_text

DAMAGED = 4


@click.command(short_help="Prove that the repository is whole.")
@repository_options(moves_data=True)
@click.option("--read-data", is_flag=False, flag_value="100", metavar="[PERCENT]",
              help="Read and verify the stored data too, or a random PERCENT of it.")  # fmt: skip
def command(common: Common, read_data: str | None) -> int:
    """Prove the repository: that every snapshot is whole, and with --read-data every byte."""
    from cloudmount.app.check import CheckProgress, check
    from cloudmount.errors import UsageError

    percent: float | None = None
    if read_data is not None:
        try:
            percent = float(read_data.rstrip("%"))
        except ValueError:
            raise UsageError(f"--read-data takes a percentage, not {read_data!r}") from None
        if not 0 < percent <= 100:
            raise UsageError("--read-data takes a percentage above 0 and up to 100")
    out = common.out
    repository = common.open_repository(cached=False)
    progress = CheckProgress()
    with out.progress(lambda: Moment(progress.bytes, progress.total_bytes, progress.current)):
        result = check(repository, read_data=percent, progress=progress, environ=os.environ)
    for notice in result.notices:
        out.warn(notice)
    lines = []
    for d in result.damage:
        where = f"{d.snapshot}:{d.path}" if d.path else d.snapshot
        span = f", {size_text(d.length)} at {d.offset}" if d.length else ""
        lines.append(f"damaged: {where or 'repository'}{span}: {d.why}")
    if result.more_damage:
        lines.append(f"... and {result.more_damage} more damaged ranges")
    if result.recorded is not None:
        lines.append("The damage is written down: the next backup stores anew what its sources still have.")
    count = f"{result.snapshots} snapshot{'s' * (result.snapshots != 1)}, {result.packs} packs"
    how = (
        f"{size_text(result.bytes_read)} read" if percent is not None else "maps read, data not (--read-data)"
    )
    verdict = "No damage" if result.ok else "DAMAGED"
    lines.append(f"{verdict}: {count}; {how} in {seconds_text(result.seconds)}.")
    if result.unreferenced_bytes:
        lines.append(f"{size_text(result.unreferenced_bytes)} belong to no snapshot (interrupted backups).")
    value = {
        "ok": result.ok,
        "damage": [
            {"snapshot": d.snapshot, "path": d.path, "offset": d.offset, "length": d.length, "why": d.why}
            for d in result.damage
        ],
        "more_damage": result.more_damage,
        "notices": list(result.notices),
        "snapshots": result.snapshots,
        "packs": result.packs,
        "read_percent": result.read_percent,
        "bytes_read": result.bytes_read,
        "unreferenced_bytes": result.unreferenced_bytes,
        "seconds": round(result.seconds, 3),
    }
    out.result(value, "\n".join(lines))
    return 0 if result.ok else DAMAGED
