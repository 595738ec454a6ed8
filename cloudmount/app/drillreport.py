"""What a drill found, and its report: JSON for scripts, one HTML file for people, the screenshot beside.

Decided here and only here: what is told, and where it lies (`$XDG_STATE_HOME/cloudmount/drills`). Whatever a
guest said is text in it, never markup: all of it is escaped, and the page has no script and loads nothing.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from cloudmount.app.drilldisks import Opened
from cloudmount.app.places import state_folder
from cloudmount.boot.accelerator import Accelerator
from cloudmount.boot.proving import Evidence, Stage
from cloudmount.errors import CloudMountError

Result = Literal["proved", "not proved", "failed"]
PNG = b"\x89PNG\r\n\x1a\n"
_LONGEST = 160
"""Bytes of a machine's name in that of the report's folder."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a drill found. Times are whole seconds since 1970, durations milliseconds, `cost` millionths of
    `currency` (None: reading costs nothing there); `fetched_bytes` and `reads` are those until it was ready
    (or given up), `total_bytes` and `requests` those of the whole drill."""

    machine: str
    snapshot: str
    """Its folder's name on the drive."""
    snapshot_id: str
    snapshot_time: str
    time: int
    result: Result
    stage: Stage
    why: str
    ready_ms: int | None
    ended_ms: int
    fetched_bytes: int
    reads: int
    total_bytes: int
    requests: int
    cost: int | None
    currency: str
    accelerator: Accelerator
    evidence: tuple[Evidence, ...]
    volumes: tuple[Opened, ...]
    last_line: str
    """Of its serial line."""
    host: str
    program: str

    def sealed(self) -> dict[str, Any]:
        """As in a proof object (FORMAT.md 6.9)."""
        told = {
            name: getattr(self, name)
            for name in self.__slots__
            if name not in ("evidence", "volumes", "snapshot_id", "time")
        }
        return told | {
            "evidence": [{"kind": e.kind, "what": e.what} for e in self.evidence],
            "volumes": [v._asdict() for v in self.volumes],
        }

    def told(self) -> dict[str, Any]:
        """As in `drill --json` and the report: seconds, ISO times."""
        from cloudmount.repo.names import iso_time

        cost = None if self.cost is None else round(self.cost / 10**6, 6)
        return {
            "ok": self.result == "proved",
            "result": self.result,
            "stage": self.stage,
            "why": self.why,
            "machine": self.machine,
            "snapshot": f"{self.machine}/{self.snapshot}",
            "snapshot_id": self.snapshot_id,
            "snapshot_time": self.snapshot_time,
            "time": iso_time(self.time),
            "seconds_to_ready": None if self.ready_ms is None else self.ready_ms / 1000,
            "seconds": self.ended_ms / 1000,
            "fetched_bytes": self.fetched_bytes,
            "reads": self.reads,
            "total_bytes": self.total_bytes,
            "requests": self.requests,
            "estimated_cost": cost,
            "currency": self.currency if cost is not None else None,
            "accelerator": self.accelerator,
            "evidence": [{"kind": e.kind, "what": e.what} for e in self.evidence],
            "volumes": [v._asdict() for v in self.volumes],
            "last_line": self.last_line,
            "host": self.host,
            "program": self.program,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Where a report lies."""

    html: Path
    json: Path
    screenshot: Path | None


def write_report(
    facts: Facts, screenshot: bytes | None, proof: str | None, environ: Mapping[str, str]
) -> Report:
    """Write the report of a drill; `proof`: the name of its object. `CloudMountError` when there is no
    room."""
    try:
        folder = _new_folder(facts, environ)
        report = Report(
            folder / "report.html",
            folder / "report.json",
            folder / "screenshot.png" if screenshot is not None else None,
        )
        if report.screenshot is not None and screenshot is not None:
            report.screenshot.write_bytes(screenshot)
        report.json.write_text(json.dumps({**facts.told(), "proof": proof}, indent=2) + "\n")
        report.html.write_text(page(facts, screenshot, proof), encoding="utf-8", errors="replace")
    except OSError as error:
        raise CloudMountError(f"the report can't be written: {error}") from None
    return report


def _new_folder(facts: Facts, environ: Mapping[str, str]) -> Path:
    from cloudmount.repo.names import folder_time

    root = state_folder(environ) / "drills"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    short = os.fsencode(facts.machine)[:_LONGEST].decode("utf-8", "ignore")
    for number in range(1, 1000):
        path = root / (f"{short}-{folder_time(facts.time)}" + (f"-{number}" if number > 1 else ""))
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{root} has too many reports of one second")


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; background: #f4f5f7; color: #1c1f23; }
main { max-width: 56rem; margin: 0 auto; padding: 2rem 1.5rem 3rem; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.verdict { padding: 1rem 1.25rem; border-radius: .5rem; color: #fff; background: #a4262c; }
.verdict.proved { background: #1d6b34; }
.verdict.not { background: #8a5a00; }
.verdict b { display: block; font-size: 1.25rem; }
table { border-collapse: collapse; width: 100%; background: #fff; border-radius: .5rem; }
th, td { text-align: left; padding: .5rem .9rem; border-bottom: 1px solid #e3e6ea; vertical-align: top;
  overflow-wrap: anywhere; }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 600; width: 13rem; color: #4a525c; }
ul { background: #fff; border-radius: .5rem; margin: 0; padding: .75rem 1rem .75rem 2.2rem; }
img { max-width: 100%; border: 1px solid #c9ced6; border-radius: .25rem; }
footer { margin-top: 2rem; color: #5d6670; font-size: .85rem; overflow-wrap: anywhere; }
@media print { body { background: #fff; } .verdict { print-color-adjust: exact; } }
"""
_VERDICT = {
    "proved": ("proved", "Proved", "This backup starts as a running machine."),
    "not proved": ("not", "Not proved", "Nothing shows that this machine runs."),
    "failed": ("failed", "Failed", "This backup did not start as it should."),
}


def page(facts: Facts, screenshot: bytes | None, proof: str | None) -> str:
    """The report as one HTML page."""
    told = facts.told()
    kind, title, sentence = _VERDICT[facts.result]
    why = f" {facts.why[:1].upper()}{facts.why[1:]}." if facts.why else ""
    ready = f"{told['seconds_to_ready']:.1f} s" if told["seconds_to_ready"] is not None else "never seen"
    cost = "none: the repository is a folder"
    if told["estimated_cost"] is not None:
        cost = f"about {told['estimated_cost']:.4f} {facts.currency} (list prices)"
    rows = [
        ("Snapshot", told["snapshot"]),
        ("Made", facts.snapshot_time),
        ("Drill", told["time"]),
        ("Ready after", ready),
        ("Stage reached", facts.stage),
        ("Fetched until then", f"{_size(facts.fetched_bytes)} in {facts.reads:,} requests"),
        ("Fetched in all", f"{_size(facts.total_bytes)} in {facts.requests:,} requests"),
        ("Estimated cost", cost),
        ("Whole drill", f"{told['seconds']:.1f} s"),
        ("Started with", "KVM" if facts.accelerator == "kvm" else "QEMU's emulation (no KVM here)"),
        ("Started on", facts.host),
    ]
    if facts.last_line:
        rows.append(("Last serial words", facts.last_line))
    evidence = [f"{e.kind}: {e.what}" for e in facts.evidence] or ["None."]
    volumes = [_volume(v) for v in facts.volumes] or ["The machine has no other disks."]
    shot = "<p>There is none.</p>"
    if screenshot is not None:
        data = base64.b64encode(screenshot).decode()
        shot = f'<img alt="The machine\'s screen" src="data:image/png;base64,{data}">'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(facts.machine)}: {escape(title.lower())}</title>
<style>{_STYLE}</style>
</head>
<body><main>
<h1>Drill of {escape(facts.machine)}</h1>
<div class="verdict {kind}"><b>{title}</b>{sentence}{escape(why)}</div>
<h2>Facts</h2>
<table>{"".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in rows)}</table>
<h2>Evidence</h2>
{_list(evidence)}
<h2>Other disks</h2>
{_list(volumes)}
<h2>Screen</h2>
{shot}
<footer>{escape(facts.program)}. Snapshot {escape(facts.snapshot_id)}.{_proof(proof)}</footer>
</main></body>
</html>
"""


def _proof(proof: str | None) -> str:
    return f" Sealed as {escape(proof)}." if proof is not None else ""


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _volume(volume: Opened) -> str:
    where = f"{volume.disk}, {volume.volume}" if volume.volume else volume.disk
    if volume.problem is not None:
        return f"{where}: DOES NOT OPEN: {volume.problem}"
    return f"{where}: {'opens' if volume.opens else 'nothing in it that can be opened here'}"


def _size(size: int) -> str:
    return f"{size / 10**6:,.1f} MB" if size < 10**9 else f"{size / 10**9:,.2f} GB"
