"""What of CloudMount is up on this machine."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from typing import Any

from cloudmount.app.hydrations import hydrations
from cloudmount.app.places import records_folder
from cloudmount.app.vms import all_vms
from cloudmount.mounts.folders import ours
from cloudmount.mounts.records import read_records, remove_record


def status(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Every mount, hydration and VM of this user's; records of those that are gone are cleared."""
    mounts = []
    for record in read_records(records_folder(environ)):
        if not (record.alive if record.driver == "winfsp" else ours(record.mountpoint)):
            if not record.alive:
                remove_record(records_folder(environ), record.mountpoint)
            continue
        since = dt.datetime.fromtimestamp(record.since, dt.UTC)
        mounts.append(
            {
                "mountpoint": record.mountpoint,
                "repository": record.repository,
                "pid": record.pid,
                "driver": record.driver,
                "pass_through": record.pass_through,
                "since": f"{since:%Y-%m-%dT%H:%M:%SZ}",
                "state": "up" if record.alive else "its process was killed",
            }
        )
    return {
        "mounts": mounts,
        "hydrations": hydrations(environ),
        "vms": [vm.told() for vm in all_vms(environ)],
    }
