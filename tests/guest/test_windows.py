"""What only Windows writes: links, compressed system files, and files whose content must be refused."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmount.errors import CloudMountError, UnreadableInputError
from cloudmount.guest.children import Children
from cloudmount.guest.entries import Entry
from cloudmount.guest.volume import Volume
from cloudmount.nodes import Kind
from tests.disks.oracles import run
from tests.guest.images import MIB, make_ntfs, ntfs_mounted
from tests.guest.seen import opened
from tests.guest.windows import (
    ALGORITHMS,
    CLOUD,
    DEDUP,
    ONEDRIVE,
    UNKNOWN,
    WOF,
    junction_value,
    patch_attribute,
    reparse,
    symlink_value,
    write_wof,
)

MOUNT_POINT, SYMLINK, LX_SYMLINK, ALIAS = 0xA0000003, 0xA000000C, 0xA000001D, 0x8000001B
DATA = 0x80


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.close()


def content(volume: Volume, name: str) -> bytes:
    entry = volume.folder((), volume.root)[name]
    source = volume.open(entry)
    return source.read_at(0, source.size)


def test_links(tmp_path: Path, children: Children) -> None:
    image = make_ntfs(tmp_path / "n.img", 20 * MIB)
    links = {
        "up": (SYMLINK, symlink_value("..\\a\\b.txt", relative=True), "../a/b.txt"),
        "here": (SYMLINK, symlink_value("b.txt", relative=True), "b.txt"),
        "drive": (SYMLINK, symlink_value("\\??\\C:\\Users\\x y", relative=False), "../Users/x y"),
        "rooted": (SYMLINK, symlink_value("\\Users\\x", relative=True), "../Users/x"),
        "root": (SYMLINK, symlink_value("\\??\\D:\\", relative=False), ".."),
        "far": (SYMLINK, symlink_value("..\\..\\secret", relative=True), None),
        "around": (SYMLINK, symlink_value("x\\..\\..\\..\\secret", relative=True), None),
        "share": (SYMLINK, symlink_value("\\??\\UNC\\host\\share", relative=False), None),
        "linux": (LX_SYMLINK, struct.pack("<I", 2) + b"../a/b.txt", "../a/b.txt"),
        "mnt": (LX_SYMLINK, struct.pack("<I", 2) + b"/mnt/c/x", None),
    }
    junctions = {
        "junction": (junction_value("\\??\\C:\\Users"), "../Users"),
        "volume": (junction_value("\\??\\Volume{01234567-0123-0123-0123-0123456789ab}\\"), None),
    }
    with ntfs_mounted(image, tmp_path / "at") as at:
        (at / "d").mkdir()
        for name, (tag, value, _) in links.items():
            (at / "d" / name).touch()
            reparse(at / "d" / name, tag, value)
        for name, (value, _) in junctions.items():
            (at / "d" / name).mkdir()
            reparse(at / "d" / name, MOUNT_POINT, value)
    volume = opened(children, image)
    folder = volume.folder(("d",), volume.folder((), volume.root)["d"].number)
    expected = {n: t for n, (_, _, t) in links.items()} | {n: t for n, (_, t) in junctions.items()}
    assert folder.keys() == expected.keys()
    for name, target in expected.items():
        entry = folder[name]
        assert entry.kind is Kind.LINK and entry.target is not None
        if target is not None:
            assert entry.target == target
        else:
            assert entry.target.startswith("leads out of this volume: ") and "/" not in entry.target
    volume.close()


def test_content_that_is_elsewhere_is_refused(tmp_path: Path, children: Children) -> None:
    image = make_ntfs(tmp_path / "n.img", 20 * MIB)
    bad = {
        "dedup": (DEDUP, b"\0" * 100, "deduplicated"),
        "onedrive": (ONEDRIVE, b"\0" * 20, "OneDrive"),
        "cloud": (CLOUD, b"\0" * 20, "in a cloud"),
        "unknown": (UNKNOWN, b"abc", "0x80001234"),
        "wim": (WOF, struct.pack("<II", 1, 1) + bytes(24), "WIM"),
        "odd wof": (WOF, struct.pack("<IIII", 1, 2, 1, 9), "not known"),
        "cut": (WOF, b"\1\0", "damaged"),
    }
    with ntfs_mounted(image, tmp_path / "at") as at:
        for name, (tag, value, _) in bad.items():
            (at / name).write_bytes(b"these are not its bytes")
            reparse(at / name, tag, value)
        (at / "folder").mkdir()
        (at / "folder" / "inside").write_bytes(b"inside")
        reparse(at / "folder", CLOUD, b"\0" * 20)
        (at / "alias").touch()
        reparse(at / "alias", ALIAS, b"alias")
        (at / "efs").write_bytes(b"e" * 100)
        (at / "efs large").write_bytes(b"e" * 10_000)
        numbers = {name: os.stat(at / name).st_ino for name in ("efs", "efs large")}
    for number in numbers.values():
        patch_attribute(image, number, DATA, 12, struct.pack("<H", 0x4000))
    volume = opened(children, image)
    found = volume.folder((), volume.root)
    reasons = {n: w for n, (_, _, w) in bad.items()} | dict.fromkeys(numbers, "EFS")
    for name, why in reasons.items():
        entry = found[name]
        assert entry.kind is Kind.FILE and entry.unreadable is not None and why in entry.unreadable
        assert volume.lookup((), volume.root, name) == entry
        with pytest.raises(UnreadableInputError, match=why):
            volume.open(entry)
        with pytest.raises(UnreadableInputError, match=why):  # the parser itself refuses it too
            volume.read(entry.number, 0, 5)
    assert found["folder"].kind is Kind.DIR
    inside = volume.folder(("folder",), found["folder"].number)["inside"]
    assert volume.open(inside).read_at(0, 6) == b"inside"
    assert found["alias"].unreadable is None
    assert found["alias"].size == 0
    assert children.started == 1
    volume.close()


def test_compressed_by_windows(tmp_path: Path, children: Children) -> None:
    """Right or refused, at every offset: with the codecs of wimlib."""
    rng = random.Random(1)
    image = make_ntfs(tmp_path / "n.img", 60 * MIB)
    expected = {}
    with ntfs_mounted(image, tmp_path / "at", "streams_interface=xattr") as at:
        for algorithm in ALGORITHMS:
            for size in (1, 100, 4096, 5000, 32768, 32769, 200_000):
                text = b"".join(b"line %d of %d\n" % (rng.randrange(500), i) for i in range(size // 8 + 1))
                mixed = b"".join(
                    rng.choice((text[:3000], rng.randbytes(1000), bytes(9000)))
                    for _ in range(size // 1000 + 1)
                )
                for kind, data in (("text", text), ("mixed", mixed)):
                    name = f"{algorithm} {size} {kind}"
                    expected[name] = data[:size].ljust(size, b"x")
                    try:
                        write_wof(at / name, expected[name], algorithm)
                    except OSError:  # ntfs-3g takes 64 KiB of an attribute
                        (at / name).unlink()
                        del expected[name]
    volume = opened(children, image)
    right = 0
    for name, entry in volume.folder((), volume.root).items():
        data = expected[name]
        assert entry.size == len(data)
        for _ in range(12):
            at_ = rng.randrange(len(data))
            length = rng.randrange(len(data) - at_) + 1
            try:
                got = volume.open(entry).read_at(at_, length)
            except UnreadableInputError:
                assert len(data) <= 4096, "libfsntfs fails on some very small ones only"
                continue
            assert got == data[at_ : at_ + length], name
            right += 1
    assert right > 400
    volume.close()


def test_bytes_never_written_are_zeros(tmp_path: Path, children: Children) -> None:
    """A file's valid length ends before its size: what lies behind on the disk is not its content."""
    image = make_ntfs(tmp_path / "n.img", 20 * MIB)
    with ntfs_mounted(image, tmp_path / "at") as at:
        (at / "file").write_bytes(b"x" * 300_000)
        number = os.stat(at / "file").st_ino
    patch_attribute(image, number, DATA, 56, struct.pack("<Q", 100_001))
    with ntfs_mounted(image, tmp_path / "at", "ro") as at:
        expected = (at / "file").read_bytes()
    assert expected == b"x" * 100_001 + bytes(199_999)
    volume = opened(children, image)
    assert content(volume, "file") == expected
    entry = volume.folder((), volume.root)["file"]
    assert volume.open(entry).read_at(99_000, 5000) == expected[99_000:104_000]
    volume.close()


