"""Overlays as QEMU's own tools write them."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.disks.qcow2 import Overlay
from cloudmount.errors import DamagedError, UnreadableInputError
from cloudmount.extents import Bytes
from tests.disks.oracles import run

pytestmark = pytest.mark.oracle

KIB = 1 << 10
SIZE = 1024 * KIB + 512


def made(folder: Path, *, cluster: int = 64, seed: int = 1) -> tuple[Path, bytes, bytes]:
    """An overlay, what lies below, and what both are together by QEMU."""
    rng = random.Random(seed)
    below, overlay = folder / "below.img", folder / "overlay.qcow2"
    below.write_bytes(rng.randbytes(SIZE))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}k", "-b", below, "-F", "raw",
        overlay)  # fmt: skip
    commands = []
    for _ in range(12):
        at = rng.randrange(SIZE // 512) * 512
        length = min(SIZE - at, rng.randrange(1, 400) * 512)
        kind = rng.choice([f"write -q -P {rng.randrange(256)}", "write -q -z", "discard -q"])
        commands += ["-c", f"{kind} {at} {length}"]
    run("qemu-io", "-f", "qcow2", *commands, overlay)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, folder / "both.img")
    return overlay, below.read_bytes(), (folder / "both.img").read_bytes()


@pytest.mark.parametrize("cluster", [4, 64])
def test_what_qemu_wrote_is_read(tmp_path: Path, cluster: int) -> None:
    path, below, both = made(tmp_path, cluster=cluster, seed=cluster)
    overlay = Overlay(path, Bytes(below))
    assert overlay.size == SIZE and both != below
    assert overlay.read_at(0, SIZE) == both
    rng = random.Random(2)
    for _ in range(200):
        at = rng.randrange(SIZE)
        length = rng.randrange(min(SIZE - at, 150_000) + 1)
        assert overlay.read_at(at, length) == both[at : at + length]
    assert sum(e.length for e in overlay.extents(5, 1000)) == 1000
    with pytest.raises(ValueError, match="outside"):
        overlay.read_at(SIZE - 1, 2)
    overlay.close()
    overlay.close()


def test_a_disk_below_that_is_shorter_reads_as_zeros(tmp_path: Path) -> None:
    path, below, _ = made(tmp_path)
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "x", "-F", "raw", path, str(SIZE))
    overlay = Overlay(path, Bytes(below[:1000]))
    assert overlay.read_at(0, 3000) == below[:1000] + bytes(2000)
    overlay.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, bytes]:
    folder = tmp_path_factory.mktemp("sound")
    path, below, _ = made(folder, cluster=4)
    return folder / "broken.qcow2", path.read_bytes(), below


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_broken_ones_are_errors_or_bytes(sound: tuple[Path, bytes, bytes], data: st.DataObject) -> None:
    path, whole, below = sound
    broken = bytearray(whole[: data.draw(st.sampled_from([len(whole), len(whole) // 2, 70, 0]))])
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, 111) | st.integers(0, max(0, len(broken) - 1)))
        if at < len(broken):
            broken[at] = data.draw(st.integers(0, 255))
    path.write_bytes(broken)
    try:
        overlay = Overlay(path, Bytes(below))
    except (UnreadableInputError, DamagedError):
        return
    try:
        assert len(overlay.read_at(0, min(overlay.size, SIZE))) == min(overlay.size, SIZE)
    except (UnreadableInputError, DamagedError):
        pass
    finally:
        overlay.close()


def test_what_no_overlay_has_is_refused(tmp_path: Path) -> None:
    path, below, _ = made(tmp_path)
    run("qemu-img", "convert", "-c", "-O", "qcow2", tmp_path / "both.img", tmp_path / "packed.qcow2")
    packed = Overlay(tmp_path / "packed.qcow2", Bytes(below))

    with pytest.raises(UnreadableInputError, match="compressed"):
        packed.read_at(0, SIZE)
    packed.close()
    with path.open("r+b") as file:
        file.seek(72)
        file.write(struct.pack(">Q", 4))  # an external data file
    with pytest.raises(UnreadableInputError, match="features"):
        Overlay(path, Bytes(below))
    with pytest.raises(UnreadableInputError, match="can't be read"):
        Overlay(tmp_path / "none", Bytes(below))
    (tmp_path / "raw").write_bytes(bytes(200))
    with pytest.raises(UnreadableInputError, match="no qcow2"):
        Overlay(tmp_path / "raw", Bytes(below))
