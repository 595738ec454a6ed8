"""`cp` as its users meet it: names, companions, exit codes, interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.console import PROGRAM, Console


@pytest.fixture
def books(console: Console, tmp_path: Path) -> Console:
    """A snapshot of a folder with a company file, others, and a disk."""
    folder = tmp_path / "books"
    (folder / "old").mkdir(parents=True)
    (folder / "Company.QBW").write_bytes(os.urandom(3 << 20))
    (folder / "Company.QBW.TLG").write_bytes(os.urandom(300_000))
    (folder / "company.nd").write_text("nd")
    (folder / "old" / "plan.txt").write_text("plan\n")
    (folder / "old" / "plan.txt").chmod(0o604)
    os.utime(folder / "old" / "plan.txt", ns=(1, 1_600_000_000_123_456_789))
    (folder / "link").symlink_to("old/plan.txt")
    with open(folder / "vm.img", "wb") as disk:
        disk.truncate(8 << 20)
    subprocess.run(["sgdisk", "-n1:0:0", folder / "vm.img"], check=True, stdout=subprocess.DEVNULL)
    console.run("backup", "--name", "srv", str(folder))
    return console


def test_a_company_file_brings_what_belongs_to_it(books: Console, tmp_path: Path) -> None:
    done = books.run("cp", "srv:books/Company.QBW", str(tmp_path / "back.qbw"))
    assert "Company.QBW.TLG, company.nd come along" in done.stderr and "will come down" in done.stderr
    for name, was in (
        ("back.qbw", "Company.QBW"),
        ("back.qbw.TLG", "Company.QBW.TLG"),
        ("back.nd", "company.nd"),
    ):
        assert (tmp_path / name).read_bytes() == (tmp_path / "books" / was).read_bytes()
    (tmp_path / "there").mkdir()
    value = books.json("cp", "srv/latest:books/Company.QBW", str(tmp_path / "there"), "--only", "--quiet")
    assert (value["files"], value["bytes"]) == (1, 3 << 20)
    assert value["fetched_bytes"] < 2 << 20  # it is at hand, but for what was last: that may not be kept yet
    assert os.listdir(tmp_path / "there") == ["Company.QBW"]
    books.run("cp", "srv:books/Company.QBW", str(tmp_path / "there"), code=8)
    assert os.listdir(tmp_path / "there") == ["Company.QBW"]


def test_a_folder_with_all_that_is_in_it(books: Console, tmp_path: Path) -> None:
    done = books.run("cp", "srv:books", str(tmp_path / "new"))
    new = tmp_path / "new"
    assert sorted(os.listdir(new)) == [
        "Company.QBW",
        "Company.QBW.TLG",
        "company.nd",
        "link",
        "old",
        "vm.vhdx",
    ]
    assert "comes once, as books/vm.vhdx" in done.stderr
    told, was = (new / "old/plan.txt").stat(), (tmp_path / "books/old/plan.txt").stat()
    assert (told.st_mode, told.st_mtime_ns) == (was.st_mode, was.st_mtime_ns)
    assert os.readlink(new / "link") == "old/plan.txt"
    told = books.run("cp", "srv:books/old", str(new), code=8)
    assert f"{new}/old/plan.txt exists" in told.stderr
    (new / "old/plan.txt").rename(new / "mine")
    books.run("cp", "srv:books/old", str(new))  # the folder is there: what is missing comes into it
    assert (new / "old/plan.txt").read_text() == "plan\n"
    subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "vhdx", tmp_path / "books/vm.img", new / "vm.vhdx"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert (new / "vm.vhdx").stat().st_mode & 0o777 == 0o600
    assert (new / "vm.vhdx").stat().st_blocks * 512 < 8 << 20


def test_what_is_not_there_or_can_not_be_meant(books: Console, tmp_path: Path) -> None:
    def told(*arguments: str, code: int) -> str:
        return books.run("cp", *arguments, code=code).stderr

    here = str(tmp_path / "x")
    assert "did you mean 'books/Company.QBW'?" in told("srv:books/company.qbw", here, code=3)
    assert "did you mean 'books'?" in told("srv:Books/old/plan.txt", here, code=3)
    assert "a link to 'old/plan.txt', which is not followed" in told("srv:books/link/x", here, code=3)
    assert "'books/company.nd' is not a folder" in told("srv:books/company.nd/x", here, code=3)
    told("srv:books/*.QBW", here, code=3)  # globs are the shell's
    told("srv", here, code=2)
    told("srv:books/company.nd", str(tmp_path / "none" / "x"), code=3)
    told("srv:books/company.nd", here + "/", code=3)
    told("none:books", here, code=3)
    assert not os.path.lexists(here)


def test_damage_costs_only_what_it_is_in(books: Console, tmp_path: Path) -> None:
    pack = max(
        (p for p in Path(books.repo, "packs").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(pack.read_bytes())
    data[1 << 20] ^= 1
    pack.write_bytes(data)
    value = books.json("cp", "srv:books", str(tmp_path / "new"), code=9)
    (skipped,) = value["skipped"]
    assert skipped["path"] in ("books/Company.QBW", "books/Company.QBW.TLG") and "damaged" in skipped["why"]
    assert (tmp_path / "new/old/plan.txt").exists()
    assert not (tmp_path / "new" / Path(skipped["path"]).name).exists()
    books.run("cp", f"srv:{skipped['path']}", str(tmp_path / "one"), "--only", code=4)
    assert not (tmp_path / "one").exists()


def test_ctrl_c_leaves_no_half_file(books: Console, tmp_path: Path) -> None:
    running = subprocess.Popen(
        [PROGRAM, "cp", "srv:books", str(tmp_path / "new"), "--bandwidth", ":1M"],
        env=books.environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 30
        while not (tmp_path / "new/old/plan.txt").exists():
            assert running.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=7)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130 and "Traceback" not in told
    left = {p.name for p in (tmp_path / "new").rglob("*") if p.is_file()}
    assert "Company.QBW" not in left and not [name for name in left if name.endswith(".part")]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a tmpfs")
    at = tmp_path / "small"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", at], check=True)


def test_no_room_is_8_and_leaves_nothing_half(books: Console, small: Path) -> None:
    done = books.run("cp", "srv:books/Company.QBW", str(small), "--only", code=8)
    assert "no room left" in done.stderr and os.listdir(small) == []


def test_a_name_that_can_not_be_keeps_nothing_else_from_coming(console: Console, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    with open(folder / ("d" * 251 + ".raw"), "wb") as disk:
        disk.truncate(4 << 20)
    subprocess.run(["sgdisk", "-n1:0:0", *folder.iterdir()], check=True, stdout=subprocess.DEVNULL)
    (folder / "important.txt").write_text("important\n")
    console.run("backup", "--name", "m", str(folder))
    done = console.run("cp", "m:s", str(tmp_path / "o"), code=9)
    assert "can't hold this name" in done.stderr
    assert os.listdir(tmp_path / "o") == ["important.txt"]


@pytest.mark.mount
def test_a_file_system_without_nameless_files_and_odd_names(books: Console, tmp_path: Path) -> None:
    """NTFS, with Windows' rules for names: files are written as NAME.part."""
    image, at = tmp_path / "ntfs.img", tmp_path / "ntfs"
    with open(image, "wb") as file:
        file.truncate(40 << 20)
    at.mkdir()
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    subprocess.run(["mkntfs", "-F", "-q", image], check=True, capture_output=True, env={"PATH": path})
    (tmp_path / "books/what?.txt").write_text("odd")
    books.run("backup", "--name", "srv", str(tmp_path / "books"))
    subprocess.run(["ntfs-3g", "-o", "windows_names", image, at], check=True)
    try:
        value = books.json("cp", "srv:books", str(at), code=9)
        assert [Path(s["path"]).name for s in value["skipped"]] == ["what?.txt"]
        assert (at / "books/Company.QBW").read_bytes() == (tmp_path / "books/Company.QBW").read_bytes()
        assert not list(at.rglob("*.part*"))
    finally:
        subprocess.run(["umount", at], check=True)
