"""`ls`, `find`, `cp` and `versions` on files inside disks: what a server's NTFS holds, without a mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.console import Console
from tests.guest.images import MIB, make_ntfs, ntfs_mounted
from tests.guest.windows import reparse

pytestmark = pytest.mark.mount
CLOUD = 0x9000001A
DOCUMENTS = "disk/1-DATA/Users/Public/Documents"


@pytest.fixture
def server(console: Console, tmp_path: Path) -> Console:
    """Snapshots of a disk, a day apart: the company file changed in a byte of 5 MiB, another file went."""
    disk, at = make_ntfs(tmp_path / "disk.img", 48 * MIB), tmp_path / "at"
    with ntfs_mounted(disk, at):
        documents = at / "Users/Public/Documents"
        documents.mkdir(parents=True)
        (documents / "Company.QBW").write_bytes(os.urandom(5 * MIB))
        (documents / "Company.QBW.TLG").write_bytes(os.urandom(200_000))
        (documents / "COMPANY.nd").write_text("nd")
        (documents / "gone.txt").write_text("gone")
        (documents / "away.docx").write_bytes(b"")
        reparse(documents / "away.docx", CLOUD, bytes(20))
        with open(documents / "holes", "wb") as file:
            file.truncate(20 * MIB)
            file.seek(10 * MIB)
            file.write(b"data")
        (tmp_path / "was").write_bytes((documents / "Company.QBW").read_bytes())
    console.run("backup", "--name", "srv", str(disk))
    with ntfs_mounted(disk, at):
        documents = at / "Users/Public/Documents"
        with open(documents / "Company.QBW", "r+b") as file:
            file.seek(3 * MIB)
            file.write(b"!" if (tmp_path / "was").read_bytes()[3 * MIB] != ord("!") else b"?")
        (documents / "gone.txt").unlink()
    console.run("backup", "--name", "srv", str(disk))
    return console


def test_a_company_file_comes_out_of_a_disk(server: Console, tmp_path: Path) -> None:
    listed = {e["name"]: e for e in server.json("ls", f"srv:{DOCUMENTS}")}
    assert listed["Company.QBW"]["size"] == 5 * MIB and "unreadable" not in listed["Company.QBW"]
    assert "cloud" in listed["away.docx"]["unreadable"]
    assert "can't be read: " in server.run("ls", f"srv:{DOCUMENTS}").stdout
    assert "did you mean 'disk/1-DATA'?" in server.run("ls", "srv:disk/1-data", code=3).stderr

    first, last = (v["snapshot"] for v in server.json("versions", f"srv:{DOCUMENTS}/Company.QBW"))
    (found, *_) = server.json("find", last, "company.qbw*")
    assert found["path"] == f"{DOCUMENTS}/Company.QBW" and found["size"] == 5 * MIB
    (tmp_path / "back").mkdir()
    value = server.json("cp", f"{first}:{found['path']}", str(tmp_path / "back"))
    assert sorted(os.listdir(tmp_path / "back")) == ["COMPANY.nd", "Company.QBW", "Company.QBW.TLG"]
    assert (tmp_path / "back/Company.QBW").read_bytes() == (tmp_path / "was").read_bytes()
    assert os.access(tmp_path / "back/Company.QBW", os.W_OK)
    assert (tmp_path / "back/Company.QBW").stat().st_mode & 0o200
    assert 5 * MIB < value["fetched_bytes"] < 1.1 * value["bytes"] + 2e6
    value = server.json("cp", f"{last}:{found['path']}", str(tmp_path / "new.qbw"), "--only")
    assert value["fetched_bytes"] < 2 * MIB  # the difference, and what the first did not keep at its end
    assert (tmp_path / "new.qbw").read_bytes() != (tmp_path / "was").read_bytes()


def test_a_folder_comes_without_what_can_not_be_read(server: Console, tmp_path: Path) -> None:
    value = server.json("cp", f"srv:{DOCUMENTS}", str(tmp_path / "new"), code=9)
    assert [s["path"] for s in value["skipped"]] == [f"{DOCUMENTS}/away.docx"]
    assert "cloud" in value["skipped"][0]["why"]
    assert sorted(os.listdir(tmp_path / "new")) == ["COMPANY.nd", "Company.QBW", "Company.QBW.TLG", "holes"]
    holes = tmp_path / "new/holes"
    assert holes.read_bytes() == bytes(10 * MIB) + b"data" + bytes(10 * MIB - 4)
    assert holes.stat().st_blocks * 512 < MIB
    server.run("cp", f"srv:{DOCUMENTS}/away.docx", str(tmp_path), code=7)
    assert not (tmp_path / "away.docx").exists()


def test_versions_inside_a_disk(server: Console, tmp_path: Path) -> None:
    for more in ([], ["--content"]):
        changed = server.json("versions", f"srv:{DOCUMENTS}/Company.QBW", *more)
        assert len({v["content"] for v in changed} - {None}) == 2
        same = server.json("versions", f"srv:{DOCUMENTS}/COMPANY.nd", *more)
        assert len({v["content"] for v in same}) == 1 and None not in [v["content"] for v in same]
    assert len(server.json("versions", f"srv:{DOCUMENTS}/gone.txt")) == 1
    assert {v["content"] for v in server.json("versions", f"srv:{DOCUMENTS}/holes")} == {None}
    read = server.json("versions", f"srv:{DOCUMENTS}/holes", "--content")
    assert len({v["content"] for v in read}) == 1 and len(read) == 2
    untouched = server.json("versions", f"srv:{DOCUMENTS}/Company.QBW.TLG")
    assert len(untouched) == 2 and None not in [v["content"] for v in untouched]
    server.run("versions", f"srv:{DOCUMENTS}/none", code=3)
