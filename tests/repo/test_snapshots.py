"""Snapshot objects and entries of files."""

from __future__ import annotations

import itertools
import json
import os
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.crypto.keyring import Keyring
from cloudmount.crypto.slots import canonical
from cloudmount.errors import DamagedError
from cloudmount.repo.entries import Entry, entry_from_json, sort_key
from cloudmount.repo.locations import Birth
from cloudmount.repo.names import iso_time
from cloudmount.repo.pages import ItemRef
from cloudmount.repo.snapshots import PageRef, StreamRoot, open_snapshot, seal_snapshot
from tests.strategies import file_names, item_refs, u32

KEYS = Keyring(os.urandom(32), {0: os.urandom(32)})

roots = st.builds(
    StreamRoot,
    st.lists(
        st.builds(
            PageRef,
            st.integers(1, 5) | item_refs | st.none(),
            st.integers(1, 5) | item_refs | st.none(),
            u32,
            u32,
        ),
        max_size=3,
    ),
    st.integers(0, 2**60),
    st.integers(0, 2**40),
)


def _summary(time: int, machine: str = "srv", disks: int = 0, **more: Any) -> dict[str, Any]:
    return {"machine": machine, "sequence": 3, "time": iso_time(time), "disks": [{}] * disks, **more}


@settings(max_examples=30, deadline=None)
@given(
    disks=st.lists(roots, max_size=3),
    sections=st.lists(st.binary(max_size=300), max_size=4),
    files=st.none() | st.integers(1, 4),
    time=st.integers(0, 2**32),
    machine=st.text(min_size=1, max_size=10),
)
def test_round_trip(
    disks: list[StreamRoot], sections: list[bytes], files: int | None, time: int, machine: str
) -> None:
    summary = _summary(time, machine, len(disks), note="\u00fc")
    tag = KEYS.tag(machine)
    name, data, key = seal_snapshot(KEYS, tag, time, summary, disks, files, sections)
    snapshot, reader = open_snapshot(KEYS, name, data)
    assert (snapshot.key, snapshot.tag, snapshot.summary) == (key, tag, summary)
    assert list(snapshot.roots) == disks
    assert snapshot.files == files
    assert snapshot.total_length == len(data)
    for number, plain in enumerate(sections, 1):
        offset, length = snapshot.section_range(number)
        assert reader.open(number, data[offset : offset + length]) == plain
    for number in (0, -1, len(sections) + 1):
        with pytest.raises(DamagedError):
            snapshot.section_range(number)


def test_every_bit_and_cut() -> None:
    tag = KEYS.tag("srv")
    name, data, _ = seal_snapshot(KEYS, tag, 1000, _summary(1000), [], None, [b"section" * 9])
    snapshot, _ = open_snapshot(KEYS, name, data)

    def opened(d: bytes) -> None:
        s, reader = open_snapshot(KEYS, name, d)
        offset, length = s.section_range(1)
        reader.open(1, d[offset : offset + length])
        if s.total_length != len(d):
            raise DamagedError("too long")

    opened(data)
    for bit in range(8 * len(data)):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            opened(bytes(wrong))
    for cut in range(len(data)):
        with pytest.raises(DamagedError):
            opened(data[:cut])
    assert snapshot.machine == "srv"


def test_the_name_must_be_that_of_the_content() -> None:
    """Each part of the name is compared with what is sealed: who may create can't make one from another."""
    tag = KEYS.tag("srv")
    name, data, key = seal_snapshot(KEYS, tag, 1000, _summary(1000), [], None, [])
    for other in (
        key._replace(sequence=4).name(tag),
        key._replace(time=1001).name(tag),
        key._replace(id="0" * 32).name(tag),
        key.name(KEYS.tag("other")),
        name + ".00000000",
        "snapshots/x",
    ):
        with pytest.raises(DamagedError):
            open_snapshot(KEYS, other, data)
    for summary, why in (
        (_summary(999), "disagrees"),
        (_summary(1000, "other"), "another machine"),
        (_summary(1000, disks=1), "layout"),
    ):
        lying, content, _ = seal_snapshot(KEYS, tag, 1000, summary, [], None, [])
        with pytest.raises(DamagedError, match=why):
            open_snapshot(KEYS, lying, content)


def test_the_id_is_free_of_places() -> None:
    """Moving frames changes no id."""
    tag = KEYS.tag("srv")
    keys = {
        seal_snapshot(
            KEYS, tag, 5, _summary(5, disks=1), [StreamRoot([PageRef(ref, ref, 1, 1)], 9, 1)], None, []
        )[2]
        for ref in (1, 2, ItemRef(Birth(0, bytes(32)), 1, 2, 3))
    }
    assert len(keys) == 1


names = file_names.map(os.fsdecode)
entries = st.builds(
    Entry,
    st.just("folder"),
    names,
    st.sampled_from(["file", "dir", "link", "fifo", "socket", "char", "block"]),
    mode=st.integers(0, 0o7777),
    uid=u32,
    gid=u32,
    user=st.none() | st.text(max_size=8),
    group=st.none() | st.text(max_size=8),
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
    size=st.integers(0, 2**63),
    content=st.none() | st.just("0" * 32),
    first=st.none() | u32,
    ctime_ns=st.none() | st.integers(-(2**63), 2**63 - 1),
    inode=st.none() | st.integers(0, 2**64),
    device=st.none() | st.integers(0, 2**64),
    target=st.none() | names,
    hardlink=st.none() | names,
    rdev=st.none() | u32,
    xattrs=st.none() | st.dictionaries(names, st.binary(max_size=20), min_size=1, max_size=3),
    original=st.none() | names,
    consistent=st.booleans(),
)


@given(entry=entries)
def test_entries(entry: Entry) -> None:
    """Names of any bytes survive the JSON."""
    value = json.loads(canonical(entry.to_json()))
    assert entry_from_json("folder", value) == entry
    assert entry_from_json("folder", {**value, "unknown": 5}) == entry
    assert os.fsencode(entry_from_json("folder", value).name) == os.fsencode(entry.name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", None, 5])
def test_names_that_are_none(name: object) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        entry_from_json("", {"name": name, "type": "file"})


@given(paths=st.lists(st.lists(file_names, min_size=1, max_size=4), min_size=1, max_size=15))
def test_order(paths: list[list[bytes]]) -> None:
    """A folder's children adjoin, and what lies below them comes later."""
    keys = []
    for path in paths:
        folder, name = os.fsdecode(b"/".join(path[:-1])), os.fsdecode(path[-1])
        keys.append((sort_key(folder, name), folder))
    folders = [folder for _, folder in sorted(keys)]
    changes = sum(1 for a, b in itertools.pairwise(folders) if a != b)
    assert changes == len(set(folders)) - 1
    random.Random(1).shuffle(keys)
    assert [folder for _, folder in sorted(keys)] == folders
