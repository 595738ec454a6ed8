"""What is planned to be fetched: all of it once, little for nothing, in the order in which it is read."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from cloudmount.reader.aside import Aside
from cloudmount.reader.fetching import PLANNED
from cloudmount.reader.prefetch import Request
from cloudmount.repo.bootpacks import BootPack, Copy
from cloudmount.repo.locations import Birth, Location
from cloudmount.tree import bootplan
from cloudmount.tree.bootplan import Wanted, bridge, plan

UNIT = 128 << 10
SIZE = 1000 * UNIT - 5
PACKS = [Birth(0, bytes([n]) * 32) for n in range(4)]


@st.composite
def wanteds(draw: st.DrawFn) -> list[Wanted]:
    """Frames in any order, somewhere in four packs, none over another."""
    gaps = st.sampled_from([0, 1, 5000, 60_000, 130_000, bootplan.GAP, bootplan.GAP + 1, 5 << 20])
    row = st.tuples(st.integers(0, 3), gaps, st.integers(17, UNIT + 16))
    ends = [64] * 4
    found = []
    for frame, (pack, gap, length) in enumerate(draw(st.lists(row, max_size=40))):
        birth, offset = PACKS[pack], ends[pack] + gap
        found.append(Wanted(frame * 7, Location(birth.salt[:16], offset, length, birth, frame)))
        ends[pack] = offset + length
    random.Random(draw(st.integers(0, 99))).shuffle(found)
    return found


def aside_of(wanted: list[Wanted], kept: list[bool]) -> Aside:
    """A boot pack of some of them, in their order."""
    copies, offset = [], 1000
    for w, has in zip(wanted, kept, strict=False):
        if has:
            copies.append(Copy(w.frame, w.at.birth, w.at.number, bytes(16), offset, w.at.length))
            offset += w.at.length
    pack = BootPack("boot/x/0-" + "f" * 32, offset, "disk", "", 0, SIZE, UNIT, tuple(copies))
    return Aside(pack, lambda line: None)


def frames(requests: list[Request]) -> list[int]:
    return [offset // UNIT for request in requests for offset, _ in request.ranges]


@given(wanteds(), st.lists(st.booleans(), max_size=40), st.integers(1, PLANNED))
def test_each_frame_once_in_requests_that_are_worth_it(
    wanted: list[Wanted], kept: list[bool], most: int
) -> None:
    aside = aside_of(wanted, kept)
    order = {w.frame: i for i, w in enumerate(wanted)}
    place = {w.frame: aside.where(w.at) or w.at for w in wanted}
    requests = plan(wanted, aside, UNIT, SIZE, most)
    assert sorted(frames(requests)) == sorted(order)
    begins = [min(order[offset // UNIT] for offset, _ in r.ranges) for r in requests]
    assert begins == sorted(begins), "what is read first comes first"
    needed = asked = 0
    for request in requests:
        assert request.via is not None
        members = sorted(place[offset // UNIT] for offset, _ in request.ranges)
        assert len({at.pack for at in members}) == 1
        assert (request.via.aside is not None) == (members[0].pack == b"\xff" * 16)
        span = members[-1].offset + members[-1].length - members[0].offset
        assert request.bytes == span
        assert span <= most or len(members) == 1
        for one, two in itertools.pairwise(members):
            assert two.offset - one.offset - one.length <= request.via.bridge <= bootplan.GAP
        assert all(offset + length <= SIZE for offset, length in request.ranges)
        needed += sum(at.length for at in members)
        asked += span
    assert asked <= needed * (1 + bootplan.WASTE)


@given(wanteds(), st.floats(0, 1))
def test_gaps_are_read_through_from_the_smallest_while_that_is_cheap(
    wanted: list[Wanted], waste: float
) -> None:
    places = sorted(w.at for w in wanted)
    gaps = [
        b.offset - a.offset - a.length
        for a, b in itertools.pairwise(places)
        if a.pack == b.pack and 0 < b.offset - a.offset - a.length <= bootplan.GAP
    ]
    most = bridge(places, waste)
    needed = sum(at.length for at in places)
    assert sum(gap for gap in gaps if gap <= most) <= needed * waste
    larger = [gap for gap in gaps if gap > most]
    if larger:  # the next larger would be too much
        assert sum(gap for gap in gaps if gap <= min(larger)) > needed * waste


def test_a_boot_pack_comes_in_a_few_large_pieces_the_first_ones_small() -> None:
    wanted = [Wanted(n, Location(b"p" * 16, 64 + n * UNIT, 65000, PACKS[0], n)) for n in range(713)]
    requests = plan(wanted, aside_of(wanted, [True] * 713), UNIT, SIZE)
    assert frames(requests) == list(range(713))
    assert len(requests) <= 14
    assert requests[0].bytes <= bootplan.FIRST


def test_only_the_same_birth_number_and_length_is_the_same() -> None:
    at = Location(b"p" * 16, 64, 100, PACKS[0], 7)
    aside = aside_of([Wanted(3, at)], [True])
    assert aside.where(at) is not None
    moved = at._replace(pack=b"q" * 16, offset=9999)
    assert aside.where(moved) == aside.where(at)
    for other in (at._replace(birth=PACKS[1]), at._replace(number=8), at._replace(length=99)):
        assert aside.where(other) is None


def test_what_is_wrong_is_told_once() -> None:
    told: list[str] = []
    pack = BootPack("boot/x/0-" + "f" * 32, 0, "disk", "", 0, SIZE, UNIT, ())
    aside = Aside(pack, told.append)
    for _ in range(3):
        aside.lose(ValueError("no"))
    assert aside.lost and len(told) == 1
