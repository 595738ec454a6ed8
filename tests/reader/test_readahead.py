"""Windows grow on sequential reads, shrink on random ones, and give way when memory is short."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from cloudmount.reader.readahead import BESIDE, NOTHING, STREAMS, Ahead, Pace, Readahead

MANY = 1 << 20


def test_the_first_read_brings_only_near_neighbours() -> None:
    assert Readahead(MANY, near=2, longest=128).read(500, 501) == Ahead(2, 0, 0)
    assert Readahead(501, near=2, longest=128).read(500, 501) == Ahead(0, 0, 0)


def test_sequential_reads_double_the_window_up_to_the_longest() -> None:
    readahead = Readahead(MANY, near=2, longest=64)
    readahead.read(0, 1)
    told = [readahead.read(n, n + 1) for n in range(1, 1000)]
    asked = [a for a in told if a != NOTHING]
    # Without a gap, nothing twice, in growing pieces.
    assert asked[0].first == 3
    for a, b in itertools.pairwise(asked):
        assert a.stop == b.first
    lengths = [a.stop - a.first for a in asked]
    assert max(lengths) <= 64
    assert max(a.stop - n for n, a in enumerate(told, 2) if a != NOTHING) == 64
    assert len(asked) < 80  # a quarter of a window at a time


def test_a_reader_never_catches_up_with_half_its_window() -> None:
    readahead = Readahead(MANY, near=2, longest=64)
    fetched = 1 + readahead.read(0, 1).near
    for n in range(1, 500):
        ahead = readahead.read(n, n + 1)
        fetched = max(fetched, ahead.stop)
        if n > 50:
            assert fetched - n >= 32


def test_random_reads_stop_bringing_neighbours_and_sequential_ones_bring_them_back() -> None:
    rng = random.Random(1)
    readahead = Readahead(MANY, near=4, longest=128)
    told = [readahead.read(n, n + 1) for n in (rng.randrange(MANY - 10) for _ in range(50))]
    assert told[0].near == 4
    assert all(a == NOTHING for a in told[10:])
    for start in (1000, 5000, 9000):
        for n in range(start, start + 3):
            readahead.read(n, n + 1)
    assert readahead.near == 4


def clustered(readahead: Readahead, beside: int, rng: random.Random) -> list[Ahead]:
    """What is told of random reads that go to twelve clusters of eight frames."""
    places = [100_000 + c * 1000 + n for c in range(12) for n in (0, 3, 6)]
    rng.shuffle(places)
    return [readahead.read(n, n + 1, None, beside) for n in places]


def test_clustered_reads_have_what_lies_around_them_fetched() -> None:
    readahead = Readahead(MANY, near=2, longest=64)
    clustered(readahead, 12, random.Random(1))
    ahead = readahead.read(500_006, 500_007, None, 12)
    assert ahead == Ahead(0, 500_004, 500_016)
    assert readahead.read(500_003, 500_004, None, 12).stop == 0  # its region was fetched
    assert readahead.read(600_000, 600_001, None, 0).stop == 0  # a near store: nothing is worth it
    assert readahead.read(1, 2, None, 12) == Ahead(0, 0, 12)
    assert readahead.read(MANY - 1, MANY, None, 12) == Ahead(0, MANY - 3, MANY)


def test_scattered_reads_have_not() -> None:
    rng = random.Random(2)
    readahead = Readahead(MANY, near=2, longest=64)
    told = [readahead.read(n, n + 1, None, 12) for n in (rng.randrange(MANY - 10) for _ in range(3000))]
    assert sum(a.stop > a.first for a in told) < 30
    clustered(readahead, 12, rng)
    assert readahead.read(500_006, 500_007, None, 12).stop > 0
    told = [readahead.read(n, n + 1, None, 12) for n in (rng.randrange(MANY - 10) for _ in range(100))]
    assert all(a.stop == 0 for a in told[40:])  # and not for long after they were


def test_a_reader_that_goes_on_behind_what_was_fetched_around_it_is_sequential() -> None:
    readahead = Readahead(MANY, near=2, longest=64)
    clustered(readahead, 12, random.Random(1))
    fetched = readahead.read(500_006, 500_007, None, 12).stop
    for n in range(500_007, 500_040):
        ahead = readahead.read(n, n + 1, None, 12)
        if ahead.stop:
            assert ahead.first == fetched
            fetched = ahead.stop
        assert fetched > n + 1


def test_only_a_far_store_is_worth_it() -> None:
    pace = Pace(16 << 20)
    assert pace.worth == 0
    pace.answered(0.045)
    assert pace.worth == BESIDE
    pace.answered(0.002)
    assert pace.worth == 0


def test_reading_one_frame_in_small_pieces_is_not_progress() -> None:
    readahead = Readahead(MANY, near=2, longest=128)
    readahead.read(10, 11)
    assert [readahead.read(10, 11) for _ in range(20)] == [NOTHING] * 20


def test_several_readers_each_have_their_window() -> None:
    readahead = Readahead(MANY, near=2, longest=64)
    starts = [n * 10000 for n in range(STREAMS)]
    for step in range(100):
        told = [readahead.read(start + step, start + step + 1) for start in starts]
    assert readahead.near == 2
    last = [readahead.read(s + 100 + i, s + 101 + i) for s in starts for i in range(40)]
    assert max(a.stop - a.first for a in last) >= 16
    assert told is not None


def test_requests_that_overtake_each_other_stay_one_reader() -> None:
    readahead = Readahead(MANY, near=2, longest=64)
    order = [n ^ 1 for n in range(200)]
    told = [readahead.read(n, n + 1) for n in order]
    assert sum(a.near for a in told) <= 2
    assert max(a.stop - a.first for a in told) >= 16


def test_waste_halves_the_window() -> None:
    readahead = Readahead(MANY, near=2, longest=64)
    for n in range(200):
        readahead.read(n, n + 1)
    for _ in range(6):
        readahead.wasted()
    told = [readahead.read(n, n + 1) for n in range(300, 302)]
    assert max(a.stop - a.first for a in told) <= 4


def test_what_was_refused_is_told_again() -> None:
    readahead = Readahead(MANY, near=2, longest=64)
    readahead.read(0, 1)
    ahead = readahead.read(1, 2)
    assert ahead.stop > ahead.first
    readahead.refused(ahead)
    again = readahead.read(2, 3)
    assert again.first == ahead.first


def test_a_slow_link_is_not_given_more_than_it_carries() -> None:
    readahead = Readahead(MANY, near=2, longest=64)
    told = [readahead.read(n, n + 1, 8) for n in range(300)]
    assert max(a.stop - n for n, a in enumerate(told, 1) if a.first < a.stop) <= 8


def settled(rate: float, trip: float) -> int:
    """Where the pace goes on a link of `rate` plain bytes a second, one reader's window under way."""
    pace = Pace(16 << 20)
    for _ in range(3):
        pace.took(trip)  # the first requests are small
    for _ in range(200):
        pace.took(trip + pace.limit / rate)
    return pace.limit


