"""Filling a copy: in which order, beside whom, and what comes of damage."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.faulty import Fault, FaultyStore, Operation
from cloudmount.blobs.limited import LimitedStore
from cloudmount.blobs.memory import MemoryStore
from cloudmount.errors import DamagedError
from cloudmount.extents import Zeros
from cloudmount.reader.bulk import BATCH
from cloudmount.reader.filling import COMPLETE, Filling, _Considerate, _Wanted
from cloudmount.reader.hydrating import HydratingSource, LocalDisk
from cloudmount.reader.localcopy import LocalCopy
from cloudmount.reader.positions import Unmoved
from cloudmount.reader.stored import FrameReader, StoredSource
from cloudmount.repo.names import pack_name
from cloudmount.repo.repository import Repository
from cloudmount.repo.streams import StreamMap
from tests.reader.campaign_hydration import campaign
from tests.reader.copies import claim
from tests.reader.stored_repository import SMALL, StoredRepository, model, noise

FRAME = SMALL.frame
SIZE = (5 << 20) + 100


class Nothing:
    """A copy that has nothing."""

    positions = Unmoved()

    def has(self, position: int, length: int) -> bool:
        return False


def local_disk(path: Path, size: int) -> tuple[LocalDisk, LocalCopy]:
    """An empty raw copy."""
    local = LocalDisk()
    local.copy = claim(path, size)
    return local, local.copy


def filling(repository: Repository, stream: StreamMap, local: LocalDisk) -> Filling:
    return Filling(repository, stream, local, expected=stream.size, mtime_ns=0, tell=lambda line: None)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, SIZE), st.integers(0, 1000), st.lists(st.integers(0, SIZE), max_size=6))
def test_every_frame_is_asked_for_once_from_where_readers_are(
    size: int, seed: int, misses: list[int]
) -> None:
    made = StoredRepository()
    stream = made.disk(model(size, seed))
    local = LocalDisk()
    waiting = list(misses)
    if waiting:
        local.missed(waiting.pop() % size)

    wanted = _Wanted(stream, local, Nothing())  # type: ignore[arg-type]  # as much of a copy as it needs
    found = []
    for frame in wanted.present():
        found.append(frame.number)
        if waiting and len(found) % 100 == 0:
            local.missed(waiting.pop() % size)
    assert sorted(found) == [f.number for f in stream.present()]


def test_what_a_reader_missed_comes_next() -> None:
    made = StoredRepository()
    stream = made.disk(noise(16 << 20), pack_bytes=64 << 20)
    local = LocalDisk()

    frames = _Wanted(stream, local, Nothing()).present()  # type: ignore[arg-type]
    assert [next(frames).number for _ in range(10)] == list(range(10))
    local.missed(3000 * FRAME + 17)
    following = [next(frames).number for _ in range(1100)]
    at = following.index(3000)
    assert at <= 1024 and following[at : at + 50] == list(range(3000, 3050))
    rest = [f.number for f in frames]
    assert sorted([*range(10), *following, *rest]) == list(range(4096))


@pytest.mark.parametrize("shuffled", [False, True])
def test_fills_and_finishes(tmp_path: Path, shuffled: bool) -> None:
    made = StoredRepository()
    content = model(SIZE, 3)
    order = list(range(-(-SIZE // FRAME)))
    if shuffled:
        random.Random(1).shuffle(order)
    stream = made.disk(content, order=order)
    store = CountingStore(made.store)
    local, copy = local_disk(tmp_path / "x.img", SIZE)
    work = filling(made.behind(store), stream, local)
    assert work.fill(Zeros(SIZE)) and copy.finished and work.state == COMPLETE
    assert work.done_bytes == work.total_bytes == SIZE
    copy.close()
    assert (tmp_path / "x.img").read_bytes() == content


def test_stops_soon_and_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    made = StoredRepository()
    content = noise(4 << 20)
    stream = made.disk(content, pack_bytes=64 << 20)
    local, copy = local_disk(tmp_path / "x.img", len(content))
    work = filling(made.behind(LimitedStore(made.store, down=2_000_000)), stream, local)
    threading.Timer(0.8, work.stop).start()
    assert not work.fill(Zeros(len(content)))
    there = copy.done_bytes
    copy.close()
    assert 0 < there < len(content)
    local, copy = local_disk(tmp_path / "x.img", len(content))
    assert copy.done_bytes == there
    store = CountingStore(made.store)
    assert filling(made.behind(store), stream, local).fill(Zeros(len(content)))
    copy.close()
    assert (tmp_path / "x.img").read_bytes() == content
    assert store.snapshot().bytes_down < 1.01 * (len(content) - there) + (64 << 10)


def test_what_came_is_there_within_a_second_though_nothing_else_comes(tmp_path: Path) -> None:
    made = StoredRepository()
    content = noise(4 << 20)
    stream = made.disk(content, pack_bytes=1 << 20)
    first = {at.pack for n in range(512) if (at := stream.locate(n)) is not None}
    packs = set(made.packs()) - {pack_name(pack) for pack in first}
    assert packs

    def silent(op: Operation) -> Fault | None:
        return Fault.STALL if op.name in packs else None

    local, copy = local_disk(tmp_path / "x.img", len(content))
    work = filling(made.behind(FaultyStore(made.store, silent, stall=60)), stream, local)
    thread = threading.Thread(target=work.fill, args=(Zeros(len(content)),))
    thread.start()
    until = time.monotonic() + 10
    while not copy.done_bytes and time.monotonic() < until:
        time.sleep(0.05)
    assert copy.done_bytes >= FRAME
    work.stop()
    thread.join(10)
    assert not thread.is_alive()
    copy.close()


def test_damage_leaves_out_what_is_damaged_only(tmp_path: Path) -> None:
    made = StoredRepository()
    content = noise(2 << 20)
    stream = made.disk(content, pack_bytes=64 << 20)
    store = made.store
    assert isinstance(store, MemoryStore)
    at = stream.locate(77)
    assert at is not None
    (name,) = made.packs()
    sound = store.objects[name]
    store.objects[name] = sound[: at.offset + 9] + bytes([sound[at.offset + 9] ^ 4]) + sound[at.offset + 10 :]
    local, copy = local_disk(tmp_path / "x.img", len(content))
    with pytest.raises(DamagedError, match=r"1 pieces .* frame 77"):
        filling(made.repository, stream, local).fill(Zeros(len(content)))
    assert copy.missing == 1 and not copy.has(77 * FRAME, 1)
    store.objects[name] = sound
    assert filling(made.repository, stream, local).fill(Zeros(len(content)))
    copy.close()
    assert (tmp_path / "x.img").read_bytes() == content


def test_requests_wait_for_readers_and_get_smaller_on_a_slow_line() -> None:
    busy = [0.0]
    polite = _Considerate(threading.Event(), lambda: busy[0], None, lambda frames: None, 1 << 20)
    threading.Timer(0.3, busy.__setitem__, (0, 1.0)).start()
    began = time.monotonic()
    polite.before()
    assert 0.25 < time.monotonic() - began < 20
    most = polite.batch_bytes()
    polite.took(2.0)
    assert polite.batch_bytes() == most // 2
    for _ in range(10):
        polite.took(0.01)
    assert polite.batch_bytes() == BATCH
    polite.took(0.8)
    assert polite.batch_bytes() == BATCH // 2


def test_requests_may_take_longer_where_no_reader_shares_the_line() -> None:
    alone = _Considerate(threading.Event(), None, None, lambda frames: None, BATCH)
    alone.took(1.9)
    assert alone.batch_bytes() == BATCH
    alone.took(2.1)
    assert alone.batch_bytes() == BATCH // 2
    alone.took(0.9)
    assert alone.batch_bytes() == BATCH


def test_a_reader_hardly_notices_that_the_disk_is_completed(tmp_path: Path) -> None:
    """Over a line of 4 MB/s and 20 ms: random reads take as long as alone, give or take a request."""
    made = StoredRepository()
    content = noise(12 << 20)
    stream = made.disk(content, pack_bytes=64 << 20)

    def measured(also: Callable[[FrameReader, LocalDisk], Filling | None], folder: Path) -> float:
        repository = made.behind(LimitedStore(made.store, down=4_000_000))
        reader = FrameReader(repository, memory_bytes=1 << 20)
        local, copy = local_disk(folder / "x.img", len(content))
        work = also(reader, local)
        thread = threading.Thread(target=lambda: work and work.fill(Zeros(len(content))))
        thread.start()
        source = HydratingSource(StoredSource(reader, stream, "x"), local)
        rng = random.Random(3)
        took = []
        time.sleep(0.2)
        for _ in range(15):
            at = rng.randrange(len(content) // FRAME) * FRAME
            began = time.monotonic()
            assert source.read_at(at, FRAME) == content[at : at + FRAME]
            took.append(time.monotonic() - began)
            time.sleep(0.02)
        if work is not None:
            work.stop()
        thread.join(20)
        copy.close()
        reader.close()
        return sorted(took)[len(took) // 2]

    def beside(reader: FrameReader, local: LocalDisk) -> Filling:
        return Filling(
            reader.repository, stream, local, expected=stream.size, mtime_ns=0, tell=lambda line: None,
            idle=reader.idle, memory_bytes=24 << 20, workers=4,
        )  # fmt: skip

    alone = measured(lambda reader, local: None, tmp_path / "alone")
    assert measured(beside, tmp_path / "beside") < alone + 0.35


def test_killed_hydrations_go_on_and_never_give_a_wrong_byte() -> None:
    assert campaign(1, 8).startswith("8 kills")
