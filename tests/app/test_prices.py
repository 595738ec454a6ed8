"""What reading costs, by a table that is data."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount.app.prices import Cost, is_billed, parse_prices, prices
from cloudmount.repo.config import TIERS

TABLE = """
source = "a list"
url = "https://prices.test"
date = 2026-01-02
currency = "EUR"
gb = 1000000000
[egress]
per_gb = 0.5
free_gb_a_month = 1
[tiers.hot]
reads_per_10000 = 2
writes_per_10000 = 20
listings_per_10000 = 30
retrieval_per_gb = 0
[tiers.cold]
reads_per_10000 = 100.0
writes_per_10000 = 40
listings_per_10000 = 60
retrieval_per_gb = 0.25
"""


def test_the_table_that_comes_with_the_program() -> None:
    table = prices()
    assert set(table.tiers) == set(TIERS)
    assert table.currency == "USD" and table.date > dt.date(2024, 1, 1)
    assert table.url.startswith("https://azure.microsoft.com/") and table.source
    hot, cool, cold = (table.cost(t, reads=100_000, bytes_down=100 << 30) for t in ("hot", "cool", "cold"))
    assert hot.retrieval == 0 and hot.total < cool.total < cold.total
    assert hot.egress == cool.egress == cold.egress == pytest.approx(8.7)
    assert cold.total == pytest.approx(1.0 + 3.0 + 8.7)


def test_a_cost_has_its_parts() -> None:
    table = parse_prices(TABLE)
    cost = table.cost("cold", reads=500, bytes_down=2_000_000_000, listings=10)
    assert cost == Cost("EUR", pytest.approx(5.06), 0.5, 1.0) and cost.total == pytest.approx(6.56)
    assert table.cost("hot", writes=500) == Cost("EUR", pytest.approx(1.0), 0.0, 0.0)
    assert (cost + table.cost("hot", reads=5000, bytes_down=0)).requests == pytest.approx(6.06)


@given(
    st.sampled_from(TIERS), st.integers(0, 10**9), st.integers(0, 10**15), st.integers(0, 10**9),
    st.integers(0, 10**15),
)  # fmt: skip
def test_more_never_costs_less(tier: str, reads: int, size: int, more_reads: int, more: int) -> None:
    table = prices()
    one = table.cost(tier, reads=reads, bytes_down=size)
    both = one + table.cost(tier, reads=more_reads, bytes_down=more)
    assert both.total >= one.total >= 0
    whole = table.cost(tier, reads=reads + more_reads, bytes_down=size + more)
    assert both.total == pytest.approx(whole.total)


@pytest.mark.parametrize(
    ("found", "put"),
    [("gb = 1000000000", "gb = 0"), ("gb = 1000000000", "gb = true"), ("2026-01-02", '"today"'),
     ("per_gb = 0.5", 'per_gb = "much"'), ('currency = "EUR"', ""), ("[egress]", "")],
)  # fmt: skip
def test_what_is_no_table(found: str, put: str) -> None:
    assert found in TABLE
    with pytest.raises((ValueError, KeyError)):
        parse_prices(TABLE.replace(found, put, 1))


def test_who_is_billed() -> None:
    assert is_billed("azure://backups/srv") and is_billed("https://a.blob.core.windows.net/c")
    assert not is_billed("/srv/backups") and not is_billed("file:///srv") and not is_billed("azure")
