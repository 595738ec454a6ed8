"""Disks come back as they were, whatever their container; and only what changed is read and stored."""

from __future__ import annotations

import os
import random
import subprocess
import uuid
from pathlib import Path

import pytest

from cloudmount.backup import run
from cloudmount.blobs.memory import MemoryStore
from cloudmount.errors import UnreadableInputError
from cloudmount.repo import streamwriter
from cloudmount.repo.streams import StreamMap
from cloudmount.repo.streamwriter import PreviousSegment
from cloudmount.repo.trust import Trust
from tests.backup.lab import FRAME, PACK, PAGE, SEGMENT, Lab, disk_maps, frames_of, objects
from tests.disks.disk_model import Model
from tests.disks.vhdx_writer import FULL, PARTIAL, ZERO, VhdxFile

MIB = 1 << 20


def _image(path: Path, size: int, data: dict[int, bytes]) -> Path:
    """A sparse raw image."""
    with path.open("wb") as f:
        f.truncate(size)
        for at, content in data.items():
            f.seek(at)
            f.write(content)
    return path


def _disk(lab: Lab, result: run.BackupResult, path: str = "disk") -> bytes:
    return lab.read(result).disks[path]


@pytest.mark.parametrize(
    "size",
    [
        512,
        FRAME - 512,
        FRAME,
        FRAME + 512,
        2 * MIB,
        2 * MIB + 512,
        SEGMENT * 3 + 1536,
        PAGE,
        PAGE + 512,
        70 * MIB,
    ],
)
def test_sizes(tmp_path: Path, size: int) -> None:
    rng = random.Random(size)
    data = {at: rng.randbytes(min(9000, size - at)) for at in range(0, size, 5 * MIB + 512)}
    data[size - 512] = rng.randbytes(512)
    image = _image(tmp_path / "disk.img", size, data)
    lab = Lab(tmp_path)
    result = lab.backup(image)
    assert _disk(lab, result) == image.read_bytes()
    summary = result.summary["disks"][0]
    assert (summary["name"], summary["size"], summary["source_format"]) == ("disk", size, "raw")
    assert summary["logical_sector"] == 512
    again = lab.backup(image)
    assert again.progress.read_bytes == again.progress.new_frames == 0
    assert _disk(lab, again) == image.read_bytes()
    lab.clean()


def test_all_zero(tmp_path: Path) -> None:
    """Neither holes nor zeros written out are stored."""
    holes = _image(tmp_path / "holes.img", 100 * MIB, {})
    zeros = _image(tmp_path / "zeros.img", 4 * MIB, {0: bytes(4 * MIB)})
    lab = Lab(tmp_path)
    result = lab.backup(holes, zeros)
    assert result.progress.new_frames == result.progress.frames == 0
    assert result.progress.read_bytes == 4 * MIB
    assert _disk(lab, result, "holes") == bytes(100 * MIB)
    assert _disk(lab, result, "zeros") == bytes(4 * MIB)
    assert not [*lab.store.list("packs/")]
    contents = {d["content"] for d in result.summary["disks"]}
    assert len(contents) == 2  # sizes count
    assert lab.backup(holes, zeros).progress.read_bytes == 0
    lab.clean()


