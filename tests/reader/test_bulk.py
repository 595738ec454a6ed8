"""Reading in bulk: in order, verified, in few requests and bounded memory; damage told by frame."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.faulty import Fault, FaultyStore, randomly
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.retrying import RetryingStore, RetryPolicy
from cloudmount.errors import CloudMountError, DamagedError, StoreError, StoreUnreachableError
from cloudmount.reader import bulk
from cloudmount.reader.bulk import read_frames
from cloudmount.repo.frames import Frame
from cloudmount.repo.streams import StreamMap
from tests.reader.stored_repository import SMALL, StoredRepository, model, noise

FRAME = SMALL.frame
SIZE = (3 << 20) + 777
CONTENT = model(SIZE, 4)


def put_together(stream: StreamMap, found: list[tuple[Frame, bytes]]) -> bytes:
    numbers = [frame.number for frame, _ in found]
    assert numbers == sorted(set(numbers))
    whole = bytearray(stream.size)
    for frame, plain in found:
        assert len(plain) == frame.length
        whole[frame.number * FRAME : frame.number * FRAME + len(plain)] = plain
    return bytes(whole)


@settings(max_examples=15, deadline=None)
@given(st.randoms(), st.integers(1, 6), st.integers(1, 4 << 20), st.integers(FRAME, 1 << 20))
def test_every_present_frame_in_order(rng: random.Random, workers: int, memory: int, pack_bytes: int) -> None:
    made = StoredRepository()
    order = list(range(-(-SIZE // FRAME)))
    if rng.random() < 0.5:
        rng.shuffle(order)
    stream = made.disk(CONTENT, order=order, pack_bytes=pack_bytes)
    found = list(read_frames(made.repository, stream, workers=workers, memory_bytes=memory))
    assert put_together(stream, found) == CONTENT
    assert all(any(plain) for _, plain in found)


def test_nothing_stored() -> None:
    made = StoredRepository()
    assert list(read_frames(made.repository, made.disk(bytes(10 * FRAME)))) == []
    assert list(read_frames(made.repository, made.disk(b""))) == []


def test_requests_are_large_and_each_frame_is_asked_for_once() -> None:
    made = StoredRepository()
    content = noise(16 << 20)
    stream = made.disk(content, pack_bytes=64 << 20)
    store = CountingStore(made.store)
    assert sum(1 for _ in read_frames(made.behind(store), stream)) == (16 << 20) // FRAME
    counts = store.snapshot()
    assert counts.read <= 3
    assert counts.bytes_down == (16 << 20) + 16 * ((16 << 20) // FRAME)


class Slow(CountingStore):
    """Knows how many reads are under way, and how many bytes were given."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.now = self.most = 0
        self._mutex = threading.Lock()

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, deadline: float | None = None
    ) -> bytes:
        with self._mutex:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.05)
        data = super().read(name, offset, length, deadline=deadline)
        with self._mutex:
            self.now -= 1
        return data


def test_several_requests_are_under_way_but_not_more_than_memory_allows() -> None:
    made = StoredRepository()
    content = noise(4 << 20)
    stream = made.disk(content, pack_bytes=64 << 20)
    assert isinstance(made.store, MemoryStore)
    store = Slow(made.store)
    frames = read_frames(made.behind(store), stream, workers=4, memory_bytes=1 << 20)
    next(frames)
    time.sleep(0.5)  # a slow taker
    assert store.snapshot().bytes_down <= 1 << 20
    assert store.most == 4
    for _ in frames:
        pass


def spoil(store: MemoryStore, name: str, at: int) -> None:
    data = bytearray(store.objects[name])
    data[at] ^= 0x10
    store.objects[name] = bytes(data)