def test_the_pace_is_the_link_s() -> None:
    assert settled(1e9, 0.001) == 16 << 20  # a folder
    assert settled(25e6, 0.04) < 16 << 20
    # Enough for a round trip, little more than the delay allows.
    for rate, trip in ((25e6, 0.04), (6e6, 0.06)):
        assert rate * trip <= settled(rate, trip) <= max(512 << 10, rate * 2.5 * Pace.DELAY)
    assert settled(25e6, 0.6) > 512 << 10  # a long way is no slow line
    assert settled(1e5, 0.1) == 512 << 10


@given(
    st.integers(1, 200),
    st.integers(0, 8),
    st.integers(0, 64),
    st.lists(st.tuples(st.integers(0, 199), st.integers(1, 40), st.sampled_from(("", "waste", "refuse")))),
    st.integers(0, 20),
)
def test_nothing_outside_the_stream_and_never_more_than_the_longest(
    frames: int, near: int, longest: int, reads: list[tuple[int, int, str]], beside: int
) -> None:
    readahead = Readahead(frames, near=near, longest=longest)
    for first, count, then in reads:
        first %= frames
        stop = min(frames, first + count)
        ahead = readahead.read(first, stop, None, beside)
        assert 0 <= ahead.near <= min(near, frames - stop)
        if ahead.first < ahead.stop:
            around = ahead.first <= first and ahead.stop - ahead.first <= beside
            assert around or stop <= ahead.first
            assert 0 <= ahead.first < ahead.stop <= min(frames, stop + max(1, longest, beside))
        if then == "waste":
            readahead.wasted()
        elif then == "refuse":
            readahead.refused(ahead)
