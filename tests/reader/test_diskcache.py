"""The disk cache: kept over restarts, bounded over processes and kills, never in the way."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.reader import cachestate
from cloudmount.reader import diskcache as diskcache_module
from cloudmount.reader.diskcache import BLOCK, DiskCache
from cloudmount.reader.filelock import FileLock
from tests.reader import cache_user
from tests.warm import Warm


def taken(folder: Path) -> int:
    """Bytes the cache's pieces take in blocks, finished or not."""
    return sum(
        -(-path.lstat().st_size // BLOCK) * BLOCK
        for path in folder.rglob("*")
        if path.is_file() and path.parent != folder
    )


def taken_while_held(folder: Path) -> tuple[int, int]:
    """The same while no process changes anything, and what is counted."""
    lock = FileLock(os.fspath(folder / "lock"))
    state = cachestate.StateFile(os.fspath(folder / "state"))
    while True:
        try:
            with lock():
                # Finished files appear and go under the lock only; one that is being written has its size.
                found = taken(folder), state.read().used
        except TimeoutError:
            continue
        lock.close(state.close)
        return found


def pieces(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and p.parent != folder and p.parent.name != "tmp"]


def test_what_is_put_is_got_again_also_after_a_restart(tmp_path: Path) -> None:
    cache = DiskCache(os.fspath(tmp_path / "a" / "cache"), 1 << 20)
    cache.put("packs/1", b"one")
    cache.put("packs/1", b"not again")
    cache.put("empty", b"")
    assert cache.get("packs/1") == b"one"
    assert cache.get("empty") == b""
    assert cache.get("packs/2") is None
    cache.close()
    cache.close()
    cache = DiskCache(os.fspath(tmp_path / "a" / "cache"), 1 << 20)
    assert cache.get("packs/1") == b"one"
    cache.drop("packs/1")
    cache.drop("packs/1")
    assert cache.get("packs/1") is None
    assert cache.used == 0


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        cache = DiskCache(os.fspath(tmp_path / "cache"), 1 << 20)
        cache.put("key", b"sealed")
    finally:
        os.umask(old)
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert not any("key" in path.name for path in (tmp_path / "cache").rglob("*"))


def test_what_was_used_longest_ago_goes_first_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    cache = DiskCache(os.fspath(tmp_path), 4 * BLOCK)
    for key in "abcd":
        cache.put(key, bytes(BLOCK))
    assert cache.get("a") is not None

    def there(keys: str) -> str:
        return "".join(key for key in keys if os.path.exists(cache._path(key)))

    cache.put("e", bytes(BLOCK))
    assert there("abcde") == "acde"
    cache.close()
    cache = DiskCache(os.fspath(tmp_path), 4 * BLOCK)  # the order survives
    cache.put("f", bytes(BLOCK))
    assert there("abcdef") == "adef"
    cache.get("d")
    cache.put("g", bytes(2 * BLOCK))
    assert there("abcdefg") == "dfg"


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 20 * BLOCK),
    st.lists(
        st.tuples(
            st.sampled_from(("put", "put", "put", "get", "drop", "reopen")),
            st.integers(0, 12),
            st.integers(0, 3 * BLOCK),
        ),
        max_size=60,
    ),
)
def test_never_more_than_the_limit_and_never_other_bytes(
    tmp_path_factory: pytest.TempPathFactory, limit: int, steps: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = DiskCache(os.fspath(folder), limit)
    content: dict[int, bytes] = {}
    for action, key, size in steps:
        if action == "put":
            value = content.setdefault(key, bytes([key + 1]) * size)
            cache.put(str(key), value)
        elif action == "get":
            assert cache.get(str(key)) in (None, content.get(key))
        elif action == "drop":
            cache.drop(str(key))
            assert cache.get(str(key)) is None
        else:
            cache.close()
            cache = DiskCache(os.fspath(folder), limit)
        assert taken(folder) == cache.used <= limit
    cache.close()


def test_a_large_cache_removes_old_pieces_by_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskcache_module, "SAMPLE", 64)
    cache = DiskCache(os.fspath(tmp_path), 800 * BLOCK)
    for n in range(800):
        cache.put(str(n), b"x")
    for n in range(400, 800):
        cache.get(str(n))
    for n in range(800, 1000):
        cache.put(str(n), b"x")
    assert taken(tmp_path) == cache.used <= 800 * BLOCK
    lost = [n for n in range(1000) if cache.get(str(n)) is None]
    assert lost
    assert sum(n < 400 for n in lost) >= 0.95 * len(lost)


