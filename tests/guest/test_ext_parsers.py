"""Maps and folders of ext: what was encoded is read back, and whatever the bytes are, it ends."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudmount.guest.ext_folder import inline_names, names
from cloudmount.guest.ext_inode import EXTENTS, Inode, Inodes, inline_content, superblock
from cloudmount.guest.ext_map import Run, runs
from tests.guest.ext_writer import folder_of

unhurried = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
BLOCK, BLOCKS = 1024, 1 << 20
ABOUT = replace(
    superblock(
        struct.pack("<6I", 1000, BLOCKS, 0, 0, 0, 1)
        + struct.pack("<6I", 0, 0, 8192, 8192, 1000, 0)
        + bytes(8)
        + b"\x53\xef"
        + bytes(1024 - 58)
    ),
    block=BLOCK,
)
INODE = Inode(0o100644, 0, 0, 0, 1, 0, 0, 0, bytes(60), b"")


@st.composite
def layouts(draw: st.DrawFn) -> list[Run]:
    """Runs of a file with holes between them; neighbours never adjoin in both ways."""
    found, first = [], 0
    for gap, length, at in draw(
        st.lists(
            st.tuples(st.integers(0, 300), st.integers(1, 400), st.integers(1, BLOCKS - 401)), max_size=30
        )
    ):
        found.append(Run(first + gap, at, length))
        first += gap + length
    return merged(found)


def merged(found: list[Run]) -> list[Run]:
    out: list[Run] = []
    for run in found:
        if out and (out[-1].first + out[-1].length, out[-1].at + out[-1].length) == (run.first, run.at):
            run = Run(out[-1].first, out[-1].at, out[-1].length + run.length)
            out.pop()
        out.append(run)
    return out


class Disk:
    """Blocks of maps, given from the end of the volume on."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}

    def add(self, content: bytes) -> int:
        number = BLOCKS - 1 - len(self.blocks)
        self.blocks[number] = content.ljust(BLOCK, b"\0")
        return number

    def read(self, offset: int, length: int) -> bytes:
        assert length == BLOCK
        return self.blocks[offset // BLOCK]


def head(count: int, depth: int) -> bytes:
    return struct.pack("<4HI", 0xF30A, count, 340, depth, 0)


def as_tree(layout: list[Run], disk: Disk, width: int) -> Inode:
    """In leaves of `width` extents, and as many levels as it takes."""
    level = [
        (r.first, struct.pack("<IHHI", r.first, r.length, r.at >> 32, r.at & 0xFFFFFFFF)) for r in layout
    ]
    depth = 0
    while len(level) > 4:
        parts = [level[i : i + width] for i in range(0, len(level), width)]
        level = []
        for part in parts:
            at = disk.add(head(len(part), depth) + b"".join(raw for _, raw in part))
            level.append((part[0][0], struct.pack("<IIHH", part[0][0], at, 0, 0)))
        depth += 1
    root = head(len(level), depth) + b"".join(raw for _, raw in level)
    return replace(INODE, flags=EXTENTS, map=root.ljust(60, b"\0"))


def as_lists(layout: list[Run], disk: Disk) -> Inode:
    """In the twelve blocks of an inode, and in lists of up to three levels."""
    places = {run.first + i: run.at + i for run in layout for i in range(run.length)}
    each = BLOCK // 4

    def listed(first: int, level: int) -> int:
        covers = each**level
        numbers = [
            (places.get(first + i, 0) if not level else listed(first + i * covers, level - 1))
            for i in range(each)
            if level < 2 or first + i * covers <= max(places, default=0)
        ]
        return disk.add(struct.pack(f"<{len(numbers)}I", *numbers)) if any(numbers) else 0

    numbers = [places.get(n, 0) for n in range(12)]
    numbers += [listed(12, 0), listed(12 + each, 1), listed(12 + each + each * each, 2)]
    return replace(INODE, map=struct.pack("<15I", *numbers))


def within(layout: list[Run], begin: int, end: int) -> list[Run]:
    return [
        Run(low, r.at + low - r.first, high - low)
        for r in layout
        if (low := max(begin, r.first)) < (high := min(end, r.first + r.length))
    ]


@unhurried
@given(layouts(), st.integers(2, 40), st.integers(0, 9000), st.integers(0, 9000), st.booleans())
def test_maps_are_read_as_written(layout: list[Run], width: int, begin: int, more: int, tree: bool) -> None:
    disk = Disk()
    inode = as_tree(layout, disk, width) if tree else as_lists(layout, disk)
    told: list[tuple[int, int]] = []
    assert list(runs(inode, ABOUT, disk.read, told.extend, 0, 1 << 20)) == layout
    found = list(runs(inode, ABOUT, disk.read, told.extend, begin, begin + more))
    assert found == within(layout, begin, begin + more)
    assert all(length == BLOCK and at // BLOCK in disk.blocks for at, length in told)


@unhurried
@given(layouts(), st.integers(2, 40), st.booleans(), st.data())
def test_damaged_maps_end(layout: list[Run], width: int, tree: bool, data: st.DataObject) -> None:
    disk = Disk()
    inode = as_tree(layout, disk, width) if tree else as_lists(layout, disk)
    targets = [None, *disk.blocks]
    for _ in range(data.draw(st.integers(1, 4))):
        target = data.draw(st.sampled_from(targets))
        raw = bytearray(inode.map if target is None else disk.blocks[target])
        at = data.draw(st.integers(0, len(raw) - 4))
        raw[at : at + 4] = data.draw(
            st.binary(min_size=4, max_size=4)
            | st.sampled_from([n.to_bytes(4, "little") for n in (*disk.blocks, BLOCKS, 0, 0xFFFFFFFF)])
        )
        if target is None:
            inode = replace(inode, map=bytes(raw))
        else:
            disk.blocks[target] = bytes(raw)

    def read(offset: int, length: int) -> bytes:
        return disk.blocks.get(offset // BLOCK, bytes(BLOCK))

    with contextlib.suppress(ValueError):
        last = 0
        for run in islice(runs(inode, ABOUT, read, lambda _: None, 0, 1 << 20), 20_000):
            assert last <= run.first and run.length > 0
            assert run.at > 0 and run.at + run.length <= BLOCKS
            last = run.first + run.length


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=80).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 255
)


@unhurried
@given(st.lists(NAMES, min_size=1, max_size=60))
def test_folders_are_read_as_written(written: list[str]) -> None:
    raw = folder_of(written, 77, BLOCK)
    found = [pair for at in range(0, len(raw), BLOCK) for pair in names(raw[at : at + BLOCK], True, 1000)]
    assert found == [(name.encode(), 77) for name in written]


@unhurried
@given(st.binary(min_size=60, max_size=400), st.booleans())
def test_any_bytes_as_a_folder(raw: bytes, filetype: bool) -> None:
    for read in (names, inline_names):
        with contextlib.suppress(ValueError):
            for name, inode in read(raw, filetype, 1000):
                assert len(name) > 0 and 0 < inode <= 1000


@unhurried
@given(st.binary(min_size=0, max_size=1024), st.integers(-5, 1 << 33))
def test_any_bytes_as_a_volume(raw: bytes, number: int) -> None:
    sound = bytearray(raw.ljust(1024, b"\0"))
    sound[56:58] = b"\x53\xef"
    with contextlib.suppress(ValueError):
        about = superblock(bytes(sound))
        inode = Inodes(about, lambda at, length: (raw * 20)[:length]).get(number)
        assert inode.uid >= 0 and inode.links >= 0
        inline_content(inode)


def test_what_is_no_superblock() -> None:
    for raw in (b"", bytes(1024), bytes(56) + b"\x53\xef" + bytes(900)):
        with pytest.raises(ValueError, match="superblock"):
            superblock(raw)
