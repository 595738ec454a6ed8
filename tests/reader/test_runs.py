"""Which frames one request brings: properties, and gaps."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.reader.runs import coalesce
from cloudmount.repo.locations import Birth, Location

BIRTH = Birth(0, bytes(32))


def at(pack: int, offset: int, length: int) -> Location:
    return Location(bytes([pack]) * 16, offset, length, BIRTH, 0)


@st.composite
def places(draw: st.DrawFn) -> list[Location]:
    """Frames as packs hold them: one behind another, some left out, in any order, some twice."""
    found = []
    for pack in range(draw(st.integers(1, 3))):
        offset = 64
        for length in draw(st.lists(st.integers(17, 5000), max_size=20)):
            if draw(st.booleans()):
                found.append(at(pack, offset, length))
            offset += length
    return draw(st.permutations(found + draw(st.lists(st.sampled_from(found), max_size=3)) if found else []))


@given(places(), st.integers(1000, 40000), st.integers(0, 4000))
def test_every_frame_lies_in_one_run_and_runs_keep_their_bounds(
    found: list[Location], longest: int, bridge: int
) -> None:
    runs = coalesce(range(len(found)), lambda i: found[i], longest=longest, bridge=bridge)
    assert sorted(i for run in runs for i in run.members) == list(range(len(found)))
    for run in runs:
        inside = sorted((found[i] for i in run.members), key=lambda a: a.offset)
        assert {a.pack for a in inside} == {run.pack}
        assert (inside[0].offset, inside[-1].offset + inside[-1].length) == (run.offset, run.end)
        assert run.length <= longest or len(set(inside)) == 1
        for a, b in itertools.pairwise(inside):
            assert b.offset - (a.offset + a.length) <= bridge
    firsts = [min(run.members) for run in runs]
    assert firsts == sorted(firsts)


@settings(deadline=None)
@given(places(), st.integers(1000, 40000), st.randoms())
def test_what_spans_two_is_asked_for_with_its_neighbours(
    found: list[Location], longest: int, rng: random.Random
) -> None:
    """Frames that overlap lie in one run, as far as it may go; no byte is twice in one."""
    whole = sorted(set(found), key=lambda a: (a.pack, a.offset))
    spans = [
        a._replace(length=a.length + b.length, cut=a.length, skip=1)
        for a, b in itertools.pairwise(whole)
        if (a.pack, a.offset + a.length) == (b.pack, b.offset)
    ]
    mixed = rng.sample(found + spans, len(found + spans))
    runs = coalesce(range(len(mixed)), lambda i: mixed[i], longest=longest, bridge=0)
    assert sorted(i for run in runs for i in run.members) == list(range(len(mixed)))
    for run in runs:
        inside = [mixed[i] for i in run.members]
        assert min(a.offset for a in inside) == run.offset
        assert max(a.offset + a.length for a in inside) == run.end
        assert run.length <= max(longest, *(a.length for a in inside), 0)
    for a, b in itertools.pairwise(sorted(runs, key=lambda r: (r.pack, r.offset))):
        assert a.pack != b.pack or a.end <= b.offset or b.end - a.offset > longest


def test_adjoining_frames_are_one_request_and_gaps_are_read_through_when_small() -> None:
    frames = [at(1, 64, 100), at(1, 164, 100), at(1, 364, 100), at(1, 5000, 100), at(2, 5100, 100)]
    runs = coalesce(range(5), lambda i: frames[i], longest=10000, bridge=100)
    assert [(run.offset, run.length) for run in runs] == [(64, 400), (5000, 100), (5100, 100)]


def test_a_gap_that_holds_what_is_cached_is_not_read_again() -> None:
    frames = [at(1, 64, 100), at(1, 264, 100)]
    held = {(frames[0].pack, 164)}
    assert len(coalesce(range(2), lambda i: frames[i], longest=10000, held=held)) == 2
    assert len(coalesce(range(2), lambda i: frames[i], longest=10000)) == 1


def test_one_place_twice_is_read_once() -> None:
    frames = [at(1, 64, 100), at(1, 64, 100), at(1, 164, 10)]
    (run,) = coalesce(range(3), lambda i: frames[i], longest=10000)
    assert (run.offset, run.length, sorted(run.members)) == (64, 110, [0, 1, 2])
