"""The drivers that there are here; tests of mounts run through each."""

from __future__ import annotations

import pytest

from cloudmount.mounts.driver import Driver
from cloudmount.mounts.native_driver import NativeDrive, installed
from cloudmount.mounts.refuse_driver import RefuseDrive

DRIVERS: dict[str, Driver] = {"native": NativeDrive, "refuse": RefuseDrive}

_WITHOUT = pytest.mark.skipif(not installed(), reason="needs cloudmount-native (make setup builds it)")
NAMES = [pytest.param("native", marks=_WITHOUT), "refuse"]

each_driver = pytest.mark.parametrize("driver", NAMES)
"""A test with the argument `driver`, a name in `DRIVERS`."""
