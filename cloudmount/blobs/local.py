"""A folder as a store: one file for each object, under its name.

Decided here and only here: how files stand for objects. A write goes to a file in
`.tmp/` (same file system; never a name of an object), is brought to the disk, then
gets its name in one step (placing.py), then the folder is brought to the disk. A
writer killed anywhere leaves at most a file in `.tmp/`, which a later writer removes
when it is a day old. Files whose names are no objects' are never listed.

Times of objects are the file system's own (a file server's clock on a share).
Deadlines are checked between pieces of 8 MiB: a call that the kernel holds (a
disk spinning up, a hard-mounted share whose server is gone) can't be cut short.

Threading: any number of threads and processes; one descriptor per call.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cloudmount.blobs import pacing
from cloudmount.blobs.direct import LargeFile
from cloudmount.blobs.placing import place_new
from cloudmount.blobs.store import BlobInfo, BlobStore, Data, Tier, check_name, check_prefix
from cloudmount.errors import (
    BlobExistsError,
    BlobMissingError,
    CloudMountError,
    DamagedError,
    NoRepositoryError,
    NoRoomError,
    StoreError,
    StoreRefusedError,
    StoreTimeoutError,
    StoreUnreachableError,
)
from cloudmount.system import pread, sync_folder

_PIECE = 8 * 1024 * 1024
_LEFTOVER_SECONDS = 24 * 3600.0
_OPEN = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
# What a share, a FUSE mount or an unplugged disk answers when it is gone.
_GONE = {
    errno.ENODEV,
    errno.ENXIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EAGAIN,
}


class LocalStore(BlobStore):
    """The store in the folder `root`."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.abspath(root)
        self._temporary = os.path.join(self._root, ".tmp")
        self._synced: set[str] = set()
        """Folders whose own names this process has seen onto the disk."""
        self._swept = False

    @property
    def address(self) -> str:
        return self._root

    def prepare(self, *, deadline: float | None = None) -> None:
        _check_time(deadline)
        with self._translating("make the folder", ""):
            try:
                os.makedirs(self._temporary, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise StoreRefusedError(f"{self._root} is not a folder: choose another place") from None
            self._sync_names(self._root)
            with suppress(PermissionError):  # the folder above may be somebody else's
                sync_folder(os.path.dirname(self._root))

    def create(
        self, name: str, data: Data, *, tier: Tier | None = None, deadline: float | None = None
    ) -> None:
        path = self._path(name)
        with self._translating("write", name):
            temporary = self._write(data, deadline)
            try:
                self._sweep(temporary)
                lock = os.path.join(self._temporary, "lock")
                self._in_folder(path, lambda: place_new(temporary, path, lock, deadline))
            except FileExistsError:
                raise BlobExistsError(name) from None
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
            self._sync_names(os.path.dirname(path))

    def put(self, name: str, data: Data, *, deadline: float | None = None) -> None:
        path = self._path(name)
        with self._translating("write", name):
            temporary = self._write(data, deadline)
            try:
                self._in_folder(path, lambda: os.replace(temporary, path))
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
            self._sync_names(os.path.dirname(path))

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        path = self._path(name)
        if length == 0:
            return b""
        _check_time(deadline)
        with self._translating("read", name):
            fd = os.open(path, os.O_RDONLY | _OPEN)
            try:
                if length is None:
                    length = max(0, os.fstat(fd).st_size - offset)
                    if offset and not length:
                        raise DamagedError(f"object {name} ends before byte {offset}")
                pieces, most = [], length if deadline is None else _PIECE
                while length:
                    piece = pread(fd, min(length, most), offset)
                    if not piece:
                        size, end = os.fstat(fd).st_size, offset + length
                        raise DamagedError(f"object {name} has {size} bytes, but {end} are needed")
                    pacing.received(len(piece), deadline)
                    pieces.append(piece)
                    offset += len(piece)
                    length -= len(piece)
                    if length:
                        _check_time(deadline)
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            finally:
                os.close(fd)

    def list(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int | None = None,
        deadline: float | None = None,
    ) -> Iterator[BlobInfo]:
        check_prefix(prefix)
        _check_time(deadline)
        folder = prefix[: prefix.rfind("/") + 1]
        left = limit
        with self._translating("list", prefix):
            self._check_root()
            if left is not None and left <= 0:
                return
            for found in self._walk(folder, prefix, after, deadline):
                yield found
                if left is not None:
                    left -= 1
                    if left == 0:
                        return

    def list_folders(self, prefix: str, *, deadline: float | None = None) -> Iterator[str]:
        check_prefix(prefix)
        _check_time(deadline)
        with self._translating("list", prefix):
            self._check_root()
            for name in sorted(key[:-1] for key, _ in self._entries(prefix) if key.endswith("/")):
                if next(self._walk(f"{prefix}{name}/", "", "", deadline), None):
                    yield name

    def delete(self, name: str, *, deadline: float | None = None) -> None:
        path = self._path(name)
        _check_time(deadline)
        with self._translating("delete", name):
            try:
                os.unlink(path)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                self._check_root()

    def close(self) -> None:
        """Nothing is held between calls."""

    def _path(self, name: str) -> str:
        return os.path.join(self._root, *check_name(name).split("/"))

    def _check_root(self) -> None:
        if not os.path.isdir(self._root):
            raise NoRepositoryError(
                f"there is no folder {self._root}: check the path, whether its disk or share is "
                "connected, or make the repository with `cloudmount init`"
            )

    def _write(self, data: Data, deadline: float | None) -> str:
        """The path of a new file holding `data`, on the disk."""
        _check_time(deadline)
        path = os.path.join(self._temporary, f"{os.getpid()}-{secrets.token_hex(8)}")
        try:
            file = LargeFile(path, new=True)
        except FileNotFoundError:
            self._check_root()
            os.makedirs(self._temporary, exist_ok=True)
            file = LargeFile(path, new=True)
        try:
            view, at = memoryview(data), 0
            while at < len(view):
                _check_time(deadline)
                active = pacing.meter()
                piece = view[at : at + (active.up.piece if active and active.up else _PIECE)]
                pacing.sent(len(piece), deadline)
                file.write_at(piece, at)
                at += len(piece)
            _check_time(deadline)
            file.sync()
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise
        finally:
            file.close()
        return path

    def _in_folder(self, path: str, place: Callable[[], None]) -> None:
        """`place` a file at `path`, making its folder when it is missing."""
        try:
            place()
        except (FileNotFoundError, NotADirectoryError):
            folder = os.path.dirname(path)
            try:
                os.makedirs(folder, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                name = os.path.relpath(folder, self._root)
                raise StoreRefusedError(
                    f"{self._root}: there is a file where folder {name} is needed"
                ) from None
            place()

    def _sync_names(self, folder: str) -> None:
        """Bring the names in `folder` to the disk, and once its own and its parents'."""
        sync_folder(folder)
        while folder not in self._synced and len(folder) > len(self._root):
            parent = os.path.dirname(folder)
            sync_folder(parent)
            self._synced.add(folder)
            folder = parent

    def _sweep(self, fresh: str) -> None:
        """Remove what killed writers left long ago, by the clock that stamped `fresh`; once."""
        if self._swept:
            return
        self._swept = True
        now = os.stat(fresh).st_mtime
        with suppress(OSError), os.scandir(self._temporary) as entries:
            for entry in entries:
                if entry.name != "lock" and entry.stat().st_mtime < now - _LEFTOVER_SECONDS:
                    with suppress(OSError):  # another writer swept it first
                        os.unlink(entry.path)

    def _entries(self, folder: str) -> Sequence[tuple[str, os.DirEntry[str]]]:
        """What `folder` ("" or ending in a slash) holds, sorted as their full names are.

        A folder counts as its name and a slash: `a-b` comes before everything in `a/`.
        """
        found = []
        try:
            with os.scandir(os.path.join(self._root, *folder.split("/"))) as entries:
                for entry in entries:
                    try:
                        check_name(folder + entry.name)
                    except ValueError:
                        continue  # `.tmp`, or somebody else's
                    found.append((entry.name + ("/" if entry.is_dir() else ""), entry))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found, key=lambda each: each[0])

    def _walk(self, folder: str, prefix: str, after: str, deadline: float | None) -> Iterator[BlobInfo]:
        _check_time(deadline)
        for key, entry in self._entries(folder):
            name = folder + key
            if key.endswith("/"):
                related = name.startswith(prefix) or prefix.startswith(name)
                if related and after[: len(name)] <= name:
                    yield from self._walk(name, prefix, after, deadline)
            elif name.startswith(prefix) and name > after:
                try:
                    told = entry.stat()
                except FileNotFoundError:
                    continue  # deleted meanwhile
                if stat.S_ISREG(told.st_mode):
                    yield BlobInfo(name, told.st_size, told.st_mtime)

    @contextmanager
    def _translating(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translated(error, what, name) from error

    def _translated(self, error: OSError, what: str, name: str) -> CloudMountError:
        number, said = error.errno, error.strerror or str(error)
        doing = f"{self._root}: could not {what} {name}".rstrip()
        if number in _NO_ROOM:
            return NoRoomError(f"{doing}: no room left; free some there, or use a larger place")
        if number in _REFUSED:
            return StoreRefusedError(
                f"{doing}: {said}; check whose the folder is, and that it may be written"
            )
        if number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            try:
                self._check_root()
            except NoRepositoryError as missing:
                return missing
            return BlobMissingError(name)
        if number in _GONE or (number == errno.EIO and not self._alive()):
            return StoreUnreachableError(f"{doing}: {said}; is the disk or share still connected?")
        if number == errno.EIO and what == "read":
            return DamagedError(f"{doing}: the disk can't read it ({said})")
        return StoreError(f"{doing}: {said}")

    def _alive(self) -> bool:
        """Whether the folder itself can still be read."""
        try:
            os.listdir(self._root)
        except OSError:
            return False
        return True


def _check_time(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise StoreTimeoutError("the deadline passed")
