"""Places that hang, odd places, and what is left of what was killed."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmount.errors import CloudMountError, NotFoundError, TargetExistsError, UsageError
from cloudmount.mounts import looking
from cloudmount.mounts.looking import Place, look, run_for
from cloudmount.mounts.mountpoints import mounted_at, take
from cloudmount.mounts.records import read_records
from tests.mounts.drivers import DRIVERS, NAMES, each_driver
from tests.mounts.mounting import mounted, within
from tests.mounts.processes import Processes
from tests.trees.calls import Gate
from tests.trees.memory_tree import MemoryDir, MemoryFile


@pytest.fixture(params=NAMES)
def processes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Processes]:
    made = Processes(tmp_path, request.param)
    try:
        yield made
    finally:
        made.finish()


def test_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "loop").symlink_to("loop")
    at = str(tmp_path.resolve())
    assert look(at + "/empty") == Place(at + "/empty", 0, folder=True, empty=True)
    assert look(at + "/link/") == Place(at + "/empty", 0, folder=True, empty=True)
    assert look(at + "/full") == Place(at + "/full", 0, folder=True, empty=False)
    assert look(at + "/link/../full/file") == Place(at + "/full/file", 0)
    assert look(at + "/missing") == Place(at + "/missing", errno.ENOENT)
    assert look(at + "/nowhere") == Place(at + "/nowhere", errno.ENOENT)
    assert look(at + "/loop") == Place(at + "/loop", errno.ELOOP)
    assert look(at + "/no/parent") == Place(at + "/no/parent", errno.ENOENT, above=True)
    assert look(at + "/full/file/x") == Place(at + "/full/file/x", errno.ENOTDIR)
    assert look("/").path == "/"
    monkeypatch.chdir(tmp_path)
    assert look("empty").path == look("./full/../empty").path == at + "/empty"


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\udcff\udc80", "日本", " ", "\\040", "-x", "a\x85b"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    at = tmp_path.resolve() / name
    at.mkdir()
    assert look(str(at)) == Place(str(at), 0, folder=True, empty=True)


def test_what_can_not_be_taken(tmp_path: Path) -> None:
    at = str(tmp_path)
    for place, error, text in (
        (Place(at, None), CloudMountError, "does not answer"),
        (Place(at, errno.EACCES), CloudMountError, "can't be looked at: Permission denied"),
        (Place(at, errno.ENOENT, above=True), NotFoundError, "parent folder"),
        (Place(at, 0), UsageError, "not a folder"),
        (Place(at, 0, folder=True, empty=False), TargetExistsError, "not empty"),
        (Place(at, errno.ENOENT), CloudMountError, "can't be made: File exists"),
    ):
        with pytest.raises(error, match=text) as caught:
            take(place)
        assert at in str(caught.value)


def test_a_program_that_does_not_end(tmp_path: Path) -> None:
    began = time.monotonic()
    assert run_for(["sleep", "60"], 0.3) == "sleep did not end within 0.3 s"
    assert time.monotonic() - began < 20
    assert run_for(["true"], 5) is None
    assert run_for(["sh", "-c", "echo this is why >&2; exit 3"], 5) == "this is why"
    assert run_for(["sh", "-c", "exit 3"], 5) == "exit code 3"


class _Stuck(MemoryDir):
    """Look-ups never come back until the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def lookup(self, name: str) -> None:
        self.gate(0, 0)


@pytest.mark.mount
def test_a_place_inside_what_hangs(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "FIRST_SECONDS", 2.0)
    monkeypatch.setattr(looking, "THEN_SECONDS", 0.5)
    stuck = _Stuck()
    with mounted(DRIVERS[processes.driver], MemoryDir({"d": stuck}), tmp_path / "hangs") as hanging:
        try:
            began = time.monotonic()
            with pytest.raises(CloudMountError, match="does not answer: the file system it lies on hangs"):
                look(str(hanging.path / "d" / "x" / "drive"))
            assert time.monotonic() - began < 20
            began = time.monotonic()
            assert look(str(hanging.path / "d" / "x")).errno is None
            assert time.monotonic() - began < 20
            drive = processes.drive(at=hanging.path / "d" / "x")
            assert "does not answer" in drive.until("error")
            assert drive.ends(15) == 1
        finally:
            stuck.gate.open.set()


