"""The FUSE adapter in Rust: a `Dir` mounted through the distribution `cloudmount-native` (Linux).

Decided here and only here: what that driver is told of a tree, and how its misses are read. What is at
hand (memory, a complete local copy, a listing that goes on) it answers by itself, without this
interpreter's lock; for all else it calls `_Tree` on threads that are started here, one more than are
busy. What numbers, listings, times and failures mean is as with `refuse`, by the same modules.

A miss reads the whole aligned blocks around it, so that the next read beside it is a hit: stored frames
have that size, so no more is fetched or opened. Where such a read fails for its neighbours' sake (one
of them is damaged), the bytes that were asked for are read alone.

Threading: `_Tree` is called on many threads at once.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cloudmount.errors import CloudMountError, StoreError
from cloudmount.extents import BlockSource, LocalCopy
from cloudmount.mounts import fusermount, host
from cloudmount.mounts.answers import BACKGROUND, BLOCK, FOLDER_SECONDS, believed, refused
from cloudmount.mounts.driver import FILESYSTEM, DriveOptions
from cloudmount.mounts.failures import Failures
from cloudmount.mounts.inodes import Inodes
from cloudmount.mounts.listing import Listing
from cloudmount.mounts.mountpoints import detach
from cloudmount.nodes import Attr, Dir, File, Kind, Link

if TYPE_CHECKING:
    from cloudmount_native import Session, Shown

MEMORY_BYTES = 32 << 20
"""Of recently read data, beside the frame cache of the reader below."""
NAMES = 1024
"""Names of a folder that are asked for at once; 50,000 then take 50 calls instead of 600."""
PASS_THROUGH = {
    "yes": "yes",
    "kernel": "no: it needs Linux 6.9 or later, with FUSE_PASSTHROUGH",
    "right": "no: it needs root (CAP_SYS_ADMIN)",
}
_KINDS = {Kind.FILE: 0, Kind.DIR: 1, Kind.LINK: 2}

T = TypeVar("T")

log = logging.getLogger(__name__)


def installed() -> bool:
    """Whether the distribution is there, and the program that it is mounted with."""
    try:
        import cloudmount_native  # noqa: F401 - only whether it loads
    except ImportError:
        return False
    return fusermount.helper() is not None


class NativeDrive:
    """A `Dir` at a mount point, through Rust. A `driver.Drive`; the class is a `driver.Driver`."""

    def __init__(self, root: Dir, mountpoint: str, options: DriveOptions) -> None:
        try:
            import cloudmount_native
        except ImportError as error:
            raise CloudMountError(
                f"the native driver is not installed here ({error}): 'pip install ./native' builds it"
            ) from error
        host.require(allow_other=options.allow_other)
        self.up = threading.Event()
        self._path = mountpoint
        shown = ["ro", "nosuid", "nodev", f"fsname={FILESYSTEM}", f"subtype={FILESYSTEM}"]
        if options.allow_other:
            shown += ["allow_other", "default_permissions"]
        device = fusermount.mount(mountpoint, shown)
        try:
            self._session = cloudmount_native.Session(
                device, allow_other=options.allow_other, memory_bytes=MEMORY_BYTES,
                missing_seconds=FOLDER_SECONDS, background=BACKGROUND,
            )  # fmt: skip
        except OSError as error:
            detach(mountpoint, lazy=True)
            raise CloudMountError(f"{mountpoint} can't be served: {error}") from error
        finally:
            os.close(device)
        self._tree = _Tree(root, options, self._session)

    def run(self) -> None:
        """Serve until unmounted and every request has come back."""
        # Threads started from here inherit it: signals are the main thread's.
        signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
        )
        self._session.arrive()
        self._tree.another()
        self.up.set()
        try:
            self._session.run()
        except OSError:
            detach(self._path, lazy=True)
            raise
        finally:
            self._tree.end()

    @property
    def pass_through(self) -> str:
        """Whether the kernel reads complete local copies by itself; else why not."""
        return PASS_THROUGH[self._session.pass_through]

    @property
    def open_files(self) -> tuple[int, int]:
        """How many files are open, and how many of them the kernel reads by itself."""
        return self._session.open_files

    @property
    def remembered(self) -> int:
        """Bytes of recently read data kept now; at most `MEMORY_BYTES`."""
        return self._session.remembered

    def waiting(self, seconds: float) -> int:
        """Requests that have waited that long."""
        return self._session.waiting(seconds)


class _Tree:
    """What the session asks; a `cloudmount_native.Tree`."""

    def __init__(self, root: Dir, options: DriveOptions, session: Session) -> None:
        self._session = session
        self._inodes = Inodes(root)
        self._space = options.space
        self._uid, self._gid = os.getuid(), os.getgid()
        self._failures = Failures()
        self._handles = itertools.count(1)
        self._files: dict[int, BlockSource] = {}
        self._listings: dict[int, Listing] = {}

    def _answer(self, doing: str, work: Callable[..., T], *arguments: Any) -> T | int:
        try:
            return work(*arguments)
        except BaseException as error:
            return self._failures.errno(error, doing)

    def another(self) -> bool:
        try:
            threading.Thread(
                target=self._session.work, args=(self,), name="cloudmount-fuse", daemon=True
            ).start()
        except RuntimeError:  # the system's limit: those that are there go on
            return False
        return True

    def end(self) -> None:
        """Close what the kernel left open."""
        self.chores([], list(self._files))

    # Names and attributes

    def lookup(self, parent: int, name: bytes) -> Shown | int | None:
        return self._answer("lookup", self._lookup, parent, name)

    def _lookup(self, parent: int, name: bytes) -> Shown | None:
        node = self._inodes.folder(parent).lookup(os.fsdecode(name))
        if node is None:
            return None
        attr = node.attr()
        return self._shown(self._inodes.remember(parent, name, node, attr), attr)

    def attributes(self, number: int) -> Shown | int:
        return self._answer("getattr", lambda: self._shown(number, self._inodes.node(number).attr()))

    def _shown(self, number: int, attr: Attr) -> Shown:
        seconds, nanoseconds = divmod(attr.mtime_ns, 1_000_000_000)
        return (
            number, attr.inode, _KINDS[attr.kind], attr.size, seconds, nanoseconds, attr.mode & 0o7777,
            -(-attr.allocated // 512), attr.nlink, self._uid if attr.uid is None else attr.uid,
            self._gid if attr.gid is None else attr.gid, believed(attr),
        )  # fmt: skip

    def target(self, number: int) -> bytes | int:
        return self._answer("readlink", lambda: os.fsencode(cast(Link, self._inodes.node(number)).target()))

    def access(self, number: int, mask: int) -> int:
        return self._answer("access", lambda: refused(self._inodes.node(number).attr(), mask))

    def space(self) -> tuple[int, int] | int:
        def work() -> tuple[int, int]:
            space = self._space()
            return -(-space.size // BLOCK), space.files

        return self._answer("statfs", work)

    # Files

    def open(self, number: int) -> tuple[int, int, int, int, bytes | None] | int:
        return self._answer("open", self._open, number)

    def _open(self, number: int) -> tuple[int, int, int, int, bytes | None]:
        node = cast(File, self._inodes.node(number))
        seconds, nanoseconds = divmod(node.attr().mtime_ns, 1_000_000_000)
        source = node.open()
        handle = next(self._handles)
        self._files[handle] = source
        return handle, source.size, seconds, nanoseconds, _local(source)

    def read(
        self, handle: int, offset: int, length: int, wide_offset: int, wide_length: int
    ) -> tuple[int, bytes, bytes | None] | int:
        return self._answer("read", self._read, handle, offset, length, wide_offset, wide_length)

    def _read(
        self, handle: int, offset: int, length: int, wide_offset: int, wide_length: int
    ) -> tuple[int, bytes, bytes | None]:
        source = self._files[handle]
        try:
            content = source.read_at(wide_offset, wide_length)
            if len(content) == wide_length:
                return wide_offset, content, _local(source)
        except StoreError:
            raise  # it would only be waited for again
        except Exception:
            if wide_length == length:
                raise
        content = source.read_at(offset, length)
        if len(content) != length:
            raise CloudMountError(f"{length} bytes at {offset} were asked for, {len(content)} came")
        return offset, content, _local(source)

    def local(self, handle: int) -> bytes | int | None:
        return self._answer("read", lambda: _local(self._files[handle]))

    def renumber(self, number: int) -> None:
        name = self._inodes.renumber(number)
        log.warning(
            "the local copy of %s was changed or removed while programs read it: they go on with it as it is "
            "(close what has it open); what is opened from now on is not read from it",
            os.fsdecode(name),
        )

    # Folders

    def open_folder(self, number: int) -> tuple[int] | int:
        def work() -> tuple[int]:
            listing = Listing(self._inodes.folder(number), self._inodes.parent_inode(number))
            handle = next(self._handles)
            self._listings[handle] = listing
            return (handle,)

        return self._answer("opendir", work)

    def names(self, handle: int, offset: int) -> list[tuple[int, int, bytes]] | int:
        def work() -> list[tuple[int, int, bytes]]:
            records = self._listings[handle].records(offset, NAMES)
            return [(inode, _KINDS[kind], name) for inode, kind, name in records]

        return self._answer("readdir", work)

    # What nobody waits for

    def chores(self, forgotten: list[tuple[int, int]], closed: list[int]) -> None:
        for number, lookups in forgotten:
            self._inodes.forget(number, lookups)
        for handle in closed:
            self._listings.pop(handle, None)
            source = self._files.pop(handle, None)
            if source is not None:
                try:
                    source.close()
                except BaseException as error:
                    self._failures.errno(error, "close")


def _local(source: BlockSource) -> bytes | None:
    """Where a complete copy lies, if the source has one."""
    if not hasattr(source, "local_path"):  # 0.1 us; asking `isinstance` of a protocol takes 2
        return None
    path = cast(LocalCopy, source).local_path()
    return None if path is None else os.fsencode(path)
