"""How far a backup or restore is: totals that are right, and counters that move within large files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cloudmount.app import estimate, restorefiles
from cloudmount.app.restore import RestoreProgress, restore
from cloudmount.app.select import select
from cloudmount.backup.progress import BackupProgress
from cloudmount.backup.run import BackupOptions, run_backup
from cloudmount.cli.output import Moment
from cloudmount.cli.progress import WINDOW, Pace, progress_text
from cloudmount.repo.repository import Repository
from tests.app.test_restore import repository  # noqa: F401  # a fixture


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with all that counts in its own way."""
    folder = tmp_path / "all"
    (folder / "inner").mkdir(parents=True)
    with open(folder / "large.bin", "wb") as file:
        file.write(os.urandom(3 << 20))
        file.truncate(8 << 20)
    (folder / "a.txt").write_text("a")
    os.link(folder / "a.txt", folder / "inner" / "same.txt")
    (folder / "link").symlink_to("large.bin")
    (folder / "gone.tmp").write_bytes(bytes(100_000))
    os.mkfifo(folder / "pipe")
    disk = folder / "inner" / "vm.vhdx"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", str(disk), "40M"], check=True)
    (folder / "broken.vhdx").write_bytes(b"no container")
    return folder


def test_the_estimate_is_what_the_backup_meets(
    repository: Repository,  # noqa: F811  # the fixture
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "DELAY", 0.0)
    told = estimate.Estimate([str(tree)], exclude=["*.tmp"])
    told.start()
    told._thread.join(20)
    progress = BackupProgress()
    run_backup(repository, [str(tree)], BackupOptions("srv", exclude=["*.tmp"]), progress)
    assert told.total == progress.source_bytes == progress.done_bytes == (48 << 20) + 1 + len("no container")


def test_an_estimate_that_was_stopped_tells_nothing(tree: Path) -> None:
    told = estimate.Estimate([str(tree), str(tree / "not there")])
    told.start()
    told.stop()
    told._thread.join(5)
    assert told.total is None


def test_restoring_a_large_file_moves_the_counter(
    repository: Repository,  # noqa: F811  # the fixture
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_backup(repository, [str(tree)], BackupOptions("srv", exclude=["*.vhdx"]), BackupProgress())
    progress = RestoreProgress()
    seen: list[int] = []

    def write_all(fd: int, data: bytes, offset: int) -> None:
        seen.append(progress.done_bytes)
        original(fd, data, offset)

    original = restorefiles.write_all
    monkeypatch.setattr(restorefiles, "write_all", write_all)
    result = restore(repository, select(repository, "srv"), tmp_path / "back", progress=progress)
    assert seen == sorted(seen) and len(set(seen)) > 20
    assert progress.done_bytes == progress.total_bytes == result.bytes


def test_speed_and_time_left() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    for _ in range(100):
        now += 1
        rate, left = pace.at(Moment(int(now * 1000), 200_000, ""))
    assert rate == pytest.approx(1000) and left == pytest.approx(100)
    done = int(now * 1000)
    for _ in range(int(WINDOW) + 2):
        now += 1
        rate, left = pace.at(Moment(done, 200_000, ""))
    assert rate == 0 and left is None  # a store that is silent: nobody can tell
    assert (
        progress_text(Moment(1 << 20, 4 << 20, ""), 1024, 3072)
        == "1.0 MiB of 4.0 MiB  1.0 KiB/s  51 min 12 s left"
    )
    assert progress_text(Moment(1 << 20, 0, ""), 1024, None) == "1.0 MiB  1.0 KiB/s"
    assert progress_text(Moment(5, 5, ""), 1024, 0) == "5 B  finishing"
    assert progress_text(Moment(0, 0, ""), 0, None) == "looking at what there is"
