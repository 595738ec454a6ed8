"""`cloudmount init`."""

from __future__ import annotations

import contextlib

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.passphrase import ask_new, from_elsewhere
from cloudmount.errors import CloudMountError


@click.command(short_help="Make a new repository.")
@repository_options()
@click.option(
    "--tier",
    type=click.Choice(["hot", "cool", "cold"]),
    default="hot",
    show_default=True,
    help="Azure access tier of backup data; opening stays quick in any.",
)
def command(common: Common, tier: str) -> None:
    """Make a new repository, its folder or container too when missing.

    Prints the recovery phrase once: write it down and keep it away from the server.
    """
    from cloudmount.app.init import init
    from cloudmount.app.opening import check_free

    passphrase = from_elsewhere(common.passphrase_file)
    if passphrase is None:
        check_free(common.address)  # before somebody thinks of one for nothing
        passphrase = ask_new()
    made = init(common.address, passphrase, tier=tier)
    words = made.recovery_phrase.split()
    lines = [
        "   " + "".join(f"{n + 1:>3}. {words[n]:<10}" for n in range(row, row + 6)).rstrip()
        for row in range(0, len(words), 6)
    ]
    text = "\n".join(
        [
            f"Repository {made.repo_id[:8]} is made at {made.address}.",
            "",
            "Recovery phrase, shown only now:",
            "",
            *lines,
            "",
            "Write it on paper and keep it where the server is not: with it and the address you get",
            "everything back, without it and the passphrase nobody can.",
        ]
    )
    value = {"repo_id": made.repo_id, "recovery_phrase": made.recovery_phrase, "repository": made.address}
    shown = False
    with contextlib.suppress(CloudMountError):
        shown = common.out.result(value, text)
    if not shown:
        raise CloudMountError(
            f"the repository at {made.address} is made, but nobody read its recovery phrase: standard "
            "output is closed or full; remove the repository and make it again"
        )
