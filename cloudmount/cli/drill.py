"""`cloudmount drill`."""

from __future__ import annotations

import time
from typing import Any

import click

from cloudmount.cli.logs import tell_logs
from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import seconds_text, size_text
from cloudmount.cli.passphrase import ask, ask_line
from cloudmount.errors import CloudMountError, UsageError

_NOTHING: dict[str, Any] = dict.fromkeys(("stage", "seconds_to_ready", "report", "screenshot"))


@click.command(short_help="Prove that a machine's newest backup boots.")
@repository_options(moves_data=True, optional=True)
@click.option(
    "--from-kit", is_flag=True, help="Use nothing but the address and the 24 words; both are asked for."
)
@click.option("--ready", metavar="REGEX", help="Proved only if its serial line says so.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a sign of life.",
)
@click.argument("machine", metavar="M")
def command(common: Common, from_kit: bool, ready: str | None, timeout: float, machine: str) -> None:
    """Prove that the newest snapshot of machine M boots: start it without a network and from an empty cache,
    wait until something shows that it runs, switch it off again, and keep the proof in the repository.

    Exit code 1 when nothing showed it. The report says how far the machine came.
    """
    if not timeout < float("inf"):
        raise UsageError(f"--timeout {timeout:g}: give seconds")
    from cloudmount.boot.qemu import program
    from cloudmount.boot.readiness import pattern

    if ready is not None:
        pattern(ready)
    program()
    program("qemu-img")
    out = common.out
    address = common.address if common.address or from_kit else common.needed_address()
    address = address or ask_line("Address of the repository: ")
    passphrase = _from_kit(common) if from_kit else common.passphrase()
    tell_logs(out, dated=False)
    from cloudmount.app.drill import drill

    try:
        done = drill(
            address,
            passphrase,
            machine,
            ready=ready,
            timeout=timeout,
            bandwidth=common.bandwidth,
            began=time.monotonic(),
            say=out.say,
            tell=out.warn,
        )
    except CloudMountError as error:
        if out.json:
            out.result({"ok": False, **_NOTHING, "fetched_bytes": 0, "reads": 0, "why": str(error)}, "")
        raise
    facts, report = done.facts, done.report
    value = facts.told() | {
        "report": str(report.html),
        "report_json": str(report.json),
        "screenshot": str(report.screenshot) if report.screenshot is not None else None,
        "proof": done.proof,
    }
    name = f"{facts.machine}/{facts.snapshot}"
    if not value["ok"]:
        out.result(value, f"The report is {report.html}")
        hint = ""
        if facts.result == "not proved" and not facts.evidence and ready is None:
            hint = "; --ready says by which words on its serial line it is known"
        raise CloudMountError(f"{name}: {facts.result} (stage {facts.stage!r}): {facts.why}{hint}")
    after = "" if facts.ready_ms is None else f" after {seconds_text(facts.ready_ms / 1000)}"
    lines = [
        f"{name} is proved: it was up{after}; {size_text(facts.fetched_bytes)} were fetched in "
        f"{facts.reads} requests until then.",
        *(f"  {e.kind}: {e.what}" for e in facts.evidence),
        f"The report is {report.html}",
    ]
    out.result(value, "\n".join(lines))


def _from_kit(common: Common) -> str:
    """A recovery phrase, never a passphrase: what a kit has is to be proved."""
    from cloudmount.cli.passphrase import from_elsewhere
    from cloudmount.crypto.phrase import looks_like_phrase, phrase_secret

    text = from_elsewhere(common.passphrase_file) or ask("Recovery phrase (24 words): ")
    if not looks_like_phrase(text):
        raise UsageError(
            "--from-kit takes the recovery phrase of 24 words, as it is on paper, and no passphrase"
        )
    phrase_secret(text)
    return text
