"""The systemd unit of a drive.

Decided here and only here: how it is started again, and what its process may do. It mounts, so it needs
root's CAP_SYS_ADMIN, and must see the host's mounts: every setting that gives a service mounts of its own
(ProtectSystem=, PrivateTmp=, ProtectHome=, ...) would hide the drive from everybody else (systemd.exec(5):
"propagation of mounts from the unit's processes to the host is turned off"). What remains is used:
capabilities, system calls, address families, devices. Pure; safe on any thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cloudmount.service.escaping import quoted, required_path, told

CREDENTIAL = "cloudmount"
"""What the credential is called in the service."""


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """What a unit is made of. `program` starts Python, `arguments` are those of `cloudmount mount`, `needs`
    folders that may lie on other file systems; `credential` is the file's path."""

    mountpoint: str
    program: Sequence[str]
    arguments: Sequence[str]
    needs: Sequence[str]
    credential: str
    encrypted: bool


def unit_text(plan: UnitPlan) -> str:
    """The unit file."""
    run = [*plan.program, "service", "run", "--credentials"]
    words = [
        *map(quoted, run),
        f'"${{CREDENTIALS_DIRECTORY}}/{CREDENTIAL}"',
        *map(quoted, ["--", *plan.arguments, plan.mountpoint]),
    ]
    needs = sorted({p for path in plan.needs if (p := required_path(path)) is not None})
    load = "LoadCredentialEncrypted" if plan.encrypted else "LoadCredential"
    return f"""\
# Made by 'cloudmount service install'; 'cloudmount service remove' takes it away.
[Unit]
Description=CloudMount drive at {told(plan.mountpoint)}
Wants=network-online.target
After=network-online.target
{"".join(f"RequiresMountsFor={path}" + chr(10) for path in needs)}\
# A store that can't be reached at night is tried again until it can.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join(words)}
{load}={CREDENTIAL}:{plan.credential}
Environment=PYTHONUTF8=1 XDG_STATE_HOME=/var/lib XDG_CACHE_HOME=/var/cache
StateDirectory=cloudmount
StateDirectoryMode=0700
CacheDirectory=cloudmount
CacheDirectoryMode=0700
UMask=0077
WorkingDirectory=/
Restart=on-failure
RestartSec=30
# Wrong usage, and a wrong passphrase, don't get better.
RestartPreventExitStatus=2 6
SuccessExitStatus=130
TimeoutStartSec=90
# The drive is gone within 5 s of SIGTERM, whatever its reads do.
TimeoutStopSec=15
KillMode=mixed

# Nothing here may give the service mounts of its own: the drive would be seen by nobody else.
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER
NoNewPrivileges=yes
DevicePolicy=closed
DeviceAllow=/dev/fuse rw
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
ProtectClock=yes
ProtectHostname=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service @mount
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def needed_folders(mountpoint: str, *others: str | None) -> list[str]:
    """Folders whose file systems must be there first."""
    return [os.path.dirname(mountpoint), *filter(None, others)]
