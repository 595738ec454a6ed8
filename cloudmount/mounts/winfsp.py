r"""A tree as a Windows drive: the operations that WinFsp asks for, through winfspy.

Decided here and only here: what Windows is told of a node (attributes, times as FILETIME, sizes that never
look sparse), and that nothing can be written: an open that was granted any right to write is refused, as
is every call that changes something (WinFsp enforces neither, and lets the kernel's own opens past
descriptors).

winfspy copies whatever `read` returns into the driver's buffer, unchecked: reads are clamped, and what
comes must be as long as was asked. Its `open` loses a handle when `get_file_info` fails after it, and
`close` when it raises: neither does here.

This module knows neither winfspy nor Windows; `winfsp_driver` binds it. Not run on Windows.

Threading: WinFsp calls on any of its threads, at once; the lock is never held while the tree is asked.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from cloudmount.errors import CloudMountError
from cloudmount.mounts import ntstatus
from cloudmount.mounts.bounded import Bounded, EndedError
from cloudmount.mounts.driver import Space
from cloudmount.mounts.failures import Failures
from cloudmount.mounts.winfsp_handles import Handle, Pins
from cloudmount.mounts.winfsp_names import Found, Names
from cloudmount.nodes import Attr, Dir, Kind
from cloudmount.winnames import fold

ATTRIBUTE_READONLY = 0x1
ATTRIBUTE_DIRECTORY = 0x10
ATTRIBUTE_NOT_CONTENT_INDEXED = 0x2000
"""On everything: Windows Search would fetch whole backups."""
READ_DATA = 0x1
EXECUTE = 0x20
WRITES = 0x2 | 0x4 | 0x10 | 0x40 | 0x100 | 0x10000 | 0x40000 | 0x80000
"""Of access rights: WRITE_DATA (ADD_FILE), APPEND_DATA (ADD_SUBDIRECTORY), WRITE_EA, DELETE_CHILD,
WRITE_ATTRIBUTES, DELETE, WRITE_DAC, WRITE_OWNER ([MS-SMB2] 2.2.13.1)."""
OPTION_DIRECTORY = 0x1
OPTION_NON_DIRECTORY = 0x40
OPTION_DELETE_ON_CLOSE = 0x1000
CLUSTER = 4096
"""Bytes in which sizes on disk are told."""
LABEL = "CloudMount"
_EPOCH = 116_444_736_000_000_000
"""1970 as a FILETIME, which counts 100 ns from 1601."""

T = TypeVar("T")


def filetime(mtime_ns: int) -> int:
    """Nanoseconds since 1970 as a FILETIME; what that can't hold becomes its nearest end."""
    return min(max(0, mtime_ns // 100 + _EPOCH), (1 << 63) - 1)


def attributes(attr: Attr) -> int:
    """FILE_ATTRIBUTE_... of a node."""
    kind = ATTRIBUTE_DIRECTORY if attr.kind is Kind.DIR else ATTRIBUTE_READONLY
    return kind | ATTRIBUTE_NOT_CONTENT_INDEXED


def file_info(attr: Attr) -> dict[str, int]:
    """What winfspy tells the driver of a node."""
    when = filetime(attr.mtime_ns)
    size = 0 if attr.kind is Kind.DIR else attr.size
    return {
        "file_attributes": attributes(attr),
        "allocation_size": -(-size // CLUSTER) * CLUSTER,
        "file_size": size,
        "creation_time": when,
        "last_access_time": when,
        "last_write_time": when,
        "change_time": when,
        "index_number": attr.inode,
    }


class Operations:
    """Those of one drive, as `winfspy.BaseFileSystemOperations` has them: same names, same arguments."""

    def __init__(
        self,
        root: Dir,
        space: Callable[[], Space],
        descriptor: tuple[Any, int],
        refusal: Callable[[int], BaseException],
        bounded: Bounded,
    ) -> None:
        """`descriptor`: handle and size of the security descriptor of all files; `refusal` makes the
        exception that winfspy answers with an NTSTATUS."""
        self._names = Names(root)
        self._space = space
        self._descriptor = descriptor
        self._refusal = refusal
        self._bounded = bounded
        self._failures = Failures()
        self._pins = Pins()
        self._handles: set[Handle] = set()

    def _ask(self, doing: str, work: Callable[[], T], late: Callable[[T], None] = lambda result: None) -> T:
        """`work()`, bounded; its failures as what Windows is told."""
        try:
            return self._bounded.call(work, late)
        except EndedError:
            status = ntstatus.CANCELLED
        except BaseException as failure:  # whatever left a callback would be logged by winfspy, unnamed
            if isinstance(failure, _Answer):
                status = failure.status
            else:
                self._failures.told(failure, doing)
                status = ntstatus.ntstatus(failure)
        raise self._refusal(status) from None

    def _find(self, path: str) -> Found:
        found = self._names.find(path)
        if found is None:
            above = self._names.find(path.rpartition("\\")[0])
            there = above is not None and above.is_dir
            raise _Answer(ntstatus.OBJECT_NAME_NOT_FOUND if there else ntstatus.OBJECT_PATH_NOT_FOUND)
        return found

    # What reads

    def get_volume_info(self) -> dict[str, Any]:
        """Nothing is ever free."""
        size = -(-self._space().size // CLUSTER) * CLUSTER
        return {"total_size": size, "free_size": 0, "volume_label": LABEL}

    def get_security_by_name(self, file_name: str) -> tuple[int, Any, int]:
        """Asked before each open: whether it is there, and who may."""
        found = self._ask("look-up", lambda: self._pins.get(file_name) or self._find(file_name))
        return attributes(found.attr), *self._descriptor

    def open(self, file_name: str, create_options: int, granted_access: int) -> Handle:
        """A handle; its source too when content will be read."""
        if granted_access & WRITES or create_options & OPTION_DELETE_ON_CLOSE:
            raise self._refusal(ntstatus.MEDIA_WRITE_PROTECTED)
        reads = bool(granted_access & (READ_DATA | EXECUTE))
        return self._ask("open", lambda: self._open(file_name, create_options, reads), self._close)

    def _open(self, path: str, options: int, reads: bool) -> Handle:
        pinned = self._pins.get(path)
        try:
            found = self._find(path)
        except (_Answer, CloudMountError):
            if pinned is None:
                raise
            found = pinned  # it went, or can't be asked for; who has it open has it still
        if pinned is not None and found.is_dir:
            found = pinned
        if found.is_dir and options & OPTION_NON_DIRECTORY:
            raise _Answer(ntstatus.FILE_IS_A_DIRECTORY)
        if not found.is_dir and options & OPTION_DIRECTORY:
            raise _Answer(ntstatus.NOT_A_DIRECTORY)
        if found.is_dir:
            handle = Handle(path, found)
        else:
            handle = Handle(path, self._pins.take(path, found))
            handle.pinned = True
        self._handles.add(handle)
        try:
            if reads and not handle.found.is_dir:
                handle.held().came_back()
        except BaseException:
            self._close(handle)
            raise
        return handle

    def cleanup(self, file_context: Handle, file_name: str | None, flags: int) -> None:
        """A program closed it; the kernel may read on until `close`."""

    def close(self, file_context: Handle) -> None:
        """The kernel is done with it; never fails."""
        try:
            self._close(file_context)
        except BaseException as failure:
            self._failures.told(failure, "close")

    def _close(self, handle: Handle) -> None:
        self._handles.discard(handle)
        if handle.pinned:
            handle.pinned = False
            self._pins.release(handle.path)
        handle.release()

    def read(self, file_context: Handle, offset: int, length: int) -> bytes:
        """Bytes of a file; fewer at its end, and past it the end of the file as an error."""
        handle = file_context
        if handle.found.is_dir:
            raise self._refusal(ntstatus.FILE_IS_A_DIRECTORY)
        size = handle.attr.size
        if offset >= size:
            raise self._refusal(ntstatus.END_OF_FILE)
        wanted = min(length, size - offset)

        def work() -> bytes:
            opened = handle.held()  # until it came back: the read may be given up, and the handle closed
            try:
                if offset + wanted > opened.size:
                    raise CloudMountError(f"a file of {size} bytes has {opened.size}")
                content = opened.source.read_at(offset, wanted)
            finally:
                opened.came_back()
            if len(content) != wanted:
                raise CloudMountError(f"{wanted} bytes at {offset} were asked for, {len(content)} came")
            return content

        return self._ask("read", work)

    def get_file_info(self, file_context: Handle) -> dict[str, int]:
        """As it was when opened; never fails."""
        return file_info(file_context.attr)

    def get_security(self, file_context: Handle) -> tuple[Any, int]:
        """The same for all."""
        return self._descriptor

    def read_directory(self, file_context: Handle, marker: str | None) -> Iterator[dict[str, Any]]:
        """Entries after `marker`; winfspy takes as many as the driver's buffer holds. A listing that begins
        asks the tree anew, as a whole: it fails, or it is complete."""
        handle = file_context
        if not handle.found.is_dir:
            raise self._refusal(ntstatus.NOT_A_DIRECTORY)
        if marker is None or not handle.entries:
            handle.entries = self._ask("list", lambda: self._entries(handle.found))
        entries = handle.entries
        start = 0
        if marker is not None:
            start = bisect.bisect_right(entries, _order(marker), key=lambda entry: _order(entry[0]))
        return (
            {"file_name": name, **file_info(attr)} for name, attr in itertools.islice(entries, start, None)
        )

    def _entries(self, folder: Found) -> list[tuple[str, Attr]]:
        entries = self._names.listing(folder)
        if len(folder.folders) == 1:
            return entries
        return [(".", folder.attr), ("..", folder.folders[-2].attr()), *entries]

    def get_dir_info_by_name(self, file_context: Handle, file_name: str) -> dict[str, Any]:
        """One entry of a folder: `file_name` is what it is called, in its own case."""
        folder = file_context.found

        def work() -> tuple[str, Found]:
            found = self._names.child(folder, file_name) if folder.is_dir else None
            if found is None:
                raise _Answer(ntstatus.OBJECT_NAME_NOT_FOUND)
            return found

        name, found = self._ask("look-up", work)
        return {"file_name": name, **file_info(found.attr)}

    def flush(self, file_context: Handle) -> None:
        """There is nothing to write."""

    # What would change something

    def create(self, file_name: str, *_: Any) -> NoReturn:
        """Refused; what is there already is told as that, for `makedirs` and the like."""
        there = self._ask("look-up", lambda: self._names.find(file_name))
        raise self._refusal(
            ntstatus.MEDIA_WRITE_PROTECTED if there is None else ntstatus.OBJECT_NAME_COLLISION
        )

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        raise self._refusal(ntstatus.MEDIA_WRITE_PROTECTED)

    set_volume_label = overwrite = write = set_basic_info = set_file_size = can_delete = _refuse
    rename = set_security = set_reparse_point = delete_reparse_point = _refuse

    def get_reparse_point(self, *_: Any) -> NoReturn:
        """There are none here."""
        raise self._refusal(ntstatus.NOT_A_REPARSE_POINT)

    resolve_reparse_points = get_reparse_point

    # The end

    def end(self) -> None:
        """Close whatever is still open; nothing is asked any more."""
        for handle in list(self._handles):
            self.close(handle)


def _order(name: str) -> tuple[int, str, str]:
    """How a listing is sorted."""
    return (0 if name in (".", "..") else 1, fold(name), name)


class _Answer(Exception):
    """What Windows is to be told; no failure."""

    def __init__(self, status: int) -> None:
        super().__init__(hex(status))
        self.status = status
