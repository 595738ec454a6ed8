"""Memory bounded to the byte, and one flight for all who ask."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount.errors import CloudMountError
from cloudmount.reader.flights import ENTRY_BYTES, OVERDUE, FrameTable

FAR = time.monotonic() + 1e6


@given(
    st.integers(0, 20000),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6000), st.booleans(), st.booleans())),
)
def test_memory_never_holds_more_than_its_limit(limit: int, steps: list[tuple[int, int, bool, bool]]) -> None:
    table = FrameTable(limit)
    content: dict[int, bytes] = {}
    for number, length, ahead, look in steps:
        key = ("disk", number)
        if look:
            found = table.get(key)
            assert found is None or found == content[number]
            continue
        for claimed, flight in table.claim_new([key], FAR).items():
            plain = content.setdefault(number, bytes([number]) * length)
            table.land(claimed, flight, plain, ahead=ahead)
        kept = {n: table.has(("disk", n)) for n in content}
        held = sum(len(content[n]) + ENTRY_BYTES for n, there in kept.items() if there)
        assert held == table.used <= limit


def test_the_least_recently_used_goes_first_and_waste_is_counted() -> None:
    table = FrameTable(3 * (100 + ENTRY_BYTES))
    for n in range(3):
        ((key, flight),) = table.claim_new([("d", n)], FAR).items()
        assert table.land(key, flight, bytes(100), ahead=True) == 0
    assert table.get(("d", 0)) is not None
    ((key, flight),) = table.claim_new([("d", 3)], FAR).items()
    assert table.land(key, flight, bytes(100)) == 1  # frame 1, which nobody asked for
    assert [table.has(("d", n)) for n in range(4)] == [True, False, True, True]
    ((key, flight),) = table.claim_new([("d", 4)], FAR).items()
    assert table.land(key, flight, bytes(100)) == 1
    ((key, flight),) = table.claim_new([("d", 5)], FAR).items()
    assert table.land(key, flight, bytes(100)) == 0  # frame 0 was used
    assert table.wasted == 2


def test_readahead_that_somebody_joined_was_of_use() -> None:
    table = FrameTable(100 + ENTRY_BYTES)
    ((key, flight),) = table.claim_new([("d", 0)], FAR).items()
    assert list(table.claim([key], FAR).others) == [key]
    table.land(key, flight, bytes(100), ahead=True)
    ((other, flight),) = table.claim_new([("d", 1)], FAR).items()
    assert table.land(other, flight, bytes(100)) == 0


def test_one_flight_for_all_and_errors_are_not_kept() -> None:
    table = FrameTable(1 << 20)
    claims = [table.claim([("d", 1)], FAR) for _ in range(20)]
    (mine,) = [c.mine for c in claims if c.mine]
    assert sum(len(c.others) for c in claims) == 19
    found: list[object] = []

    def wait(flight: object) -> None:
        try:
            claims[1].others[("d", 1)].wait(10)
            claims[1].others[("d", 1)].result()
        except CloudMountError as error:
            found.append(error)

    threads = [threading.Thread(target=wait, args=(c,)) for c in claims[1:]]
    for t in threads:
        t.start()
    table.crash(("d", 1), mine[("d", 1)], CloudMountError("no"))
    for t in threads:
        t.join()
    assert len(found) == 19
    assert table.claim([("d", 1)], FAR).mine


def test_an_overdue_flight_is_begun_again_and_its_late_landing_does_no_harm() -> None:
    table = FrameTable(1 << 20)
    ((key, lost),) = table.claim([("d", 1)], time.monotonic() - OVERDUE - 1).mine.items()
    assert not table.there(key)
    ((_, again),) = table.claim([key], FAR).mine.items()
    table.land(key, lost, b"late")
    assert table.get(key) == b"late"
    assert not again.landed
    table.land(key, again, b"late")
    assert again.result() == b"late"


def test_closing_wakes_who_waits_and_refuses_who_comes() -> None:
    table = FrameTable(1 << 20)
    ((key, flight),) = table.claim([("d", 1)], FAR).mine.items()
    table.close(CloudMountError("closed"))
    assert flight.landed
    with pytest.raises(CloudMountError, match="closed"):
        flight.result()
    with pytest.raises(CloudMountError, match="closed"):
        table.claim([key], FAR)
    with pytest.raises(CloudMountError, match="closed"):
        table.claim_new([key], FAR)
    table.land(key, flight, b"late")
    assert table.get(key) is None
    assert table.used == 0