def test_no_folder_holds_thousands_of_files(tmp_path: Path) -> None:
    cache = DiskCache(os.fspath(tmp_path), 1 << 30)
    for n in range(2000):
        cache.put(str(n), b"")
    assert max(sum(1 for _ in folder.iterdir()) for folder in tmp_path.rglob("*") if folder.is_dir()) < 30


def test_gets_are_cheap(tmp_path: Path) -> None:
    cache = DiskCache(os.fspath(tmp_path), 1 << 30)
    for n in range(100):
        cache.put(str(n), bytes(65536))
    best = min(_timed(cache) for _ in range(20))
    assert best < 100e-6  # 15 us where nothing else runs


def _timed(cache: DiskCache) -> float:
    begun = time.perf_counter()
    for n in range(100):
        assert cache.get(str(n)) is not None
    return (time.perf_counter() - begun) / 100


def test_a_file_that_somebody_cut_or_put_there_is_given_as_it_is_and_can_be_dropped(tmp_path: Path) -> None:
    cache = DiskCache(os.fspath(tmp_path), 1 << 20)
    cache.put("key", b"sealed bytes")
    (piece,) = pieces(tmp_path)
    piece.write_bytes(b"seal")
    assert cache.get("key") == b"seal"
    cache.drop("key")
    assert cache.get("key") is None
    os.mkfifo(piece)
    assert cache.get("key") is None
    piece.unlink()
    piece.mkdir()
    assert cache.get("key") is None
    cache.put("key", b"sealed bytes")
    cache.drop("key")


def test_a_full_disk_makes_it_a_no_op_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    cache = DiskCache(os.fspath(tmp_path), 1 << 20, told.append)
    cache.put("before", b"kept")
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) >= 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    for n in range(5):
        cache.put(str(n), bytes(5000))
        cache._paused_until = 0.0
    assert len(told) == 1
    assert "No space left" in told[0]
    assert cache.get("before") == b"kept"
    assert taken(tmp_path) == cache.used == BLOCK
    monkeypatch.undo()
    cache.put("1", bytes(5000))
    assert cache.get("1") == bytes(5000)


def test_after_a_failure_it_waits_before_it_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(os.fspath(tmp_path), 1 << 20)
    tries = []

    def full(fd: int, length: int) -> None:
        tries.append(length)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    for n in range(50):
        cache.put(str(n), bytes(5000))
    assert tries == [5000]
    assert cache.used == taken(tmp_path) == 0


