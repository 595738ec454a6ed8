"""Drives killed while 16 readers read and the disk is completed beside them, with a cache that others share.

After each kill everything is compared: what the copy gives, what the cache's account says, and the whole
disk through a drive on the same copy and cache, which goes on with both. Most are processes that die by
SIGKILL at random times or as in a power failure at a step (`drive_process`); every 20th is the real program,
whose readers read through the kernel.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from cloudmount.reader import cachestate
from cloudmount.reader.diskcache import DiskCache
from cloudmount.reader.stored import FrameReader
from cloudmount.tree.drive import Drive
from cloudmount.tree.hydrator import Hydrator
from tests.backup.lab import PASSPHRASE
from tests.cli.console import PROGRAM, Console
from tests.reader.campaign_hydration import Round, run
from tests.reader.test_diskcache import taken
from tests.tree.drive_process import CACHE_BYTES, DISK, READERS
from tests.tree.drives import read
from tests.warm import Warm


class _Drive(Round):
    """A repository, a copy and a cache."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng, form="vhdx")
        self.cache = folder / "cache"
        self.image = (folder / "disk.img").read_bytes()

    def arguments(self, speed: int, step: int) -> tuple[object, ...]:
        f = self.folder
        seed = self.rng.randrange(1 << 30)
        return (f / "repository", f / "to", self.cache, f / "disk.img", speed, step, seed)

    def resume(self) -> None:
        """The whole disk through another drive, which goes on with the cache, and perhaps with the copy."""
        now, counted = taken(self.cache), cachestate.StateFile(os.fspath(self.cache / "state")).read()
        assert now <= CACHE_BYTES and (counted.dirty or now <= counted.used), "too low an account"
        repository = self.lab.reopened()
        cache = DiskCache(os.fspath(self.cache), CACHE_BYTES)
        assert cache.used == taken(self.cache) <= CACHE_BYTES
        reader = FrameReader(repository, memory_bytes=100_000, cache=cache, io_timeout=20)
        tree = Drive(repository, reader)
        hydrator = None
        if self.rng.random() < 0.3:
            hydrator = tree.local = Hydrator(self.folder / "to", tree, reader, self.lab.told.append)
        try:
            assert read(tree, DISK) == self.image
        finally:
            if hydrator is not None:
                hydrator.close()
            reader.close()
            cache.close()

    @property
    def finished(self) -> bool:
        """Whether the copy is."""
        return self.path.exists() and not self.path.stat().st_mode & 0o222

    def kill_program(self, after: float) -> None:
        """The real program, mounted, 16 readers; killed so many seconds after it was up."""
        at = self.folder / "drive"
        environ = {"CLOUDMOUNT_PASSPHRASE": PASSPHRASE}
        console = Console(self.folder / "home", str(self.folder / "repository"), environ)
        options = [
            "--hydrate-to",
            str(self.folder / "to"),
            "--cache-dir",
            str(self.cache),
            "--cache-size",
            "600K",
        ]
        command = [
            PROGRAM,
            "mount",
            str(at),
            "--json",
            *options,
            "--bandwidth",
            f":{self.rng.choice((1, 4, 50))}M",
        ]
        process = subprocess.Popen(command, env=console.environment, stdout=subprocess.PIPE, text=True)
        wrong: list[str] = []
        try:
            assert process.stdout is not None and process.stdout.readline()
            killed, ended = threading.Event(), threading.Event()
            threads = [
                threading.Thread(target=self._look, args=(at, n, killed, ended, wrong))
                for n in range(READERS)
            ]
            for thread in threads:
                thread.start()
            time.sleep(after)
            killed.set()
            process.kill()
            process.wait()
            ended.set()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive(), "a reader hangs on a drive that was killed"
        finally:
            process.kill()
            process.communicate()
            subprocess.run(["fusermount3", "-u", "-z", str(at)], check=False, capture_output=True)
        assert not wrong, wrong[:3]

    def _look(
        self, at: Path, number: int, killed: threading.Event, ended: threading.Event, wrong: list[str]
    ) -> None:
        rng = random.Random(number)
        try:
            fd = os.open(at / DISK, os.O_RDONLY)
        except OSError:
            return
        try:
            while not ended.is_set():
                offset = rng.randrange(len(self.image))
                length = min(rng.choice((4096, 100_000)), len(self.image) - offset)
                found = os.pread(fd, length, offset)
                if found != self.image[offset : offset + len(found)]:
                    wrong.append(f"{offset}+{length}")
                if len(found) != length and not killed.is_set():  # else a part of it came before
                    wrong.append(f"{offset}+{length} is short")
        except OSError as error:
            if not killed.is_set():
                wrong.append(str(error))
        finally:
            with contextlib.suppress(OSError):  # a close is told of the death too
                os.close(fd)


def campaign(seed: int, count: int) -> str:
    """`count` kills."""
    rng = random.Random(seed)
    killed = whole = programs = 0
    step = 1 + (seed - 1) % 11
    with Warm("tests.tree.drive_process") as warm:
        while killed + whole < count:
            with tempfile.TemporaryDirectory(prefix="drives-") as name:
                this = _Drive(Path(os.path.realpath(name)), rng)
                for _ in range(min(20, count - killed - whole)):
                    done = False
                    if (killed + whole) % 20 == 10:
                        this.kill_program(rng.random() * 0.5)
                        programs += 1
                    elif rng.random() < 0.4:
                        speed = rng.choice((500_000, 3_000_000))
                        done, _ = run(warm, this.arguments(speed, 0), rng.random() ** 2 * 0.8)
                    else:
                        done, steps = run(warm, this.arguments(10**9, step), None)
                        step = 1 if done and step > steps else step + rng.choice((1, 1, 2, 5, 20, 100))
                    whole += done
                    killed += not done
                    if this.cache.exists():
                        this.look()
                        this.resume()
                    if done or this.finished or rng.random() < 0.1:
                        this.finish()
                        this.clear()
                this.finish()
    return f"{killed} kills, {programs} of them of the program; {whole} came through; no wrong byte"
