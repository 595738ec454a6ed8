"""Sending the objects of one backup: packs, index objects, map objects.

Decided here and only here: how much is in flight, when index objects are written, and
when a pack enters the journal (once the store acknowledged it). `Uploader` may be
called by one thread; sending happens on its own.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from cloudmount.backup.progress import BackupProgress
from cloudmount.blobs.direct import aligned_memory
from cloudmount.blobs.store import Data, Tier
from cloudmount.crypto.keyring import Keyring
from cloudmount.repo.dedup import DedupIndex
from cloudmount.repo.locations import Location
from cloudmount.repo.packs import PACK_SLACK, FinishedPack, PackTable, PackWriter, seal_index
from cloudmount.repo.repository import Repository

IN_FLIGHT = 3
"""Objects being proved or sent at once: 32 MiB each, and one more being filled."""
REMEMBERED = 4
"""Packs whose ids are kept in memory after they were sent, so that what was looked for a moment ago in the
index needn't be looked for again."""
INDEX_PACKS, INDEX_FRAMES = 1024, 1_000_000


class Uploader:
    """Fills packs with frames and sends everything."""

    def __init__(
        self, repository: Repository, dedup: DedupIndex, progress: BackupProgress, in_flight: int = IN_FLIGHT
    ) -> None:
        self._store = repository.store
        self._keys: Keyring = repository.keys
        self._tier: Tier = repository.config.tier
        self._limit = repository.geometry.pack
        self._dedup = dedup
        self._progress = progress
        self._room = threading.Semaphore(in_flight)
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="upload")
        self._sent: list[Future[None]] = []
        self._lock = threading.Lock()
        self._flying: dict[bytes, Location] = {}
        self._landed: deque[Sequence[bytes]] = deque()
        self.moments = 0
        """How many packs have landed: what was put since the last `REMEMBERED` of them did is in memory."""
        self._tables: list[PackTable] = dedup.unindexed()
        self._pack: PackWriter | None = None
        self._rooms: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        # Used again and again: fresh 32 MiB for each pack cost 250,000 page faults a GiB.
        for _ in range(in_flight + 1):
            self._rooms.put(aligned_memory(self._limit + PACK_SLACK))
        self._room_used: memoryview | None = None
        self._failed: BaseException | None = None

    def find_all(self, contents: Sequence[bytes]) -> dict[bytes, Location]:
        """Where this run, or an earlier one, has put frames with these content ids. On any thread."""
        found = self._dedup.find_all(contents)
        with self._lock:
            for content in contents:
                at = self._flying.get(content)
                if at is not None:
                    found[content] = at
        return found

    def find_since(self, content: bytes, moment: int) -> Location | None:
        """Where a frame was put that `find_all` did not know when `moments` was `moment`."""
        found = self._flying.get(content)  # no lock: a pack is counted before it is forgotten
        if found is None and self.moments - moment > REMEMBERED:
            return self._dedup.find(content)
        return found

    def store(self, content: bytes, payload: bytes | memoryview) -> Location:
        """Put a frame's encoded payload into the open pack; where it will lie. May wait for room."""
        if self._pack is None:
            self._room_used = self._wait_for_room()
            self._pack = PackWriter(self._keys, self._room_used)
        at = self._flying[content] = self._pack.add(content, payload)
        if self._pack.full:
            self._close_pack()
        return at

    def _wait_for_room(self) -> memoryview:
        while True:
            self.check()
            try:
                return self._rooms.get(timeout=0.2)
            except queue.Empty:
                continue

    def _close_pack(self) -> None:
        pack, room = self._pack, self._room_used
        self._pack = self._room_used = None
        if pack is not None and room is not None:
            self._submit(lambda: self._send_pack(pack.finish(), room))

    def _submit(self, job: Callable[[], None]) -> None:
        self.check()
        # Waiting in steps, so that Ctrl-C and a failure are noticed while the store is slow.
        while not self._room.acquire(timeout=0.2):
            self.check()
        self._sent = [f for f in self._sent if not f.done()]
        self._sent.append(self._pool.submit(self._run, job))

    def _run(self, job: Callable[[], None]) -> None:
        try:
            if self._failed is None:
                job()
        except BaseException as error:
            self._failed = self._failed or error
        finally:
            self._room.release()

    def check(self) -> None:
        """Raise what a sending thread failed with."""
        if self._failed is not None:
            raise self._failed

    def _create(self, name: str, data: Data, tier: Tier = "hot") -> None:
        self._store.create(name, data, tier=tier)
        self._progress.add(writes=1, stored_bytes=len(data))

    def _send_pack(self, pack: FinishedPack, room: memoryview) -> None:
        pack.prove(self._keys)
        self._create(pack.name, pack.data, self._tier)
        self._rooms.put(room)
        self._dedup.enter([pack.table], None)
        with self._lock:
            self._landed.append(pack.table.ids)
            self.moments += 1
            if len(self._landed) > REMEMBERED:
                for content in self._landed.popleft():
                    self._flying.pop(content, None)
            self._tables.append(pack.table)
            full = len(self._tables) >= INDEX_PACKS or sum(len(t.ids) for t in self._tables) >= INDEX_FRAMES
            tables, self._tables = (self._tables, []) if full else ([], self._tables)
        self._send_index(tables)

    def _send_index(self, tables: list[PackTable]) -> None:
        if tables:
            name, data = seal_index(self._keys, tables)
            self._create(name, data)
            self._dedup.enter(tables, name)

    def send(self, name: str, data: bytes) -> None:
        """Send a map object."""
        self._submit(lambda: self._create(name, data))

    def finish(self) -> None:
        """Close the open pack, wait for everything, write the last index object."""
        self._close_pack()
        for future in self._sent:
            while not future.done():
                threading.Event().wait(0.02)
        self.check()
        for first in range(0, len(self._tables), INDEX_PACKS):
            self._send_index(self._tables[first : first + INDEX_PACKS])
        self._tables = []

    def create_now(self, name: str, data: bytes) -> None:
        """Create an object (the snapshot) here and now."""
        self.check()
        self._create(name, data)

    def abandon(self) -> None:
        """Give up: nothing more is begun; what is being sent is not waited for."""
        self._failed = self._failed or KeyboardInterrupt()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End the threads; everything was sent."""
        self._pool.shutdown()
