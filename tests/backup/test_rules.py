"""What cli.md promises: names on the drive, inputs that can't be read, sources that change underneath."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount.backup.naming import RESERVED_AT_TOP, disk_names, drive_names, last_components
from cloudmount.backup.pipeline import Pipeline
from cloudmount.backup.progress import BackupProgress
from cloudmount.errors import UnreadableInputError
from cloudmount.extents import BlockSource
from tests.backup.lab import Lab
from tests.strategies import file_names

NOBODY = 65534


# Names


@given(
    items=st.dictionaries(
        st.sampled_from(
            ["a", "a.img", "a.vhdx", "a.raw", "a-2.img", "a-2", "a-2.vhdx", "a.txt", "machine.json", "b.vhd"]
        )
        | file_names.map(os.fsdecode),
        st.booleans(),
        max_size=10,
    )
)
def test_nothing_is_hidden(items: dict[str, bool]) -> None:
    names = drive_names(items.items(), RESERVED_AT_TOP)
    assert names.keys() == items.keys()
    taken: list[str] = ["machine.json"]
    for name, disk in items.items():
        taken += disk_names(names[name]) if disk else [names[name]]
    assert len(taken) == len(set(taken))
    alone = {n: d for n, d in items.items() if drive_names([(n, d)], RESERVED_AT_TOP)[n] == names[n]}
    if len(items) == 1 and "machine.json" not in items:
        assert alone == items


def test_names_of_cli_md() -> None:
    assert drive_names([("disk.raw", True), ("disk.vhd", True)]) == {"disk.raw": "disk", "disk.vhd": "disk-2"}
    assert drive_names([("x", False), ("x.img", True)]) == {"x": "x", "x.img": "x-2"}
    assert drive_names([("x.vhdx", False), ("x.img", True)]) == {"x.img": "x", "x.vhdx": "x-2.vhdx"}
    assert drive_names([("machine.json", False)], RESERVED_AT_TOP) == {"machine.json": "machine-2.json"}
    assert drive_names([("a.b.tar", False), ("a.b", True)]) == {"a.b.tar": "a.b.tar", "a.b": "a"}
    assert last_components(["/x/data", "/y/data/", "/y/data.txt", "/z/data.txt"]) == [
        "data", "data-2", "data.txt", "data-2.txt",
    ]  # fmt: skip


@given(
    paths=st.lists(st.sampled_from(["/a/x", "/b/x", "/c/x-2", "/d/x-2", "/e/x.y", "/f/x.y", "/"]), max_size=9)
)
def test_last_components_differ(paths: list[str]) -> None:
    names = last_components(paths)
    assert len(set(names)) == len(names) == len(paths)


def test_collisions_end_to_end(tmp_path: Path) -> None:
    source = tmp_path / "s"
    (source / "vm").mkdir(parents=True)
    (source / "vm" / "inside").write_bytes(b"in the folder")
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(1).randbytes(3 << 20))
    subprocess.run(["qemu-img", "convert", "-O", "vhdx", raw, source / "vm.vhdx"], check=True, timeout=60)
    subprocess.run(["qemu-img", "convert", "-O", "vpc", raw, source / "vm.vhd"], check=True, timeout=60)
    (source / "vm.img").write_bytes(b"an ordinary file, by its size")
    (tmp_path / "machine.json").write_bytes(b"{}")
    lab = Lab(tmp_path)
    result = lab.backup(source, tmp_path / "machine.json")
    stored = lab.read(result)
    disks = {(d["path"], d["name"]): d["original"] for d in result.summary["disks"]}
    assert disks == {("s", "vm-2"): "vm.vhd", ("s", "vm-3"): "vm.vhdx"}
    assert stored.contents == {
        "machine-2.json": b"{}",
        "s/vm.img": b"an ordinary file, by its size",
        "s/vm/inside": b"in the folder",
    }
    assert stored.entries["machine-2.json"].original == "machine.json"
    assert lab.backup(source, tmp_path / "machine.json").progress.read_bytes == 0


def test_two_folders_of_one_name(tmp_path: Path) -> None:
    for n in "ab":
        (tmp_path / n / "data").mkdir(parents=True)
        (tmp_path / n / "data" / "f").write_bytes(n.encode())
    lab = Lab(tmp_path)
    stored = lab.read(lab.backup(tmp_path / "a" / "data", tmp_path / "b" / "data"))
    assert stored.contents == {"data/f": b"a", "data-2/f": b"b"}


def test_a_raw_file_in_a_folder(tmp_path: Path) -> None:
    """It is a disk only when it has a partition table or a known file system; named, always."""
    source = tmp_path / "s"
    source.mkdir()
    photo = source / "photo.raw"
    photo.write_bytes(b"\x7fcamera" * 512)
    lab = Lab(tmp_path)
    assert set(lab.read(lab.backup(source)).contents) == {"s/photo.raw"}
    assert set(lab.read(lab.backup(photo)).disks) == {"photo"}
    assert set(lab.read(lab.backup(photo, as_file=["*.raw"])).contents) == {"photo.raw"}


# What can't be read


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Without root's power to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """A folder that anyone may enter; pytest's own is root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="cloudmount-test-"))
    folder.chmod(0o777)
    try:
        with _as_nobody():
            (folder / "s").mkdir()
        yield folder
    finally:
        subprocess.run(["chmod", "-R", "u+rwx", folder], check=False, timeout=10)
        shutil.rmtree(folder)


