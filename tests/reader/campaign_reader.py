"""The long campaign against the read path: readers under a store that does what it can to them.

Every read must give the model's bytes, or one of our errors within `io_timeout` and 5 s;
damage only where bytes were spoilt; and when the weather clears, everything can be read
again. `make campaign` runs many rounds, the tests a few.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from cloudmount.blobs.faulty import Fault, FaultyStore, Operation, randomly
from cloudmount.blobs.retrying import RetryingStore, RetryPolicy
from cloudmount.blobs.store import BlobStore
from cloudmount.errors import CloudMountError, DamagedError, StoreError
from cloudmount.reader.bulk import read_frames
from cloudmount.reader.diskcache import DiskCache
from cloudmount.reader.stored import FrameReader, StoredSource
from tests.reader.stored_repository import StoredRepository, model

READERS = 16
LATE = 5.0
HONEST = [Fault.RESET, Fault.LOST, Fault.BUSY, Fault.STALL, Fault.STALL_LOST]


class Storm:
    """A fault plan: faults now and then, and silence while `silent`; none once `over`."""

    def __init__(self, seed: int, rate: float, faults: list[Fault]) -> None:
        self._plan = randomly(seed, rate, faults, kinds=("read",))
        self.silent = self.over = False

    def __call__(self, operation: Operation) -> Fault | None:
        if self.over:
            return None
        return Fault.STALL if self.silent else self._plan(operation)


class Round:
    """One repository, one storm, `READERS` readers."""

    def __init__(self, seed: int, folder: Path, reads: int) -> None:
        rng = self.rng = random.Random(seed)
        self.seed, self.folder, self.reads = seed, folder, reads
        self.spoils = rng.random() < 0.5
        self.content = model(rng.randrange(1, 3 << 20), seed)
        self.retries = rng.random() < 0.5
        faults = [*HONEST, *([Fault.FLIP] if self.spoils else [])]
        if self.retries:
            faults.append(Fault.SHORT)  # against the contract; `RetryingStore` sees to it
        self.storm = Storm(seed, rng.choice([0.02, 0.1, 0.4]), faults)
        self.faults = 0
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.timeout = rng.choice([0.2, 0.4, 0.8])

    def run(self) -> None:
        rng = self.rng
        made = StoredRepository()
        stall = rng.choice([0.02, 0.02, 0.02, 2 * self.timeout])
        faulty = FaultyStore(made.store, self.storm, stall=stall)
        store: BlobStore = faulty
        if self.retries:
            policy = RetryPolicy(total=self.timeout, first=0.01, longest=0.1)
            store = RetryingStore(store, policy, starting=None)
        repository = made.behind(store)
        order = list(range(-(-len(self.content) // made.geometry.frame)))
        if rng.random() < 0.5:
            rng.shuffle(order)
        stream = made.disk(
            self.content,
            order=order,
            pack_bytes=rng.choice([20_000, 200_000, 4 << 20]),
            repository=repository,
            map_cache=rng.choice([300_000, 48 << 20]),
        )
        cache = None
        if rng.random() < 0.7:
            cache = DiskCache(os.fspath(self.folder), rng.choice([100_000, 1 << 20, 16 << 20]))
            repository.cache = cache if rng.random() < 0.5 else None
        memory = rng.choice([0, 50_000, 1 << 20, 64 << 20])
        reader = FrameReader(
            repository,
            memory_bytes=memory,
            cache=cache,
            io_timeout=self.timeout,
            workers=rng.choice([2, 4, 8]),
        )
        source = StoredSource(reader, stream, "disk")
        ended = threading.Event()
        spoiler = threading.Thread(target=self._spoil, args=(ended,), daemon=True)
        spoiler.start()
        threads = [
            threading.Thread(target=self._read, args=(source, n, reader, memory), daemon=True)
            for n in range(READERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            if thread.is_alive():
                raise AssertionError(f"seed {self.seed}: a reader hangs")
        ended.set()
        spoiler.join()
        self.storm.over = True
        self._recover(source)
        self._bulk(made, store)
        reader.close()
        if cache is not None:
            cache.close()
        self.faults = len(faulty.faults)
        if self.wrong:
            raise AssertionError(f"seed {self.seed}: {self.wrong[:5]}")

    def _read(self, source: StoredSource, number: int, reader: FrameReader, memory: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        size = len(self.content)
        at = 0
        for _ in range(self.reads):
            length = rng.choice([1, 512, 4096, 20_000, 300_000])
            at = rng.randrange(size) if rng.random() < 0.4 or at >= size else at
            length = min(length, size - at)
            pause = 0.0
            begun = time.monotonic()
            try:
                found = source.read_at(at, length)
            except DamagedError as error:
                self.done["damage"] += 1
                if not self.spoils:
                    self.wrong.append(f"damage where none was done: {error}")
            except StoreError:
                self.done["time-out"] += 1
                pause = rng.random() * 0.2  # else it only meets what is remembered
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
            else:
                self.done["right"] += 1
                if found != self.content[at : at + length]:
                    self.wrong.append(f"other bytes at {at}+{length}")
            took = time.monotonic() - begun
            if took > self.timeout + LATE:
                self.wrong.append(f"a read took {took:.1f} s")
            if reader.table.used > memory:
                self.wrong.append(f"{reader.table.used} bytes of memory instead of {memory}")
            at += length
            time.sleep(pause)

    def _spoil(self, ended: threading.Event) -> None:
        """Short silences, and bytes altered in the disk cache."""
        rng = random.Random(f"{self.seed}/spoil")
        while not ended.wait(rng.random() * 0.2):
            self.storm.silent = rng.random() < 0.1
            for path in self.folder.glob("???/*"):
                if path.parent.name == "tmp" or rng.random() > 0.02:
                    continue
                try:
                    data = bytearray(path.read_bytes())
                    if data:
                        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                        path.write_bytes(data)
                        self.done["spoilt"] += 1
                except FileNotFoundError:
                    continue
        self.storm.silent = False

    def _recover(self, source: StoredSource) -> None:
        """Piece by piece: `io_timeout` is very short here."""
        end = time.monotonic() + 30
        at = 0
        while at < len(self.content):
            length = min(50_000, len(self.content) - at)
            try:
                if source.read_at(at, length) != self.content[at : at + length]:
                    self.wrong.append("other bytes after the storm")
                at += length
            except CloudMountError as error:
                if time.monotonic() > end:
                    self.wrong.append(f"it does not come back: {error}")
                    return
                time.sleep(0.05)

    def _bulk(self, made: StoredRepository, store: BlobStore) -> None:
        """The same content in bulk, the storm raging again."""
        self.storm.over = False
        repository = made.behind(store)
        stream = made.disk(self.content, repository=repository)
        whole = bytearray(len(self.content))
        try:
            for frame, plain in read_frames(repository, stream):
                start = frame.number * stream.frame_bytes
                whole[start : start + len(plain)] = plain
        except (DamagedError, StoreError) as error:
            self.done["bulk error"] += 1
            if isinstance(error, DamagedError) and not self.spoils:
                self.wrong.append(f"damage where none was done: {error}")
        else:
            self.done["bulk right"] += 1
            if whole != self.content:
                self.wrong.append("other bytes in bulk")
        self.storm.over = True


def campaign(seed: int, count: int, *, reads: int = 40) -> str:
    """`count` rounds; `AssertionError` naming the seed of what was wrong. A line of what was done."""
    done: Counter[str] = Counter()
    faults = 0
    for n in range(count):
        with tempfile.TemporaryDirectory(prefix="reader-campaign-") as folder:
            round = Round(seed * 1_000_003 + n, Path(folder) / "cache", reads)
            round.run()
            done += round.done
            faults += round.faults
    return f"reader: {count} rounds, {faults} faults, {dict(sorted(done.items()))}"