def test_damage_is_told_frame_by_frame_and_the_others_follow() -> None:
    made = StoredRepository()
    content = noise(100 * FRAME)
    stream = made.disk(content, pack_bytes=30 * FRAME)
    store = made.store
    assert isinstance(store, MemoryStore)
    where = {n: stream.locate(n) for n in range(100)}
    names = {n: f"packs/{at.pack.hex()[:2]}/{at.pack.hex()}" for n, at in where.items() if at}
    for n in (3, 50):
        at = where[n]
        assert at is not None
        spoil(store, names[n], at.offset + 100)
    cut = where[80]
    assert cut is not None
    store.objects[names[80]] = store.objects[names[80]][: cut.offset + 1]
    lost = {3, 50, *(n for n in range(80, 100) if names[n] == names[80])}
    store.delete(names[99])
    lost |= {n for n in range(100) if names[n] == names[99]}
    damage: dict[int, DamagedError] = {}
    found = list(
        read_frames(
            made.repository, stream, on_damage=lambda frame, error: damage.update({frame.number: error})
        )
    )
    assert set(damage) == lost
    assert {frame.number for frame, _ in found} == set(range(100)) - lost
    for frame, plain in found:
        assert plain == content[frame.number * FRAME : (frame.number + 1) * FRAME]
    assert f"{names[3]}: the {FRAME + 16} bytes at" in str(damage[3])
    assert "is missing from the store" in str(damage[99])
    frames = read_frames(made.repository, stream)
    assert [next(frames)[0].number for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DamagedError, match="frame 3,"):
        next(frames)


def test_content_that_opens_but_is_not_what_the_map_says_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    made = StoredRepository()
    stream = made.disk(noise(2 * FRAME))
    first, second = stream.present()
    swapped = [first._replace(content=second.content), second]
    monkeypatch.setattr(stream, "present", lambda: iter(swapped))
    with pytest.raises(DamagedError, match="not to the content"):
        list(read_frames(made.repository, stream))


def test_store_errors_come_as_they_are() -> None:
    made = StoredRepository()
    stream = made.disk(noise(64 * FRAME))
    store = FaultyStore(made.store, lambda op: Fault.RESET)
    with pytest.raises(StoreUnreachableError):
        list(read_frames(made.behind(store), stream))


@pytest.mark.parametrize("seed", range(6))
def test_under_faults_it_gives_the_right_bytes_or_a_clear_error(seed: int) -> None:
    made = StoredRepository()
    stream = made.disk(CONTENT)
    faults = [Fault.RESET, Fault.BUSY, Fault.STALL, Fault.SHORT, *([Fault.FLIP] if seed % 2 else [])]
    faulty = FaultyStore(made.store, randomly(seed, 0.2, faults), stall=0.01)
    store = RetryingStore(faulty, RetryPolicy(total=20, first=0.001, longest=0.01), starting=None)
    try:
        found = list(read_frames(made.behind(store), stream))
    except (DamagedError, StoreError):
        assert seed % 2
    else:
        assert put_together(stream, found) == CONTENT


def test_giving_up_early_ends_the_threads() -> None:
    made = StoredRepository()
    stream = made.disk(noise(4 << 20))
    before = threading.active_count()
    frames = read_frames(made.repository, stream, workers=4, memory_bytes=1 << 20)
    next(frames)
    frames.close()
    end = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_interrupted_process_does_not_wait_for_a_silent_store() -> None:
    code = (
        "import signal, threading, time, os\n"
        "from cloudmount.blobs.faulty import *\n"
        "from cloudmount.reader.bulk import read_frames\n"
        "from tests.reader.stored_repository import *\n"
        "made = StoredRepository()\n"
        "stream = made.disk(noise(1 << 20))\n"
        "list(stream.present())\n"
        "store = FaultyStore(made.store, lambda op: Fault.STALL, stall=600)\n"
        "try:\n"
        "    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()\n"
        "    list(read_frames(made.behind(store), stream))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=100, capture_output=True, text=True
    )
    assert done.stdout == "interrupted\n"


def test_the_damage_of_a_map_is_raised_whatever_is_asked() -> None:
    made = StoredRepository()
    stream = made.disk(noise(64 * FRAME))
    store = made.store
    assert isinstance(store, MemoryStore)
    for info in list(store.list("maps/")):
        spoil(store, info.name, 80)
    with pytest.raises(CloudMountError):
        list(read_frames(made.repository, stream, on_damage=lambda frame, error: None))


def test_the_defaults_stay_within_a_hundred_megabytes() -> None:
    assert bulk.MEMORY <= 100 << 20
    assert 2 * bulk.BATCH * 2 <= bulk.MEMORY