def test_names_by_the_rules_of_windows(tmp_path: Path, children: Children) -> None:
    """Any case finds a name; the one that fits exactly goes first; half a surrogate pair is a name too."""
    image = make_ntfs(tmp_path / "n.img", 20 * MIB)
    with ntfs_mounted(image, tmp_path / "at") as at:
        for name in ("Ärger.TXT", "same", "SAME", "back\\slash", "qq.txt"):
            (at / name).write_bytes(name.encode())
    raw = image.read_bytes()
    half = "qq.txt".encode("utf-16-le")
    assert raw.count(half) >= 2
    image.write_bytes(raw.replace(half, b"\x00\xd8" + half[2:]))
    for fresh in (True, False):
        volume = opened(children, image)
        if not fresh:
            volume.folder((), volume.root)

        def find(name: str, volume: Volume = volume) -> bytes | None:
            entry = volume.lookup((), volume.root, name)
            return None if entry is None else volume.open(entry).read_at(0, entry.size)

        assert find("ärger.txt") == find("Ärger.TXT") == "Ärger.TXT".encode()
        assert (find("same"), find("SAME")) == (b"same", b"SAME")
        assert find("sAME") in (b"same", b"SAME")
        assert find("back\\slash") == b"back\\slash"
        assert find("$MFT") is find("none") is find("") is find(".") is None
        assert find("\udced\udca0\udc80q.txt") == b"qq.txt"
        volume.close()


