"""What a boot read is recorded in its order; a copy and a glance are no boots."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from cloudmount.extents import Bytes
from cloudmount.reader import tracing
from cloudmount.reader.tracing import Recorder, TracedSource

FRAME = 4096


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@given(st.lists(st.tuples(st.integers(0, 500 * FRAME), st.integers(0, 20 * FRAME)), max_size=60))
def test_each_frame_once_in_the_order_first_read(reads: list[tuple[int, int]]) -> None:
    recorder, order = Recorder(FRAME), []
    for offset, length in reads:
        recorder.note(offset, length)
        for number in range(offset // FRAME, -(-(offset + length) // FRAME) if length else 0):
            if number not in order:
                order.append(number)
    assert [n for first, count, _ in recorder.runs for n in range(first, first + count)] == order


def test_times_and_the_end() -> None:
    clock, over = Clock(), []
    recorder = Recorder(FRAME, lambda: over.append(1), clock)
    recorder.note(0, 1)
    clock.seconds = 1.5
    recorder.note(FRAME, 2 * FRAME)
    clock.seconds = tracing.SECONDS + 1
    recorder.note(9 * FRAME, 1)
    recorder.note(10 * FRAME, 1)
    assert recorder.runs == ((0, 1, 0), (1, 2, 1500))
    assert recorder.ended and over == [1]


def test_it_is_bounded() -> None:
    recorder = Recorder(1)
    for n in range(tracing.MOST_FRAMES + 1000):
        recorder.note(n, 1)
    assert sum(count for _, count, _ in recorder.runs) == tracing.MOST_FRAMES


def test_copies_are_no_boots() -> None:
    copy, holes, twice = Recorder(FRAME), Recorder(FRAME), Recorder(FRAME)
    for n in range(1000):
        copy.note(n * FRAME + (FRAME if n % 2 else 0), FRAME)  # requests overtake each other
        holes.note(n * 70 * FRAME, 3 * FRAME)
    for _ in range(2):
        for n in range(500):
            twice.note(n * FRAME, FRAME)
    assert not copy.is_boot and not holes.is_boot and not twice.is_boot
    boot = Recorder(FRAME)
    for n in (0, 9000, 8, 2000, 50, 4000, 700, 9000, 3, 100):
        boot.note(n * FRAME, FRAME)
    assert boot.is_boot


def test_a_traced_source_is_what_it_was() -> None:
    asked: list[object] = []

    class Ahead(Bytes):
        def fetch_ahead(self, ranges: object, via: object = None) -> None:
            asked.append(ranges)

    inner, recorder = Ahead(bytes(range(256)) * 64), Recorder(FRAME)
    source = TracedSource(inner, lambda: recorder)
    assert source.read_at(5000, 100) == inner.read_at(5000, 100)
    assert recorder.runs[0][:2] == (1, 1)
    source.fetch_ahead([(0, 10)])
    assert asked == [[(0, 10)]] and len(recorder.runs) == 1
    assert list(source.extents(0, 10)) == list(inner.extents(0, 10))
    threads = [threading.Thread(target=source.read_at, args=(i * 100, 50)) for i in range(100)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(n for first, count, _ in recorder.runs for n in range(first, first + count)) == [0, 1, 2]
