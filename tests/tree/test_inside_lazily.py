"""What a file inside a disk costs: its own bytes, and a little to find it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudmount.blobs.counting import CountingStore
from cloudmount.repo.config import Geometry
from cloudmount.tree.drive import Drive
from tests.backup.lab import Lab
from tests.guest.images import MIB, make_ext, make_ntfs, ntfs_mounted
from tests.tree.drives import drive, node

DOCUMENTS = "Users/Public/Documents"
SIZE = 20 * MIB


def fill(at: Path, files: int) -> bytes:
    """Many small files, and among them one of 20 MiB in pieces of 4 MiB; its content."""
    rng = random.Random(1)
    blob = rng.randbytes(MIB)
    documents = at / DOCUMENTS
    documents.mkdir(parents=True)
    content = b""
    for piece in range(5):
        data = rng.randbytes(4 * MIB)
        content += data
        for name, part in (("company.QBW", data), (f"between {piece}", blob)):
            with (documents / name).open("ab", buffering=0) as f:
                f.write(part)
                os.fsync(f.fileno())
        for n in range(files // 5):
            folder = at / f"data {n % 17}" / f"{piece}"
            folder.mkdir(parents=True, exist_ok=True)
            start = rng.randrange(MIB // 2)
            (folder / f"some file {n}.txt").write_bytes(blob[start : start + rng.choice((300, 900, 5000))])
    return content


@contextmanager
def cold(lab: Lab) -> Iterator[tuple[Drive, CountingStore]]:
    """A drive that has read nothing but what its opening takes."""
    store = CountingStore(lab.store)
    with drive(lab, store) as tree:
        node(tree, "srv/latest/disk.img")
        yield tree, store


@pytest.mark.parametrize("kind", ["ntfs", "ext4", "ext3"])
def test_a_copied_file_costs_its_own_bytes(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "disk.img"
    if kind == "ntfs":
        make_ntfs(image, 4 << 30)
        with ntfs_mounted(image, tmp_path / "at") as at:
            content = fill(at, 1500)
    else:
        content = fill(tmp_path / "source", 1500)
        make_ext(image, 400 * MIB, tmp_path / "source", kind, *(("-b", "4096") if kind == "ext3" else ()))
    lab = Lab(tmp_path / "lab", geometry=Geometry())
    lab.backup(image)
    (volume,) = ["1-DATA" if kind == "ntfs" else "1-root"]
    folder = f"srv/latest/disk/{volume}/{DOCUMENTS}"

    with cold(lab) as (tree, store):
        before = store.snapshot()
        listed = {n: c.attr().size for n, c in node(tree, folder).list()}  # type: ignore[attr-defined]  # a folder
        assert listed["company.QBW"] == SIZE and len(listed) == 6
        assert store.snapshot().bytes_down - before.bytes_down < MIB

    for step in (MIB, 128 << 10):
        with cold(lab) as (tree, store):
            before = store.snapshot()
            source = node(tree, f"{folder}/company.QBW").open()  # type: ignore[attr-defined]  # a file
            got = b"".join(source.read_at(at, min(step, SIZE - at)) for at in range(0, SIZE, step))
            source.close()
            assert got == content
            cost = store.snapshot().bytes_down - before.bytes_down
            assert cost <= 1.1 * SIZE + 2 * 10**6, "the bar"
            assert cost <= 1.02 * SIZE + 2 * 10**6, "and what it was: readahead along the file's own extents"

    with cold(lab) as (tree, store):  # a piece in the middle: nothing of the rest
        before = store.snapshot()
        source = node(tree, f"{folder}/company.QBW").open()  # type: ignore[attr-defined]  # a file
        assert source.read_at(9 * MIB, 100_000) == content[9 * MIB : 9 * MIB + 100_000]
        source.close()
        assert store.snapshot().bytes_down - before.bytes_down < 2 * MIB
