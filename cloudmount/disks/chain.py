"""Container files as images, and a chain of them flattened into one `BlockSource`.

Decided here and only here: how an image tells where its bytes are (`Run`s), how
a differencing chain is followed (each parent found, its linkage proved, cycles
and absurd depth refused), and how the chain reads as one disk.

Threading: as safe as the images, which are immutable but for their page caches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from cloudmount.errors import UnreadableInputError
from cloudmount.extents import BlockSource, Extent, check_range, merged

MAX_CHAIN = 256  # files; Microsoft's own reader has this limit


class Where(Enum):
    """Where a run's bytes are."""

    ZERO = "zero"  # nowhere: they read as zeros
    HERE = "here"  # in this image's file
    PARENT = "parent"  # in the parent, at the same offset


class Run(NamedTuple):
    """`length` bytes of a disk; for HERE at `position` of the image's `file`."""

    length: int
    where: Where
    position: int = 0


class ParentLink(NamedTuple):
    """What a child knows of its parent.

    `paths`: where it may lie, best first. `described`: the child's own words for
    it. `mismatch(parent)`: why an image is not that parent, or None when it is.
    """

    paths: Sequence[Path]
    described: str
    mismatch: Callable[[Image], str | None]


class Image(Protocol):
    """One container file, its structures checked."""

    @property
    def path(self) -> Path:
        """As it was opened."""

    @property
    def identity(self) -> tuple[int, int]:
        """Of the file itself, whatever its path."""

    @property
    def size(self) -> int:
        """Of the virtual disk, bytes."""

    @property
    def file(self) -> BlockSource:
        """The container's bytes, its log replayed."""

    @property
    def link(self) -> ParentLink | None:
        """What it knows of its parent; None when it has none."""

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """The range of the disk as runs in order; `UnreadableInputError` where tables are broken."""

    def verify(self) -> None:
        """Check the whole block table: every entry, and that no two blocks share bytes of the file."""

    def close(self) -> None:
        """Close the file."""


def joined(runs: Iterator[Run]) -> Iterator[Run]:
    """The same runs with neighbours that go on where the last one ended made one."""
    last: Run | None = None
    for run in runs:
        if last is not None:
            follows = run.where is not Where.HERE or last.position + last.length == run.position
            if last.where is run.where and follows:
                last = Run(last.length + run.length, last.where, last.position)
                continue
            yield last
        last = run
    if last is not None:
        yield last


class Chain:
    """Images, child first, as one disk of the child's size. Owns them.

    What the last one leaves to a parent reads as zeros.
    """

    def __init__(self, images: Sequence[Image]) -> None:
        self.images = tuple(images)
        self.size = self.images[0].size

    def _pieces(self, level: int, offset: int, length: int) -> Iterator[tuple[Image | None, int, int]]:
        """(image, position in its file, length) for each piece; no image: zeros."""
        image = self.images[level]
        for run in joined(image.runs(offset, length)):
            if run.where is Where.HERE:
                yield image, run.position, run.length
            elif run.where is Where.PARENT and level + 1 < len(self.images):
                yield from self._pieces(level + 1, offset, run.length)
            else:
                yield None, 0, run.length
            offset += run.length

    def read_at(self, offset: int, length: int) -> bytes:
        """The disk's bytes; `UnreadableInputError` when a file is broken or changed."""
        check_range(self.size, offset, length)
        parts = [
            bytes(n) if image is None else image.file.read_at(at, n)
            for image, at, n in self._pieces(0, offset, length)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """From the block tables, and from the holes of the files within allocated blocks."""
        check_range(self.size, offset, length)

        def found(here: int) -> Iterator[Extent]:
            for image, at, n in self._pieces(0, offset, length):
                if image is None:
                    yield Extent(here, n, False)
                else:
                    for e in image.file.extents(at, n):
                        yield Extent(here + e.offset - at, e.length, e.data)
                here += n

        return merged(found(offset))

    def close(self) -> None:
        """Close every file."""
        for image in self.images:
            image.close()


def open_chain(
    path: Path, open_image: Callable[[Path], Image], verified: Collection[tuple[int, int]] = ()
) -> Chain:
    """The image at `path` with all its parents, each table verified but those of `verified` (identities).

    `UnreadableInputError` naming the child when a parent is missing, is not the
    one the child was made on, or leads back into the chain.
    """
    with ExitStack() as opened:
        images: list[Image] = []
        image = open_image(path)
        opened.callback(image.close)
        images.append(image)
        while image.link is not None:
            if len(images) == MAX_CHAIN:
                raise UnreadableInputError(f"{path}: its chain of parents is longer than {MAX_CHAIN} files")
            parent = _parent(image, image.link, open_image)
            opened.callback(parent.close)
            if parent.identity in {i.identity for i in images}:
                raise UnreadableInputError(
                    f"{image.path}: its parent {parent.path} is one of its own children"
                )
            images.append(parent)
            image = parent
        for image in images:
            if image.identity not in verified:
                image.verify()
        opened.pop_all()
    return Chain(images)


def _parent(child: Image, link: ParentLink, open_image: Callable[[Path], Image]) -> Image:
    """The first of the link's paths that exists and is the parent."""
    refused = None
    for path in link.paths:
        if not os.path.exists(path):  # unlike Path.exists, False for whatever can't be looked at
            continue
        try:
            parent = open_image(path)
        except UnreadableInputError as error:
            refused = refused or f"its parent can't be read: {error}"
            continue
        why = link.mismatch(parent)
        if why is None:
            return parent
        parent.close()
        refused = refused or f"{path} is not the parent it was made on: {why}"
    if refused is None:
        tried = ", ".join(str(p) for p in link.paths) or "nowhere"
        refused = f"its parent {link.described} is missing (looked for {tried}); put it beside this file"
    raise UnreadableInputError(f"{child.path}: {refused}")
