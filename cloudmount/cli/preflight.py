"""`cloudmount preflight`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloudmount.cli.options import Common, repository_options
from cloudmount.cli.output import plain, seconds_text, size_text, table

if TYPE_CHECKING:
    from cloudmount.app.preflight import Preflight
    from cloudmount.app.prices import Cost


@click.command(short_help="Tell whether a snapshot's machine will run on this PC.")
@repository_options(moves_data=True)
@click.option("--hydrate-to", metavar="D", help="Where complete copies would lie; left out: where VMs do.")
@click.argument("snapshot", metavar="SNAPSHOT")
def command(common: Common, hydrate_to: str | None, snapshot: str) -> None:
    """Compare the machine of SNAPSHOT with this PC: whether it will run, how long each stage takes, how many
    bytes come down, and what that costs. Reads a little to measure the line (at most 24 MiB); writes nothing.

    Exit code 1 when it will not run.
    """
    from cloudmount.app.preflight import preflight
    from cloudmount.app.thispc import this_pc
    from cloudmount.errors import CloudMountError

    copies = Path(os.path.abspath(hydrate_to)) if hydrate_to is not None else None
    passphrase = common.passphrase()
    common.out.say("Looking at this PC, and measuring the line to the repository ...")
    found = preflight(
        common.address,
        passphrase,
        snapshot,
        lambda: this_pc(copies),
        bandwidth=common.bandwidth,
        tell=common.out.warn,
    )
    common.out.result(_json(found), _text(found))
    if not found.ok:
        problems = [f.what for f in found.findings if f.level == "problem"]
        raise CloudMountError(f"{found.snapshot} will not run on this PC: {', '.join(problems)}")


def _json(found: Preflight) -> dict[str, Any]:
    machine, link, told = found.machine, found.link, found.prices
    return {
        "ok": found.ok,
        "findings": [
            {"what": f.what, "level": f.level, "text": f.text, "advice": f.advice} for f in found.findings
        ],
        "snapshot": found.snapshot,
        "machine": {
            "firmware": machine.firmware,
            "secure_boot": machine.secure_boot,
            "memory": machine.memory,
            "cpus": machine.cpus,
            "disks": [{"size": d.size, "bus": d.bus, "bootable": d.bootable} for d in machine.disks],
        },
        "stages": [
            {
                "stage": s.stage,
                "seconds": round(s.seconds, 2),
                "bytes": s.bytes,
                "requests": s.requests,
                "cost": round(s.cost.total, 4) if s.cost is not None else None,
            }
            for s in found.stages
        ],
        "traced": found.traced,
        "link": None
        if link is None
        else {
            "bytes_per_second": round(link.bytes_per_second),
            "round_trip": round(link.round_trip, 4),
            "fetched_bytes": link.fetched_bytes,
            "requests": link.requests,
        },
        "tier": found.tier,
        "prices": None
        if told is None
        else {
            "currency": told.currency,
            "date": told.date.isoformat(),
            "source": told.source,
            "url": told.url,
        },
        "fetched_bytes": found.fetched_bytes,
        "reads": found.reads,
    }


def _text(found: Preflight) -> str:
    rows = []
    for f in found.findings:
        rows.append([f.level, f.what, f.text])
        if f.advice and f.level != "ok":
            rows.append(["", "", f"-> {f.advice}"])
    stages = [["", "takes about", "comes down", "requests", "costs about"]]
    for s in found.stages:
        took = seconds_text(s.seconds)
        stages.append([s.stage, took, size_text(s.bytes), str(s.requests), _cost_text(s.cost)])
    lines = [found.snapshot, table(rows), "", table(stages, frozenset({1, 2, 3, 4})), ""]
    if not found.traced:
        lines.append("No boot of this machine is known yet: what a boot takes is a guess.")
    if found.prices is not None:
        lines.append(
            f"Costs are for the {found.tier} tier, {found.prices.source}, as of {found.prices.date}; "
            f"the first {found.prices.free_gb_a_month:g} GB a month leave Azure for nothing."
        )
    lines.append(f"Knowing this took {size_text(found.fetched_bytes)} in {found.reads} requests.")
    lines.append("It will run." if found.ok else "IT WILL NOT RUN HERE.")
    return "\n".join(lines)


def _cost_text(cost: Cost | None) -> str:
    return "nothing" if cost is None else plain(f"{cost.total:.2f} {cost.currency}")
