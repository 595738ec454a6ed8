"""Outages of some seconds, of a line under a drive; `make campaign` has those of ten minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.azurite_server import AzuriteServer
from tests.cli.outages import dd_outage, vm_outage

pytestmark = [pytest.mark.azurite, pytest.mark.mount]


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_under_a_dd(azurite: AzuriteServer, tmp_path: Path, how: str) -> None:
    assert "whole and right" in dd_outage(azurite, tmp_path, how, 3.0, 1.0)


@pytest.mark.boot
@pytest.mark.timeout(300)
def test_under_a_vm(azurite: AzuriteServer, tmp_path: Path) -> None:
    assert "ready" in vm_outage(azurite, tmp_path, "stall", 3.0, 1.0)
