"""A boot pack that a drill left serves later boots; nothing wrong with it gives a wrong byte."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cloudmount.app.bootpacks import leave_boot_pack
from cloudmount.app.check import check
from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.faulty import Fault, FaultyStore
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.store import BlobStore
from cloudmount.disks.synthesis import BAT_OFFSET
from cloudmount.repo.bootpacks import BootPack, read_boot_pack
from cloudmount.repo.names import BOOT_PACKS, PACKS
from cloudmount.repo.traces import Trace
from tests.backup.lab import FRAME, Lab, flip, objects, replace
from tests.tree.drives import MIB
from tests.tree.test_bootguess import VHDX, opened_file, settle
from tests.tree.test_bootlearning import READS, SIZE, UNIT, boot, content, kept, lab, learning, waits

__all__ = ["lab"]  # the fixture


def drilled(lab: Lab, store: BlobStore | None = None) -> list[str]:
    """Boot, and leave a boot pack of it; what was told. The trace is taken away: the boot pack is enough."""
    told: list[str] = []
    with learning(lab, None) as tree:
        boot(tree)
        assert tree.learning is not None
        (trace,) = tree.learning.traces()
        repository = lab.reopened(store)
        leave_boot_pack(repository, repository.latest("srv"), trace, tell=told.append)
    for name in kept(lab):
        lab.store.delete(name)
    return told


def packs(lab: Lab) -> list[BootPack]:
    repository = lab.reopened()
    return [read_boot_pack(repository, info) for info in lab.store.list(BOOT_PACKS)]


def memory(lab: Lab) -> MemoryStore:
    assert isinstance(lab.store, MemoryStore)
    return lab.store


def change(lab: Lab, units: list[int]) -> None:
    """Back the disk up with other bytes at the beginning of these units."""
    with (lab.folder / "disk.img").open("r+b") as f:
        for at in units:
            f.seek(at * UNIT)
            f.write(random.Random(at).randbytes(100))
    lab.backup(lab.folder / "disk.img")


def test_it_holds_what_the_boot_read_in_order_in_the_hot_tier(lab: Lab) -> None:
    assert drilled(lab) == []
    (pack,) = packs(lab)
    assert memory(lab).tiers[pack.name] == "hot"
    assert (pack.disk, pack.size, pack.frame_bytes) == ("disk", SIZE, FRAME)
    assert pack.snapshot == lab.reopened().latest("srv").id
    frames = [copy.frame for copy in pack.copies]
    assert len(frames) == len(set(frames))
    assert [
        n * FRAME // UNIT for n in frames if n * FRAME % UNIT == 0 and n * FRAME // UNIT in READS
    ] == READS
    disk, data = (lab.folder / "disk.img").read_bytes(), lab.store.read(pack.name)
    for copy in pack.copies:
        sealed = data[copy.offset : copy.offset + copy.length]
        plain = pack.open(lab.repository.keys, copy, sealed, lab.repository.dictionaries.get)
        assert plain == disk[copy.frame * FRAME : (copy.frame + 1) * FRAME]


def test_a_later_boot_needs_no_pack(lab: Lab) -> None:
    """Not even when the packs that hold the frames are gone."""
    drilled(lab)
    assert not waits(lab, None)
    for name in objects(memory(lab), PACKS):
        lab.store.delete(name)
    with learning(lab, None) as tree:
        assert boot(tree) == content(lab)


def test_it_takes_few_requests(lab: Lab) -> None:
    drilled(lab)
    store = CountingStore(lab.store)
    with learning(lab, None, store) as tree:
        opened = opened_file(tree, VHDX)
        before = store.snapshot().requests
        opened.read_at(BAT_OFFSET, MIB)
        settle()
        # Two listings, the boot pack's table, and its frames; four segments of the map.
        assert store.snapshot().requests - before <= 2 + 1 + 2 + 4
        assert boot(tree) == content(lab)


def test_a_newer_snapshot_takes_what_is_unchanged(lab: Lab) -> None:
    drilled(lab)
    for changed in (READS[::2], READS[1::3], [5, 6]):
        change(lab, changed)
        assert not waits(lab, None)
        for name in kept(lab):
            lab.store.delete(name)


def test_the_newest_is_used_and_a_newer_trace_beside_it(lab: Lab) -> None:
    drilled(lab)
    other = [at + 1 for at in READS]
    with learning(lab, None) as tree:
        assert boot(tree, other) == content(lab, other)
    assert len(kept(lab)) == 1, "it was new"
    gone = [False]
    store = FaultyStore(lab.store, lambda operation: Fault.REFUSED if gone[0] else None)
    with learning(lab, None, store) as tree:
        opened_file(tree, VHDX).read_at(BAT_OFFSET, MIB)
        settle()
        gone[0] = True
        assert boot(tree, other) == content(lab, other)
        assert boot(tree) == content(lab)


@pytest.mark.parametrize("harm", ["table", "cut", "other", "swapped", "frame", "end", "stale listing"])
def test_what_is_wrong_with_it_is_told_and_read_from_the_packs(lab: Lab, harm: str) -> None:
    drilled(lab)
    (pack,) = packs(lab)
    data = bytearray(lab.store.read(pack.name))
    last = pack.copies[-1]
    if harm in ("table", "frame", "end"):
        at = {"table": 200, "frame": pack.copies[0].offset + 5, "end": last.offset + last.length - 1}[harm]
        flip(memory(lab), pack.name, 8 * at)
    elif harm == "swapped":
        one, two = next(
            (a, b)
            for i, a in enumerate(pack.copies)
            for b in pack.copies[i + 1 :]
            if a.length == b.length and a.content != b.content
        )
        first, second = (bytes(data[c.offset : c.offset + c.length]) for c in (one, two))
        data[one.offset : one.offset + one.length] = second
        data[two.offset : two.offset + two.length] = first
        replace(memory(lab), pack.name, bytes(data))
    elif harm == "cut":
        replace(memory(lab), pack.name, bytes(data[:-1]))
    elif harm == "other":
        replace(memory(lab), pack.name, b"not a boot pack")
    reads = [0]

    def lost(operation: object) -> Fault | None:
        """The boot pack is deleted after its table was read."""
        about = getattr(operation, "name", "").startswith(BOOT_PACKS)
        if harm == "stale listing" and about and getattr(operation, "kind", "") == "read":
            reads[0] += 1
            if reads[0] == 2:
                lab.store.delete(pack.name)
        return None

    lab.told.clear()
    with learning(lab, None, FaultyStore(lab.store, lost)) as tree:
        opened_file(tree, VHDX).read_at(BAT_OFFSET, MIB)
        settle()
        assert boot(tree) == content(lab)
    assert [line for line in lab.told if pack.name in line and "longer" in line]
    if harm != "stale listing":
        found = check(lab.reopened(), read_data=100)
        assert found.ok, "what it copies is there"
        assert any(pack.name in notice for notice in found.notices)


def test_a_store_that_fails_meanwhile_loses_nothing(lab: Lab) -> None:
    drilled(lab)
    failing = [False]

    def fails(operation: object) -> Fault | None:
        if getattr(operation, "name", "").startswith(BOOT_PACKS) and getattr(operation, "kind", "") == "read":
            failing[0] = True
        return Fault.REFUSED if failing[0] else None

    with learning(lab, None, FaultyStore(lab.store, fails)) as tree:
        opened_file(tree, VHDX).read_at(BAT_OFFSET, MIB)
        settle()
        failing[0] = False
        assert boot(tree) == content(lab)


def test_a_credential_that_may_not_write_is_told(lab: Lab) -> None:
    def refused(operation: object) -> Fault | None:
        return Fault.REFUSED if getattr(operation, "kind", "") == "create" else None

    (line,) = drilled(lab, FaultyStore(lab.store, refused))
    assert line.startswith("no boot pack was left")
    assert packs(lab) == []


@pytest.mark.parametrize(
    "trace",
    [
        Trace("other", "00" * 16, 1, SIZE, FRAME, ((0, 1, 0),)),
        Trace("disk", "00" * 16, 1, SIZE, 2 * FRAME, ((0, 1, 0),)),
        Trace("disk", "00" * 16, 1, SIZE, FRAME, ((1 << 40, 1 << 20, 0),)),
    ],
)
def test_a_trace_of_something_else_leaves_none(lab: Lab, trace: Trace) -> None:
    repository, told = lab.reopened(), []
    assert leave_boot_pack(repository, repository.latest("srv"), trace, tell=told.append) is None
    assert len(told) == 1
    assert packs(lab) == []


def test_a_damaged_frame_is_left_out(lab: Lab) -> None:
    repository = lab.reopened()
    trace = Trace("disk", "00" * 16, 1, SIZE, FRAME, ((0, 40, 0),))
    left = leave_boot_pack(repository, repository.latest("srv"), trace, tell=print)
    assert left is not None
    whole = left.frames
    name = next(iter(objects(memory(lab), PACKS)))
    flip(memory(lab), name, 8 * 100)  # in its first frame
    del memory(lab).objects[left.name]
    left = leave_boot_pack(repository, repository.latest("srv"), trace, tell=print)
    assert left is not None
    assert whole - 1 <= left.frames <= whole


def test_one_that_serves_on_is_not_stored_anew(lab: Lab) -> None:
    drilled(lab)
    assert drilled(lab) == [] and len(packs(lab)) == 1
    disk = lab.folder / "disk.img"
    with disk.open("r+b") as f:
        for at in READS[:2]:
            f.seek(at * UNIT)
            f.write(b"changed")
    lab.backup(disk)
    assert drilled(lab) == [] and len(packs(lab)) == 2


def test_a_clean_check_says_nothing_of_it(lab: Lab) -> None:
    drilled(lab)
    found = check(lab.reopened(), read_data=100)
    assert found.ok and not [n for n in found.notices if BOOT_PACKS in n]


def test_what_spans_two_frames_is_copied_too(tmp_path: Path) -> None:
    """A boot of a disk whose files lie in it twice, at another alignment: no pack is needed later."""
    (tmp_path / "lab").mkdir()
    made = Lab(tmp_path / "lab")
    image = made.folder / "disk.img"
    content_ = bytearray(random.Random(2).randbytes(SIZE))
    for n in range(SIZE // UNIT):  # all that is read lies in it twice
        if n % 2:
            content_[n * UNIT : (n + 1) * UNIT - 512] = content_[(n - 1) * UNIT + 512 : n * UNIT]
    content_[510:512] = b"\x55\xaa"
    image.write_bytes(content_)
    made.backup(image)
    reads = [at | 1 for at in READS]
    with learning(made, None) as tree:
        assert boot(tree, reads) == content(made, reads)
        assert tree.learning is not None
        (trace,) = tree.learning.traces()
    repository = made.reopened()
    assert leave_boot_pack(repository, repository.latest("srv"), trace, tell=print) is not None
    assert leave_boot_pack(repository, repository.latest("srv"), trace, tell=print) is None, "it serves on"
    (pack,) = packs(made)
    assert any(copy.cut for copy in pack.copies)
    assert check(made.reopened(), read_data=100).notices == []
    for name in [*kept(made), *objects(memory(made), PACKS)]:
        made.store.delete(name)
    with learning(made, None) as tree:
        assert boot(tree, reads) == content(made, reads)
