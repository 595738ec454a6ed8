"""Writing pieces by several threads: all that was put is there, in bounds of bytes and time, and what goes
wrong is told once."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.errors import CloudMountError
from cloudmount.reader import piecewriter
from cloudmount.reader.piecewriter import COMMIT_BYTES, COMMIT_SECONDS, PieceWriter, Put
from cloudmount.reader.sidecar import DIGEST_BYTES, Entry, digest
from tests.reader.copies import PIECE, noise


class Entered:
    """What a writer handed over, and whether it then was on the file."""

    def __init__(self, path: Path, piece: int = PIECE, seconds: float = 0.0) -> None:
        self.entries: list[Entry] = []
        self.pieces = 0
        self.seconds = seconds
        self.failing: list[BaseException] = []
        self.full = 0
        self.writer = PieceWriter(path, piece, self.enter, self.room)

    def enter(self, entries: list[Entry]) -> None:
        time.sleep(self.seconds)
        if self.failing:
            raise self.failing.pop()
        self.entries += entries
        self.pieces += sum(entry.pieces for entry in entries)

    def room(self, error: OSError) -> None:
        self.full += 1


def put(entered: Entered, first: int, content: bytes, most: int = 3) -> None:
    """Put `content`, which begins at the piece `first`, up to `most` pieces at a time."""
    step = most * PIECE
    entered.writer.put(
        Put(first * PIECE + at, content[at : at + step]) for at in range(0, len(content), step)
    )


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(range(12)),
    sizes=st.lists(st.integers(1, 3), min_size=12, max_size=12),
    threads=st.integers(1, 4),
    most=st.integers(1, 40),
)
def test_what_is_put_is_written_and_entered_with_its_digests(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], sizes: list[int], threads: int, most: int
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "x"
    content = noise(36 * PIECE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(piecewriter, "COMMIT_BYTES", most * PIECE)
        entered = Entered(path)

        def some(numbers: list[int]) -> None:
            entered.writer.put(
                Put(3 * n * PIECE, content[3 * n * PIECE : (3 * n + sizes[n]) * PIECE]) for n in numbers
            )

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, [order[n::threads] for n in range(threads)]))
        entered.writer.drain()
        entered.writer.close()
    there = path.read_bytes()
    found = {}
    for entry in entered.entries:
        for n in range(entry.pieces):
            found[entry.first + n] = entry.data[n * DIGEST_BYTES : (n + 1) * DIGEST_BYTES]
    assert set(found) == {3 * n + i for n in range(12) for i in range(sizes[n])}
    for n, known in found.items():
        data = content[n * PIECE : (n + 1) * PIECE]
        assert there[n * PIECE : (n + 1) * PIECE] == data and known == digest(data)


@pytest.mark.parametrize("seconds", [0.0, 0.03])
def test_never_more_than_so_many_bytes_are_not_entered(tmp_path: Path, seconds: float) -> None:
    """Also when it takes long to bring them to the disk, and three threads write."""
    entered = Entered(tmp_path / "x", 1 << 20, seconds)
    data = random.Random(1).randbytes(1 << 20)
    written = [0, 0, 0]

    def some(thread: int) -> None:
        for n in range(thread * 16, thread * 16 + 16):
            entered.writer.put([Put((2 * n + i) << 20, data, [bytes(DIGEST_BYTES)]) for i in (0, 1)])
            written[thread] += 2
            assert (sum(written) - entered.pieces) << 20 <= COMMIT_BYTES + (2 << 20)  # `enter` just ended

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(some, range(3)))
    entered.writer.drain()
    assert entered.pieces == 96
    assert max(entry.pieces for entry in entered.entries) == 2, "few large writes"
    entered.writer.close()


def test_what_was_put_is_entered_within_a_second_though_nothing_follows(tmp_path: Path) -> None:
    entered = Entered(tmp_path / "x")
    for n in range(2):
        began = time.monotonic()
        put(entered, 0, noise(PIECE))
        while entered.pieces == n:
            assert time.monotonic() - began < COMMIT_SECONDS + 10  # with time to sync on a busy disk
            time.sleep(0.02)
    entered.writer.close()


def test_what_goes_wrong_is_told_once_and_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = Entered(tmp_path / "x")
    content = noise(40 * PIECE)
    entered.failing = [OSError(errno.EIO, "the disk is broken")]
    put(entered, 0, content[: 10 * PIECE])
    with pytest.raises(OSError, match="broken"):
        entered.writer.drain()
    entered.writer.drain()
    assert entered.pieces == 0, "as if it had never been put"

    real = os.pwrite
    left = [3]

    def full(fd: int, data: bytes, at: int) -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    put(entered, 0, content[: 10 * PIECE])
    entered.writer.drain()
    assert entered.full == 3 and entered.pieces == 10

    def broken(fd: int, data: bytes, at: int) -> int:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(OSError, match="broken"):
        put(entered, 10, content[10 * PIECE :])
    entered.writer.drain()
    assert entered.pieces == 10
    monkeypatch.setattr(os, "pwrite", real)
    monkeypatch.setattr(piecewriter, "COMMIT_BYTES", 8 * PIECE)
    entered.failing = [OSError(errno.EIO, "the disk is broken")]
    with pytest.raises(OSError, match="broken"):
        put(entered, 10, content[10 * PIECE :])
    put(entered, 10, content[10 * PIECE :])
    entered.writer.drain()
    entered.writer.close()
    assert (tmp_path / "x").read_bytes() == content
    with pytest.raises(CloudMountError, match="closed"):
        put(entered, 0, content)


def test_a_writer_without_work_keeps_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piecewriter, "IDLE", 0.05)
    entered = Entered(tmp_path / "x")
    for n in range(3):
        put(entered, n, noise(PIECE))
        entered.writer.drain()
        until = time.monotonic() + 5
        while any(t.name == "cloudmount-writer" for t in threading.enumerate()):
            assert time.monotonic() < until
            time.sleep(0.01)
    assert entered.pieces == 3
    entered.writer.close()
    entered.writer.close()
