"""Every field of VHDX and VHD broken in turn: the right content, or one clear error."""

from __future__ import annotations

import random
import re
import resource
from pathlib import Path
from uuid import UUID

import pytest

from cloudmount.disks.detect import open_disk
from cloudmount.errors import UnreadableInputError
from tests.disks.damage import Field, outcome, vhd_fields, vhdx_fields
from tests.disks.disk_model import Model
from tests.disks.vhd_writer import DIFFERENCING, DYNAMIC, FIXED, VhdFile
from tests.disks.vhdx_writer import FULL, MIB, PARTIAL, UNMAPPED, ZERO, Log, VhdxFile, patch, reseal

GUID = UUID("11111111-2222-3333-4444-555555555555")


def vhdx(folder: Path, kind: str) -> tuple[Path, Model, list[Field]]:
    """A small VHDX, what it reads as and its fields; "parent": those of the parent, below its child."""
    rng = random.Random(kind)
    base = VhdxFile(Model(4 * MIB + 512), order=rng)
    for block in range(5):
        base.fill(block, rng, (FULL, ZERO, FULL, UNMAPPED, FULL)[block])
    if kind == "log":
        base.log_guid = GUID
        path = base.write(folder / "a.vhdx")
        log, entries = Log(GUID), []
        with path.open("rb") as f:
            for at in (base.layout.metadata, base.layout.bat):
                f.seek(at)
                entries.append(log.entry([(at, f.read(4096))]))
        for at in (base.layout.metadata, base.layout.bat):
            patch(path, at, b"\xa5" * 4096)
        log.put(path, base.log_offset)
        fields = [f for f in vhdx_fields(base, log, tuple(entries)) if f.name.startswith("log")]
        return path, base.model, fields
    path = base.write(folder / "a.vhdx")
    if kind == "plain":
        return path, base.model, vhdx_fields(base)
    child = base.child("a.vhdx", order=rng)
    for block, state in ((0, PARTIAL), (1, PARTIAL), (2, FULL), (3, ZERO)):
        child.fill(block, rng, state)
    child_path = child.write(folder / "b.avhdx")
    return child_path, child.model, vhdx_fields(child if kind == "child" else base)


def vhd(folder: Path, kind: int) -> tuple[Path, Model, list[Field]]:
    """A small VHD, what it reads as and its fields."""
    rng = random.Random(kind)
    base = VhdFile(Model(9 * MIB + 512), FIXED if kind == FIXED else DYNAMIC, order=rng)
    for block in (0, 2, 3, 4):
        base.fill(block, rng, whole=block != 2)
    path = base.write(folder / "a.vhd")
    if kind != DIFFERENCING:
        return path, base.model, vhd_fields(base)
    child = base.child("a.vhd", order=rng)
    for block in (0, 1, 3):
        child.fill(block, rng, whole=block == 3)
    return child.write(folder / "b.avhd"), child.model, vhd_fields(child)


@pytest.mark.parametrize("kind", ["plain", "child", "parent", "log"])
def test_every_vhdx_field(tmp_path: Path, kind: str) -> None:
    path, model, fields = vhdx(tmp_path, kind)
    target = tmp_path / "a.vhdx" if kind == "parent" else path
    rng = random.Random(kind)
    texts: dict[str, set[str]] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for field in fields:
        found = texts[field.name] = set()
        for value in field.values(target, rng):
            with field.put(target, value):
                found.add(outcome(path, model, checked=field.checked))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    assert outcome(path, model, checked=True) == "right"
    for text in {t for found in texts.values() for t in found} - {"right", "other"}:
        assert re.match(rf"{re.escape(str(tmp_path))}/\S+: ", text), text
    for name in ("header version", "region 1 length", "metadata table signature", "log entry at 0 signature"):
        assert name not in texts or "right" not in texts[name]


@pytest.mark.parametrize("kind", [FIXED, DYNAMIC, DIFFERENCING])
def test_every_vhd_field(tmp_path: Path, kind: int) -> None:
    path, model, fields = vhd(tmp_path, kind)
    rng = random.Random(kind)
    for field in fields:
        for value in field.values(path, rng):
            with field.put(path, value):
                outcome(path, model, checked=field.checked)
    assert outcome(path, model, checked=True) == "right"


def broken_vhdx(folder: Path, where: str, offset: int, value: bytes, kind: str = "plain") -> str:
    """The error of a VHDX with these bytes in both copies of a structure, checksums right."""
    path, _, _ = vhdx(folder, kind)
    lay = VhdxFile(Model(MIB)).layout
    places = {
        "header": (lay.headers, 4096),
        "region": (lay.region_tables, 65536),
        "metadata": ((2 * MIB,), 0),
    }
    bases, length = places[where]
    for base in bases:
        patch(path, base + offset, value)
        if length:
            reseal(path, base, length)
    with pytest.raises(UnreadableInputError) as caught:
        open_disk(path)
    return str(caught.value)


def u32(value: int) -> bytes:
    """Little-endian."""
    return value.to_bytes(4, "little")


ITEM = 32 + 8  # an entry's fields after its id: offset 16, length 20, flags 24


