"""`cloudmount check`."""

from __future__ import annotations

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import Moment, seconds_text, size_text

DAMAGED = 4


@click.command()
@repository_options(moves_data=True)
@click.option("--read-data", is_flag=False, flag_value="100", metavar="[PERCENT]",
              help="Read and verify the stored data too, or a random PERCENT of it.")  # fmt: skip
def command(common: Common, read_data: str | None) -> int:
    """Prove the repository: that every snapshot is whole, and with --read-data every byte."""
    from cloudmount.app.check import CheckProgress, check
    from cloudmount.app.opening import open_repository
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
    repository = open_repository(
        common.address, common.passphrase(), bandwidth=common.bandwidth, tell=out.warn, cached=False
    )
    progress = CheckProgress()
    with out.progress(lambda: Moment(progress.done_bytes, progress.total_bytes, progress.current)):
        result = check(repository, read_data=percent, progress=progress)
    lines = [
        f"damaged: {d.snapshot}:{d.path}, {size_text(d.length)} at {d.offset}: {d.why}" if d.length else
        f"damaged: {d.snapshot}{':' if d.path else ''}{d.path}: {d.why}"
        for d in result.damage
    ]  # fmt: skip
    lines.append(result.words(seconds_text))
    out.result(result.to_json(), "\n".join(lines))
    return 0 if result.ok else DAMAGED
