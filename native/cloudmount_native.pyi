"""The FUSE hot path of CloudMount, in Rust: what is at hand is answered without Python's lock.

`Session` serves a mount; everything it can't answer itself it asks of a `Tree`, on threads that Python
gives it by calling `Session.work`.
"""

from typing import Literal, Protocol, final

Shown = tuple[int, int, int, int, int, int, int, int, int, int, int, float]
"""A node: the kernel's number, inode, kind (0 file, 1 folder, 2 link), size, time (seconds since 1970 and
nanoseconds), permission bits, allocated blocks of 512 bytes, links, user, group, and for how many seconds
name and attributes may be believed."""

class Tree(Protocol):
    """What is asked. Each answer may be an errno instead; an exception is EIO and told by
    `sys.unraisablehook`. Called on any number of worker threads at once."""

    def lookup(self, parent: int, name: bytes) -> int | Shown | None:
        """A folder's child, None when there is none; from now on the kernel holds one reference more to
        its number."""

    def attributes(self, number: int) -> int | Shown:
        """A node's attributes."""

    def target(self, number: int) -> int | bytes:
        """What a link points to."""

    def open(self, number: int) -> int | tuple[int, int, int, int, bytes | None]:
        """Open a file: a handle that is never used twice, size, time of content (seconds and
        nanoseconds), and the path of a complete copy on this machine if there is one."""

    def read(
        self, handle: int, offset: int, length: int, wide_offset: int, wide_length: int
    ) -> int | tuple[int, bytes, bytes | None]:
        """Bytes of an open file, and the offset of the first: at least `length` at `offset` (which lie
        within the file), best the wide range around them, which is copied into memory. And the path of a
        complete copy, if there is one by now."""

    def local(self, handle: int) -> int | bytes | None:
        """The path of an open file's complete copy, None when there is none (any more): asked once the
        file there was opened, so that nothing else is taken for it."""

    def renumber(self, number: int) -> None:
        """The kernel reads this file from a copy that was changed since, and can't be brought to read it
        otherwise: from now on `lookup` tells it under another number."""

    def open_folder(self, number: int) -> int | tuple[int]:
        """Open a folder: a handle that is never used twice."""

    def names(self, handle: int, offset: int) -> int | list[tuple[int, int, bytes]]:
        """Records of an open folder from number `offset` on, some or all; empty at the end. 0 asks the
        tree anew. Each is inode, kind and name."""

    def space(self) -> int | tuple[int, int]:
        """Blocks of 4096 bytes, and files, of the whole tree."""

    def access(self, number: int, mask: int) -> int:
        """0 when a node may be used so (`os.R_OK` and so on)."""

    def chores(self, forgotten: list[tuple[int, int]], closed: list[int]) -> None:
        """The kernel dropped so many references to these numbers; these handles are used no more."""

    def another(self) -> bool:
        """Start one more thread that calls `Session.work`; False when that can't be done."""

@final
class Session:
    """One mount, read-only. Any thread may call any method."""

    def __new__(
        cls, fd: int, *, allow_other: bool, memory_bytes: int, missing_seconds: float, background: int
    ) -> Session:
        """Serve what is mounted with `fd`, an open /dev/fuse (it is duplicated: close yours); the kernel's
        first request is answered when it returns.

        At most `memory_bytes` of recently read data are kept. `allow_other` is what it was mounted with;
        that a name is missing may be believed for `missing_seconds`; the kernel may have `background`
        requests of readahead at once.
        `OSError` when it can't be served.
        """

    def run(self) -> None:
        """Serve until unmounted, and until every call of the tree has come back. Once. Workers must be
        there, or come (see `arrive`). `OSError` when the kernel's side fails."""

    def arrive(self) -> None:
        """A thread is about to call `work`. (Those that `Tree.another` starts are counted already.)"""

    def work(self, tree: Tree) -> None:
        """Answer what must be asked of the tree, until this thread is not needed."""

    def waiting(self, seconds: float) -> int:
        """How many requests have waited for the tree for at least `seconds`."""

    @property
    def pass_through(self) -> Literal["yes", "kernel", "right"]:
        """Whether the kernel may read complete copies by itself; else what is lacking: the kernel doesn't
        offer it, or this process has not the right (CAP_SYS_ADMIN)."""

    @property
    def open_files(self) -> tuple[int, int]:
        """How many files the kernel has open, and how many of them it reads by itself."""

    @property
    def remembered(self) -> int:
        """Bytes of recently read data kept now."""
