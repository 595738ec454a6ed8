"""A short run of the readers' campaign; `make campaign` has the long ones."""

from __future__ import annotations

from tests.disks.campaign_readers import campaign


def test_a_few_rounds() -> None:
    text = campaign(seed=1, count=25)
    assert "25 chains" in text
    assert "error" in text
    assert "right" in text
