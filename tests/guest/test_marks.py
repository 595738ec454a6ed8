"""Marks of a system that ran, in volumes that other people's programs made, before and through an overlay."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloudmount.app.drilldisks import MarkSearch
from cloudmount.extents import BlockSource, Bytes
from cloudmount.guest.children import Children
from cloudmount.guest.marks import Marks, marks_of, new_marks
from cloudmount.guest.volume import Volume
from tests.disks.oracles import run
from tests.disks.partition_writer import BASIC_DATA, LINUX, write_gpt
from tests.guest.images import MIB, make_ext, make_ntfs, ntfs_mounted

pytestmark = pytest.mark.oracle

MACHINE = "5c" * 16
EVENTS, HIVES = "Windows/System32/winevt/Logs", "Windows/System32/config"


def journal(boot: bytes, entries: int = 7) -> bytes:
    """A journal's beginning, as systemd's docs/JOURNAL_FILE_FORMAT.md has it."""
    head = bytearray(8192)
    head[:8] = b"LPKSHHRH"
    head[56:72] = boot
    head[152:160] = entries.to_bytes(8, "little")
    return bytes(head)


def events(newest: list[int], last: int, rng: random.Random) -> bytes:
    """An event log whose chunks end with records of these numbers; its header calls one the last."""
    head = bytearray(4096)
    struct.pack_into("<8sQQQIHHHH", head, 0, b"ElfFile\0", 0, last, 0, 128, 1, 3, 4096, len(newest))
    chunks = []
    for number in newest:
        chunk = bytearray(rng.randbytes(65536))
        struct.pack_into("<8sQQQQ", chunk, 0, b"ElfChnk\0", 1, number, 1, number)
        chunks.append(bytes(chunk) if number else bytes(65536))
    return bytes(head) + b"".join(chunks)


def hive(sequence: int, written: int, *, sound: bool = True) -> bytes:
    """A hive's base block and some more."""
    block = bytearray(4096)
    struct.pack_into("<4sIIQ", block, 0, b"regf", sequence, sequence, written)
    told = 0
    for (word,) in struct.iter_unpack("<I", block[:508]):
        told ^= word
    struct.pack_into("<I", block, 508, told if sound else told ^ 1)
    return bytes(block) + bytes(4096)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.close()


def look(children: Children, source: BlockSource, parser: str) -> Marks:
    return marks_of(Volume(children, source, parser, "disk"))


def ext(folder: Path, name: str, files: dict[str, bytes]) -> bytes:
    """An ext4 volume that holds these."""
    root = folder / name
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    root.mkdir(exist_ok=True)
    return make_ext(folder / f"{name}.img", 4 * MIB, root, "ext4").read_bytes()


def test_a_new_boot_id(children: Children, tmp_path: Path) -> None:
    """In /var/log of the root, or of a volume that is /var; nothing else counts."""
    old, new = b"\x11" * 16, b"\x22" * 16
    place = f"var/log/journal/{MACHINE}/system.journal"
    before = look(children, Bytes(ext(tmp_path, "before", {place: journal(old)})), "ext4")
    after = look(children, Bytes(ext(tmp_path, "after", {place: journal(new)})), "ext4")
    assert new_marks(before, before) == [] and after.record == 0 and after.hives == {}
    (mark,) = new_marks(before, after)
    assert mark.kind == "journal" and mark.running and new.hex() in mark.what
    short = f"log/journal/{MACHINE}/system.journal"
    odd = {short: journal(new), "log/journal/x/system.journal": b"LPKSHHRH", "log/journal/y/z": b""}
    of_var = look(children, Bytes(ext(tmp_path, "var", odd)), "ext4")
    assert of_var.journals == {MACHINE: new.hex()}
    empty = look(children, Bytes(ext(tmp_path, "empty", {short: journal(new, 0)})), "ext4")
    assert empty.journals == {}
    (mark,) = new_marks(empty, of_var)  # its first journal ever
    assert mark.kind == "journal"
    unread = Marks(None, None, None)
    assert new_marks(unread, after) == new_marks(before, unread) == []
    broken = look(children, Bytes(random.Random(1).randbytes(4 * MIB)), "ext4")
    assert new_marks(broken, after) == []


@dataclass
class Windows:
    """What is in a Windows' folders."""

    newest: list[int]
    last: int
    hives: dict[str, bytes] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        for folder in (EVENTS, HIVES):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / EVENTS / "System.evtx").write_bytes(events(self.newest, self.last, random.Random(3)))
        for name, content in self.hives.items():
            (root / HIVES / name).write_bytes(content)


def windows(folder: Path, *states: Windows) -> list[bytes]:
    """An NTFS volume after each of the states."""
    image = make_ntfs(folder / "ntfs.img", 16 * MIB)
    found = []
    for state in states:
        with ntfs_mounted(image, folder / "at") as at:
            state.write(at)
        found.append(image.read_bytes())
    return found


def test_windows_leaves_records_and_hives(children: Children, tmp_path: Path) -> None:
    was = {"SYSTEM": hive(5, 133_000_000_000_000_000), "SOFTWARE": hive(7, 1)}
    now = {"SYSTEM": hive(6, 133_000_001_000_000_000), "SOFTWARE": hive(8, 2, sound=False)}
    one, two, three = windows(
        tmp_path,
        Windows([100, 200, 0, 0], 1, was),
        Windows([100, 250, 300, 0], 1, was),  # its header is older than its chunks
        Windows([400, 250, 300, 350], 3, now),  # the ring came round
    )
    first, second, third = (look(children, Bytes(data), "ntfs") for data in (one, two, three))
    assert (first.record, second.record, third.record) == (200, 300, 400)
    assert new_marks(first, first) == []
    (mark,) = new_marks(first, second)
    assert mark.kind == "event log" and mark.running and "300" in mark.what
    record, system = new_marks(second, third)  # a hive that is not whole says nothing
    assert (record.kind, system.kind, system.running) == ("event log", "registry", False)
    assert "SYSTEM" in system.what and "2022-06" in system.what
    assert new_marks(third, first)[0].kind == "registry"  # fewer records are no mark


def test_marks_are_found_through_overlays(children: Children, tmp_path: Path) -> None:
    """On a disk with partitions; and none where an overlay is none."""
    place = f"var/log/journal/{MACHINE}/system.journal"
    pair = [ext(tmp_path, n, {place: journal(b)}) for n, b in (("a", b"\x33" * 16), ("b", b"\x44" * 16))]
    disks = []
    for name, content in zip(("old.img", "new.img"), pair, strict=True):
        disk = write_gpt(
            tmp_path / name,
            12 * MIB,
            [(BASIC_DATA, 2048, 4095, "data"), (LINUX, 4096, 4096 + 8191, "root")],
        )
        with disk.open("r+b") as file:
            file.seek(2 * MIB)
            file.write(content)
        disks.append(disk)
    overlay = tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", "-B", disks[0], "-F", "raw", disks[1], overlay)
    untouched = tmp_path / "untouched.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disks[0], "-F", "raw", untouched)
    (tmp_path / "none").write_bytes(b"x")

    def search(path: Path) -> list[str]:
        disk: Any = SimpleNamespace(
            path="disk", summary={"logical_sector": 512}, quiet=lambda: Bytes(disks[0].read_bytes())
        )
        drive: Any = SimpleNamespace(parsers=children)
        searching = MarkSearch(drive, [disk], [path])
        found = [m.kind for m in searching.found()]
        assert found == [m.kind for m in searching.found()]
        return found

    assert search(overlay) == ["journal"]
    assert search(untouched) == search(tmp_path / "none") == search(tmp_path / "missing") == []
