"""Reading all of a stream, in order and in bulk: for restore, `check` and hydration.

Decided here and only here: how large the ranged reads are, how many are in flight, and that
every frame is verified against its content id before anyone sees it. The iterator
belongs to one thread; fetching and opening have their own.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from cloudmount.errors import BlobMissingError, CloudMountError, DamagedError
from cloudmount.repo.frames import Frame, FrameMap
from cloudmount.repo.names import pack_name
from cloudmount.repo.packs import open_frame
from cloudmount.repo.repository import Repository

RUN_BYTES = 4 << 20
"""Sealed bytes that one request asks for at most."""
AHEAD_BYTES = 48 << 20
"""Plain bytes that are fetched ahead of the reader, or being fetched."""
WORKERS = max(4, 2 * (os.cpu_count() or 2))

Opened = list[tuple[Frame, bytes | CloudMountError]]


def runs(frames: Iterator[Frame], limit: int = RUN_BYTES) -> Iterator[list[Frame]]:
    """Neighbouring frames that adjoin in one pack, together at most `limit` sealed bytes."""
    run: list[Frame] = []
    size = 0
    for f in frames:
        last = run[-1].at if run else None
        adjoins = last is not None and f.at.pack == last.pack and f.at.offset == last.offset + last.length
        if run and (not adjoins or size + f.at.length > limit):
            yield run
            run, size = [], 0
        run.append(f)
        size += f.at.length
    if run:
        yield run


def open_run(repository: Repository, run: Sequence[Frame]) -> Opened:
    """Fetch a run in one request, open and verify each of its frames; damage stands in a frame's place."""
    at = run[0].at
    name = pack_name(at.pack)
    try:
        data = repository.store.read(name, at.offset, run[-1].at.offset + run[-1].at.length - at.offset)
    except (BlobMissingError, DamagedError) as error:
        if len(run) > 1 and isinstance(error, DamagedError):
            # The pack is cut short: what is before the cut is still good.
            return [opened for f in run for opened in open_run(repository, [f])]
        why = "is missing from the store" if isinstance(error, BlobMissingError) else str(error)
        return [(f, DamagedError(f"{name}: {why}")) for f in run]
    whole = memoryview(data)
    found: Opened = []
    for f in run:
        begin = f.at.offset - at.offset
        try:
            plain = open_frame(repository.keys, f.at, whole[begin : begin + f.at.length], f.length)
            if repository.keys.content_id(plain) != f.content:
                raise DamagedError("its bytes are not those of its content id")
            found.append((f, plain))
        except DamagedError as error:
            found.append((f, DamagedError(f"{name}: the frame at {f.at.offset}: {error}")))
    return found


def read_frames(
    repository: Repository,
    frame_map: FrameMap,
    *,
    workers: int = WORKERS,
    on_damage: Callable[[Frame, CloudMountError], None] | None = None,
) -> Iterator[tuple[Frame, bytes]]:
    """Every present frame of the stream in order, with its plain bytes, verified.

    A damaged frame raises its `DamagedError`, or is given to `on_damage` and left out.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="bulk")
    ahead: deque[tuple[Future[Opened], int]] = deque()
    under_way = 0
    try:
        pending = runs(frame_map.present())
        exhausted = False
        while ahead or not exhausted:
            while not exhausted and (under_way < AHEAD_BYTES or not ahead):
                run = next(pending, None)
                if run is None:
                    exhausted = True
                    break
                size = sum(f.length for f in run)
                ahead.append((pool.submit(open_run, repository, run), size))
                under_way += size
            if not ahead:
                break
            future, size = ahead.popleft()
            for frame, plain in future.result():
                if not isinstance(plain, CloudMountError):
                    yield frame, plain
                elif on_damage is None:
                    raise plain
                else:
                    on_damage(frame, plain)
            under_way -= size
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
