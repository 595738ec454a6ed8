"""What every adapter must do with any tree that fails, changes, hangs or is written to, through a real mount.

A subclass named `Test...` gives the fixture `mount`. Rules for what may be called on a mount of
this process: `tests.mounts.mounting`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import random
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudmount.errors import DamagedError, StoreTimeoutError
from cloudmount.extents import BlockSource, Zeros
from cloudmount.mounts.driver import DriveOptions, Space
from tests.mounts.mounting import within
from tests.trees.calls import MIB, TIB, Gate, Mount, content, fails, opened
from tests.trees.memory_tree import MemoryDir, MemoryFile, MemoryLink, Pattern, Watched


class TreeLifeConformance:
    """Failures, refusals, changes, waits, the end."""

    @pytest.fixture
    def mount(self) -> Mount:
        raise NotImplementedError

    # Failures

    @pytest.mark.parametrize(
        ("failure", "number"),
        [(DamagedError("bad bytes"), errno.EIO), (StoreTimeoutError("silent"), errno.EIO),
         (ZeroDivisionError("a fault"), errno.EIO), (KeyError("x"), errno.EIO)],
    )  # fmt: skip
    def test_a_failed_read_does_not_poison_later_ones(
        self, mount: Mount, failure: Exception, number: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        bad = threading.Event()
        bad.set()

        def before(offset: int, length: int) -> None:
            if bad.is_set() and offset <= 2 * MIB < offset + length:
                raise failure

        pattern = Pattern(4 * MIB)
        at = mount(MemoryDir({"f": MemoryFile(Watched(pattern, before)), "g": MemoryFile(b"g")})).path
        with opened(at / "f") as fd:
            for _ in range(3):
                fails(number, lambda: os.pread(fd, 4096, 2 * MIB))
            assert os.pread(fd, 4096, 0) == pattern.read_at(0, 4096)
            assert os.pread(fd, 4096, 3 * MIB) == pattern.read_at(3 * MIB, 4096)
            assert content(at / "g") == b"g"
            bad.clear()
            assert os.pread(fd, 4096, 2 * MIB) == pattern.read_at(2 * MIB, 4096)
        told = [r for r in caplog.records if r.name == "cloudmount.mounts"]
        assert len(told) == 1, "one line for one failure, however often it is met"

    def test_the_unforeseen_is_an_io_error_and_the_drive_goes_on(
        self, mount: Mount, caplog: pytest.LogCaptureFixture
    ) -> None:
        broken = threading.Event()
        broken.set()

        class Unfindable(MemoryDir):
            def lookup(self, name: str):  # type: ignore[no-untyped-def]
                if broken.is_set():
                    raise RuntimeError("lookup breaks")
                return super().lookup(name)

        class Unlistable(MemoryDir):
            def list(self):  # type: ignore[no-untyped-def]
                if broken.is_set():
                    raise RuntimeError("list breaks")
                return super().list()

        class Unopened(MemoryFile):
            def open(self) -> BlockSource:
                raise MemoryError("open breaks")

        class Short(Zeros):
            def read_at(self, offset: int, length: int) -> bytes:
                return b"short"

        at = mount(
            MemoryDir({
                "unfindable": Unfindable({"x": MemoryFile(b"x")}),
                "unlistable": Unlistable({"x": MemoryFile(b"x")}),
                "unopened": Unopened(b""), "short": MemoryFile(Short(4096)), "good": MemoryFile(b"good"),
            })
        ).path  # fmt: skip
        with caplog.at_level(logging.WARNING, "cloudmount.mounts"):
            fails(errno.EIO, lambda: os.stat(at / "unfindable" / "x"))
            fails(errno.EIO, lambda: os.listdir(at / "unlistable"))
            fails(errno.EIO, lambda: os.open(at / "unopened", os.O_RDONLY))
            fails(errno.EIO, lambda: content(at / "short"))
        for said in ("lookup breaks", "list breaks", "open breaks", "5 came"):
            assert said in caplog.text
        assert content(at / "good") == b"good"
        broken.clear()
        for folder in ("unfindable", "unlistable"):
            assert within(3, lambda folder=folder: os.listdir(at / folder) == ["x"])
            assert content(at / folder / "x") == b"x"

    def test_a_failure_in_a_listing_is_told(self, mount: Mount) -> None:
        class Half(MemoryDir):
            def list(self):  # type: ignore[no-untyped-def]
                yield from list(super().list())[:2]
                raise DamagedError("the rest is damaged")

        at = mount(MemoryDir({"d": Half({n: MemoryFile(b"") for n in "abcd"})})).path / "d"
        fails(errno.EIO, lambda: os.listdir(at))  # never a listing that seems whole

    # Read-only

    def test_every_write_is_refused(self, mount: Mount) -> None:
        at = mount(MemoryDir({"f": MemoryFile(b"f", mode=0o666), "d": MemoryDir(mode=0o777)})).path
        f, d = at / "f", at / "d"
        libc = ctypes.CDLL(None, use_errno=True)

        def c(name: str, *arguments: object) -> None:
            if getattr(libc, name)(*arguments) != 0:
                raise OSError(ctypes.get_errno(), name)

        calls: list[Callable[[], object]] = [
            lambda: os.open(f, os.O_WRONLY), lambda: os.open(f, os.O_RDWR),
            lambda: os.open(f, os.O_RDONLY | os.O_TRUNC), lambda: os.open(f, os.O_WRONLY | os.O_APPEND),
            lambda: os.open(at / "new", os.O_WRONLY | os.O_CREAT),
            lambda: os.open(d, os.O_TMPFILE | os.O_RDWR),
            lambda: os.truncate(f, 0), lambda: os.truncate(f, 10), lambda: os.chmod(f, 0o600),
            lambda: os.chown(f, 1, 1), lambda: os.utime(f), lambda: os.utime(f, (1, 1)),
            lambda: os.mkdir(at / "new"), lambda: os.rmdir(d), lambda: os.unlink(f),
            lambda: os.rename(f, at / "g"), lambda: os.rename(f, d / "g"), lambda: os.link(f, at / "g"),
            lambda: os.symlink("x", at / "g"), lambda: os.mkfifo(at / "p"),
            lambda: os.mknod(at / "n", stat.S_IFREG | 0o600), lambda: os.setxattr(f, "user.a", b"1"),
            lambda: os.removexattr(f, "user.a"), lambda: c("setxattr", bytes(d), b"user.a", b"1", 1, 0),
        ]  # fmt: skip
        for number, call in enumerate(calls):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
                call()
            assert caught.value.errno == errno.EROFS, f"call {number}: {caught.value}"
        assert not os.access(f, os.W_OK)
        with opened(f) as fd:
            for call in (lambda: os.write(fd, b"x"), lambda: os.ftruncate(fd, 0),
                         lambda: os.posix_fallocate(fd, 0, 10)):  # fmt: skip
                with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
                    call()
                assert caught.value.errno in (errno.EBADF, errno.EINVAL, errno.EROFS)
            fails(errno.EROFS, lambda: os.fchmod(fd, 0o600))
            fails(errno.EROFS, lambda: os.utime(fd, (1, 1)))
        assert content(f) == b"f"
        assert sorted(os.listdir(at)) == ["d", "f"]

    def test_programs_run_from_it(self, mount: Mount) -> None:
        at = mount(MemoryDir({"run": MemoryFile(b"#!/bin/sh\necho ran\n", mode=0o755)})).path
        assert subprocess.run([at / "run"], capture_output=True, text=True, check=True).stdout == "ran\n"

    @pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="acts as another user")
    @pytest.mark.parametrize("allowed", [False, True])
    def test_other_users(self, mount: Mount, allowed: bool) -> None:
        files = {"all": MemoryFile(b"all"), "mine": MemoryFile(b"mine", mode=0o600, uid=0)}

        def as_nobody(path: Path) -> str:
            command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(path)]
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout

        with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
            os.chmod(folder, 0o755)
            mounted = mount(MemoryDir(files), DriveOptions(allow_other=allowed), path=Path(folder) / "d")
            assert as_nobody(mounted.path / "all") == ("all" if allowed else "")
            assert as_nobody(mounted.path / "mine") == ""
            assert content(mounted.path / "mine") == b"mine"
            mounted.end()

    # What changes

    def test_latest_moves_under_a_reader(self, mount: Mount) -> None:
        latest = MemoryLink("one")
        at = mount(
            MemoryDir({
                "one": MemoryDir({"f": MemoryFile(b"1" * 9000)}),
                "two": MemoryDir({"f": MemoryFile(b"2" * 9000)}),
                "latest": latest,
            })
        ).path  # fmt: skip
        with opened(at / "latest" / "f") as fd:
            assert os.pread(fd, 1, 0) == b"1"
            latest.to = "two"
            assert within(3, lambda: os.readlink(at / "latest") == "two")
            assert os.pread(fd, 10, 8000) == b"1" * 10, "an open file stays what it was"
        assert content(at / "latest" / "f") == b"2" * 9000

    def test_new_folders_appear(self, mount: Mount) -> None:
        root = MemoryDir({"a": MemoryDir()})
        at = mount(root).path
        fails(errno.ENOENT, lambda: os.stat(at / "b"))
        assert os.listdir(at) == ["a"]
        root.children["b"] = MemoryDir({"f": MemoryFile(b"new")})
        assert within(3, lambda: os.listdir(at) == ["a", "b"])
        assert within(3, lambda: os.path.exists(at / "b"))
        assert content(at / "b" / "f") == b"new"
        del root.children["a"]
        assert within(3, lambda: not os.path.exists(at / "a"))
        assert os.listdir(at) == ["b"]

    def test_a_file_replaced_under_its_name(self, mount: Mount) -> None:
        folder = MemoryDir({"f": MemoryFile(b"old")})
        root = MemoryDir({"d": folder})
        at = mount(root).path
        assert content(at / "d" / "f") == b"old"
        root.children["d"] = MemoryDir({"f": MemoryFile(b"newer")})  # other inodes: another folder
        assert within(3, lambda: content(at / "d" / "f") == b"newer")

    # The whole

    def test_df(self, mount: Mount) -> None:
        space = Space(size=5 * TIB + 1, files=1234)
        at = mount(MemoryDir(), DriveOptions(space=lambda: space)).path
        s = os.statvfs(at)
        assert s.f_blocks * s.f_frsize == 5 * TIB + 4096
        assert (s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_namemax) == (0, 0, 1234, 0, 255)
        assert s.f_flag & os.ST_RDONLY

    def test_slow_reads_do_not_hold_up_others(self, mount: Mount) -> None:
        gate = Gate()
        root = MemoryDir({f"slow{i}": MemoryFile(Watched(Pattern(MIB, i), gate)) for i in range(40)})
        root.children |= {"fast": MemoryFile(Pattern(MIB)), "d": MemoryDir({"x": MemoryFile(b"x")})}
        at = mount(root).path

        def slow(number: int) -> bytes:
            with opened(at / f"slow{number}") as fd:
                return os.pread(fd, 4096, 0)

        with ThreadPoolExecutor(40) as pool:
            reads = [pool.submit(slow, i) for i in range(40)]
            try:
                assert within(10, lambda: gate.waiting >= 40)
                assert content(at / "fast") == Pattern(MIB).read_at(0, MIB)
                assert os.listdir(at / "d") == ["x"]
                assert os.stat(at / "d" / "x").st_size == 1
                assert len(os.listdir(at)) == 42
                assert not any(r.done() for r in reads)
            finally:
                gate.open.set()
            assert [r.result() for r in reads] == [Pattern(MIB, i).read_at(0, 4096) for i in range(40)]

    def test_a_slow_folder_does_not_hold_up_others(self, mount: Mount) -> None:
        gate = Gate()

        class Slow(MemoryDir):
            def lookup(self, name: str):  # type: ignore[no-untyped-def]
                gate(0, 0)
                return super().lookup(name)

        at = mount(MemoryDir({"slow": Slow({"x": MemoryFile(b"x")}), "f": MemoryFile(b"f")})).path
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(os.stat, at / "slow" / "x")
            try:
                assert within(5, lambda: gate.waiting == 1)
                assert content(at / "f") == b"f"
                assert os.listdir(at) == ["f", "slow"]
            finally:
                gate.open.set()
            assert waiting.result().st_size == 1

    def test_a_killed_program_does_not_wait_for_its_read(self, mount: Mount) -> None:
        gate = Gate()
        at = mount(MemoryDir({"f": MemoryFile(Watched(Pattern(MIB), gate))})).path
        cat = subprocess.Popen(["cat", at / "f"], stdout=subprocess.DEVNULL)
        try:
            assert within(5, lambda: gate.waiting > 0)
            cat.send_signal(signal.SIGTERM)  # cat dies of it; the kernel makes it a SIGKILL
            assert cat.wait(15) == -signal.SIGTERM
        finally:
            gate.open.set()
            cat.kill()
            cat.wait()
        assert content(at / "f") == Pattern(MIB).read_at(0, MIB)

    def test_unmounted_under_load(self, mount: Mount) -> None:
        pattern = Pattern(64 * MIB)
        mounted = mount(MemoryDir({"f": MemoryFile(pattern)}))
        stop = threading.Event()
        wrong: list[str] = []

        def reader(number: int) -> None:
            rng = random.Random(number)
            with contextlib.suppress(OSError):  # what it gets once the drive is gone
                while not stop.is_set():
                    with opened(mounted.path / "f", os.O_RDONLY | os.O_DIRECT) as fd:
                        for _ in range(16):
                            offset = rng.randrange(64 * 256) * 4096
                            if os.pread(fd, 4096, offset) != pattern.read_at(offset, 4096):
                                wrong.append(f"at {offset}")

        with ThreadPoolExecutor(16) as pool:
            readers = [pool.submit(reader, i) for i in range(16)]
            time.sleep(0.5)
            mounted.detach()
            time.sleep(0.2)
            stop.set()
            for r in readers:
                r.result(10)
        assert not wrong
        assert mounted.end() < 5

    def test_the_next_drive_at_the_same_path_stays(self, mount: Mount) -> None:
        """A drive that ends late, because a file of it was still open, takes no other one with it."""
        first = mount(MemoryDir({"f": MemoryFile(b"first")}))
        with opened(first.path / "f") as fd:
            first.detach()
            second = mount(MemoryDir({"f": MemoryFile(b"second")}), path=first.path)
            assert os.pread(fd, 9, 0) == b"first"
        first.thread.join(15)
        assert not first.thread.is_alive()
        time.sleep(0.3)
        assert content(second.path / "f") == b"second"

    def test_more_names_than_nodes_are_kept(self, mount: Mount) -> None:
        """Nodes that were dropped are found again by their names."""
        at = mount(MemoryDir({f"{i}": MemoryFile(b"") for i in range(6000)})).path
        for i in range(6000):
            os.stat(at / str(i))
        for i in range(0, 6000, 97):
            assert content(at / str(i)) == b""
