"""The drivers that there are here; tests of mounts run through each."""

from __future__ import annotations

import pytest

from cloudmount.mounts.driver import Driver
from cloudmount.mounts.native_driver import NativeDrive
from cloudmount.mounts.refuse_driver import RefuseDrive

DRIVERS: dict[str, Driver] = {"native": NativeDrive, "refuse": RefuseDrive}

NAMES = list(DRIVERS)

each_driver = pytest.mark.parametrize("driver", NAMES)
"""A test with the argument `driver`, a name in `DRIVERS`."""