class Taking(bulk.Hooks):
    """Notes what it is given."""

    def __init__(self, keeps: bool, batch: int) -> None:
        self.keeps, self._batch = keeps, batch  # type: ignore[misc]
        self.given: dict[int, bytes] = {}
        self.groups: list[list[int]] = []
        self._mutex = threading.Lock()

    def batch_bytes(self) -> int:
        return self._batch

    def verified(self, frames: Sequence[tuple[Frame, bytes]]) -> None:
        with self._mutex:
            self.groups.append([frame.number for frame, _ in frames])
            for frame, plain in frames:
                assert frame.number not in self.given
                self.given[frame.number] = plain


@settings(max_examples=15, deadline=None)
@given(st.randoms(), st.booleans(), st.integers(1, 1 << 20), st.integers(1, 1 << 20))
def test_what_is_given_on_is_every_frame_once(
    rng: random.Random, keeps: bool, group: int, batch: int
) -> None:
    made = StoredRepository()
    order = list(range(-(-SIZE // FRAME)))
    if rng.random() < 0.5:
        rng.shuffle(order)
    stream = made.disk(CONTENT, order=order, pack_bytes=1 << 20)
    stored = [n for n in range(stream.frames) if stream.locate(n) is not None]
    assert isinstance(made.store, MemoryStore)
    spoilt = rng.sample(stored, 2) if rng.random() < 0.5 else []
    for n in spoilt:
        at = stream.locate(n)
        assert at is not None
        spoil(made.store, f"packs/{at.pack.hex()[:2]}/{at.pack.hex()}", at.offset + at.length // 2)
    hooks, damage = Taking(keeps, batch), list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "GROUP", group)
        told = read_frames(
            made.repository, stream, hooks=hooks, on_damage=lambda frame, _: damage.append(frame.number)
        )
        found = list(told)
    sound = [n for n in stored if n not in spoilt]
    assert sorted(damage) == sorted(spoilt) and [frame.number for frame, _ in found] == sound
    assert sorted(hooks.given) == sound and all(g == sorted(g) for g in hooks.groups)
    for frame, plain in found:
        assert plain == (hooks.given[frame.number] if keeps else b"")
        at = frame.number * FRAME
        assert hooks.given[frame.number] == CONTENT[at : at + frame.length]


def test_batches_are_counted_as_they_come_down() -> None:
    made = StoredRepository()
    half = b"".join(noise(FRAME // 2, seed=n) + bytes(FRAME // 2) for n in range(1024))
    stream = made.disk(half, pack_bytes=64 << 20)
    store = CountingStore(made.store)
    found = list(read_frames(made.behind(store), stream, hooks=Taking(False, 1 << 20)))
    sealed = sum(frame.at.length for frame, _ in found)
    assert store.snapshot().read <= -(-sealed // (1 << 20)) + 2
    tight = b"".join(bytes([n % 255 + 1]) * FRAME for n in range(1024))
    stream = made.disk(tight, pack_bytes=64 << 20)
    hooks = Taking(True, 64 << 10)
    assert len(list(read_frames(made.repository, stream, hooks=hooks))) == 1024
    assert max(map(len, hooks.groups)) * FRAME <= bulk.INFLATED * (64 << 10)


def test_requests_end_where_packs_do() -> None:
    """Four to a pack of the usual shape, not one more for each that a batch begins in another."""
    made = StoredRepository()
    frames, per_pack = 4096, 512
    stream = made.disk(noise(frames * FRAME), pack_bytes=per_pack * (FRAME + 16))
    packs = {at.pack for n in range(frames) if (at := stream.locate(n)) is not None}
    store = CountingStore(made.store)
    batch = per_pack * (FRAME + 16) // 4 * 33 // 32
    found = list(read_frames(made.behind(store), stream, hooks=Taking(False, batch)))
    assert len(found) == frames
    maps = store.snapshot().read - 4 * len(packs)
    assert 0 <= maps <= 2 + frames * FRAME // SMALL.segment


def test_scattered_frames_make_batches_of_three_quarters_at_least() -> None:
    made = StoredRepository()
    order = list(range(1024))
    random.Random(5).shuffle(order)
    stream = made.disk(noise(1024 * FRAME), order=order, pack_bytes=32 * FRAME)
    most = 64 * (FRAME + 16)
    batches = list(bulk._batches(stream.present(), lambda: most, False))
    assert [frame.number for batch in batches for frame in batch.frames] == list(range(1024))
    assert all(48 <= len(batch.frames) <= 64 for batch in batches[:-1])
