"""A few rounds of the long campaign (campaign_reader.py)."""

from __future__ import annotations

from tests.reader.campaign_reader import campaign


def test_a_short_campaign() -> None:
    assert campaign(1, 5, reads=12).startswith("reader: 5 rounds")
