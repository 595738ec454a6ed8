"""What proves that a guest runs, and how far one came that can't be proved.

Decided here and only here: that only what the guest itself did is evidence: words on its serial line, an
answer of its agent, a mark that it left on its disks. That it was not seen to fail, or powered itself off, is
none. And how a stage is told by what the processors execute (QEMU's `info registers`):

    services  some processor runs a user's program (privilege level 3, paging on)
    kernel    paging on, and the next instruction in the upper half of the addresses, where kernels live
    loader    paging off, below a BIOS's own place: where it starts loaders
    firmware  a BIOS's own place; and paging on, in the lower half: there UEFI's loaders run too, which the
              serial line and what was read tell apart

Without paging a BIOS and loaders alike use memory above 1 MiB: an instruction there tells nothing.

Stateless but for `Furthest`, which belongs to one thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloudmount.boot.readiness import LOGIN, plain_text

Stage = Literal["firmware", "loader", "kernel", "services", "ready"]
STAGES: tuple[Stage, ...] = ("firmware", "loader", "kernel", "services", "ready")

_UPPER_64, _UPPER_32 = 1 << 63, 1 << 31
_PAGING = 1 << 31
"""Of the register CR0."""
_FIRMWARE_AT = 0xC0000
"""From here to 1 MiB lie a BIOS and the programs of cards."""
_FIRMWARE_END = 1 << 20
_VM86 = 1 << 17
_MOST_LOG = 16 << 20


@dataclass(frozen=True, slots=True)
class Evidence:
    """One proof; `what` is for people."""

    kind: Literal["serial", "agent", "journal", "event log", "registry"]
    what: str


def serial_evidence(log: Path, ready: re.Pattern[str] | None) -> Evidence | None:
    """The words that a guest said when it was ready (None: a login prompt), if it ever did."""
    try:
        with log.open("rb") as file:
            text = plain_text(file.read(_MOST_LOG).decode("utf-8", "replace"))
    except OSError:
        return None
    found = (ready or LOGIN).search(text)
    if found is None:
        return None
    begin = text.rfind("\n", 0, found.start()) + 1
    end = text.find("\n", found.end())
    line = " ".join(text[begin : end if end >= 0 else None].split())[:200]
    return Evidence("serial", f"its serial line said {line!r}")


def executing(registers: str) -> Stage | None:
    """The stage that the processors are in, by `info registers -a`; None when it tells nothing."""
    stages = [_of_one(part) for part in re.split(r"^CPU#\d+\s*$", registers, flags=re.MULTILINE)]
    known = [stage for stage in stages if stage is not None]
    return max(known, key=STAGES.index, default=None)


def _of_one(text: str) -> Stage | None:
    numbers: dict[str, str] = dict(re.findall(r"\b(RIP|EIP|RFL|EFL|CR0|CPL)\s*=\s*([0-9a-f]+)", text))
    segment = re.search(r"^CS\s*=\s*[0-9a-f]+ ([0-9a-f]+)", text, re.MULTILINE)
    at = numbers.get("RIP", numbers.get("EIP"))
    if at is None or "CR0" not in numbers:
        return None
    long, address, control = "RIP" in numbers, int(at, 16), int(numbers["CR0"], 16)
    flags = int(numbers.get("RFL", numbers.get("EFL", "0")), 16)
    if control & _PAGING:
        if numbers.get("CPL") == "3" and not flags & _VM86:
            return "services"
        return "kernel" if address >= (_UPPER_64 if long else _UPPER_32) else "firmware"
    base = int(segment[1], 16) if segment is not None else 0
    linear = (base + address) & 0xFFFFFFFF
    if linear < _FIRMWARE_AT:
        return "loader"
    return "firmware" if linear < _FIRMWARE_END or linear >= _UPPER_32 else None


class Furthest:
    """The furthest stage that was seen."""

    def __init__(self) -> None:
        self.stage: Stage = "firmware"

    def saw(self, stage: str | None) -> None:
        """A stage, or nothing known."""
        for known in STAGES:
            if known == stage and STAGES.index(known) > STAGES.index(self.stage):
                self.stage = known
