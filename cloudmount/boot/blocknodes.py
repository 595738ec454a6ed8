"""A machine's disks as QEMU's block nodes.

Decided here and only here: what the nodes are called, and how each is opened. Disk `n` (from 0) hangs on
node `disk<n>`: its overlay, over the image on the drive or over a disk of this computer's, or (handed over,
and started anew) that disk itself. Every format is stated, nothing is probed: a disk's first bytes are its
guest's to write. What the guest flushed is on this computer's disk (`no-flush` is off). Pure.
"""

from __future__ import annotations

from typing import Any

from cloudmount.boot.folder import overlay_name
from cloudmount.boot.machine import Disk

Node = dict[str, Any]
_CACHE = {"direct": False, "no-flush": False}


def nodes(number: int, disk: Disk) -> list[Node]:
    """Those of a disk, in the order in which QEMU is to make them."""
    if not disk.overlay:
        return [{**local_node(number, disk.path), "node-name": disk_name(number), "read-only": False}]
    file: Node = {"driver": "file", "node-name": file_name(number), "filename": overlay_name(number)}
    file |= {"cache": _CACHE, "discard": "unmap"}
    if disk.is_local:
        return [local_node(number, disk.path), file, overlay_node(number, local_name(number))]
    image, base = drive_names(number)
    return [
        {"driver": "file", "node-name": image, "filename": disk.path, "read-only": True, "locking": "off"},
        {"driver": "raw", "node-name": base, "file": image, "read-only": True},
        file,
        overlay_node(number, base),
    ]


def overlay_node(number: int, backing: str) -> Node:
    """The overlay of a disk, over the node `backing`."""
    return {
        "driver": "qcow2", "node-name": disk_name(number), "file": file_name(number), "backing": backing,
        "cache": _CACHE, "discard": "unmap",
    }  # fmt: skip


def local_node(number: int, path: str, *, read_only: bool = True) -> Node:
    """A raw disk of this computer's below its overlay. No layer `raw` lies over the file: a node whose child
    has a name of its own can't be opened for writing later."""
    return {
        "driver": "file", "node-name": local_name(number), "filename": path, "read-only": read_only,
        "cache": _CACHE, "discard": "unmap",
    }  # fmt: skip


def disk_name(number: int) -> str:
    """What a disk's device is given."""
    return f"disk{number}"


def file_name(number: int) -> str:
    """The overlay's file."""
    return f"file{number}"


def local_name(number: int) -> str:
    """The disk of this computer's."""
    return f"local{number}"


def drive_names(number: int) -> tuple[str, str]:
    """The image on the drive: its file, and the disk in it."""
    return f"image{number}", f"base{number}"
