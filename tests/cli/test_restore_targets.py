"""Restoring over, beside and into what is there: nothing of somebody else's is touched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.console import Console


@pytest.fixture
def made(console: Console, tmp_path: Path) -> Console:
    """A snapshot of a file, a link, folders and a disk."""
    source = tmp_path / "s"
    (source / "d").mkdir(parents=True)
    (source / "x").write_text("backup\n")
    (source / "d" / "y").write_text("inner\n")
    (source / "l").symlink_to("x")
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(1 << 20))
    disk.chmod(0o600)
    console.run("backup", "--name", "m", str(source), str(disk))
    return console


@pytest.mark.parametrize("what", ["m:s/x", "m:s/l", "m:disk", "m:machine.json"])
def test_what_is_there_stays_however_often_it_is_tried(made: Console, tmp_path: Path, what: str) -> None:
    there = tmp_path / "there"
    there.mkdir()
    names = ["x", "l", "disk.raw", "machine.json", "new"]
    for name in names:
        (there / name).write_text("PRECIOUS")
    for _ in range(3):
        made.run("restore", what, str(there), code=8)
        made.run("restore", what, str(there / "new"), code=8)
    assert sorted(os.listdir(there)) == sorted(names)  # and no journal
    assert all((there / name).read_text() == "PRECIOUS" for name in names)
    made.run("restore", "m:s/d/y", str(there))  # the folder is not blocked
    assert (there / "y").read_text() == "inner\n"


def test_a_link_in_the_way_is_not_followed_and_stays(made: Console, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("PRECIOUS")
    (tmp_path / "link").symlink_to("mine")
    for _ in range(2):
        made.run("restore", "m:s/x", str(tmp_path / "link"), code=8)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "mine").read_text() == "PRECIOUS"


def test_machine_json_can_be_restored_as_it_is_listed(made: Console, tmp_path: Path) -> None:
    made.run("restore", "m:machine.json", str(tmp_path / "m.json"))
    assert (tmp_path / "m.json").read_text().startswith('{\n  "consistent"')


@pytest.mark.parametrize("format", ["vhdx", "vhd", "raw", "qcow2"])
def test_a_restored_disk_is_for_its_owner(made: Console, tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    made.run("restore", "m:disk", str(out), "--format", format)
    assert out.stat().st_mode & 0o777 == 0o600


def test_targets_that_can_not_be_made(made: Console, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    for target in (tmp_path / "dangling", Path("/proc/x"), tmp_path / ("n" * 300)):
        done = made.run("restore", "m", str(target), code=8)
        assert "unforeseen" not in done.stderr


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of a MiB, full."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a tmpfs")
    at = tmp_path / "full"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", at], check=True)
    try:
        subprocess.run(["dd", "if=/dev/zero", f"of={at}/fill", "bs=4k"], check=False, capture_output=True)
        yield at
    finally:
        subprocess.run(["umount", "-l", at], check=True)


@pytest.mark.parametrize("arguments", [["m"], ["m:s/x"], ["m:disk", "--format", "qcow2"]])
def test_a_full_file_system_is_8(made: Console, full: Path, arguments: list[str]) -> None:
    done = made.run("restore", arguments[0], str(full / "o"), *arguments[1:], code=8)
    assert "no room left" in done.stderr


def test_qemu_img_that_has_no_room_is_8(made: Console, full: Path) -> None:
    (full / "fill").unlink()
    with open(full / "fill", "wb") as file:
        file.write(bytes(700 << 10))
    done = made.run("restore", "m:disk", str(full / "o"), "--format", "qcow2", code=8)
    assert "no room left" in done.stderr


def test_a_name_that_the_target_can_not_hold_keeps_nothing_else_from_being_restored(
    console: Console, tmp_path: Path
) -> None:
    """255 bytes and an ending are too many; the rest comes, and it is 9."""
    source = tmp_path / "s"
    source.mkdir()
    long = "d" * 251 + ".raw"
    image = tmp_path / "image"
    image.write_bytes(bytes(4 << 20))
    subprocess.run(["sgdisk", "-n1:0:0", image], check=True, stdout=subprocess.DEVNULL)
    image.rename(source / long)
    (source / "important.txt").write_text("important\n")
    console.run("backup", "--name", "m", str(source))
    done = console.run("restore", "m", str(tmp_path / "o"), "--format", "vhdx", code=9)
    assert "can't hold this name" in done.stderr
    assert (tmp_path / "o/s/important.txt").read_text() == "important\n"
    assert os.listdir(tmp_path / "o") == ["s"]