@pytest.mark.skipif(os.name == "nt", reason="folders are made read-only by mode")
def test_a_folder_that_cannot_be_written_only_gives() -> None:
    code = (
        "import os, sys\n"
        "from cloudmount.reader.diskcache import DiskCache\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"  # modes mean nothing to root
        "cache = DiskCache(sys.argv[1], 1 << 20, lambda m: print('told', m))\n"
        "cache.put('other', b'x'); cache.put('third', b'x'); cache.drop('key')\n"
        "print(cache.get('key'), cache.get('other'))\n"
    )
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place) / "cache"
        cache = DiskCache(os.fspath(folder), 1 << 20)
        cache.put("key", b"kept")
        cache.close()
        for path in [*folder.rglob("*"), folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        command = [sys.executable, "-c", code, os.fspath(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
    told, last = done.stdout.splitlines()
    assert last == "b'kept' None"
    assert told.startswith("told nothing is kept in the cache folder")


def test_a_lost_or_broken_account_is_counted_anew(tmp_path: Path) -> None:
    cache = DiskCache(os.fspath(tmp_path), 1 << 20)
    for n in range(10):
        cache.put(str(n), bytes(3000))
    cache.close()
    for broken in (b"", b"CMCACHE1", b"\xff" * 200, None):
        if broken is None:
            (tmp_path / "state").unlink()
        else:
            (tmp_path / "state").write_bytes(broken)
        cache = DiskCache(os.fspath(tmp_path), 1 << 20)
        assert cache.used == taken(tmp_path) == 10 * BLOCK
        cache.close()


def test_an_account_of_before_the_machine_started_is_counted_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(os.fspath(tmp_path), 1 << 20)
    cache.put("a", b"x")
    cache.put("b", b"x")
    cache.close()
    pieces(tmp_path)[0].unlink()  # a power cut can lose files, or the account
    monkeypatch.setattr(cachestate, "boot_id", lambda: b"another start...")
    assert DiskCache(os.fspath(tmp_path), 1 << 20).used == BLOCK


def test_what_somebody_removed_by_hand_is_mended_when_room_is_made(tmp_path: Path) -> None:
    cache = DiskCache(os.fspath(tmp_path), 8 * BLOCK)
    for n in range(8):
        cache.put(str(n), b"x")
    for piece in pieces(tmp_path):
        piece.unlink()
    for n in range(8):
        cache.put(f"new {n}", b"x")
    assert sum(cache.get(f"new {n}") is not None for n in range(8)) == 8
    assert cache.used == taken(tmp_path)


def test_times_in_the_future_go_first(tmp_path: Path) -> None:
    cache = DiskCache(os.fspath(tmp_path), 4 * BLOCK)
    for key in "abcd":
        cache.put(key, b"x")
    now = time.time()
    os.utime(cache._path("c"), (now, now))
    cache.put("e", b"x")
    assert [key for key in "abcde" if cache.get(key) is not None] == ["a", "b", "d", "e"]


def test_a_process_that_holds_the_lock_does_not_hold_up_readers(tmp_path: Path) -> None:
    told: list[str] = []
    cache = DiskCache(os.fspath(tmp_path), 1 << 20, told.append)
    cache.put("key", b"kept")
    other = FileLock(os.fspath(tmp_path / "lock"))
    begun = time.monotonic()
    with other():
        for n in range(20):
            cache.put(str(n), b"x")
            assert cache.get("key") == b"kept"
    assert time.monotonic() - begun < 15
    assert not told  # it goes on by itself
    other.close()
    cache._paused_until = 0.0
    cache.put("later", b"x")
    assert cache.get("later") == b"x"


def test_processes_sharing_a_folder_keep_the_limit(tmp_path: Path) -> None:
    limit = 100 * BLOCK
    DiskCache(os.fspath(tmp_path), limit).close()
    users = [_user(tmp_path, limit, seed, 2.5) for seed in (10, 20, 30)]
    most = 0
    while any(user.poll() is None for user in users):
        now, counted = taken_while_held(tmp_path)
        assert now <= counted <= limit
        most = max(most, now)
    for user in users:
        output, errors = user.communicate(timeout=20)
        assert (output, errors) == ("ready\n", ""), output + errors
    assert most > limit // 2
    now, counted = taken_while_held(tmp_path)
    assert now == counted


def _user(folder: Path, limit: int, seed: int, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.reader.cache_user",
            os.fspath(folder),
            str(limit),
            str(seed),
            str(seconds),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_users(folder: Path, seed: int, kills: int) -> None:
    """Kill a process in the middle of using a cache, again and again, at random and at each call that
    changes files; now and then another uses the same cache, goes on, and is killed too. The account is
    right after each."""
    rng = random.Random(seed)
    limit = 60 * BLOCK
    step = 0
    with Warm("tests.reader.cache_user") as warm:
        for n in range(kills):
            other = warm.start(folder, limit, rng.randrange(1 << 30), 60) if n % 2 else None
            step = step % 300 + rng.choice((1, 1, 3))
            at_step = rng.random() < 0.6
            user = warm.start(folder, limit, rng.randrange(1 << 30), 60, step if at_step else 0)
            if not at_step:
                time.sleep(rng.random() * 0.15)
                user.kill()
            ended = [user.wait()]
            if other is not None:
                time.sleep(rng.random() * 0.05)
                other.kill()
                ended.append(other.wait())
            for code, said in ended:
                assert (code, said.replace("ready\n", "")) == (-signal.SIGKILL, ""), said
            now, counted = taken(folder), cachestate.StateFile(os.fspath(folder / "state")).read()
            assert now <= limit
            assert counted.dirty or now <= counted.used, f"kill {n} left too low an account"
            cache = DiskCache(os.fspath(folder), limit)
            assert cache.used == taken(folder) <= limit
            assert not list((folder / "tmp").iterdir())
            for key in range(cache_user.KEYS):
                assert cache.get(f"key {key}") in (None, cache_user.content(key))
            cache.close()


def test_kills_leave_whole_pieces_and_a_right_account(tmp_path: Path) -> None:
    kill_users(tmp_path, 1, 8)
