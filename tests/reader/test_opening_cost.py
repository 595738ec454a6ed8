"""From nothing to a disk's first byte: at most 6 requests and 1 MiB (FORMAT.md section 10)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.run import BackupOptions, run_backup
from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.memory import MemoryStore
from cloudmount.reader.stored import FrameReader, StoredSource
from cloudmount.repo.repository import Repository
from cloudmount.repo.streams import MapCache, StreamMap
from tests.reader.stored_repository import PHRASE, QUICK, noise

FRAME = 128 << 10


@pytest.mark.parametrize("offset", [0, 77 << 20])
def test_the_first_byte_costs_little_also_with_the_neighbours_it_brings(tmp_path: Path, offset: int) -> None:
    size = 100 << 20
    store = MemoryStore()
    disk = tmp_path / "disk.img"
    content = noise(64 * FRAME)
    with disk.open("wb") as file:
        file.truncate(size)
        for start in (0, 77 << 20):
            file.seek(start)
            file.write(content)
    repository = Repository.init(store, "secret", PHRASE, cost=QUICK)
    run_backup(repository, [os.fspath(disk)], BackupOptions("srv"), BackupProgress())

    counting = CountingStore(store)
    opened = Repository.open(counting, "secret")
    snapshot = opened.latest("srv")
    (summary,) = snapshot.summary["disks"]
    stream = StreamMap(MapCache(opened), snapshot, size, snapshot.roots[0], summary["content"])
    reader = FrameReader(opened)
    source = StoredSource(reader, stream, (snapshot.id, "disk"))
    before = counting.snapshot()
    assert source.read_at(offset, 512) == content[:512]
    reader.close()
    counts = counting.snapshot()
    assert (counts - before).requests == 2  # locations, and one request for the frame and its neighbours
    assert (counts - before).bytes_down < 512 << 10  # the snapshot object may take 384 KiB
    assert counts.requests <= 6
    assert counts.bytes_down <= 1 << 20
