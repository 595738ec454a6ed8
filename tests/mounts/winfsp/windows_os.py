"""`os` for the suites of trees, over a drive of the double: what programs on Windows would see, as POSIX.

Paths are `DrivePath`s; for anything else it is `os` itself. Names are the tree's: they are escaped on the
way in and unescaped on the way out, so a name comes back as it was or the test fails. Errors are errno's as
near as Python on Windows has them, but EROFS where Windows says that the medium is write protected.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

from cloudmount.mounts import ntstatus
from cloudmount.winnames import escape, unescape
from tests.mounts.winfsp.machine import DISMOUNTED
from tests.mounts.winfsp.structures import READ, WRITE_DATA, Info, NtError
from tests.mounts.winfsp.volume import NAME_INVALID, OPEN_IF, FileObject, Volume

ERRNO = {
    ntstatus.OBJECT_NAME_NOT_FOUND: errno.ENOENT, ntstatus.OBJECT_PATH_NOT_FOUND: errno.ENOENT,
    NAME_INVALID: errno.ENOENT, ntstatus.MEDIA_WRITE_PROTECTED: errno.EROFS,
    ntstatus.ACCESS_DENIED: errno.EACCES, ntstatus.OBJECT_NAME_COLLISION: errno.EEXIST,
    ntstatus.NOT_A_DIRECTORY: errno.ENOTDIR, ntstatus.FILE_IS_A_DIRECTORY: errno.EISDIR,
    ntstatus.DATA_ERROR: errno.EIO, ntstatus.IO_TIMEOUT: errno.EIO, ntstatus.UNEXPECTED_IO_ERROR: errno.EIO,
    ntstatus.CANCELLED: errno.EIO, DISMOUNTED: errno.ENODEV,
}  # fmt: skip
EPOCH = 116_444_736_000_000_000
T = TypeVar("T")


def answered(work: Callable[[], T]) -> T:
    """`work()`; its status as an `OSError`."""
    try:
        return work()
    except NtError as error:
        raise OSError(ERRNO[error.status], str(error)) from None


@dataclass(frozen=True)
class DrivePath:
    """A path on a drive."""

    volume: Volume
    names: tuple[str, ...] = ()

    def __truediv__(self, below: str) -> DrivePath:
        return DrivePath(self.volume, self.names + tuple(n for n in below.split("/") if n not in ("", ".")))

    @property
    def nt(self) -> str:
        """As the drive is asked for it."""
        return "\\" + "\\".join(escape(name) for name in self.names)


def _stat(info: Info) -> SimpleNamespace:
    kind = stat.S_IFDIR | 0o777 if info.is_dir else stat.S_IFREG | 0o444
    return SimpleNamespace(
        st_mode=kind, st_size=info.size, st_ino=info.index, st_mtime_ns=(info.write - EPOCH) * 100,
        st_blocks=info.allocation // 512,
    )  # fmt: skip


@dataclass(frozen=True)
class _Entry:
    name: str
    path: DrivePath
    info: Info

    def inode(self) -> int:
        """The index number that the listing tells."""
        return self.info.index


class _Scanned:
    """What `scandir` gives."""

    def __init__(self, entries: Iterator[_Entry], close: Callable[[], None]) -> None:
        self._entries, self._close = entries, close

    def __iter__(self) -> Iterator[_Entry]:
        return self

    def __next__(self) -> _Entry:
        try:
            return answered(lambda: next(self._entries))
        except StopIteration:
            self._close()
            raise

    def __enter__(self) -> _Scanned:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


class _PathModule:
    """`os.path`."""

    def __init__(self, system: WindowsOs) -> None:
        self._system = system

    def exists(self, path: Any) -> bool:
        """Whether it can be looked at."""
        try:
            self._system.stat(path)
        except OSError:
            return False
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(os.path, name)


class WindowsOs:
    """`os`."""

    def __init__(self) -> None:
        self.path = _PathModule(self)
        self._numbers = itertools.count(1 << 20)
        self._open: dict[int, tuple[DrivePath, FileObject, bool]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def stat(self, path: Any) -> Any:
        """Of a path or an open file."""
        if not isinstance(path, DrivePath):
            return os.stat(path)
        return _stat(answered(lambda: path.volume.info(path.nt)))

    lstat = stat

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        """A number that only this module's functions take."""
        if not isinstance(path, DrivePath):
            return os.open(path, flags, mode)
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC)
        if writes or flags & os.O_CREAT:
            answered(lambda: path.volume.open(path.nt, READ | WRITE_DATA, disposition=OPEN_IF))
        file = answered(lambda: path.volume.open(path.nt, READ))
        number = next(self._numbers)
        self._open[number] = (path, file, bool(flags & os.O_DIRECT))
        return number

    def close(self, fd: int) -> None:
        """Cleanup and close."""
        if fd not in self._open:
            return os.close(fd)
        path, file, _ = self._open.pop(fd)
        path.volume.close(file)
        return None

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Through the cache, or past it for who opened it so."""
        path, file, direct = self._open[fd]
        if not direct:
            return answered(lambda: path.volume.read_cached(file, offset, length))
        start, end = offset // 512 * 512, -(-(offset + length) // 512) * 512
        return answered(lambda: path.volume.read(file, start, end - start))[offset - start :][:length]

    def preadv(self, fd: int, buffers: list[Any], offset: int) -> int:
        """Into one buffer."""
        (buffer,) = buffers
        content = self.pread(fd, len(buffer), offset)
        buffer[: len(content)] = content
        return len(content)

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        """To the end only: the length."""
        assert (offset, whence) == (0, os.SEEK_END)
        path, file, _ = self._open[fd]
        return answered(lambda: path.volume.file_info(file)).size

    def scandir(self, path: Any) -> Any:
        """Entries as the drive's buffers bring them, without `.` and `..`."""
        if isinstance(path, int):
            at, file, _ = self._open[path]
            return _Scanned(self._entries(at, file), lambda: None)
        file = answered(lambda: path.volume.open(path.nt, READ))
        return _Scanned(self._entries(path, file), lambda: path.volume.close(file))

    def _entries(self, at: DrivePath, file: FileObject) -> Iterator[_Entry]:
        for shown, info in at.volume.list(file):
            if shown in (".", ".."):
                continue
            name = unescape(shown)
            assert name is not None, f"{shown!r} is no name of the tree"
            yield _Entry(name, at / name, info)

    def listdir(self, path: Any) -> list[str]:
        """Names."""
        if not isinstance(path, (DrivePath, int)):
            return os.listdir(path)
        with self.scandir(path) as entries:
            return [entry.name for entry in entries]
