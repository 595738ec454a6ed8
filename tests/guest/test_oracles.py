"""Volumes made by others, read by us, byte for byte as ntfs-3g, mke2fs and mtools have it."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloudmount.errors import UnreadableInputError
from cloudmount.guest.children import Children
from tests.disks.oracles import run
from tests.guest.images import (
    ATTRIBUTES,
    COMPRESSED,
    MIB,
    comb,
    fill,
    fragment,
    in_pieces,
    make_ext,
    make_fat,
    make_ntfs,
    ntfs_mounted,
    sparse,
)
from tests.guest.seen import Seen, opened, ours, theirs


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.close()


def compare(found: dict[str, Seen], expected: dict[str, Seen]) -> None:
    assert found.keys() == expected.keys()
    wrong = {p: (found[p], expected[p]) for p in found if found[p] != expected[p]}
    assert not wrong, list(wrong.items())[:5]


@pytest.mark.parametrize(("sector", "cluster"), [(512, 4096), (512, 512), (4096, 4096), (512, 65536)])
def test_ntfs(tmp_path: Path, children: Children, sector: int, cluster: int) -> None:
    rng = random.Random(sector + cluster)
    image = make_ntfs(tmp_path / "n.img", 300 * MIB, sector=sector, cluster=cluster)
    with ntfs_mounted(image, tmp_path / "at") as at:
        fill(at, rng, files=1500 if cluster == 4096 else 200)
        fragment(at, rng)
        sparse(at / "sparse", 40 * MIB, (7 * MIB + 3, b"here" * 3000), (39 * MIB, b"end"))
        sparse(at / "hole", 5 * MIB)
        comb(at / "comb", cluster, 3000 if cluster < 65536 else 300)
        os.link(at / "large.bin", at / "empty" / "the same.bin")
        os.utime(at / "large.bin", ns=(1, 1_234_567_890_123_456_700))
        os.utime(at / "odd", ns=(1, -1_000_000_000))
        if cluster == 4096:
            packed = at / "packed"
            packed.mkdir()
            os.setxattr(packed, ATTRIBUTES, struct.pack("<I", COMPRESSED))
            for n in range(40):
                length = rng.choice((1, 5000, 65536, 65537, 300_000))
                text = (f"line {n} of something that is compressed well\n" * 9000)[:length].encode()
                mixed = b"".join(
                    rng.choice((text[:5000], rng.randbytes(5000), bytes(70_000))) for _ in range(20)
                )
                (packed / f"text {n}").write_bytes(text)
                (packed / f"mixed {n}").write_bytes(mixed[:length])
    with ntfs_mounted(image, tmp_path / "at", "ro") as at:
        expected = theirs(at)
    volume = opened(children, image)
    assert volume.label == "DATA"
    compare(ours(volume), expected)
    volume.close()


def test_ntfs_in_many_pieces(tmp_path: Path, children: Children) -> None:
    """A file here and there on a volume that was full."""
    image = make_ntfs(tmp_path / "n.img", 12 * MIB)
    with ntfs_mounted(image, tmp_path / "at") as at:
        content = in_pieces(at, 2 * MIB, random.Random(1))
        expected = theirs(at)
    volume = opened(children, image)
    compare(ours(volume), expected)
    entry = volume.lookup((), volume.root, "pieces")
    assert entry is not None
    places = volume.places(entry)
    assert len(places) > 30
    raw = image.read_bytes()
    assert b"".join(raw[p.at : p.at + p.length] for p in places)[: len(content)] == content
    volume.close()


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
@pytest.mark.parametrize("block", ["1024", "4096"])
def test_ext(tmp_path: Path, children: Children, kind: str, block: str) -> None:
    rng = random.Random(kind + block)
    source = tmp_path / "source"
    source.mkdir()
    fill(source, rng, files=800)
    sparse(source / "sparse", 40 * MIB, (7 * MIB + 3, b"here" * 3000), (39 * MIB, b"end"))
    sparse(source / "hole", 5 * MIB)
    comb(source / "comb", 4096)
    os.link(source / "large.bin", source / "empty" / "the same.bin")
    for name, target in (
        ("short", "odd/ß"),
        ("long", "d/" * 100 + "x"),
        ("up", "../large.bin"),
        ("dot", "."),
    ):
        os.symlink(target, source / "deep" / name)
    os.symlink("/Users/Public", source / "deep" / "absolute")
    os.mkfifo(source / "pipe")
    (source / "odd" / os.fsdecode(b"raw \xff\n")).write_bytes(b"raw")
    os.utime(source / "large.bin", ns=(1, 1_234_567_890_123_456_789))
    os.utime(source / "odd" / "ß", ns=(1, -1_000_000_000))
    image = make_ext(tmp_path / "e.img", 64 * MIB, source, kind, "-b", block)
    volume = opened(children, image)
    assert volume.parser == kind
    assert volume.label == "root"
    found = ours(volume)
    assert found.pop("lost+found").kind == "dir"
    expected = theirs(source)
    expected["pipe"] = replace(expected["pipe"], digest="unreadable: a named pipe: it has no content")
    for path, target in (("deep/absolute", "../Users/Public"),):
        expected[path] = replace(expected[path], digest=target)
    for path, seen in expected.items():  # mke2fs keeps whole seconds, of 32 bits
        seconds = (seen.mtime_ns // 10**9 + (1 << 31)) % (1 << 32) - (1 << 31)
        expected[path] = replace(seen, mtime_ns=seconds * 10**9)
    compare(found, expected)
    volume.close()


def test_ext4_as_the_kernel_leaves_it(tmp_path: Path, children: Children) -> None:
    """Extents that were allocated and never written, times beyond 2038, and inodes encrypted or inline."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("allocated", "secret", "inline", "late"):
        (source / name).write_bytes(name.encode() * 3000)
    image = make_ext(tmp_path / "e.img", 32 * MIB, source)
    with image.open("r+b") as f:  # free blocks are not zeros
        f.seek(24 * MIB)
        f.write(b"garbage!" * MIB)
    commands = tmp_path / "commands"
    commands.write_text(
        "fallocate allocated 4 3000\nsif allocated size 3072000\n"
        "sif secret flags 0x80800\nsif inline flags 0x10080000\n"
        "sif late mtime @5000000000\nsif late mtime_extra 0x75bcd151\n"
    )
    run("debugfs", "-w", "-f", commands, image)
    expected = tmp_path / "expected"
    run("debugfs", "-R", f"dump allocated {expected}", image)
    volume = opened(children, image)
    found = volume.folder((), volume.root)
    entry = found["allocated"]
    assert entry.size == 3_072_000
    content = volume.open(entry).read_at(0, entry.size)
    assert content == expected.read_bytes()
    assert content.rstrip(b"\0") == b"allocated" * 3000
    assert found["late"].mtime_ns == 5_000_000_000 * 10**9 + (0x75BCD151 >> 2)
    with pytest.raises(UnreadableInputError, match="encrypted"):
        volume.open(found["secret"])
    for name, why in (("secret", "encrypted"), ("inline", "kept in an inode is too short")):
        with pytest.raises(UnreadableInputError, match=why):  # the parser itself refuses both
            volume.read(found[name].number, 0, 10)
    volume.close()


