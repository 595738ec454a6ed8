"""Contents of files inside disks are told apart by where they lie: never two that differ as equal."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.run import BackupOptions, run_backup
from cloudmount.blobs.memory import MemoryStore
from cloudmount.crypto.phrase import new_phrase
from cloudmount.crypto.slots import KdfCost
from cloudmount.repo.config import Geometry
from cloudmount.repo.repository import Repository
from cloudmount.tree.drive import Drive
from cloudmount.tree.placed import Place, content, stored_bytes
from cloudmount.tree.snapshotdir import OpenedSnapshot, StoredDisk

SMALL = Geometry(frame=4096, pack=1 << 16, segment=2 << 20, page=32 << 20)
SIZE = 5 << 20
CELL = 1024

cells = st.integers(0, SIZE // CELL - 1)
places = st.lists(st.tuples(cells, st.integers(1, 12)), min_size=1, max_size=4)
writes = st.lists(st.tuples(cells, st.sampled_from([b"\0", b"a", b"b"])), max_size=12)


def placed(extents: list[tuple[int, int]]) -> list[Place]:
    """A file of cells one extent after another."""
    found, offset = [], 0
    for cell, count in extents:
        length = min(count * CELL, SIZE - cell * CELL)
        found.append((offset, cell * CELL, length))
        offset += length
    return found


def back_up(repository: Repository, disk: Path, image: bytes) -> StoredDisk:
    """The disk in a snapshot of its own."""
    disk.write_bytes(image)
    run_backup(repository, [str(disk)], BackupOptions("srv"), BackupProgress())
    return OpenedSnapshot(Drive(repository, None), repository.latest("srv")).disks[0]


def written(image: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    """The image with some cells changed."""
    data = bytearray(image)
    for cell, byte in changes:
        data[cell * CELL : (cell + 1) * CELL] = byte * CELL
    return bytes(data)


@given(before=writes, after=writes, first=places, second=places, moved=st.booleans())
@settings(max_examples=30, deadline=None)
def test_equal_means_equal(
    before: list[tuple[int, bytes]],
    after: list[tuple[int, bytes]],
    first: list[tuple[int, int]],
    second: list[tuple[int, int]],
    moved: bool,
) -> None:
    repository = Repository.init(
        MemoryStore(prepared=False), "pw", new_phrase(), geometry=SMALL, cost=KdfCost(64, 1, 1)
    )
    with tempfile.TemporaryDirectory() as folder:
        images = [written(bytes(SIZE), before)]
        images.append(written(images[0], after))
        disks = [back_up(repository, Path(folder) / "disk.raw", image) for image in images]
    files = [placed(first), placed(second if moved else first)]
    told, bytes_of = [], []
    for disk, image, file in zip(disks, images, files, strict=True):
        size = sum(length for *_, length in file)
        told.append(content(repository.keys, disk.map, size, 7, file))
        bytes_of.append(b"".join(image[at : at + length] for _, at, length in file))
        assert stored_bytes(disk.map, file) <= disk.root.sealed
    assert None not in told
    if told[0] == told[1]:
        assert bytes_of[0] == bytes_of[1]
    if images[0] == images[1] and files[0] == files[1]:
        assert told[0] == told[1]


def test_what_places_do_not_cover_is_not_told() -> None:
    repository = Repository.init(
        MemoryStore(prepared=False), "pw", new_phrase(), geometry=SMALL, cost=KdfCost(64, 1, 1)
    )
    with tempfile.TemporaryDirectory() as folder:
        disk = back_up(repository, Path(folder) / "disk.raw", b"x" * SIZE)

    def told(size: int, *places: Place, mtime: int = 1) -> str | None:
        return content(repository.keys, disk.map, size, mtime, places)

    assert told(10) is None and told(8192, (0, 0, 4096)) is None
    assert told(12288, (0, 0, 4096), (8192, 8192, 4096)) is None
    whole = told(8192, (0, 4096, 8192))
    assert whole is not None and whole.startswith("placed:")
    assert whole == told(8192, (0, 40960, 8192))  # moved by whole frames that are equal
    assert len({whole, told(8191, (0, 4096, 8192)), told(8192, (0, 4096, 8192), mtime=2)}) == 3
    one = stored_bytes(disk.map, [(0, 4100, 1)])
    assert stored_bytes(disk.map, [(0, 4095, 2), (2, 4097, 4096)]) == 3 * one > 0