@pytest.mark.parametrize(
    ("where", "offset", "value", "why"),
    [
        ("header", 0, b"HEAD", "headers: neither has its signature"),
        ("header", 66, b"\2\0", "header version: 2, not 1"),
        ("header", 68, u32(12345), "header log: .*whole MiB"),
        ("header", 68, u32(1 << 31), "header log length: .*more than 1 GiB"),
        ("header", 72, (1 << 50).to_bytes(8, "little"), "header log: .*beyond the file"),
        ("header", 72, bytes(8), "header log offset: 0 is inside the header section"),
        ("header", 72, (2 * MIB).to_bytes(8, "little"), "metadata region: overlaps the log|log: overlaps"),
        ("header", 48, b"\1" * 16, "log: .*no valid sequence"),
        ("region", 8, u32(2048), "region table entry count: 2048, more than 2047"),
        ("region", 8, u32(1), "metadata region: missing"),
        ("region", 16, b"\7" * 16, "region 07070707.*required, but not known"),
        ("region", 16 + 24, u32(3 << 30), "BAT region: .*beyond the file"),
        ("region", 16 + 24, u32(0), "BAT region: 0 bytes"),
        ("region", 16 + 16, (2 * MIB).to_bytes(8, "little"), "region: overlaps the (BAT|metadata) region"),
        ("region", 16 + 28, u32(3), "reserved flags"),
        ("metadata", 0, b"METADATA", 'signature is not "metadata"'),
        ("metadata", 10, b"\xff\xff", "metadata entry count: 65535, more than 2047"),
        ("metadata", 32, b"\7" * 16, "item 07070707.*required, but not known"),
        ("metadata", 32 + 20, u32(7), "file parameters: 7 bytes, not 8"),
        ("metadata", 32 + 16, u32(1 << 30), "file parameters: .*outside"),
        ("metadata", 32 + 24, u32(2), "file parameters: its IsVirtualDisk flag"),
        ("metadata", 64 + 16, u32(65536 + 4), "overlaps the"),
        ("metadata", 65536, u32(3 * MIB), "block size: 3145728 is not a power of two"),
        ("metadata", 65536, u32(1 << 31), "block size: "),
        ("metadata", 65536 + 4, u32(2), "parent locator: missing"),
        ("metadata", 65536 + 8, bytes(8), "virtual disk size: 0 is not 1 to 64 TiB"),
        ("metadata", 65536 + 8, ((64 << 40) + 512).to_bytes(8, "little"), "virtual disk size"),
        ("metadata", 65536 + 8, (64 << 40).to_bytes(8, "little"), "BAT region: .*too few"),
        ("metadata", 65536 + 8, (5 * MIB + 1).to_bytes(8, "little"), "whole sectors"),
        ("metadata", 65536 + 32, u32(520), "logical sector size: 520 is neither"),
    ],
)
def test_vhdx_errors_say_what(tmp_path: Path, where: str, offset: int, value: bytes, why: str) -> None:
    text = broken_vhdx(tmp_path, where, offset, value)
    assert text.startswith(f"{tmp_path / 'a.vhdx'}: broken VHDX: ")
    assert re.search(why, text), text


@pytest.mark.parametrize("length", [0, 7, 8, 511, 512, 65536, 200_000, MIB - 1, MIB, 2 * MIB + 100, 3 * MIB])
def test_vhdx_cut_short(tmp_path: Path, length: int) -> None:
    path, _, _ = vhdx(tmp_path, "plain")
    with path.open("r+b") as f:
        f.truncate(length)
    with pytest.raises(UnreadableInputError, match="not a disk" if length < 8 else "broken VHDX"):
        open_disk(path)


def test_blocks_that_share_bytes(tmp_path: Path) -> None:
    rng = random.Random(1)
    file = VhdxFile(Model(12 * MIB), block=2 * MIB)
    for block in range(6):
        file.fill(block, rng, FULL)
    path = file.write(tmp_path / "a.vhdx")
    whole = path.read_bytes()
    for at, why in (
        (file.layout.payload[3], "another's as well"),
        (file.layout.payload[3] + MIB, "another's as well"),
        (file.layout.bat, "inside the BAT region"),
        (file.layout.bat - MIB, "inside the BAT region"),
        (MIB, "inside the metadata region|inside the log"),
        (0, "inside the (header section|log)"),
        (file.layout.end - MIB, "beyond the file"),
        (1 << 50, "beyond the file"),
    ):
        patch(path, file.layout.bat, (at | FULL).to_bytes(8, "little"))
        with pytest.raises(UnreadableInputError, match=why):
            open_disk(path)
        path.write_bytes(whole)
    for entry, why in ((4, "unknown state 4"), (5, "unknown state 5"), (0x10 | FULL, "reserved bits")):
        patch(path, file.layout.bat, entry.to_bytes(8, "little"))
        with pytest.raises(UnreadableInputError, match=why):
            open_disk(path)


def test_a_wrong_checksum_alone(tmp_path: Path) -> None:
    """One bad copy is repaired by the other, two are one error."""
    path, model, _ = vhdx(tmp_path, "plain")
    patch(path, 64 * 1024 + 100, b"x")
    patch(path, 192 * 1024 + 5000, b"x")
    assert outcome(path, model, checked=True) == "right"
    patch(path, 256 * 1024 + 5000, b"x")
    assert "region tables: neither has" in outcome(path, model, checked=True)
    patch(path, 128 * 1024 + 100, b"x")
    assert "headers: neither has" in outcome(path, model, checked=True)
