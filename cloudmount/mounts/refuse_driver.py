"""The FUSE adapter: a `Dir` mounted through libfuse 2 (Linux; macFUSE untried).

Decided here and only here: how the tree's words become the kernel's. Read-only in every call
(the mount is `ro` too); pages are kept across opens because content never changes. Failures get
the error tree's errno, anything unforeseen EIO; each is logged once, not once a read. A tree that
hangs is the tree's: nothing here waits, retries or caches.

Without `allow_other` only the mounting user gets in, who had the passphrase, so the permissions
backed up are shown but not enforced; with it the kernel enforces them.

libfuse 2 speaks FUSE 7.19: one lookup at a time in each folder, no attributes with listings,
reads of at most 128 KiB, holes are read as zeros.

Threading: requests arrive on many threads at once (`libfuse.Session`).
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable
from typing import Any, cast

from cloudmount.errors import CloudMountError, ReadOnlyError
from cloudmount.mounts import host, libfuse
from cloudmount.mounts.answers import BACKGROUND, BLOCK, FOLDER_SECONDS, believed, refused
from cloudmount.mounts.driver import FILESYSTEM, DriveOptions
from cloudmount.mounts.failures import Failures
from cloudmount.mounts.inodes import Inodes
from cloudmount.mounts.listing import Listing
from cloudmount.mounts.openfiles import OpenFile
from cloudmount.mounts.requests import Request, Requests
from cloudmount.nodes import Attr, Dir, File, Kind, Link

_TYPES = {Kind.FILE: stat.S_IFREG, Kind.DIR: stat.S_IFDIR, Kind.LINK: stat.S_IFLNK}
_REFUSED = (
    "setattr", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "write", "create",
    "setxattr", "removexattr", "fallocate",
)  # fmt: skip


class RefuseDrive:
    """A `Dir` at a mount point, through libfuse 2. A `driver.Drive`; the class is a `driver.Driver`."""

    def __init__(self, root: Dir, mountpoint: str, options: DriveOptions) -> None:
        host.require(allow_other=options.allow_other)
        self.up = threading.Event()
        self._lib = lib = libfuse.load()
        self._inodes = Inodes(root)
        self._space = options.space
        self._uid, self._gid = os.getuid(), os.getgid()
        self._failures = Failures()
        self._requests = Requests(
            lambda request: int(lib.req_ctx(request).contents.pid),
            lambda request: lib.reply_err(request, errno.EINTR),
        )
        self._handles = itertools.count(1)
        self._files: dict[int, OpenFile] = {}
        self._listings: dict[int, Listing] = {}

        asking: dict[str, Callable[..., None]] = {
            "lookup": self._lookup, "getattr": self._getattr, "readlink": self._readlink,
            "open": self._open, "read": self._read, "opendir": self._opendir,
            "readdir": self._readdir, "statfs": self._statfs, "access": self._access,
        }  # fmt: skip
        operations: dict[str, Callable[..., None]] = {
            name: self._answering(name, work) for name, work in asking.items()
        }
        operations |= dict.fromkeys(_REFUSED, lambda request, *_: lib.reply_err(request, errno.EROFS))
        operations |= {
            "init": lambda *_: self.up.set(),
            "forget": self._forget,
            "forget_multi": self._forget_multi,
            "release": self._release,
            "releasedir": self._releasedir,
        }
        shown = ["ro", "nosuid", "nodev", f"fsname={FILESYSTEM}", f"subtype={FILESYSTEM}"]
        if options.allow_other:
            shown += ["allow_other", "default_permissions"]
        background = (f"max_background={BACKGROUND}", f"congestion_threshold={BACKGROUND * 3 // 4}")
        self._session = libfuse.Session(lib, mountpoint, shown, background, operations)

    def run(self) -> None:
        """Serve until unmounted and every request has come back."""
        self._requests.start()
        self._session.run()
        self._requests.end()
        for opened in self._files.values():
            opened.source.close()

    @property
    def pass_through(self) -> str:
        """Not by this driver."""
        return "no: only the native driver can"

    def waiting(self, seconds: float) -> int:
        """Requests that have waited that long."""
        return self._requests.waiting(seconds)

    # What may fail in these comes before the request is claimed: who claims it must answer.

    def _answering(self, name: str, work: Callable[..., None]) -> Callable[..., None]:
        begin, claim, reply_err = self._requests.begin, self._requests.claim, self._lib.reply_err

        def operation(pointer: int, *arguments: Any) -> None:
            request = begin(pointer)
            try:
                work(request, *arguments)
            except BaseException as e:  # whatever left a callback would leave the caller waiting
                number = self._failures.errno(e, name)
                if claim(request):
                    reply_err(pointer, number)

        return operation

    def _lookup(self, request: Request, parent: int, name: bytes) -> None:
        node = self._inodes.folder(parent).lookup(os.fsdecode(name))
        entry = self._lib.entry()
        if node is None:
            entry.entry_timeout = FOLDER_SECONDS
        else:
            attr = node.attr()
            self._fill(entry.attr, attr)
            entry.attr_timeout = entry.entry_timeout = believed(attr)
            entry.ino = self._inodes.remember(parent, name, node, attr)
        if not self._requests.claim(request) or self._lib.reply_entry(request.pointer, ctypes.byref(entry)):
            self._inodes.forget(entry.ino, 1)  # the caller gave up: the kernel doesn't know of it

    def _getattr(self, request: Request, number: int, _info: Any) -> None:
        attr = self._inodes.node(number).attr()
        shown = self._lib.stat()
        self._fill(shown, attr)
        if self._requests.claim(request):
            self._lib.reply_attr(request.pointer, ctypes.byref(shown), believed(attr))

    def _readlink(self, request: Request, number: int) -> None:
        target = os.fsencode(cast(Link, self._inodes.node(number)).target())
        if self._requests.claim(request):
            self._lib.reply_readlink(request.pointer, target)

    def _access(self, request: Request, number: int, mask: int) -> None:
        attr = self._inodes.node(number).attr()
        if self._requests.claim(request):
            self._lib.reply_err(request.pointer, refused(attr, mask))

    def _open(self, request: Request, number: int, info: Any) -> None:
        flags = info.contents.flags
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise ReadOnlyError("the drive is read-only")
        opened = OpenFile(cast(File, self._inodes.node(number)).open())
        if not self._requests.claim(request):
            opened.release()
            return
        handle = info.contents.fh = next(self._handles)
        info.contents.keep_cache = 1
        self._files[handle] = opened
        if self._lib.reply_open(request.pointer, info):
            del self._files[handle]  # the caller gave up: it will never be released
            opened.release()

    def _read(self, request: Request, _number: int, size: int, offset: int, info: Any) -> None:
        request.reading = opened = self._files[info.contents.fh]
        length = max(0, min(size, opened.size - offset))
        content = opened.source.read_at(offset, length) if length else b""
        if len(content) != length:
            raise CloudMountError(f"{length} bytes at {offset} were asked for, {len(content)} came")
        if self._requests.claim(request):
            self._lib.reply_buf(request.pointer, content, length)

    def _opendir(self, request: Request, number: int, info: Any) -> None:
        listing = Listing(self._inodes.folder(number), self._inodes.parent_inode(number))
        if not self._requests.claim(request):
            return
        handle = info.contents.fh = next(self._handles)
        self._listings[handle] = listing
        if self._lib.reply_open(request.pointer, info):
            del self._listings[handle]

    def _readdir(self, request: Request, _number: int, size: int, offset: int, info: Any) -> None:
        records = self._listings[info.contents.fh].read(offset, size)
        if self._requests.claim(request):
            self._lib.reply_buf(request.pointer, records, len(records))

    def _statfs(self, request: Request, _number: int) -> None:
        space = self._space()
        shown = self._lib.statvfs()
        shown.f_bsize = shown.f_frsize = BLOCK
        shown.f_blocks = -(-space.size // BLOCK)
        shown.f_files = space.files
        shown.f_namemax = 255
        if self._requests.claim(request):
            self._lib.reply_statfs(request.pointer, ctypes.byref(shown))

    # These ask nothing of the tree.

    def _forget(self, pointer: int, number: int, lookups: int) -> None:
        self._inodes.forget(number, lookups)
        self._lib.reply_none(pointer)

    def _forget_multi(self, pointer: int, count: int, forgets: Any) -> None:
        for i in range(count):
            self._inodes.forget(forgets[i].ino, forgets[i].nlookup)
        self._lib.reply_none(pointer)

    def _release(self, pointer: int, _number: int, info: Any) -> None:
        opened = self._files.pop(info.contents.fh, None)
        self._lib.reply_err(pointer, 0)
        if opened is not None:
            try:
                opened.release()
            except BaseException as e:
                self._failures.errno(e, "close")

    def _releasedir(self, pointer: int, _number: int, info: Any) -> None:
        self._listings.pop(info.contents.fh, None)
        self._lib.reply_err(pointer, 0)

    def _fill(self, shown: Any, attr: Attr) -> None:
        """`struct stat` of a node."""
        shown.st_ino = attr.inode
        shown.st_mode = _TYPES[attr.kind] | attr.mode & 0o7777
        shown.st_nlink = attr.nlink
        shown.st_uid = self._uid if attr.uid is None else attr.uid
        shown.st_gid = self._gid if attr.gid is None else attr.gid
        shown.st_size = attr.size
        shown.st_blksize = BLOCK
        shown.st_blocks = -(-attr.allocated // 512)
        seconds, nanoseconds = divmod(attr.mtime_ns, 1_000_000_000)
        for times in (shown.st_atimespec, shown.st_mtimespec, shown.st_ctimespec):
            times.tv_sec, times.tv_nsec = seconds, nanoseconds
