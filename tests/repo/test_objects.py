"""Sealed objects: every bit counts, every byte is needed, and none stands under another's name."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.crypto.keyring import SEAL_BYTES, Keyring
from cloudmount.errors import DamagedError
from cloudmount.repo.locations import Birth
from cloudmount.repo.mapobjects import MapWriter, map_table, open_item
from cloudmount.repo.names import INDEX, map_name, pack_name
from cloudmount.repo.objects import SectionReader, open_single, seal_sections, seal_single
from cloudmount.repo.packs import PACK_SLACK, PackWriter, open_frame, open_index, pack_table, seal_index
from cloudmount.repo.pages import ItemRef
from cloudmount.repo.payload import encode_frame, encode_payload, no_dictionary
from cloudmount.repo.structures import HEADER_BYTES, KIND_INDEX, KIND_SNAPSHOT
from tests.strategies import contents, pack_tables

KEYS = Keyring(os.urandom(32), {0: os.urandom(32), 1: os.urandom(32)})
OTHER = Keyring(os.urandom(32), {0: os.urandom(32), 1: os.urandom(32)})
ROOM = memoryview(bytearray((64 << 10) + PACK_SLACK))


def _every_bit(data: bytes, opened: Callable[[bytes], object]) -> None:
    """Each bit of a short object, a sample of a longer one's, and every truncation, are told as damage."""
    rng = random.Random(len(data))
    bits = range(8 * len(data))
    for bit in bits if len(data) <= 200 else [*range(8 * HEADER_BYTES), *rng.sample(bits, 400)]:
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            opened(bytes(wrong))
    for cut in range(0, len(data), max(1, len(data) // 100)):
        with pytest.raises(DamagedError):
            opened(data[:cut])
    with pytest.raises(DamagedError):
        opened(data + b"\0")


@settings(max_examples=15, deadline=None)
@given(content=contents())
def test_single_objects(content: bytes) -> None:
    name, data = seal_single(KEYS, KIND_INDEX, INDEX, content)
    assert open_single(KEYS, KIND_INDEX, name, data) == content
    _every_bit(data, lambda d: open_single(KEYS, KIND_INDEX, name, d))


def test_another_name_kind_or_key() -> None:
    name, data = seal_single(KEYS, KIND_INDEX, INDEX, b"content")
    other, _ = seal_single(KEYS, KIND_INDEX, INDEX, b"content")
    assert name != other
    for keys, kind, under in (
        (KEYS, KIND_INDEX, other),
        (KEYS, KIND_SNAPSHOT, name),
        (OTHER, KIND_INDEX, name),
    ):
        with pytest.raises(DamagedError):
            open_single(keys, kind, under, data)


def test_an_epoch_we_do_not_know() -> None:
    name, data = seal_single(KEYS, KIND_INDEX, INDEX, b"content")
    old = Keyring(bytes(32), {0: bytes(32)})
    with pytest.raises(DamagedError, match="epoch 1"):
        open_single(old, KIND_INDEX, name, data)


@settings(max_examples=10, deadline=None)
@given(parts=st.lists(contents(), min_size=1, max_size=4))
def test_sections(parts: list[bytes]) -> None:
    first, *others = [encode_payload(p) for p in parts]
    data = seal_sections(KEYS, KIND_SNAPSHOT, "snapshots/x", first, others)
    ends = [HEADER_BYTES]
    for payload in (first, *others):
        ends.append(ends[-1] + len(payload) + SEAL_BYTES)
    assert ends[-1] == len(data)

    def opened(d: bytes) -> list[bytes]:
        reader = SectionReader(KEYS, KIND_SNAPSHOT, "snapshots/x", d)
        found = [reader.first(d)]
        found += [reader.open(n, d[ends[n] : ends[n + 1]]) for n in range(1, len(parts))]
        if len(d) != ends[-1]:
            raise DamagedError("too long")
        return found

    assert opened(data) == parts
    _every_bit(data, opened)
    reader = SectionReader(KEYS, KIND_SNAPSHOT, "snapshots/x", data)
    for n in range(1, len(parts)):
        with pytest.raises(DamagedError):
            reader.open(n - 1, data[ends[n] : ends[n + 1]])


@settings(max_examples=15, deadline=None)
@given(frames=st.lists(contents().filter(bool), min_size=1, max_size=6))
def test_packs(frames: list[bytes]) -> None:
    writer = PackWriter(KEYS, ROOM)
    places = [writer.add(KEYS.content_id(f), encode_frame(f)) for f in frames]
    pack = writer.finish()
    pack.prove(KEYS)
    data = bytes(pack.data)
    assert pack.name == pack_name(places[0].pack)
    assert [(KEYS.content_id(f), at) for f, at in zip(frames, places, strict=True)] == list(
        pack.table.entries()
    )

    def opened(d: bytes) -> None:
        table = pack_table(KEYS, pack.name, len(d), d[:HEADER_BYTES], d[-(len(data) - HEADER_BYTES) :])
        assert table == pack.table
        for plain, at in zip(frames, places, strict=True):
            found = open_frame(KEYS, at, d[at.offset : at.offset + at.length], len(plain), no_dictionary)
            assert found == plain

    opened(data)
    _every_bit(data, opened)
    with pytest.raises(DamagedError):
        pack_table(KEYS, pack_name(bytes(16)), len(data), data[:HEADER_BYTES], data)
    first = places[0]
    sealed = data[first.offset : first.offset + first.length]
    for at in (
        first._replace(number=first.number + 1),
        first._replace(birth=Birth(0, first.birth.salt)),
        first._replace(birth=Birth(1, bytes(32))),
        first._replace(length=first.length + 1),
    ):
        with pytest.raises(DamagedError):
            open_frame(KEYS, at, sealed, len(frames[0]), no_dictionary)


@settings(max_examples=15, deadline=None)
@given(items=st.lists(st.tuples(st.integers(1, 6), contents()), min_size=1, max_size=6))
def test_map_objects(items: list[tuple[int, bytes]]) -> None:
    writer = MapWriter(KEYS)
    refs = [writer.add(kind, content) for kind, content in items]
    name, data = writer.finish()
    assert name == map_name(refs[0].map)

    def opened(d: bytes) -> None:
        table = map_table(KEYS, name, len(d), d[:HEADER_BYTES], d[-(len(data) - HEADER_BYTES) :])
        assert table == [(kind, ref.length) for (kind, _), ref in zip(items, refs, strict=True)]
        for (kind, content), ref in zip(items, refs, strict=True):
            assert open_item(KEYS, kind, ref, d[ref.offset : ref.offset + ref.length]) == content

    opened(data)
    _every_bit(data, opened)
    kind, _ = items[0]
    ref = refs[0]
    sealed = data[ref.offset : ref.offset + ref.length]
    with pytest.raises(DamagedError):
        open_item(KEYS, kind % 6 + 1, ref, sealed)
    with pytest.raises(DamagedError):
        open_item(KEYS, kind, ItemRef(ref.birth, ref.offset, ref.length, ref.number + 1), sealed)


@settings(max_examples=10, deadline=None)
@given(tables=st.lists(pack_tables(), max_size=4, unique_by=lambda t: t.id))
def test_index_objects(tables: list) -> None:  # type: ignore[type-arg]  # of PackTable; compared below
    name, data = seal_index(KEYS, tables)
    found = open_index(KEYS, name, data)
    assert [list(t.entries()) for t in found] == [list(t.entries()) for t in tables]
    _every_bit(data, lambda d: open_index(KEYS, name, d))


def test_a_pack_that_was_altered_in_memory_is_not_sent() -> None:
    from cloudmount.errors import CloudMountError

    writer = PackWriter(KEYS, ROOM)
    writer.add(KEYS.content_id(b"x" * 500), encode_frame(os.urandom(500)))
    pack = writer.finish()
    for place in (HEADER_BYTES + 3, len(pack.data) - 20, len(pack.data) - 2, 20):
        pack.data[place] ^= 4
        with pytest.raises(CloudMountError, match="memory"):
            pack.prove(KEYS)
        pack.data[place] ^= 4
    pack.prove(KEYS)
