"""WinFsp's driver and its DLL for one volume: what a program asks becomes callbacks, as they would make it.

Written after WinFsp 2.2's `dll/fsop.c` (which callback follows which), `dll/security.c` (access checks)
and `sys/` (names, one node and one cache for a path in any case, listings in buffers). Paths are those
that a program gives with `\\\\?\\`: nothing of Win32's own rules on names is applied.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cloudmount.mounts import ntstatus
from tests.mounts.winfsp.structures import (
    ALL,
    ATTRIBUTE_DIRECTORY,
    DELETE,
    MAXIMUM_ALLOWED,
    READ,
    READ_ATTRIBUTES,
    WRITE_DATA,
    Info,
    NtError,
    checked,
    entries_of,
    info_of,
    rights,
    upcase,
)  # fmt: skip

if TYPE_CHECKING:
    from tests.mounts.winfsp.machine import Dispatcher, Machine

BUFFER_OVERFLOW = 0x80000005
NAME_INVALID = 0xC0000033
PATH_UNITS, NAME_UNITS = 1024, 255
GUARD = b"\xa5" * 4096
"""Around every buffer that is read into: winfspy checks no length."""
PAGE = 65536
SUPERSEDE, OPEN, CREATE, OPEN_IF, OVERWRITE, OVERWRITE_IF = range(6)
DIRECTORY_FILE, NON_DIRECTORY_FILE, DELETE_ON_CLOSE = 0x1, 0x40, 0x1000
_ILLEGAL = re.compile(r'[<>:"/|?*\x00-\x1f]')
_numbers = itertools.count(1)


@dataclass
class Node:
    """What the driver has of a path in whatever case while it is open: a length and a cache."""

    info: Info
    name: str
    """What programs are told that they opened."""
    objects: int = 0
    uncleaned: int = 0
    pages: dict[int, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class FileObject:
    """What a handle stands for."""

    path: str
    node: Node
    context: Any
    granted: int
    cleaned: bool = False
    closed: bool = False
    number: int = field(default_factory=lambda: next(_numbers))


class Volume:
    """One volume."""

    def __init__(self, machine: Machine, params: dict[str, Any], interface: Any, system: Any) -> None:
        from tests.mounts.winfsp.machine import Guard

        self.machine, self.params, self._calls, self._system = machine, params, interface, system
        self._ffi = machine.ffi
        self.guard: Guard | None = Guard()
        self.dispatcher: Dispatcher | None = None
        self.stopped = False
        self.result = 0
        self.security_buffer = 1024
        """Bytes that the DLL first offers for a descriptor."""
        self.listing_buffer = 65536
        self.nodes: dict[str, Node] = {}
        self.mixed: list[str] = []
        """Paths that became another file while they were open."""
        self.callbacks = 0
        self._lock = threading.Lock()

    def _request(self, work: Callable[[], Any], creates: bool | None = None) -> Any:
        assert self.dispatcher is not None
        guard = None
        if self.guard is not None and creates is not None:
            guard = self.guard.exclusive() if creates else self.guard.shared()
        return self.dispatcher.request(work, guard)

    def stop(self) -> None:
        """As `FspFileSystemStopDispatcher`."""
        if self.dispatcher is not None:
            self.dispatcher.stop()
        self.stopped = True

    # Opening

    def open(
        self, path: str, access: int = READ, *, options: int = 0, disposition: int = OPEN,
        token: frozenset[str] = frozenset({"BA"}), user_mode: bool = True,
    ) -> FileObject:  # fmt: skip
        """A handle, by an NtCreateFile of these arguments."""
        if len(path.encode("utf-16-le", "surrogatepass")) // 2 > PATH_UNITS:
            raise NtError(NAME_INVALID)
        for name in path.split("\\"):
            if _ILLEGAL.search(name) or len(name.encode("utf-16-le", "surrogatepass")) // 2 > NAME_UNITS:
                raise NtError(NAME_INVALID)

        def work() -> FileObject:
            if disposition == OPEN:
                return self._open(path, self._check(path, access, options, token, user_mode), options)
            if disposition == CREATE:
                return self._create(path, options)
            wanted = access
            if disposition in (SUPERSEDE, OVERWRITE, OVERWRITE_IF):
                wanted |= DELETE if disposition == SUPERSEDE else WRITE_DATA
            try:
                return self._open(path, self._check(path, wanted, options, token, user_mode), options)
            except NtError as error:
                if error.status != ntstatus.OBJECT_NAME_NOT_FOUND or disposition == OVERWRITE:
                    raise
            return self._create(path, options)

        return self._request(work, creates=disposition != OPEN)  # type: ignore[no-any-return]

    def security_by_name(self, path: str) -> tuple[int, str]:
        """Attributes and descriptor, by the DLL's retry when its buffer was too small."""
        ffi = self._ffi
        attributes, size = ffi.new("UINT32*"), ffi.new("SIZE_T*", self.security_buffer)
        name = ffi.new("WCHAR[]", path)
        for _ in range(2):
            room = size[0]
            memory = ffi.new("uint8_t[]", GUARD + bytes(room) + GUARD)
            at = ffi.cast("SECURITY_DESCRIPTOR*", memory + len(GUARD))
            status = self._calls.GetSecurityByName(self._system, name, attributes, at, size)
            self._unharmed(memory, room)
            if status != BUFFER_OVERFLOW:
                break
        checked(status)
        return attributes[0], bytes(memory)[len(GUARD) + 20 : len(GUARD) + size[0]].decode("utf-16-le")

    def _check(self, path: str, access: int, options: int, token: frozenset[str], user_mode: bool) -> int:
        """The rights that an open gets, as `FspAccessCheckEx` and `OpenCheck` find them."""
        if not user_mode:
            return ALL if access & MAXIMUM_ALLOWED else access
        wanted = access | (DELETE if options & DELETE_ON_CLOSE else 0)
        attributes, text = self.security_by_name(path)
        may = rights(text, token)
        granted = may if wanted & MAXIMUM_ALLOWED else wanted
        if wanted & ~MAXIMUM_ALLOWED & ~may:
            raise NtError(ntstatus.ACCESS_DENIED)
        if options & DIRECTORY_FILE and not attributes & ATTRIBUTE_DIRECTORY:
            raise NtError(ntstatus.NOT_A_DIRECTORY)
        if options & NON_DIRECTORY_FILE and attributes & ATTRIBUTE_DIRECTORY:
            raise NtError(ntstatus.FILE_IS_A_DIRECTORY)
        return granted

    def _open(self, path: str, granted: int, options: int) -> FileObject:
        ffi = self._ffi
        context, told = ffi.new("PVOID*"), ffi.new("FSP_FSCTL_OPEN_FILE_INFO*")
        buffer, name = ffi.new("WCHAR[]", 8000), ffi.new("WCHAR[]", path)
        told.NormalizedName, told.NormalizedNameSize = buffer, 16000
        info = ffi.addressof(told, "FileInfo")
        checked(self._calls.Open(self._system, name, options | OPEN << 24, granted, context, info))
        assert self.params["um_file_context_is_user_context2"], "one context for all opens of a path"
        found, own = info_of(info), upcase(path)
        if told.NormalizedNameSize <= PATH_UNITS * 2:
            own = ffi.unpack(buffer, told.NormalizedNameSize // 2)
            assert upcase(own) == upcase(path), "the driver takes no other"
        with self._lock:
            node = self.nodes.setdefault(upcase(path), Node(found, own))
            if node.info != found:
                self.mixed.append(path)
            node.objects += 1
            node.uncleaned += 1
        return FileObject(path, node, context[0], granted)

    def _create(self, path: str, options: int) -> FileObject:
        above = path.rpartition("\\")[0] or "\\"
        try:
            attributes, _ = self.security_by_name(above)
        except NtError as error:
            if error.status == ntstatus.OBJECT_NAME_NOT_FOUND:
                raise NtError(ntstatus.OBJECT_PATH_NOT_FOUND) from None
            raise
        if not attributes & ATTRIBUTE_DIRECTORY:
            raise NtError(ntstatus.NOT_A_DIRECTORY)
        ffi = self._ffi
        context, info = ffi.new("PVOID*"), ffi.new("FSP_FSCTL_FILE_INFO*")
        name = ffi.new("WCHAR[]", path)
        checked(self._calls.Create(self._system, name, options, ALL, 0, ffi.NULL, 0, context, info))
        raise AssertionError(f"{path} was created")

    def cleanup(self, file: FileObject) -> None:
        """The program's last handle is closed."""
        if file.cleaned:
            return
        file.cleaned = True
        with self._lock:
            file.node.uncleaned -= 1
            if not file.node.uncleaned and self.params["flush_and_purge_on_cleanup"]:
                file.node.pages.clear()
        if self.params["post_cleanup_when_modified_only"] or self.stopped:
            return
        name = self._ffi.new("WCHAR[]", file.path)
        self._request(lambda: self._calls.Cleanup(self._system, file.context, name, 0))

    def close(self, file: FileObject) -> None:
        """Nothing in the kernel needs it any more: `cleanup` first."""
        self.cleanup(file)
        if file.closed:
            return
        file.closed = True
        if not self.stopped:
            self._request(lambda: self._calls.Close(self._system, file.context))
        with self._lock:
            file.node.objects -= 1
            if not file.node.objects and self.nodes.get(upcase(file.path)) is file.node:
                del self.nodes[upcase(file.path)]

    # Reading

    def read(self, file: FileObject, offset: int, length: int) -> bytes:
        """Past the cache, as vhdmp does: whole sectors are asked for. Empty at the end of the file."""
        sector = self.params["sector_size"]
        assert offset % sector == length % sector == 0
        return self._read(file, offset, length)[: max(0, file.node.info.size - offset)]

    def read_cached(self, file: FileObject, offset: int, length: int) -> bytes:
        """Through the cache of its path: pages that are missing are read, whole ones."""
        length = max(0, min(length, file.node.info.size - offset))
        pages = file.node.pages
        numbers = range(offset // PAGE, -(-(offset + length) // PAGE))
        for number in numbers:
            if number not in pages:
                pages[number] = self._read(file, number * PAGE, PAGE).ljust(PAGE, b"\0")
        return b"".join(pages[number] for number in numbers)[offset % PAGE :][:length]

    def _read(self, file: FileObject, offset: int, length: int) -> bytes:
        ffi = self._ffi

        def work() -> bytes:
            memory, got = ffi.new("uint8_t[]", GUARD + b"\xee" * length + GUARD), ffi.new("ULONG*")
            self.callbacks += 1
            status = self._calls.Read(self._system, file.context, memory + len(GUARD), offset, length, got)
            self._unharmed(memory, length)
            if status == ntstatus.END_OF_FILE:
                return b""
            checked(status)
            assert got[0] <= length
            return bytes(ffi.buffer(memory + len(GUARD), got[0]))

        return self._request(work)  # type: ignore[no-any-return]

    def _unharmed(self, memory: Any, length: int) -> None:
        content = self._ffi.buffer(memory)
        assert content[: len(GUARD)] == GUARD, "written before the buffer"
        assert content[len(GUARD) + length :][: len(GUARD)] == GUARD, "written past the buffer"

    # Looking

    def file_info(self, file: FileObject) -> Info:
        """By GetFileInformation."""
        ffi = self._ffi
        info = ffi.new("FSP_FSCTL_FILE_INFO*")
        self._request(lambda: checked(self._calls.GetFileInfo(self._system, file.context, info)))
        return info_of(info)

    def info(self, path: str) -> Info:
        """Of a path, by an open for its attributes only."""
        file = self.open(path or "\\", READ_ATTRIBUTES)
        try:
            return self.file_info(file)
        finally:
            self.close(file)

    def security(self, file: FileObject) -> str:
        """Its descriptor."""
        ffi = self._ffi
        size = ffi.new("SIZE_T*", 8192)
        memory = ffi.new("uint8_t[]", 8192)
        at = ffi.cast("SECURITY_DESCRIPTOR*", memory)
        self._request(lambda: checked(self._calls.GetSecurity(self._system, file.context, at, size)))
        return bytes(memory)[20 : size[0]].decode("utf-16-le")

    def list(self, file: FileObject, pattern: str = "*") -> Iterator[tuple[str, Info]]:
        """Entries in buffers as they are asked for. A pattern without wildcards is asked for by name."""
        if pattern != "*" and not set(pattern) & set('*?<>"'):
            assert self.params["pass_query_directory_file_name"]
            yield from self._named(file, pattern)
            return
        marker: str | None = None
        while True:
            entries, more = self._page(file, marker)
            for name, info in entries:
                if fnmatch.fnmatchcase(name.upper(), pattern.upper()):
                    yield name, info
            if not more:
                return
            assert entries, "no entry fits"
            marker = entries[-1][0]

    def _page(self, file: FileObject, marker: str | None) -> tuple[list[tuple[str, Info]], bool]:
        ffi, length = self._ffi, self.listing_buffer
        memory, got = ffi.new("uint8_t[]", GUARD + bytes(length) + GUARD), ffi.new("ULONG*")
        name = ffi.NULL if marker is None else ffi.new("WCHAR[]", marker)
        self._request(
            lambda: checked(
                self._calls.ReadDirectory(
                    self._system, file.context, ffi.NULL, name, memory + len(GUARD), length, got
                )
            ),
            creates=False,
        )
        self._unharmed(memory, length)
        return entries_of(bytes(ffi.buffer(memory + len(GUARD), got[0])))

    def _named(self, file: FileObject, name: str) -> list[tuple[str, Info]]:
        ffi = self._ffi
        memory = ffi.new("uint8_t[]", 104 + NAME_UNITS * 2 + len(GUARD))
        entry = ffi.cast("FSP_FSCTL_DIR_INFO*", memory)
        asked = ffi.new("WCHAR[]", name)
        status = self._request(
            lambda: self._calls.GetDirInfoByName(self._system, file.context, asked, entry), creates=False
        )
        if status == ntstatus.OBJECT_NAME_NOT_FOUND:
            return []
        checked(status)
        assert entry.Size <= 104 + NAME_UNITS * 2
        return entries_of(bytes(ffi.buffer(memory, entry.Size)) + b"\0\0\0\0\0\0\0\0\0\0")[0]

    # Changing; each is asked past all checks, as the kernel could

    def call(self, name: str, file: FileObject, *arguments: Any) -> int:
        """The status of a callback that would change something."""
        return int(self._request(lambda: getattr(self._calls, name)(self._system, file.context, *arguments)))

    def call_volume(self, name: str, *arguments: Any) -> int:
        """The same for one without a file."""
        return int(self._request(lambda: getattr(self._calls, name)(self._system, *arguments)))
