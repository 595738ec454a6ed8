"""Hypothesis strategies shared by the tests: what the repository's codecs and the backup take."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeAlias

from hypothesis import strategies as st

from cloudmount.repo.locations import Birth, Location
from cloudmount.repo.names import SnapshotKey
from cloudmount.repo.packs import PackTable
from cloudmount.repo.pages import ItemRef, Page, SegmentRef
from cloudmount.repo.structures import HEADER_BYTES

FileTree: TypeAlias = "dict[bytes, bytes | FileTree]"

u32 = st.integers(0, 2**32 - 1)
ids = st.binary(min_size=16, max_size=16)
births = st.builds(Birth, st.integers(0, 3), st.binary(min_size=32, max_size=32))

_edges = [0, 1, 2, 4095, 4096, 4097, 8191, 8192, 8193, 40_000]
sizes = st.sampled_from(_edges) | st.integers(0, 20_000)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """A file's bytes: runs of zeros, of one byte, and of noise, in a size at some edge."""
    size = draw(sizes)
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return bytes(size)
    if kind == 1:
        return draw(st.binary(min_size=1, max_size=3)) * size
    noise = random.Random(draw(st.integers(0, 1 << 32))).randbytes(size)  # each byte drawn would be too much
    if kind == 2:
        return noise
    cut = draw(st.integers(0, size))
    return noise[:cut] + bytes(size - cut)


file_names = st.binary(min_size=1, max_size=12).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
) | st.sampled_from([b"a", b"a.b", b"a-b", b"ab", b"machine.json", b"\xff", "\u00fc".encode()])

file_trees: st.SearchStrategy[FileTree] = st.recursive(
    st.dictionaries(file_names, contents(), max_size=5),
    lambda inner: st.dictionaries(file_names, contents() | inner, max_size=5),
    max_leaves=12,
)


_cuts = st.just((0, 0)) | st.tuples(st.integers(1, 16), st.integers(1, 2**21 - 1))
"""`cut` and `skip`: of a frame as it is stored, or of one that spans two."""


@st.composite
def locations(draw: st.DrawFn, max_frames: int = 60) -> Sequence[Location | None]:
    """The locations of a segment: fresh runs, frames used again, moved ones, spans of two, absent ones."""
    some_births = draw(st.lists(births, min_size=1, max_size=4, unique=True))
    others = draw(st.lists(ids, max_size=3, unique=True))
    spanning = draw(st.booleans())
    found: list[Location | None] = []
    at: dict[bytes, int] = {}
    number: dict[Birth, int] = {}
    for _ in range(draw(st.integers(0, max_frames))):
        if draw(st.integers(0, 4)) == 0:
            found.append(None)
            continue
        birth = draw(st.sampled_from(some_births))
        pack = draw(st.sampled_from([birth.salt[:16], *others])) if others else birth.salt[:16]
        length = draw(st.integers(17, 200_000))
        if draw(st.booleans()):
            offset, n = at.get(pack, HEADER_BYTES), number.get(birth, 0)
        else:
            offset, n = draw(u32), draw(u32)
        cut, skip = draw(_cuts) if spanning else (0, 0)
        found.append(Location(pack, offset, length, birth, n, cut, skip))
        at[pack], number[birth] = (offset + (cut or length)) % 2**32, (n + 1) % 2**32
    return found


item_refs = st.builds(ItemRef, births, u32, u32, u32)


@st.composite
def pages(draw: st.DrawFn) -> tuple[Page, int]:
    """A page, and how many 2 MiB blocks its segments have."""
    per_segment = draw(st.sampled_from([1, 2, 3, 8, 16, 512]))
    count = draw(st.integers(0, 40))
    last = draw(st.integers(1, per_segment))
    blocks = (count - 1) * per_segment + last if count else 0
    bits, segments = 0, {}
    first = draw(st.integers(0, 2**40))
    some = draw(st.lists(item_refs, min_size=1, max_size=4))
    for n in range(count):
        here = min(per_segment, blocks - n * per_segment)
        mine = draw(st.integers(0, 2**here - 1)) if draw(st.booleans()) else 0
        if mine:
            bits |= mine << (n * per_segment)
            ref = SegmentRef(draw(u32), draw(st.sampled_from(some)), draw(st.sampled_from(some)))
            segments[first + n] = ref
    presence = bits.to_bytes((blocks + 7) // 8, "little")
    return Page(first, count, blocks, presence, draw(st.integers(0, 2**60)), segments), per_segment


@st.composite
def pack_tables(draw: st.DrawFn) -> PackTable:
    """A pack's table; sometimes with frames born elsewhere."""
    birth = draw(births)
    n = draw(st.integers(0, 20))
    lengths = draw(st.lists(st.integers(17, 300_000), min_size=n, max_size=n))
    moved = {}
    if n and draw(st.booleans()):
        others = draw(st.lists(births.filter(lambda b: b != birth), min_size=1, max_size=3, unique=True))
        for place in draw(st.sets(st.integers(0, n - 1))):
            moved[place] = (draw(st.sampled_from(others)), draw(u32))
    size = HEADER_BYTES + sum(lengths) + draw(st.integers(0, 2**40))
    return PackTable(birth, size, draw(st.lists(ids, min_size=n, max_size=n)), lengths, moved)


snapshot_keys = st.builds(
    SnapshotKey,
    st.integers(1, 2**64 - 1) | st.integers(1, 5),
    st.integers(0, 2**40 - 1) | st.integers(1_700_000_000, 1_700_000_003),
    ids.map(bytes.hex),
)


def names() -> st.SearchStrategy[str]:
    """One name in a tree: any characters, lone surrogates too, and often what Windows can't hold."""
    odd = st.sampled_from(
        ["CON", "con.txt", "NUL", "aux .x", "COM1", "lpt9.log", "COM¹", "CONIN$", ".", " ", "\uf025",
         "\uf03a", "\udc80", "\udcff", "\ud800", "\x01", "<", ">", ":", '"', "|", "?", "*", "\\", "%",
         "\U0001f600", "ß", "ı"]
    )  # fmt: skip
    any_character = st.characters(exclude_characters="/\0", exclude_categories=())
    parts = st.lists(odd | st.text(any_character, max_size=8), min_size=1, max_size=6)
    return parts.map("".join).filter(lambda name: name not in ("", ".", ".."))
