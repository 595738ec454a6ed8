"""Mounting with fuse3's own helper, which hands over the open /dev/fuse.

Decided here and only here: how a mount is made without libfuse. The helper is used for root too, so
there is one way, and it tells its reasons. Linux only. Stateless; safe on any thread.
"""

from __future__ import annotations

import array
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence

from cloudmount.errors import CloudMountError

_HELPERS = ("fusermount3", "fusermount")
_DESCRIPTOR = array.array("i").itemsize


def helper() -> str | None:
    """The program that is installed here."""
    return next((h for h in _HELPERS if shutil.which(h)), None)


def mount(mountpoint: str, options: Sequence[str]) -> int:
    """The open /dev/fuse of a new mount at `mountpoint`, an existing folder; the caller closes it.

    `CloudMountError` with the helper's reason.
    """
    program = helper()
    if program is None:
        raise CloudMountError(f"a drive needs the program {_HELPERS[0]}: install the package fuse3")
    ours, its = socket.socketpair()
    with ours:
        with its:
            running = subprocess.Popen(
                [program, "-o", ",".join(options), "--", mountpoint],
                env=os.environ | {"_FUSE_COMMFD": str(its.fileno())},
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
        received = array.array("i")
        # A program started from here must not hold the mount when this process is killed.
        _, ancillary, *_ = ours.recvmsg(1, socket.CMSG_SPACE(_DESCRIPTOR), socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received.frombytes(data[: len(data) - len(data) % _DESCRIPTOR])
    said = running.communicate()[1].decode(errors="replace").strip()
    if not received:
        raise CloudMountError(f"{mountpoint} can't be mounted: {said or f'{program} gives no reason'}")
    return received[0]
