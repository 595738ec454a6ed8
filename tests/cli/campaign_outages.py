"""The line cut, and silent, for minutes under a `dd` and under a VM that boots: see `outages`.

`count` is how long, in steps of 3 seconds: 200 are the ten minutes. The drives that give up have the
default time-out (of 60 s, so `count` should be more than 25).
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.azurite_server import AzuriteServer
from tests.cli.outages import dd_outage, vm_outage


def campaign(seed: int, count: int) -> str:
    """All four, at the same time."""
    azurite = AzuriteServer()
    try:
        with tempfile.TemporaryDirectory(prefix="outages-") as folder, ThreadPoolExecutor(4) as pool:
            running = []
            for outage in (dd_outage, vm_outage):
                for how in ("cut", "stall"):
                    own = Path(folder).resolve() / f"{outage.__name__}-{how}"
                    own.mkdir()
                    running.append(pool.submit(outage, azurite, own, how, 3.0 * count, None))
            return "; ".join(each.result() for each in running)
    finally:
        azurite.stop()
