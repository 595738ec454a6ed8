"""Fixtures that tests of several rooms share, and what kind of test lies where.

Decided here and only here: what counts as a unit test (`make unit`, under two minutes): all that bears
none of the marks of pyproject.toml; and that no property is false for being slow. Marks of whole files are
given here, by where they lie.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("untimed")

pytest_plugins = ("tests.azurite_server",)

MARKS = {
    "program": (
        "boot/",
        "cli/",
        "guest/test_children.py",
        "mounts/test_looking.py",
        "mounts/winfsp/test_winfsp_letters.py",
        "reader/test_diskcache.py",
        "service/",
        "windows/test_stage.py",
    ),
    "oracle": (
        "disks/test_readers_and_qemu.py",
        "disks/test_sgdisk_tables.py",
        "disks/test_synthesis.py",
        "disks/test_vhd_synthesis.py",
        "guest/test_ext_sleuth.py",
        "guest/test_oracles.py",
        "guest/test_windows.py",
    ),
    "fault": (
        "backup/test_campaigns.py",
        "backup/test_every_bit.py",
        "backup/test_faults.py",
        "backup/test_kills.py",
        "backup/test_writers.py",
        "blobs/test_azure_link.py",
        "disks/test_broken_containers.py",
        "disks/test_campaign_readers.py",
        "guest/test_campaign_guest.py",
        "reader/test_campaign.py",
        "reader/test_io_timeout.py",
        "tree/test_drive_outage.py",
        "tree/test_killed_drives.py",
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the marks of its file."""
    here = Path(__file__).parent
    for item in items:
        below = item.path.relative_to(here).as_posix()
        for mark, places in MARKS.items():
            if below.startswith(places):
                item.add_marker(mark)
