"""The raw images of one snapshot's disks, for a machine that starts from them.

Decided here and only here: what such a private drive looks like (`1.img`, `2.img`, ... in the order of the
disks), and that reads which failed are remembered, to be tried again before the machine is. Safe on any
thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from cloudmount.errors import CloudMountError, StoreRefusedError, StoreUnreachableError
from cloudmount.extents import BlockSource, Extent, LocalCopy
from cloudmount.nodes import Attr, Kind, Node
from cloudmount.tree.drive import inode
from cloudmount.tree.snapshotdir import StoredDisk

_MOST = 256
"""Failed reads remembered; a machine that was stopped has a few dozens under way."""

_Read = tuple[BlockSource, int, int]


def image_name(number: int) -> str:
    """The file of disk `number` (from 0)."""
    return f"{number + 1}.img"


class FailedReads:
    """Reads of the images that failed; a `boot.running.Backing`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reads: OrderedDict[_Read, None] = OrderedDict()
        self._last: CloudMountError | None = None

    def add(self, read: _Read, error: CloudMountError) -> None:
        """This read failed so."""
        with self._lock:
            self._last = error
            self._reads[read] = None
            while len(self._reads) > _MOST:
                self._reads.popitem(last=False)

    def why(self) -> str:
        """Why the last one failed, in words."""
        error = self._last
        if error is None:
            return "a disk can't be read"
        if isinstance(error, StoreUnreachableError):
            return "repository unreachable"
        if isinstance(error, StoreRefusedError):
            return f"repository refuses ({error})"
        return str(error)

    def retry(self) -> bool:
        """Read them again, the last one first: what arrives is at hand then. Whether all could be."""
        while True:
            with self._lock:
                if not self._reads:
                    return True
                read = next(reversed(self._reads))
            source, offset, length = read
            try:
                source.read_at(offset, length)
            except CloudMountError as error:
                self.add(read, error)
                return False
            except ValueError:
                pass  # nobody has it open any more
            with self._lock:
                self._reads.pop(read, None)


class _Image:
    """A disk's content whose failures are remembered. As thread-safe as `source`."""

    def __init__(self, source: BlockSource, failed: FailedReads) -> None:
        self._source, self._failed = source, failed
        self.size = source.size
        if isinstance(source, LocalCopy):
            self.local_path = source.local_path

    def read_at(self, offset: int, length: int) -> bytes:
        """As of the disk."""
        try:
            return self._source.read_at(offset, length)
        except CloudMountError as error:
            self._failed.add((self._source, offset, length), error)
            raise

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As of the disk."""
        return self._source.extents(offset, length)

    def close(self) -> None:
        """Close the disk."""
        self._source.close()


class ImageFile:
    """A disk's image."""

    def __init__(self, disk: StoredDisk, name: str, failed: FailedReads) -> None:
        self._open: Callable[[], BlockSource] = lambda: _Image(disk.shown_raw(), failed)
        size = int(disk.summary["size"])
        at = inode(disk.snapshot.id, "images", name)
        self._attr = Attr(Kind.FILE, size, int(disk.summary["mtime_ns"]), 0o444, at, allocated=size)

    def attr(self) -> Attr:
        return self._attr

    def open(self) -> BlockSource:
        return self._open()


class Images:
    """The folder of them."""

    def __init__(self, disks: Sequence[StoredDisk], failed: FailedReads) -> None:
        names = [image_name(number) for number in range(len(disks))]
        self._files = {name: ImageFile(d, name, failed) for name, d in zip(names, disks, strict=True)}
        self._attr = Attr(Kind.DIR, 0, 0, 0o555, inode("images"), nlink=2)

    def attr(self) -> Attr:
        return self._attr

    def lookup(self, name: str) -> Node | None:
        return self._files.get(name)

    def list(self) -> Iterator[tuple[str, Node]]:
        yield from sorted(self._files.items())