def test_what_is_met_and_can_not_be_read(open_tmp: Path) -> None:
    """Skipped, told, and the backup is incomplete."""
    source = open_tmp / "s"
    with _as_nobody():
        (source / "fine").write_bytes(b"fine")
        (source / "secret").write_bytes(b"secret")
        (source / "closed").mkdir()
        (source / "closed" / "inside").write_bytes(b"x")
        (source / "disk.img").write_bytes(bytes(510) + b"\x55\xaa" + bytes(512))
        for name in ("secret", "closed", "disk.img"):
            (source / name).chmod(0)
        lab = Lab(open_tmp)
        result = lab.backup(source)
        stored = lab.read(result)
    assert result.incomplete
    assert result.summary["incomplete"]
    told = {os.path.basename(p["path"]): p["why"] for p in result.summary["problems"]}
    assert set(told) == {"secret", "closed", "disk.img"}
    assert all("ermission denied" in why for why in told.values())
    assert result.summary["problem_count"] == 3
    assert set(stored.entries) == {"s", "s/fine", "s/closed"}
    assert lab.clean().snapshots == 1
    with _as_nobody():
        (source / "secret").chmod(0o600)
        (source / "closed").chmod(0o700)
        (source / "disk.img").unlink()
        again = lab.backup(source)
        assert not again.incomplete
        assert lab.read(again).contents["s/closed/inside"] == b"x"


