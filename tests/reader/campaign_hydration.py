"""Hydrations killed by SIGKILL at random times, and cut off as by a power failure at every step that brings
something to the disk, in processes of their own.

After each, everything that the copy gives is compared with the disk, and the next goes on from it;
now and then somebody changes the file meanwhile. In the end it must come through, without fetching
what was there already, and be the drive's file byte for byte.
"""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cloudmount.app.hydrate import hydrate
from cloudmount.app.select import select
from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.local import LocalStore
from cloudmount.reader.localcopy import LocalCopy
from cloudmount.reader.sidecar import Sidecar, sidecar_path
from cloudmount.reader.soundness import verify_file
from tests.backup.lab import Lab
from tests.tree.drives import drive, raw_disk, read
from tests.warm import Warm

SIZE = 6 << 20


def run(warm: Warm, arguments: Sequence[object], after: float | None) -> tuple[bool, int]:
    """Start a process, and kill it `after` seconds; whether it ended before it was killed, and the steps it
    took then."""
    child = warm.start(*arguments)
    if after is not None:
        time.sleep(after)
        child.kill()
    code, said = child.wait()
    assert code in (0, -signal.SIGKILL) and "WRONG" not in said, said
    steps = re.search(r"STEPS (\d+)", said)
    return "done" in said, int(steps[1]) if steps else 0


class Round:
    """One repository with one disk, and a copy of it that is killed again and again."""

    def __init__(self, folder: Path, rng: random.Random, form: str | None = None) -> None:
        self.folder, self.rng = folder, rng
        self.form = form or rng.choice(("vhdx", "raw"))
        lab = self.lab = Lab(folder, LocalStore(folder / "repository"))
        source = raw_disk(folder / "disk.img", SIZE, rng.randrange(1000))
        with source.open("r+b") as f:  # enough for several commits
            f.seek(1 << 20)
            f.write(rng.randbytes(2 << 20))
        result = lab.backup(source)
        name = "disk.vhdx" if self.form == "vhdx" else "disk.img"
        with drive(lab) as tree:
            self.expected = read(tree, f"srv/latest/{name}")
        self.path = folder / "to" / "srv" / result.key.folder / name

    def arguments(self, speed: int, step: int) -> tuple[object, ...]:
        """Those of the process: of a hydration at `speed`, killed at `step`."""
        folder = self.folder
        return (folder / "repository", folder / "to", self.form, speed, step, self.rng.randrange(1 << 30))

    def clear(self) -> None:
        """Begin anew."""
        for path in (self.path, sidecar_path(self.path)):
            path.unlink(missing_ok=True)

    def look(self) -> None:
        """Whatever the copy gives must be right, before anything was verified anew and after."""
        if not sidecar_path(self.path).exists():
            return
        with sidecar_path(self.path).open("rb") as f:
            sidecar = Sidecar.open(f.fileno())
        if sidecar is None or not self.path.exists():
            return
        if self.rng.random() < 0.3:
            assert not [d for d in verify_file(self.path, lambda done, total: None).damage if self.sound]
        copy = LocalCopy.claim(self.path, sidecar.described, lambda line: None)
        self.compare(copy)
        if copy.doubtful:
            assert copy.verify(lambda: False)
            self.compare(copy)
        copy.close()

    sound = True
    """Whether nobody changed the file."""

    def compare(self, copy: LocalCopy) -> None:
        """Everything that is there."""
        piece = copy.described.piece
        for first, stop in copy.trusted.runs(present=True):
            end = min(stop * piece, len(self.expected))
            found = copy.read(first * piece, end - first * piece)
            assert found == self.expected[first * piece : end], f"wrong bytes in {first} to {stop}"

    def meddle(self) -> None:
        """Change some bytes of the file, as somebody else would."""
        if self.path.exists() and self.path.stat().st_size:
            os.chmod(self.path, 0o600)
            with self.path.open("r+b") as f:
                f.seek(self.rng.randrange(len(self.expected)))
                f.write(self.rng.randbytes(5000))
            if self.rng.random() < 0.2:
                os.truncate(self.path, self.rng.randrange(len(self.expected)))
            self.sound = False

    def finish(self) -> None:
        """It comes through, here, and brings no more than what was missing."""
        store = CountingStore(self.lab.store)
        repository = self.lab.reopened(store)
        environ = {"XDG_STATE_HOME": str(self.folder / "state")}
        hydrate(
            repository,
            select(repository, "srv"),
            self.folder / "to",
            format=self.form,  # type: ignore[arg-type]  # one of the two
            environ=environ,
        )
        assert self.path.read_bytes() == self.expected
        assert self.path.stat().st_mode & 0o777 == 0o444
        verdict = verify_file(self.path, lambda done, total: None)
        assert verdict.ok and verdict.done == len(self.expected)


def campaign(seed: int, count: int) -> str:
    """`count` kills: at random, and at steps one after another."""
    rng = random.Random(seed)
    killed = whole = 0
    step = 1 + (seed - 1) % 7
    while killed + whole < count:
        with tempfile.TemporaryDirectory() as name, Warm("tests.reader.hydrating_process") as warm:
            this = Round(Path(os.path.realpath(name)), rng)
            for _ in range(min(16, count - killed - whole)):
                if rng.random() < 0.3:
                    speed = rng.choice((500_000, 3_000_000))
                    done, _steps = run(warm, this.arguments(speed, 0), rng.random() ** 3)
                else:
                    done, steps = run(warm, this.arguments(10**9, step), None)
                    step = 1 if done and step > steps else step + rng.choice((1, 1, 2, 5))
                whole += done
                killed += not done
                this.look()
                if rng.random() < 0.1:
                    this.meddle()
                    this.look()
                if done or rng.random() < 0.15:
                    this.finish()
                    this.clear()
                    this.sound = True
            this.finish()
    return f"{killed} kills, {whole} came through before; no wrong byte, every copy finished"
