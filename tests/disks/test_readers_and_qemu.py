"""Images made by qemu-img, read by our readers, by qemu-img and by libvhdi: one content."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from cloudmount.disks.detect import open_disk
from tests.disks.disk_model import PIECE, Model, check_reads
from tests.disks.oracles import Libvhdi, qemu_sha256, run, sha256
from tests.disks.vhdx_writer import FULL, PARTIAL, UNMAPPED, ZERO, VhdxFile

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES = {
    "1 sector": 512,
    "an odd number of sectors": 3 * MIB + 7 * 512,
    "whole MiB": 40 * MIB,
    "a bit more than a block": 32 * MIB + 512,
}
FORMATS = [
    ("vpc", ""),
    ("vpc", "subformat=fixed"),
    ("vpc", "force_size=on"),
    ("vpc", "subformat=fixed,force_size=on"),
    ("vhdx", ""),
    ("vhdx", "subformat=fixed"),
    ("vhdx", "block_state_zero=off"),
    ("vhdx", "log_size=32M"),
    *(("vhdx", f"block_size={mib}M") for mib in (1, 2, 4, 8, 16, 32, 64, 128, 256)),
]


def source(folder: Path, size: int, rng: random.Random, runs: int) -> tuple[Path, Model]:
    """A raw file with some data and what it holds."""
    model = Model(size)
    model.scribble(rng, 0, size, runs)
    model.write(size - 512, rng.randbytes(512))
    path = folder / "source.raw"
    with path.open("wb") as f:
        f.truncate(size)
        for number, data in model.pieces.items():
            f.seek(number * PIECE)
            f.write(data[: size - number * PIECE])
    return path, model


def converted(raw: Path, kind: str, options: str) -> Path:
    """The raw file as another format."""
    image = raw.with_suffix("." + kind)
    run("qemu-img", "convert", "-f", "raw", "-O", kind, *(["-o", options] if options else []), raw, image)
    return image


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_all_formats(tmp_path: Path, kind: str, options: str, size: int) -> None:
    rng = random.Random(f"{kind} {options} {size}")
    raw, model = source(tmp_path, size, rng, 12)
    image = converted(raw, kind, options)
    with open_disk(image) as disk:
        assert disk.identity.source_format == ("vhd" if kind == "vpc" else "vhdx")
        # QEMU rounds a VHD up to whole cylinders unless told to keep the size.
        longer = Model(disk.source.size, model.pieces)
        assert longer.size == size or (kind == "vpc" and "force_size" not in options and longer.size > size)
        check_reads(disk.source, longer, rng)
        digest = sha256(disk.source, disk.source.size)
        assert digest == qemu_sha256(image, kind)
        if "subformat=fixed" not in options or kind == "vpc":  # facts: libvhdi and LeaveBlocksAllocated
            vhdi = Libvhdi(image)
            assert vhdi.sha256() == digest or vhdi.size > disk.source.size
            vhdi.close()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vpc", ""),
        ("vpc", "force_size=on"),
        ("vhdx", ""),
        ("vhdx", "block_size=1M"),
        ("vhdx", "block_size=256M"),
    ],
)
def test_more_than_4_gib_with_little_data(tmp_path: Path, kind: str, options: str) -> None:
    """Beyond 4 GiB: with 512-byte sectors the BAT has its first sector bitmap entry there."""
    rng = random.Random(f"{kind} {options}")
    size = 9 * GIB + 512 * 5
    raw, model = source(tmp_path, size, rng, 12)
    image = converted(raw, kind, options)
    with open_disk(image) as disk:
        longer = Model(disk.source.size, model.pieces)
        check_reads(disk.source, longer, rng)
        allocated = sum(e.length for e in disk.source.extents(0, disk.source.size) if e.data)
        assert allocated < 10 * MIB, "holes within blocks are told too"
        vhdi = Libvhdi(image)
        for number in model.pieces:
            n = min(PIECE, size - number * PIECE)
            assert vhdi.read_at(number * PIECE, n) == model.read(number * PIECE, n)
            out = tmp_path / "piece"  # qemu-img counts what it skips
            where = ("bs=64k", f"count={number + 1}", f"skip={number}", f"if={image}", f"of={out}")
            run("qemu-img", "dd", "-f", kind, "-O", "raw", *where)
            assert out.read_bytes()[:n] == model.read(number * PIECE, n)
        vhdi.close()


def test_qemu_writes_into_an_image(tmp_path: Path) -> None:
    """Blocks allocated by writing here and there, in no order."""
    for kind in ("vpc", "vhdx"):
        rng = random.Random(kind)
        image = tmp_path / f"disk.{kind}"
        run("qemu-img", "create", "-q", "-f", kind, image, "200M")
        commands: list[str] = []
        for _ in range(30):
            at = rng.randrange(199 * MIB // 512) * 512
            commands += ["-c", f"write -P {rng.randrange(256)} {at} {rng.choice((512, 8192, 300 * KIB))}"]
        run("qemu-io", "-f", kind, *commands, image)
        with open_disk(image) as disk:
            assert sha256(disk.source, disk.source.size) == qemu_sha256(image, kind)


@pytest.mark.parametrize("seed", range(8))
def test_qemu_and_libvhdi_read_what_the_tests_write(tmp_path: Path, seed: int) -> None:
    """The test's own writer is held to the specification by two other readers."""
    rng = random.Random(seed)
    file = VhdxFile(Model(13 * MIB + 512), block=rng.choice((MIB, 2 * MIB)), order=rng)
    for block in range(file.blocks):
        file.fill(block, rng, rng.choice((ZERO, UNMAPPED, FULL, FULL)))
    path = file.write(tmp_path / "a.vhdx")
    digest = sha256_of(file.model)
    assert qemu_sha256(path, "vhdx") == digest
    vhdi = Libvhdi(path)
    assert vhdi.sha256() == digest
    vhdi.close()
    with open_disk(path) as disk:
        assert sha256(disk.source, disk.source.size) == digest


@pytest.mark.parametrize("seed", range(8))
def test_libvhdi_reads_our_chain(tmp_path: Path, seed: int) -> None:
    """A child with every kind of block but those that libvhdi gets wrong (ZERO; chunks without a bitmap)."""
    rng = random.Random(seed)
    base = VhdxFile(Model(9 * MIB), order=rng)
    for block in range(base.blocks):
        base.fill(block, rng, FULL)
    base.write(tmp_path / "base.vhdx")
    child = base.child("base.vhdx", order=rng)
    for block in range(child.blocks):
        if block == 4 or rng.random() < 0.7:
            child.fill(block, rng, PARTIAL)
    path = child.write(tmp_path / "child.vhdx")
    parent, leaf = Libvhdi(tmp_path / "base.vhdx"), Libvhdi(path)
    leaf.file.set_parent(parent.file)
    with open_disk(path) as disk:
        assert leaf.sha256() == sha256(disk.source, disk.source.size) == sha256_of(child.model)
    leaf.close()
    parent.close()


def sha256_of(model: Model) -> str:
    """Digest of a model."""
    return hashlib.sha256(model.read(0, model.size)).hexdigest()
