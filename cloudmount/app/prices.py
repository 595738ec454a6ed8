"""What reading from Azure Blob Storage costs, and storing into it, about.

Decided here and only here: how the price table (`prices.toml`, data that names its source and date) is
read, and that an estimate counts all bytes that come down, not knowing what is left of a month's free ones.
Bytes that go up cost nothing; what is kept there, each month, is not counted. Immutable; safe on any thread.
"""

from __future__ import annotations

import datetime as dt
import functools
import importlib.resources
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloudmount.blobs.store import Tier

_COUNTED = 10_000
"""Requests that one price is for."""
_AZURE = ("azure://", "https://", "http://")


@dataclass(frozen=True, slots=True)
class TierPrices:
    """Of one access tier; retrieval is that of bytes read, beside their egress."""

    reads_per_10000: float
    writes_per_10000: float
    listings_per_10000: float
    retrieval_per_gb: float


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate in `currency`, part by part."""

    currency: str
    requests: float
    retrieval: float
    egress: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.requests + self.retrieval + self.egress

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.currency,
            self.requests + other.requests,
            self.retrieval + other.retrieval,
            self.egress + other.egress,
        )


@dataclass(frozen=True, slots=True)
class Prices:
    """A price table: where it is from and of when; `gb` is the bytes of one GB on the bill."""

    source: str
    url: str
    date: dt.date
    currency: str
    gb: int
    egress_per_gb: float
    free_gb_a_month: float
    """Of egress; not subtracted by `cost`."""
    tiers: Mapping[Tier, TierPrices]

    def cost(
        self, tier: Tier, *, reads: int = 0, bytes_down: int = 0, listings: int = 0, writes: int = 0
    ) -> Cost:
        """What `reads` requests that bring `bytes_down` from `tier` cost, and beside them `listings`, and
        `writes` that store an object there."""
        prices, gb = self.tiers[tier], bytes_down / self.gb
        asked = reads * prices.reads_per_10000 + listings * prices.listings_per_10000
        asked += writes * prices.writes_per_10000
        return Cost(self.currency, asked / _COUNTED, gb * prices.retrieval_per_gb, gb * self.egress_per_gb)


@functools.cache
def prices() -> Prices:
    """The table that came with the program."""
    return parse_prices(importlib.resources.files(__package__).joinpath("prices.toml").read_text("utf-8"))


def parse_prices(text: str) -> Prices:
    """A table in TOML; `ValueError` or `KeyError` for one that is none."""
    value: dict[str, Any] = tomllib.loads(text)
    date, egress = value["date"], value["egress"]
    if not isinstance(date, dt.date):
        raise ValueError("the date of the prices is no date")
    return Prices(
        str(value["source"]),
        str(value["url"]),
        date,
        str(value["currency"]),
        _positive(value["gb"]),
        float(egress["per_gb"]),
        float(egress["free_gb_a_month"]),
        {
            tier: TierPrices(
                float(of["reads_per_10000"]),
                float(of["writes_per_10000"]),
                float(of["listings_per_10000"]),
                float(of["retrieval_per_gb"]),
            )
            for tier, of in value["tiers"].items()
        },
    )


def is_billed(address: str) -> bool:
    """Whether reading from the repository at `address` costs anything: not from a folder."""
    return address.startswith(_AZURE)


def _positive(value: Any) -> int:
    if type(value) is not int or value <= 0:
        raise ValueError(f"{value!r} bytes are no GB")
    return value