def test_presence_of_blocks(tmp_path: Path) -> None:
    data = {3 * MIB: b"a", 40 * MIB: b"b" * 5 * MIB, 99 * MIB: b"c"}
    image = _image(tmp_path / "disk.img", 100 * MIB, data)
    lab = Lab(tmp_path)
    result = lab.backup(image)
    (stream,) = disk_maps(lab.repository, lab.snapshot(result.key)).values()
    presence = stream.presence()
    assert [i for i in range(50) if presence[i // 8] >> i % 8 & 1] == [1, 20, 21, 22, 49]
    assert [p.blocks for p in stream.root.pages] == [1, 3, 0, 1]
    assert [p.large_blocks for p in stream.root.pages] == [1, 1, 0, 1]
    assert stream.root.sealed == sum(s.at.length for s in stream.present())


@pytest.mark.parametrize("form", ["vhdx", "vpc"])
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_containers(tmp_path: Path, form: str, subformat: str) -> None:
    rng = random.Random(9)
    raw = _image(tmp_path / "source", 24 * MIB, {0: rng.randbytes(MIB), 9 * MIB: rng.randbytes(3 * MIB)})
    ending = {"vhdx": "vhdx", "vpc": "vhd"}[form]
    image = tmp_path / f"vm.{ending}"
    options = f"subformat={subformat}" + (",force_size=on" if form == "vpc" else "")
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", form, "-o", options, raw, image], check=True, timeout=60
    )
    lab = Lab(tmp_path)
    result = lab.backup(image)
    assert _disk(lab, result, "vm") == raw.read_bytes()
    (summary,) = result.summary["disks"]
    assert summary["source_format"] == ending
    assert uuid.UUID(summary["disk_id"])
    if subformat == "dynamic":
        assert result.progress.read_bytes < 20 * MIB  # what is unallocated is not read
    # The content of a container is that of the disk: nothing new is stored for a raw copy of it.
    copy = tmp_path / "copy.img"
    copy.write_bytes(raw.read_bytes())
    again = lab.backup(image, copy)
    assert again.progress.new_frames == 0
    by_name = {d["name"]: d for d in again.summary["disks"]}
    assert by_name["copy"]["content"] == by_name["vm"]["content"] == summary["content"]
    lab.clean()


def _chain(folder: Path, seed: int) -> Model:
    """base.vhdx and its child vm.avhdx in `folder`; what the child reads as."""
    rng = random.Random(seed)
    base = VhdxFile(Model(20 * MIB))
    for block, state in ((0, FULL), (3, FULL), (7, ZERO), (19, FULL)):
        base.fill(block, rng, state)
    base.write(folder / "base.vhdx")
    child = base.child(".\\base.vhdx")
    for block, state in ((0, PARTIAL), (3, ZERO), (5, FULL)):
        child.fill(block, rng, state)
    child.write(folder / "vm.avhdx")
    return child.model


def test_a_chain_is_kept_flattened(tmp_path: Path) -> None:
    """Its parent, met beside it, is no disk of its own, unless it was named itself."""
    folder = tmp_path / "vms"
    folder.mkdir()
    model = _chain(folder, 3)
    lab = Lab(tmp_path)
    result = lab.backup(folder)
    stored = lab.read(result)
    assert stored.disks == {"vms/vm": model.read(0, model.size)}
    assert set(stored.entries) == {"vms"}
    (summary,) = result.summary["disks"]
    assert (summary["source_format"], summary["original"], len(summary["sources"])) == ("vhdx", "vm.avhdx", 2)
    assert lab.backup(folder).progress.read_bytes == 0
    os.utime(folder / "base.vhdx")  # any file of the chain counts
    again = lab.backup(folder, folder / "base.vhdx")
    assert again.progress.read_bytes > 0
    assert set(lab.read(again).disks) == {"vms/vm", "base"}
    lab.clean()


def test_a_broken_chain_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "vms"
    folder.mkdir()
    _chain(folder, 3)
    (folder / "base.vhdx").unlink()
    (folder / "note").write_bytes(b"kept")
    lab = Lab(tmp_path)
    result = lab.backup(folder)
    assert result.incomplete
    assert "vm.avhdx" in result.summary["problems"][0]["path"]
    stored = lab.read(result)
    assert not stored.disks
    assert stored.contents == {"vms/note": b"kept"}
    with pytest.raises(UnreadableInputError, match="base"):
        lab.backup(folder / "vm.avhdx")
    as_file = lab.backup(folder, as_file=["*.avhdx"])
    assert lab.read(as_file).contents["vms/vm.avhdx"] == (folder / "vm.avhdx").read_bytes()


def test_an_empty_image_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty.img").write_bytes(b"")
    (tmp_path / "odd.img").write_bytes(b"x" * 513)
    lab = Lab(tmp_path)
    stored = lab.read(lab.backup(tmp_path / "empty.img", tmp_path / "odd.img"))
    assert stored.contents == {"empty.img": b"", "odd.img": b"x" * 513}
    lab.clean()


def test_only_what_changed_is_stored(tmp_path: Path) -> None:
    rng = random.Random(4)
    content = bytearray(rng.randbytes(20 * MIB))
    image = tmp_path / "disk.img"
    image.write_bytes(content)
    lab = Lab(tmp_path)
    first = lab.backup(image)
    assert first.progress.new_frames == 20 * MIB // FRAME
    changed = {5, 600, 601, 4000}
    for frame in changed:
        content[frame * FRAME + 17] ^= 255
    with image.open("r+b") as f:
        for frame in changed:
            f.seek(frame * FRAME + 17)
            f.write(content[frame * FRAME + 17 : frame * FRAME + 18])
    for journal in (True, False):  # also on a machine that knows nothing yet
        result = lab.backup(image, journal=journal)
        assert result.progress.new_frames == (len(changed) if journal else 0)
        assert _disk(lab, result) == content
    assert result.progress.stored_bytes < 100_000
    lab.clean()


@pytest.mark.parametrize("journal", [True, False])
def test_what_a_disk_holds_again_at_any_distance_is_stored_once(tmp_path: Path, journal: bool) -> None:
    """Frames go out of memory while others, that were looked up before, wait to be placed."""
    rng = random.Random(6)
    frames = [rng.randbytes(FRAME) for _ in range(3000)]
    places = [*range(3000), *(rng.randrange(3000) for _ in range(3000)), *range(2900, 3000)]
    places += [max(0, n - rng.choice((1, 2, 15, 17, 80, 500, 600))) for n in range(3000)]
    (tmp_path / "disk.img").write_bytes(b"".join(frames[n] for n in places))
    lab = Lab(tmp_path)
    result = lab.backup(tmp_path / "disk.img", journal=journal)
    assert (result.progress.new_frames, result.progress.frames) == (3000, len(places))
    lab.clean()


def test_what_is_all_zeros_now_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that was full, wiped with zeros that are read as data: its old map isn't loaded or kept."""
    image = tmp_path / "disk.img"
    image.write_bytes(random.Random(8).randbytes(20 * MIB))
    lab = Lab(tmp_path)
    lab.backup(image)
    image.write_bytes(bytes(19 * MIB) + b"x" * MIB)
    loaded: list[int] = []

    class Counted(PreviousSegment):
        def __init__(self, stream: StreamMap, number: int, trust: Trust) -> None:
            loaded.append(number)
            super().__init__(stream, number, trust)

    monkeypatch.setattr(streamwriter, "PreviousSegment", Counted)
    result = lab.backup(image)
    assert loaded == [9]
    assert _disk(lab, result) == image.read_bytes()


def test_touched_only(tmp_path: Path) -> None:
    """Read again, because its time is new; nothing is stored but the snapshot."""
    image = tmp_path / "disk.img"
    image.write_bytes(random.Random(4).randbytes(6 * MIB))
    lab = Lab(tmp_path)
    assert isinstance(lab.store, MemoryStore)
    lab.backup(image)
    before = len(objects(lab.store, ""))
    os.utime(image)
    result = lab.backup(image)
    assert result.progress.read_bytes == 6 * MIB
    assert result.progress.new_frames == 0
    assert len(objects(lab.store, "")) == before + 1
    assert lab.backup(image, force_read=True).progress.read_bytes == 6 * MIB


def test_segments_are_shared(tmp_path: Path) -> None:
    """A change in one segment rewrites that segment's map; the others are the same items as before."""
    content = bytearray(random.Random(4).randbytes(10 * MIB))
    image = tmp_path / "disk.img"
    image.write_bytes(content)
    lab = Lab(tmp_path)
    maps: list[StreamMap] = []
    for n in range(2):
        content[5 * MIB] = n
        image.write_bytes(content)
        result = lab.backup(image)
        maps += disk_maps(lab.repository, lab.snapshot(result.key)).values()
    old, new = ([m.segment_ref(s) for s in range(5)] for m in maps)
    assert [a == b for a, b in zip(old, new, strict=True)] == [True, True, False, True, True]


def test_frames_that_any_machine_brought(tmp_path: Path) -> None:
    """Another machine, another disk, another place in it, or a file: what is stored is not stored again."""
    content = random.Random(4).randbytes(6 * MIB)
    image = tmp_path / "a.img"
    image.write_bytes(content)
    lab = Lab(tmp_path)
    lab.backup(image)
    moved = tmp_path / "b.img"
    moved.write_bytes(bytes(3 * MIB) + content + bytes(MIB))
    plain = tmp_path / "file.bin"
    plain.write_bytes(content[4 * MIB :] + content[: 4 * MIB])
    result = lab.backup(moved, plain, machine="other", journal=False)
    assert result.progress.new_frames == 0
    stored = lab.read(result)
    assert stored.disks["b"] == moved.read_bytes()
    assert stored.contents["file.bin"] == plain.read_bytes()
    lab.clean()


def test_the_same_frame_many_times(tmp_path: Path) -> None:
    """Within one backup too, also while its pack is on its way."""
    frame = random.Random(1).randbytes(FRAME)
    image = tmp_path / "disk.img"
    image.write_bytes(frame * 5000)
    lab = Lab(tmp_path)
    result = lab.backup(image)
    assert result.progress.new_frames == 1
    assert result.progress.frames == 5000
    assert _disk(lab, result) == image.read_bytes()


def test_a_disk_that_grows_and_shrinks(tmp_path: Path) -> None:
    content = random.Random(6).randbytes(9 * MIB)
    image = tmp_path / "disk.img"
    lab = Lab(tmp_path)
    for size in (5 * MIB + 512, 9 * MIB, 3 * MIB, 3 * MIB + 1024, 9 * MIB):
        image.write_bytes(content[:size])
        assert _disk(lab, lab.backup(image)) == content[:size]
    image.write_bytes(content + bytes(PAGE))
    assert _disk(lab, lab.backup(image)) == content + bytes(PAGE)
    lab.clean()


def test_a_disk_of_the_same_name_that_is_another(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    ids = set()
    for seed, size in ((1, 3 * MIB), (2, 5 * MIB)):
        image = tmp_path / "disk.img"
        image.write_bytes(random.Random(seed).randbytes(size))
        result = lab.backup(image)
        assert _disk(lab, result) == image.read_bytes()
        ids.add(result.summary["disks"][0]["disk_id"])
    assert len(ids) == 1  # a raw disk's identity is its path and name


def test_many_pages_with_gaps(tmp_path: Path) -> None:
    """Pages in map objects, some of them empty; unchanged ones are taken over."""
    data = {0: b"first", 5 * PAGE - FRAME: b"x" * 2 * FRAME, 12 * PAGE + 7 * SEGMENT: b"last"}
    image = _image(tmp_path / "disk.img", 13 * PAGE, data)
    lab = Lab(tmp_path)
    result = lab.backup(image)
    (stream,) = disk_maps(lab.repository, lab.snapshot(result.key)).values()
    assert [p.page is not None for p in stream.root.pages] == [n in (0, 4, 5, 12) for n in range(13)]
    frames = frames_of(lab.repository, stream)
    assert sorted(frames) == [0, 5 * PAGE // FRAME - 1, 5 * PAGE // FRAME, (12 * PAGE + 7 * SEGMENT) // FRAME]
    assert lab.backup(image).progress.read_bytes == 0
    with image.open("r+b") as f:
        f.seek(7 * PAGE)
        f.write(b"new")
    third = lab.backup(image)
    assert third.progress.new_frames == 1
    (stream,) = disk_maps(lab.repository, lab.snapshot(third.key)).values()
    assert sorted(frames_of(lab.repository, stream)) == sorted([*frames, 7 * PAGE // FRAME])
    lab.clean()


def test_several_disks_and_their_sections(tmp_path: Path) -> None:
    paths = []
    for n in range(1, 6):
        size = (PAGE + MIB) if n == 2 else n * MIB
        paths.append(_image(tmp_path / f"d{n}.img", size, {0: bytes([n]) * 5000} if n != 4 else {}))
    lab = Lab(tmp_path)
    result = lab.backup(*reversed(paths))
    stored = lab.read(result)
    assert stored.disks == {p.stem: p.read_bytes() for p in paths}
    assert [d["name"] for d in result.summary["disks"]] == [f"d{n}" for n in range(1, 6)]
    lab.clean()


def test_gathering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that lies in too many packs (here 40) is gathered into fewer, and reads the same."""
    monkeypatch.setattr(streamwriter, "MAX_SEGMENT_BIRTHS", 40)
    monkeypatch.setattr(streamwriter, "GATHER_TO", 34)
    content = bytearray(random.Random(8).randbytes(SEGMENT))
    image = tmp_path / "disk.img"
    image.write_bytes(content)
    lab = Lab(tmp_path)
    rng = random.Random(9)
    packs, new = [], []
    for _ in range(30):
        for frame in rng.sample(range(SEGMENT // FRAME), 4):
            content[frame * FRAME : frame * FRAME + 8] = rng.randbytes(8)
        image.write_bytes(content)
        result = lab.backup(image)
        (stream,) = disk_maps(lab.repository, lab.snapshot(result.key)).values()
        segment = stream.segment(0)
        assert segment is not None
        packs.append(len(segment.births))
        new.append(result.progress.new_frames)
    assert packs[0] in (SEGMENT // PACK, SEGMENT // PACK + 1)
    gathered = [n for n in range(1, 30) if new[n] > 4]
    assert len(gathered) >= 2
    assert max(packs) <= 42
    assert all(packs[n] < packs[n - 1] for n in gathered if n > 1)
    assert all(new[n] < 100 for n in gathered)
    assert _disk(lab, result) == content
    lab.clean()


def test_the_source_is_never_written(tmp_path: Path) -> None:
    raw = _image(tmp_path / "raw", 8 * MIB, {MIB: b"x" * MIB})
    image = tmp_path / "vm.vhdx"
    subprocess.run(["qemu-img", "convert", "-O", "vhdx", raw, image], check=True, timeout=60)
    image.chmod(0o444)
    before = (image.read_bytes(), image.stat().st_mtime_ns, image.stat().st_ctime_ns)
    lab = Lab(tmp_path)
    lab.backup(image)
    assert (image.read_bytes(), image.stat().st_mtime_ns, image.stat().st_ctime_ns) == before
