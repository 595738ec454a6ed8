"""`cloudmount init`."""

from __future__ import annotations

import click

from cloudmount.cli.options import Common, read_passphrase, repository_options


@click.command()
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

    made = init(common.address, read_passphrase(common.passphrase_file, confirm=True), tier=tier)
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
    common.out.result({"repo_id": made.repo_id, "recovery_phrase": made.recovery_phrase}, text)
