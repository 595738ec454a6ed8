"""What a machine must have before a drive can be put up, said in one line when it lacks it.

Decided here and only here: which parts of the system a FUSE drive needs, and which package or
setting brings each. Asked first, because libfuse itself says little, or says it on stderr.
Linux; elsewhere nothing is asked. Stateless; safe on any thread.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from cloudmount.errors import CloudMountError, UsageError

DEVICE = Path("/dev/fuse")
CONFIGURATION = Path("/etc/fuse.conf")
HELPER = "fusermount"
"""What libfuse 2 starts to mount for anyone but root; fuse3 brings it too, under both names."""


def require(
    *,
    allow_other: bool,
    root: bool | None = None,
    device: Path = DEVICE,
    configuration: Path = CONFIGURATION,
    helper: str = HELPER,
) -> None:
    """`CloudMountError` naming the part that is missing, `UsageError` for an option that isn't allowed.

    `root`: whether for the superuser; the others are where to look.
    """
    if not sys.platform.startswith("linux"):
        return
    if root is None:
        root = os.geteuid() == 0
    if not device.is_char_device():
        raise CloudMountError(
            f"a drive needs the kernel's FUSE, but there is no device {device}: 'modprobe fuse' loads it;"
            f" a container needs '--device {device} --cap-add SYS_ADMIN'"
        )
    if root:
        return
    if shutil.which(helper) is None:
        raise CloudMountError(f"a drive needs the program {helper}: install the package fuse3")
    if allow_other and not _other_users_allowed(configuration):
        raise UsageError(
            "--allow-other: the administrator has to allow it, by a line 'user_allow_other'"
            f" in {configuration}"
        )


def _other_users_allowed(configuration: Path) -> bool:
    try:
        lines = configuration.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)
