"""What is open on a Windows drive.

Decided here and only here: that a file which is open stays what it was for whoever opens it too, though
`latest` moved on meanwhile. WinFsp has one cache for a path in whatever case, for as long as a handle to it
is open: so the bytes of two snapshots never mix. That is told once.

Threading: any number of threads; no lock is held while the tree is asked.
"""

from __future__ import annotations

import logging
import threading
from typing import cast

from cloudmount.errors import CloudMountError
from cloudmount.mounts.openfiles import OpenFile
from cloudmount.mounts.winfsp_names import Found
from cloudmount.nodes import Attr, File
from cloudmount.winnames import fold

log = logging.getLogger("cloudmount.mounts")


class Handle:
    """What one open of a file or folder stands for, until its `close`."""

    __slots__ = ("_closed", "_file", "_lock", "entries", "found", "path", "pinned")

    def __init__(self, path: str, found: Found) -> None:
        self.path, self.found = path, found
        self.entries: list[tuple[str, Attr]] = []
        self.pinned = False
        self._lock = threading.Lock()
        self._file: OpenFile | None = None
        self._closed = False

    @property
    def attr(self) -> Attr:
        """As it was when opened."""
        return self.found.attr

    @property
    def own_path(self) -> str | None:
        """Its path in its own case, for programs that ask what they opened; else WinFsp tells it in capitals.
        None where it and the path that was asked for differ in more than ASCII letters' case: whether
        Windows takes those for equal is its to know, and it takes no other answer."""
        asked, own = self.path, self.found.path or "\\"
        same = len(asked) == len(own) and all(
            a == b or ((a + b).isascii() and a.upper() == b.upper()) for a, b in zip(asked, own, strict=True)
        )
        return own if same else None

    def held(self) -> OpenFile:
        """Its content, opened by the first who needs it; `came_back` of it must follow."""
        with self._lock:
            if self._file is not None:
                self._file.abandoned()
                return self._file
        file = OpenFile(cast(File, self.found.node).open())  # this may hang; the lock may not
        kept = self._kept(file)
        if kept is not file:
            file.release()
        if kept is None:
            raise CloudMountError(f"{self.path} was closed while it was opened")
        return kept

    def _kept(self, file: OpenFile) -> OpenFile | None:
        """That, or what another thread opened meanwhile; None when it was closed."""
        with self._lock:
            if self._closed:
                return None
            if self._file is None:
                self._file = file
            self._file.abandoned()
            return self._file

    def release(self) -> None:
        """No more is asked of it."""
        with self._lock:
            file, self._file, self._closed = self._file, None, True
        if file is not None:
            file.release()


class Pins:
    """Files that are open, by path: each stays what it is until the last handle to it is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pins: dict[str, tuple[Found, int]] = {}
        self._told: set[str] = set()

    def get(self, path: str) -> Found | None:
        """What is open under this path."""
        with self._lock:
            pin = self._pins.get(fold(path))
        return pin[0] if pin is not None else None

    def take(self, path: str, found: Found) -> Found:
        """One handle more; what it is to be a handle of."""
        key = fold(path)
        with self._lock:
            pinned, count = self._pins.get(key, (found, 0))
            self._pins[key] = (pinned, count + 1)
            moved = pinned.attr.inode != found.attr.inode and key not in self._told
            if moved:
                self._told.add(key)
        if moved:
            log.warning("%s: stays what it was as long as a program has it open; a newer one is there", path)
        return pinned

    def release(self, path: str) -> None:
        """One handle less."""
        key = fold(path)
        with self._lock:
            pinned, count = self._pins[key]
            if count > 1:
                self._pins[key] = (pinned, count - 1)
            else:
                del self._pins[key]
                self._told.discard(key)
