"""Backups killed by SIGKILL at random times, in processes of their own, into a folder repository.

After each kill the repository must check clean, whole; in the end the backup must come
through, send again no more than what was in flight, and hold what its source holds. Now and
then another machine backs up at the same time, undisturbed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from cloudmount.backup.uploader import IN_FLIGHT
from cloudmount.blobs.local import LocalStore
from cloudmount.repo.packs import pack_table
from cloudmount.repo.structures import HEADER_BYTES
from tests.backup.lab import FRAME, PACK, Lab, fill, same

ROOT = Path(__file__).parents[2]
TIMEOUT = 120.0


def _start(repository: Path, journal: Path, machine: str, source: Path, speed: int) -> subprocess.Popen[str]:
    arguments = [str(a) for a in (repository, journal, machine, speed, source)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.backup.backup_process", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def _killed(process: subprocess.Popen[str], after: float) -> bool:
    """Kill it so many seconds after its backup began; whether it had not ended by itself."""
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "begins\n"
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
    finally:
        process.kill()
        process.wait(TIMEOUT)
        process.stdout.close()
    assert process.returncode in (0, -signal.SIGKILL)
    return "done" not in rest


def _ended(process: subprocess.Popen[str]) -> None:
    out, _ = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (0, "begins\ndone\n"), out


def _change(source: Path, rng: random.Random) -> None:
    """Change a disk here and there, a file, and add one."""
    with (source / "disk.img").open("r+b") as f:
        for _ in range(rng.randrange(1, 60)):
            f.seek(rng.randrange(1, (5 << 20) // FRAME) * FRAME)
            f.write(rng.randbytes(rng.choice((10, FRAME, 5 * FRAME))))
        f.truncate(5 << 20)
    with (source / "large").open("r+b") as f:
        f.seek(rng.randrange(1000) * FRAME)
        f.write(rng.randbytes(20 * FRAME))
    (source / f"new{rng.randrange(10)}").write_bytes(rng.randbytes(rng.randrange(200_000)))


def _stored(lab: Lab) -> Counter[bytes]:
    """The content ids in all packs that are there."""
    found: Counter[bytes] = Counter()
    for info in lab.store.list("packs/"):
        data = lab.store.read(info.name)
        header, tail = data[:HEADER_BYTES], data
        found.update(pack_table(lab.repository.keys, info.name, len(data), header, tail).ids)
    return found


def _round(folder: Path, rng: random.Random, kills: int) -> int:
    """One repository, `kills` kills; how many of them met a running backup."""
    repository = folder / "repository"
    lab = Lab(folder, LocalStore(repository))
    journal = folder / "journal.db"
    source = fill(folder / "source", rng.randrange(1000))
    met = 0
    whole = 0
    for _ in range(kills):
        _change(source, rng)
        speed = rng.choice((500_000, 2_000_000, 50_000_000))
        other: subprocess.Popen[str] | None = None
        if rng.random() < 0.2:
            other_source = folder / "other"
            if not other_source.exists():
                fill(other_source, rng.randrange(1000))
            _change(other_source, rng)
            other = _start(repository, folder / "other.db", "other", other_source, speed)
        process = _start(repository, journal, "srv", source, speed)
        try:
            if _killed(process, rng.random() ** 2 * 1.5):
                met += 1
            else:
                whole += 1
        finally:
            if other is not None:
                _ended(other)
                whole += 1
        # A process may have been killed between its last act and "done".
        found = lab.clean()
        assert whole <= found.snapshots <= whole + 1
        whole = found.snapshots
        if rng.random() < 0.3:
            _finish(lab, journal, source, "srv", rng)
            whole += 1
    _finish(lab, journal, source, "srv", rng)
    return met


def _finish(lab: Lab, journal: Path, source: Path, machine: str, rng: random.Random) -> None:
    """The backup comes through, here; sometimes with the journal lost."""
    before = _stored(lab)
    kept = rng.random() < 0.8
    result = lab.backup(source, machine=machine, journal=journal if kept else False)
    same(lab.read(result), source)
    lab.clean()
    missing = set(_stored(lab)) - set(before)
    if kept:  # of what is in packs already only those in flight when it was killed are not known
        assert result.progress.new_frames <= len(missing) + (IN_FLIGHT + 1) * (PACK // FRAME + 2)


def campaign(seed: int, count: int) -> str:
    """`count` kills, 8 to a repository."""
    rng = random.Random(seed)
    met = done = 0
    while done < count:
        kills = min(8, count - done)
        with tempfile.TemporaryDirectory() as folder:
            met += _round(Path(os.path.realpath(folder)), rng, kills)
        done += kills
    return f"{done} kills, {met} of them during a backup; every repository checked clean and went on"
