"""`ls` and `restore` inside disks, as a user runs them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.cli.console import Console
from tests.disks.oracles import run
from tests.guest.ext_writer import debugfs
from tests.guest.images import MIB, make_ext
from tests.tree.guest_disk import guest_disk


def test_ls_and_restore(console: Console, tmp_path: Path) -> None:
    disk, folders = guest_disk(tmp_path, files=40)
    console.run("backup", "--name", "srv", str(disk))
    data = folders["4-A_B_ DATA"]
    listed = {e["name"]: e for e in console.json("ls", "srv:disk")}
    assert listed.keys() >= {"1-EFI", "3-root", "4-A_B_ DATA", "5-Secret_"}
    shown = console.run("ls", "srv:disk").stdout
    assert "BitLocker (encrypted by Windows)" in shown and "NTFS" in shown
    listed = {e["name"]: e for e in console.json("ls", "srv:disk/4-A_B_ DATA/users/Public/many")}
    many = data / "Users" / "Public" / "many"
    assert listed.keys() == set(os.listdir(many))
    assert all(e["size"] == (many / n).stat().st_size for n, e in listed.items())
    (one,) = console.json("ls", "srv:disk/4-A_B_ DATA/large.bin")
    assert one["size"] == 3 * MIB + 17 and "unreadable" not in one
    assert any(e.get("target") == "Users/Public" for e in console.json("ls", "srv:disk/3-root"))
    console.run("ls", "srv:disk/4-A_B_ DATA/nobody", code=3)
    console.run("ls", "srv:disk/9-none", code=3)

    told = console.json("restore", "srv:disk/4-A_B_ DATA", str(tmp_path / "data back"))
    subprocess.run(["diff", "-r", "-xsame", str(data), str(tmp_path / "data back")], check=True)
    assert told["bytes"] == sum(p.stat().st_size for p in data.rglob("*") if p.is_file())
    assert os.stat(tmp_path / "data back" / "large.bin").st_nlink == 2
    console.run("restore", "srv:disk/3-root", str(tmp_path / "root back"))
    subprocess.run(
        ["diff", "-r", "--no-dereference", "-xlink", "-xout", "-xlost+found",
         str(folders["3-root"]), str(tmp_path / "root back")],
        check=True,
    )  # fmt: skip
    assert os.readlink(tmp_path / "root back" / "link") == "Users/Public"

    new = tmp_path / "company.QBW"
    told = console.json("restore", "srv:disk/4-A_B_ DATA/LARGE.bin", str(new))
    assert told["files"] == 1 and new.read_bytes() == (data / "large.bin").read_bytes()
    assert new.stat().st_mtime_ns // 10**9 == (data / "large.bin").stat().st_mtime_ns // 10**9
    console.run("restore", "srv:disk/4-A_B_ DATA/large.bin", str(new), code=8)
    console.run("restore", "srv:disk/4-A_B_ DATA/none", str(tmp_path / "x"), code=3)
    console.run("restore", "srv:disk/4-A_B_ DATA", str(tmp_path / "y"), "--format", "raw", code=2)
    console.run("restore", "srv:disk/4-A_B_ DATA", str(tmp_path / "data back"), code=8)


def test_what_cant_be_read_is_told(console: Console, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("secret", "fine"):
        (source / name).write_bytes(name.encode() * 5000)
    image = make_ext(tmp_path / "disk.img", 8 * MIB, source)
    subprocess.run(
        ["debugfs", "-w", "-R", "sif secret flags 0x80800", image], check=True, capture_output=True
    )
    console.run("backup", "--name", "srv", str(image))
    listed = {e["name"]: e for e in console.json("ls", "srv:disk/1-root")}
    assert listed["secret"]["unreadable"] == "encrypted by Linux (fscrypt)"
    assert "unreadable" not in listed["fine"]
    assert "can't be read: encrypted" in console.run("ls", "srv:disk/1-root").stdout
    told = console.run("restore", "srv:disk/1-root", str(tmp_path / "back"), code=9)
    assert "secret: not restored" in told.stderr and "encrypted" in told.stderr
    assert (tmp_path / "back" / "fine").read_bytes() == b"fine" * 5000
    assert not (tmp_path / "back" / "secret").exists()
    console.run("restore", "srv:disk/1-root/secret", str(tmp_path / "one"), code=7)
    assert not (tmp_path / "one").exists()


def test_what_is_no_file_and_what_is_stale_is_told_once(console: Console, tmp_path: Path) -> None:
    """Pipes and devices are left out, never empty files; every command says that the volume was in use."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "fine").write_bytes(b"fine" * 5000)
    image = make_ext(tmp_path / "disk.img", 8 * MIB, source)
    debugfs(image, ["mknod pipe p", "mknod device c 4 1", "feature needs_recovery", "ssv journal_inum 0"])
    console.run("backup", "--name", "srv", str(image))
    told = console.run("ls", "srv:disk")  # beside it; a warning is for who looks into it
    assert "could not be applied" in told.stdout and "could not be applied" not in told.stderr
    one, back, new = (str(tmp_path / name) for name in ("one", "back", "new"))
    for command, code in (
        (("ls", "srv:disk/1-root"), 0),
        (("find", "srv", "fi*"), 0),
        (("versions", "srv:disk/1-root/fine"), 0),
        (("cp", "srv:disk/1-root/fine", one), 0),
        (("restore", "srv:disk/1-root", back), 9),
        (("cp", "srv:disk/1-root", new), 9),
    ):
        told = console.run(*command, code=code).stderr
        stale = "disk, partition 1: its journal could not be applied (it lies on another disk)"
        assert told.count(stale) == 1, (command, told)
        if code:
            for name, what in (("pipe", "a named pipe"), ("device", "a device")):
                assert f"{name}: not " in told and f"{what}: it has no content" in told
    for folder in (back, new):
        assert sorted(os.listdir(folder)) == ["fine", "lost+found"]
    console.run("cp", "srv:disk/1-root/pipe", str(tmp_path), code=7)
    assert not (tmp_path / "pipe").exists()


def test_a_file_system_that_nothing_knows_is_explained(console: Console, tmp_path: Path) -> None:
    """FAT as Atari has it: no text of a boot sector, no mark at its end."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 * MIB))
    run("mkfs.vfat", "-A", "-n", "ATARI", image)
    console.run("backup", "--name", "srv", str(image))
    assert [e["name"] for e in console.json("ls", "srv:disk")] == ["UNSUPPORTED.txt"]