@pytest.mark.parametrize("what", ["file", "folder", "disk"])
def test_what_is_named_and_can_not_be_read(open_tmp: Path, what: str) -> None:
    """No snapshot, and an error of exit code 7."""
    path = open_tmp / "s" / ("disk.img" if what == "disk" else "it")
    with _as_nobody():
        if what == "folder":
            path.mkdir()
        else:
            path.write_bytes(bytes(1024))
        path.chmod(0)
        lab = Lab(open_tmp)
        with pytest.raises(UnreadableInputError, match=r"ermission denied") as caught:
            lab.backup(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 7
    assert not [*lab.store.list("snapshots/")]


def test_a_first_name_that_can_not_be_read(open_tmp: Path) -> None:
    """A hard link is stored when the name met first was not."""
    source = open_tmp / "s"
    with _as_nobody():
        (source / "a").mkdir()
        (source / "a" / "f").write_bytes(b"content")
        os.link(source / "a" / "f", source / "z")
        (source / "a").chmod(0o600)  # may be listed, not entered
        result = Lab(open_tmp).backup(source)
        (source / "a").chmod(0o700)
    assert result.incomplete
    assert result.summary["files"]["count"] == 1


# What changes


@pytest.fixture
def during_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Do something right after a source was read for the first time."""

    def arm(action: Callable[[], None]) -> None:
        original = Pipeline.stream

        def stream(self: Pipeline, source: BlockSource, sink: object, again: object = None) -> None:
            original(self, source, sink, again)  # type: ignore[arg-type]  # both are handed on
            monkeypatch.setattr(Pipeline, "stream", original)
            action()

        monkeypatch.setattr(Pipeline, "stream", stream)

    return arm


Arm = Callable[[Callable[[], None]], None]


@pytest.mark.parametrize("how", ["grows", "touched", "goes"])
@pytest.mark.parametrize("name", ["file.bin", "disk.img"])
def test_changed_while_read(tmp_path: Path, during_read: Arm, how: str, name: str) -> None:
    path = tmp_path / name
    content = random.Random(1).randbytes(3 << 20)
    path.write_bytes(content)
    lab = Lab(tmp_path)

    def change() -> None:
        if how == "grows":
            with path.open("ab") as f:
                f.write(bytes(512))
        elif how == "touched":
            os.utime(path)
        else:
            path.unlink()

    during_read(change)
    result = lab.backup(path)
    assert result.incomplete
    assert not result.summary["consistent"]
    assert "changed while it was read" in result.summary["problems"][0]["why"]
    stored = lab.read(result)
    if name == "disk.img":
        assert not result.summary["disks"][0]["consistent"]
        assert stored.disks["disk"] == content
    else:
        assert not stored.entries[name].consistent
        assert stored.contents[name] == content
    lab.clean()
    if how != "goes":  # what was inconsistent is read again
        again = lab.backup(path)
        assert again.progress.read_bytes >= len(content)
        assert not again.incomplete


@pytest.mark.parametrize("name", ["file.bin", "disk.img"])
def test_cut_short_while_read(tmp_path: Path, name: str) -> None:
    """What loses bytes under the reader is stored as far as it could be read, and told."""
    source = tmp_path / "s"
    source.mkdir()
    path = source / name
    content = bytearray(random.Random(1).randbytes(40 << 20))
    content[446:512] = bytes([0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 16, 0, 0]) + bytes(48) + b"\x55\xaa"
    path.write_bytes(content)
    (source / "other").write_bytes(b"kept")
    lab = Lab(tmp_path)

    class Cutting(BackupProgress):
        """Cuts the file once 2 MiB were read."""

        def add(self, **amounts: int) -> None:
            super().add(**amounts)
            if self.read_bytes > 2 << 20 and path.stat().st_size > 1 << 20:
                os.truncate(path, 1 << 20)

    result = lab.backup(source, progress=Cutting())
    assert result.incomplete
    assert not result.summary["consistent"]
    stored = lab.read(result)
    assert stored.contents["s/other"] == b"kept"
    found = stored.disks["s/disk"] if name == "disk.img" else stored.contents["s/file.bin"]
    assert found[: 1 << 20] == content[: 1 << 20]
    lab.clean()


def test_a_disk_in_use(tmp_path: Path) -> None:
    """Locked as QEMU does: stored, told, not consistent, and read again next time."""
    image = tmp_path / "disk.img"
    image.write_bytes(random.Random(1).randbytes(1 << 20))
    lab = Lab(tmp_path)
    lab.backup(image)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys\nf = open(sys.argv[1], 'r+b')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
            "print('held', flush=True)\nsys.stdin.read()",
            str(image),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        result = lab.backup(image)
    finally:
        holder.communicate(timeout=10)
    assert result.incomplete
    assert "in use" in result.summary["problems"][0]["why"]
    assert not result.summary["disks"][0]["consistent"]
    assert lab.read(result).disks["disk"] == image.read_bytes()
    assert lab.backup(image).progress.read_bytes == 1 << 20


def test_an_image_open_for_writing_is_read_again(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(random.Random(1).randbytes(1 << 20))
    lab = Lab(tmp_path)
    lab.backup(image)
    assert hasattr(fcntl, "F_SETLEASE")
    with image.open("r+b"):
        assert lab.backup(image).progress.read_bytes == 1 << 20
    assert lab.backup(image).progress.read_bytes == 0
