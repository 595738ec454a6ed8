"""The speed of a line, by a little reading."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount.app import linkspeed
from cloudmount.app.linkspeed import AT_ONCE, LONGEST, MOST, PROBE, Range, _pieces, measure
from cloudmount.blobs.memory import MemoryStore
from cloudmount.errors import StoreTimeoutError

MIB = 1 << 20


class Line(MemoryStore):
    """A store over a line of a simulated clock: each read takes a round trip and its bytes, one after
    another; after `dies` reads each takes until its deadline."""

    def __init__(self, rate: float, trip: float, dies: int = 1 << 30) -> None:
        super().__init__()
        self.now, self.reads, self.largest = 1000.0, 0, 0
        self._rate, self._trip, self._dies, self._one = rate, trip, dies, threading.Lock()

    def clock(self) -> float:
        """Its time."""
        return self.now

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        assert length is not None and deadline is not None
        with self._one:
            self.reads += 1
            self.largest = max(self.largest, length)
            ends = self.now + self._trip + length / self._rate
            if self.reads > self._dies or ends > deadline:
                self.now = max(self.now, deadline)
                raise StoreTimeoutError("silent")
            self.now = ends
        return bytes(length)


@pytest.mark.parametrize(("rate", "trip"), [(12.5e6, 0.04), (1e6, 0.1), (200e6, 0.001)])
def test_a_line_is_measured(rate: float, trip: float) -> None:
    line = Line(rate, trip)
    link = measure(line, [Range("packs/a", 100, 500 * MIB)], line.clock)
    assert link is not None
    assert link.round_trip == pytest.approx(trip, rel=0.1, abs=0.002)
    assert rate * 0.3 < link.bytes_per_second <= rate
    assert link.fetched_bytes <= MOST + PROBE + 4096 and link.requests == line.reads
    assert line.now - 1000 < linkspeed.SECONDS + 3
    assert link.seconds(10 * MIB, 3) == pytest.approx(10 * MIB / link.bytes_per_second + 3 * link.round_trip)


def test_a_slow_line_is_asked_for_little() -> None:
    line = Line(20_000, 0.2)
    link = measure(line, [Range("packs/a", 0, 500 * MIB)], line.clock)
    assert link is not None and link.bytes_per_second == pytest.approx(20_000, rel=0.3)
    assert line.largest == PROBE and link.fetched_bytes <= (1 + AT_ONCE) * PROBE + 4096
    assert line.now - 1000 <= LONGEST


def test_small_frames_first_do_not_mislead() -> None:
    line = Line(50_000, 0.2)
    small = [Range("packs/a", n * 200, 200) for n in range(5)]
    link = measure(line, [*small, Range("packs/a", 4096, 500 * MIB)], line.clock)
    assert link is not None and link.bytes_per_second == pytest.approx(50_000, rel=0.4)
    assert line.largest == PROBE and line.now - 1000 <= LONGEST
    line = Line(50_000, 0.2)
    assert measure(line, small, line.clock) is not None and line.largest == 200


def test_a_line_that_dies_meanwhile_tells_what_it_was() -> None:
    line = Line(1e6, 0.05, dies=6)
    link = measure(line, [Range("packs/a", 0, 500 * MIB)], line.clock)
    assert link is not None and link.bytes_per_second < 1e6 and line.now - 1000 <= LONGEST
    line = Line(1e6, 0.05, dies=4)  # the probe was the last that came
    link = measure(line, [Range("packs/a", 0, 500 * MIB)], line.clock)
    assert link is not None and link.bytes_per_second == pytest.approx(1e6, rel=0.1)


def test_a_line_that_is_dead_is_told() -> None:
    line = Line(1e6, 0.05, dies=1)
    with pytest.raises(StoreTimeoutError):
        measure(line, [Range("packs/a", 0, 500 * MIB)], line.clock)


def test_little_is_read_where_little_is_stored() -> None:
    line = Line(1e6, 0.05)
    assert measure(line, [], line.clock) is None and not line.reads
    link = measure(line, [Range("packs/a", 7, 10)], line.clock)
    assert link is not None and link.fetched_bytes == 40 and link.bytes_per_second > 0


@given(
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 12 * MIB)), min_size=1, max_size=6),
    st.sampled_from([PROBE, 256 << 10, MIB]),
)
def test_pieces_are_the_ranges(ranges: list[tuple[int, int]], piece: int) -> None:
    parts = [Range(f"o{n}", offset, length) for n, (offset, length) in enumerate(ranges)]
    read = min(PROBE, parts[0].length)
    found = list(_pieces(parts[0], read, iter(parts[1:]), piece))
    assert all(0 < p.length <= piece for p in found)
    assert sum(p.length for p in found) == min(MOST, sum(p.length for p in parts) - read)
    at = dict.fromkeys((p.name for p in parts), 0) | {parts[0].name: read}
    for p in found:
        whole = parts[int(p.name[1:])]
        assert p.offset == whole.offset + at[p.name]
        at[p.name] += p.length
        assert at[p.name] <= whole.length
