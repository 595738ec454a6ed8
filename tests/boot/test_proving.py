"""What proves that a guest runs, and how far one came."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudmount.boot.proving import STAGES, Furthest, Stage, executing, serial_evidence
from cloudmount.boot.readiness import SerialLine, pattern

SHORT = (
    "EAX=00000000 EBX=00000000 ECX=00000000 EDX=00000663\n"
    "ESI=00000000 EDI=00000000 EBP=00000000 ESP=00000000\n"
    "EIP={ip} EFL={flags} [-------] CPL={cpl} II=0 A20=1 SMM=0 HLT=0\n"
    "ES =0000 00000000 0000ffff 00009300\nCS ={cs} 0000ffff 00009b00\n"
    "CR0={cr0} CR2=00000000 CR3=00000000 CR4=00000000\nEFER=0000000000000000\n"
)
LONG = (
    "RAX=0000000000000000 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000000\n"
    "RIP={ip} RFL=00000246 [---Z-P-] CPL={cpl} II=0 A20=1 SMM=0 HLT=1\n"
    "CS ={cs} ffffffff 00a09b00 DPL=0 CS64 [-RA]\n"
    "CR0=80050033 CR2=0000000000000000 CR3=0000000000000000 CR4=00000000000006f0\nEFER=0000000000000d01\n"
)


def short(ip: int, cs: str = "0000 00000000", cr0: int = 0x10, cpl: int = 0, flags: int = 2) -> str:
    """A processor that is not in long mode."""
    return SHORT.format(ip=f"{ip:08x}", cs=cs, cr0=f"{cr0:08x}", cpl=cpl, flags=f"{flags:08x}")


def long(ip: int, cpl: int = 0, cs: str = "0010 0000000000000000") -> str:
    """One that is."""
    return LONG.format(ip=f"{ip:016x}", cpl=cpl, cs=cs)


@pytest.mark.parametrize(
    ("registers", "stage"),
    [
        (short(0xFFF0, "f000 ffff0000"), "firmware"),  # after a reset
        (short(0x1234, "f000 000f0000"), "firmware"),  # SeaBIOS
        (short(0xE1234, "0008 00000000", 0x11), "firmware"),  # SeaBIOS in protected mode
        (short(0x7C16), "loader"),
        (short(0x9ABC, "0008 00000000", 0x11), "loader"),  # GRUB
        (short(0x7FB1234, "0008 00000000", 0x11), None),  # SeaBIOS at the end of memory, or a loader
        (short(0xC0100000, "0060 00000000", 0x80050033), "kernel"),  # Linux of 32 bits
        (short(0x8048000, "0073 00000000", 0x80050033, 3), "services"),
        (short(0x100, "1000 00010000", 0x80050033, 3, 1 << 17 | 2), "firmware"),  # virtual 8086 mode
        (long(0x7E5F1234), "firmware"),  # OVMF, or what it loaded
        (long(0xFFFFFFFF81000000), "kernel"),
        (long(0xFFFFF80312345678), "kernel"),  # Windows
        (long(0x7F1234567890, 3, "0033 0000000000000000"), "services"),
        ("", None),
        ("unknown command: 'info registers'", None),
    ],
)
def test_a_processor_tells_the_stage(registers: str, stage: Stage | None) -> None:
    assert executing(registers) == stage


def test_the_furthest_processor_counts() -> None:
    one, two = long(0x7F1234567890, 3), long(0xFFFFFFFF81000000)
    assert executing(f"\nCPU#0\n{two}\nCPU#1\n{one}\n") == "services"
    assert executing(f"\nCPU#0\n{two}\nCPU#1\n{short(0x7C00)}\n") == "kernel"


def test_the_furthest_stage_stays() -> None:
    furthest = Furthest()
    for seen, stage in (
        (None, "firmware"), ("kernel", "kernel"), ("loader", "kernel"), ("odd", "kernel"), ("ready", "ready"),
    ):  # fmt: skip
        furthest.saw(seen)
        assert furthest.stage == stage
    assert STAGES[-1] == "ready"


def test_words_are_evidence_and_silence_is_none(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    assert serial_evidence(log, None) is None
    log.write_bytes(b"GRUB loading\r\n[    0.000000] Linux version 6.1\r\n\x1b[1mshop\x1b[0m login: ")
    found = serial_evidence(log, None)
    assert found is not None and (found.kind, found.what) == ("serial", "its serial line said 'shop login:'")
    assert serial_evidence(log, pattern("^up$")) is None
    found = serial_evidence(log, pattern("Linux version"))
    assert found is not None and "Linux version 6.1" in found.what
    line = SerialLine(log, whole=True)
    line.read()
    assert line.ready and line.stage(0) == "kernel"
    log.write_bytes(b"\xff\0 nothing \x1b[")
    assert serial_evidence(log, None) is None
