"""The campaigns of this room in their short form, and the command that runs the long ones."""

from __future__ import annotations

import pytest

from tests import campaign
from tests.backup import campaign_kills


def test_kills() -> None:
    assert campaign_kills.campaign(1, 3).startswith("3 kills")


def test_every_campaign_can_be_run() -> None:
    import importlib

    found = campaign.campaigns()
    assert {"kills", "bits"} <= set(found)
    assert len(set(found.values())) == len(found)
    for module in found.values():
        assert callable(importlib.import_module(module).campaign)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fine(seed: int, count: int) -> str:
        return f"{seed} and {count}"

    def broken(seed: int, count: int) -> str:
        raise AssertionError("something wrong")

    monkeypatch.setattr(campaign_kills, "campaign", fine)
    assert campaign.main(["--only", "kills", "--seed", "7", "--count", "3"]) == 0
    assert "ok: 7 and 3" in capsys.readouterr().out
    monkeypatch.setattr(campaign_kills, "campaign", broken)
    assert campaign.main(["--only", "kills"]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "something wrong" in out
    with pytest.raises(SystemExit) as caught:
        campaign.main(["--only", "none"])
    assert caught.value.code == 2