@pytest.mark.parametrize(("bits", "size"), [(12, 8 * MIB), (16, 64 * MIB), (32, 80 * MIB)])
def test_fat(tmp_path: Path, children: Children, bits: int, size: int) -> None:
    rng = random.Random(bits)
    source = tmp_path / "source"
    source.mkdir()
    fill(source, rng, files=150 if bits == 12 else 600, deep=8)
    (source / "odd" / "\U0001f600 smile").unlink()  # mtools can't write it
    for path in source.rglob("*"):
        os.utime(path, (0, 1_700_000_000))
    image = make_fat(tmp_path / "f.img", size, source, bits, *(["-s", "1"] if bits == 32 else []))
    run("mdel", "-i", image, "::/odd/ß")  # a deleted name must not show
    (source / "odd" / "ß").unlink()
    volume = opened(children, image)
    assert volume.parser == f"fat{bits}"
    assert (volume.label, volume.warning) == ("EFI", "")
    compare(
        {p: replace(s, mtime_ns=0) if s.kind == "dir" else s for p, s in ours(volume).items()},
        {p: replace(s, mtime_ns=0) if s.kind == "dir" else s for p, s in theirs(source).items()},
    )
    volume.close()


@pytest.mark.parametrize(("bits", "size", "state"), [(16, 16 * MIB, 37), (32, 40 * MIB, 65)])
def test_fat_that_was_not_unmounted(
    tmp_path: Path, children: Children, bits: int, size: int, state: int
) -> None:
    """As Linux says it in the boot sector, as Windows in the table."""
    (tmp_path / "source").mkdir()
    image = make_fat(tmp_path / "f.img", size, tmp_path / "source", bits, "-s", "1")
    sound = image.read_bytes()
    table = int.from_bytes(sound[14:16], "little") * 512
    second = table + (7 if bits == 32 else 3)  # the highest byte of the table's second entry
    for at, value in ((state, 1), (second, 0x07 if bits == 32 else 0x7F)):
        image.write_bytes(sound[:at] + bytes([value]) + sound[at + 1 :])
        volume = opened(children, image)
        assert volume.warning.startswith("it was not unmounted")
        volume.close()
