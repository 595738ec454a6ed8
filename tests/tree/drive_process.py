"""A drive with a disk cache that completes its disk while 16 readers read it, in a process of its own, to be
killed (`tests.warm`).

The arguments: repository folder, folder of the copies, cache folder, the disk's image, bytes a second from
the store, the step at which it dies (0: none), a seed. Steps are those of `hydrating_process`, and every call
with which the cache changes a file's name or content. Prints "WRONG" with what a reader should not have got,
and "STEPS n" and "done" when the disk is complete.
"""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

from cloudmount.blobs.limited import LimitedStore
from cloudmount.blobs.local import LocalStore
from cloudmount.reader import alone, filling, piecewriter
from cloudmount.reader.diskcache import DiskCache
from cloudmount.reader.filling import COMPLETE
from cloudmount.reader.stored import FrameReader
from cloudmount.repo.repository import Repository
from cloudmount.tree.drive import Drive
from cloudmount.tree.hydrator import Hydrator
from tests.backup.lab import PASSPHRASE
from tests.reader.hydrating_process import PowerCut
from tests.tree.drives import node

READERS = 16
DISK, CACHE_BYTES = "srv/latest/disk.img", 600_000
CACHE_CALLS = ("write", "rename", "unlink")


def look(source: Any, content: bytes, seed: str, ended: threading.Event) -> None:
    """Read here and there, and on from there, and compare."""
    rng = random.Random(seed)
    at = 0
    while not ended.is_set():
        at = rng.randrange(len(content)) if rng.random() < 0.5 or at >= len(content) else at
        length = min(rng.choice((512, 4096, 20_000, 150_000)), len(content) - at)
        if source.read_at(at, length) != content[at : at + length]:
            print("WRONG", at, length, flush=True)
        at += length


def main(repository: str, copies: str, cache: str, image: str, speed: str, step: str, seed: str) -> None:
    """The drive."""
    piecewriter.COMMIT_BYTES, piecewriter.COMMIT_SECONDS = 256 << 10, 0.05
    filling.QUIET, filling.PATIENCE = 0.005, 0.02  # the readers never pause, and packs are small
    content = Path(image).read_bytes()
    opened = Repository.open(LimitedStore(LocalStore(Path(repository)), down=float(speed)), PASSPHRASE)
    cut = PowerCut(int(step), int(seed), below=copies)
    cut.install(CACHE_CALLS)
    if cut.rng.random() < 0.5:
        alone._IN_OPEN = 0x400  # as in `hydrating_process`
    reader = FrameReader(opened, memory_bytes=100_000, cache=DiskCache(cache, CACHE_BYTES), io_timeout=20)
    drive = Drive(opened, reader)
    hydrator = drive.local = Hydrator(Path(copies), drive, reader, lambda line: print(line, flush=True))
    ended = threading.Event()
    threads = [
        threading.Thread(target=look, args=(node(drive, DISK).open(), content, f"{seed}/{n}", ended))  # type: ignore[union-attr]  # a file
        for n in range(READERS)
    ]
    for thread in threads:
        thread.start()
    while not all(state.state == COMPLETE for state in hydrator.states()) or not hydrator.states():
        ended.wait(0.01)
    ended.wait(0.05)  # and some reads from the finished copy
    ended.set()
    for thread in threads:
        thread.join()
    hydrator.close()
    reader.close()
    print("STEPS", cut.steps, flush=True)
    print("done", flush=True)
    os._exit(0)
