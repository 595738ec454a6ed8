"""`cloudmount hyperv boot` and `cloudmount hyperv preflight`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudmount.cli.options import Common, output_options, repository_options
from cloudmount.cli.output import Moment, Output, seconds_text, table
from cloudmount.errors import UsageError

if TYPE_CHECKING:
    from cloudmount.app.hydrate import HydrateProgress
    from cloudmount.app.hyperv import Asked, Made
    from cloudmount.app.hypervpreflight import Result


@click.group(short_help="A Hyper-V machine from its backup (not run on Windows yet).")
def command() -> None:
    """A Hyper-V machine from its backup.

    Made from Microsoft's documentation, and not run on Windows yet: try it on a computer whose loss would not
    hurt.
    """


@command.command("boot", short_help="A VM's folder and script; on Windows it is started.")
@repository_options(moves_data=True)
@click.option(
    "--via",
    type=click.Choice(["auto", "drive", "local"]),
    default="auto",
    show_default=True,
    help="drive: it starts at once from the mounted drive; local: from complete copies; auto: the fastest "
    "way that a preflight of the host has proved, else local.",
)
@click.option(
    "--output", metavar="DIR", help="The VM's folder, on a local disk; left out: in the state folder."
)
@click.argument("snapshot", metavar="SNAPSHOT")
def boot(common: Common, via: Asked, output: str | None, snapshot: str) -> None:
    """Make a folder with a PowerShell script that starts the machine of SNAPSHOT as a Hyper-V VM.

    On Windows the script is run, and the disks are completed in that folder; with --via drive the VM starts
    before, and goes over to the complete copies while it runs. On other systems folder and script are all
    there is: they are for the host.
    """
    from cloudmount.app.hyperv import hyperv_boot
    from cloudmount.app.select import select
    from cloudmount.boot.hyperv import powershell

    out = common.out
    repository = common.open_repository()

    @contextlib.contextmanager
    def shown(progress: HydrateProgress) -> Iterator[None]:
        with out.progress(lambda: Moment(progress.done_bytes, progress.total_bytes, progress.doing)):
            yield

    made = hyperv_boot(
        repository,
        select(repository, snapshot, os.environ),
        via,
        Path(output) if output is not None else None,
        runner=powershell.runner(os.environ),
        shown=shown,
        say=out.say,
        tell=out.warn,
    )
    value = {
        "folder": str(made.folder),
        "script": str(made.script),
        "via": made.way.via,
        "why": made.way.why,
        "vm": made.vm,
        "ran": made.ran,
    }
    out.result(value, _told(made))


def _told(made: Made) -> str:
    from cloudmount.app.hypervpreflight import REPORTS

    way = made.way
    lines = [f"{made.vm}: --via {way.via}" + (f" ({way.why})." if way.why else ".")]
    if way.via == "drive":
        lines.append(
            "A disk on such a drive has made Windows crash in two public reports, both of which wrote to it: "
            f"{REPORTS[0]} and {REPORTS[1]}"
        )
    if made.ran:
        lines.append(f"It is on, and on its local copies in {made.folder}: keep that folder as it is.")
        return "\n".join(lines)
    run = f"powershell -NoProfile -ExecutionPolicy Bypass -File .\\{made.script.name}"
    complete = "complete its copies: cloudmount hydrate, --to the folder 'copies' in it"
    steps = [f"in an administrator's console: {run}"]
    if way.via == "drive":
        steps = ["mount the drive", *steps, complete, "the same console and line, and -Action GoLocal"]
    else:
        steps = [complete, *steps]
    lines.append(f"Nothing was run. {made.folder} is for the Hyper-V host; on a local disk there:")
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    lines.append("Not run on Windows yet: read the script before you run it.")
    return "\n".join(lines)


@command.command("preflight", short_help="Try what a Hyper-V host can do.")
@output_options
@click.option("--output", metavar="DIR", help="Where the script is put; left out: the current folder.")
@click.option("--read", metavar="FILE", help="Explain and keep what the script found.")
def preflight(out: Output, output: str | None, read: str | None) -> None:
    """Write a script that tries on a disposable Hyper-V host what booting there would do, or --read what it
    found; 'hyperv boot --via auto' goes by it then.

    The script may crash the host: run it on one that nobody needs.
    """
    from cloudmount.app.hypervpreflight import REPORTS, RESULT, keep, read_result, write_script

    if read is None:
        path = write_script(Path(os.path.abspath(output or ".")))
        text = (
            f"{path} is for a Windows computer that nobody needs: it may crash, see {REPORTS[0]} and "
            f"{REPORTS[1]}. There, in an administrator's console, with the drive mounted:\n"
            f"  powershell -NoProfile -ExecutionPolicy Bypass -File .\\{path.name} -Disposable\n"
            f"then here or there: cloudmount hyperv preflight --read {RESULT}"
        )
        out.result({"folder": str(path.parent), "script": str(path)}, text)
        return
    if output is not None:
        raise UsageError("--output is for the script; --read writes none")
    result = read_result(Path(read))
    kept = keep(result)
    value = {
        "ok": result.ok,
        "via": result.via,
        "findings": result.findings(),
        "host": result.host,
        "time": result.time,
        "windows": result.windows,
        "steps": [step._asdict() for step in result.steps],
        "kept": str(kept),
    }
    out.result(value, _explained(result))


def _explained(result: Result) -> str:
    def outcome(ok: bool | None, tried: bool) -> str:
        return "works" if ok else "FAILED" if ok is False else "NEVER ENDED" if tried else "not tried"

    rows = [
        [
            s.name,
            outcome(s.ok, s.tried),
            seconds_text(s.seconds) if s.seconds is not None else "",
            s.error or "",
        ]
        for s in result.steps
    ]
    head = f"{result.host}, {result.windows or 'Windows'}, {result.time}"
    parts = [head, table(rows, frozenset({2})) if rows else "nothing was tried", *result.findings()]
    return "\n".join(parts)