def test_a_journal_in_use_is_told(tmp_path: Path, children: Children) -> None:
    image = make_ntfs(tmp_path / "n.img", 20 * MIB)
    disk = opened(children, image)
    assert disk.warning == ""
    (place, *_) = disk.places(Entry("", 2 << 48 | 2, Kind.FILE, 0, 0, 0, 0, 1, None, None, None, None))
    disk.close()
    for clients, flags, in_use in ((0, 0, True), (0xFFFF, 0, False), (0, 2, False)):
        page = bytearray(4096)
        page[:4] = b"RSTR"
        struct.pack_into("<H", page, 24, 0x30)
        struct.pack_into("<HH", page, 0x30 + 12, clients, flags)
        with image.open("r+b") as f:
            f.seek(place.at)
            f.write(page)
        disk = opened(children, image)
        assert ("journal was not empty" in disk.warning) is in_use
        disk.close()


def test_a_volume_to_be_checked_is_told(tmp_path: Path, children: Children) -> None:
    image = make_ntfs(tmp_path / "n.img", 20 * MIB)
    run("ntfsfix", image)  # marks it as dirty
    disk = opened(children, image)
    assert disk.warning.startswith("Windows marked it as to be checked (chkdsk)")
    disk.close()


def test_a_damaged_folder_costs_an_error(tmp_path: Path, children: Children) -> None:
    image = make_ntfs(tmp_path / "n.img", 20 * MIB)
    with ntfs_mounted(image, tmp_path / "at") as at:
        (at / "bad").mkdir()
        (at / "good").write_bytes(b"good")
        number = os.stat(at / "bad").st_ino
    patch_attribute(image, number, 0x90, 16, b"\xff" * 8)
    volume = opened(children, image)
    found = volume.folder((), volume.root)
    for _ in range(2):
        with pytest.raises(CloudMountError, match=r"n\.img: damaged"):
            volume.folder(("bad",), found["bad"].number)
        assert content(volume, "good") == b"good"
    volume.close()