@pytest.mark.mount
@each_driver
@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\udcff", "tab\t", "\\040", "#", "a,b"])
def test_odd_mount_points_are_known(tmp_path: Path, name: str, driver: str) -> None:
    at = tmp_path / name
    assert mounted_at(str(at)) is None
    with mounted(DRIVERS[driver], MemoryDir({"f": MemoryFile(b"x")}), at):
        there = mounted_at(str(at))
        assert there is not None
        assert (there.kind, there.source, there.ours) == ("fuse.cloudmount", "cloudmount", True)
        assert os.listdir(at) == ["f"]
        assert look(str(at)) == Place(str(at), 0, folder=True)
    assert mounted_at(str(at)) is None


@pytest.mark.mount
def test_a_link_to_a_folder(processes: Processes, tmp_path: Path) -> None:
    processes.at.mkdir()
    (tmp_path / "link").symlink_to("drive")
    drive = processes.drive(at=tmp_path / "link")
    assert drive.until("ready") == str(processes.at)
    time.sleep(0.6)
    assert drive.process.poll() is None
    assert (tmp_path / "link" / "f").read_bytes() == b"hello\n"
    again = processes.drive(at=tmp_path / "link")
    assert "mounted at" in again.until("error")
    drive.process.terminate()
    assert drive.ends(15) == 0
    assert os.listdir(processes.at) == []


@pytest.mark.mount
@pytest.mark.parametrize("again", [False, True])
def test_the_folder_of_a_killed_drive(processes: Processes, again: bool) -> None:
    """What was made for it goes with it, when it is cleared or with the next drive there."""
    drive = processes.up()
    assert [r.made for r in read_records(processes.records)] == [True]
    drive.process.kill()
    drive.process.wait(15)
    if again:
        drive = processes.drive()
        drive.until("ready")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from pathlib import Path; "
         "from cloudmount.mounts.lifecycle import unmount; "
         "unmount(sys.argv[1], records=Path(sys.argv[2]), tell=print)", processes.at, processes.records],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("killed" in done.stdout) is not again
    if again:
        assert drive.ends(15) == 0
    assert not processes.at.exists()
    assert read_records(processes.records) == []


_HANGS_AFTERWARDS = """
import sys, threading
from pathlib import Path
from cloudmount.mounts.driver import DriveOptions
from cloudmount.mounts.lifecycle import serve
from tests.mounts.drivers import DRIVERS
from tests.trees.memory_tree import MemoryDir
serve(DRIVERS[sys.argv[3]], MemoryDir(), sys.argv[1], DriveOptions(), records=Path(sys.argv[2]),
      repository="", ready=lambda path: print('{"ready": true}', flush=True), tell=print)
threading.Event().wait()  # a store that does not close
"""


@pytest.mark.mount
@pytest.mark.parametrize("by", ["signal", "fusermount3"])
def test_a_process_ends_also_when_its_store_does_not(processes: Processes, by: str) -> None:
    drive = processes.start(sys.executable, "-c", _HANGS_AFTERWARDS, processes.at, processes.records,
                            processes.driver)  # fmt: skip
    drive.until("ready")
    began = time.monotonic()
    if by == "signal":
        drive.process.terminate()
    else:
        subprocess.run(["fusermount3", "-u", processes.at], check=True)
    assert drive.ends(15) == 0
    assert time.monotonic() - began < 5
    assert within(1, lambda: not processes.at.exists())


def test_with_many_descriptors_open(tmp_path: Path) -> None:
    """A program may have more than the 1,024 that select() can take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2000)), hard))
    try:
        held += [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
        assert look(str(tmp_path)).empty
        assert run_for(["sh", "-c", "echo no >&2; exit 1"], 5) == "no"
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
