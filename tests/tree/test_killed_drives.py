"""Drives that are killed while they are read and complete a disk; `make campaign` has thousands."""

from __future__ import annotations

import pytest

from tests.tree.campaign_drives import campaign


@pytest.mark.mount
@pytest.mark.timeout(240)
def test_killed_drives_go_on_and_never_give_a_wrong_byte() -> None:
    assert ", 1 of them of the program; " in campaign(1, 12)
