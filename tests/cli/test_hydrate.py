"""`hydrate`, `verify-local`, and what `status` tells of them, as a user runs them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.console import Console
from tests.cli.test_endings import ended, start
from tests.tree.drives import MIB, vhdx_disk

SIZE = 24 * MIB


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a machine of two disks and a file, and what they are made of, beside it."""
    folder = tmp_path_factory.mktemp("made")
    console = Console(folder / "home", str(folder / "repo"))
    console.run("init")
    vhdx_disk(folder / "disk.vhdx", size=SIZE)
    (folder / "data.img").write_bytes(b"\1" + random.Random(5).randbytes(6 * MIB - 1))
    (folder / "note.txt").write_text("a note")
    paths = [str(folder / name) for name in ("disk.vhdx", "data.img", "note.txt")]
    console.run("backup", "--name", "srv", *paths)
    return folder


@pytest.fixture
def stored(made: Path, tmp_path: Path) -> Console:
    """The same, for one test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Console(tmp_path / "home", str(tmp_path / "repo"))


def place(to: Path, name: str) -> Path:
    """Where a copy lies."""
    (snapshot,) = (to / "srv").iterdir()
    return snapshot / name


def wait_for(console: Console, state: str) -> dict[str, Any]:
    """The one hydration, once it is so far."""
    until = time.monotonic() + 60
    while True:
        found = [h for h in console.json("status")["hydrations"] if h["state"] == state]
        if found and (state != "running" or found[0]["done_bytes"]):
            only: dict[str, Any] = found[0]
            return only
        assert time.monotonic() < until, f"it is not {state}"


@pytest.mark.parametrize("format", ["vhdx", "raw"])
def test_complete_copies_are_what_restore_gives(stored: Console, tmp_path: Path, format: str) -> None:
    to = tmp_path / "to"
    done = stored.json("hydrate", "srv", "--to", str(to), "--format", format)
    assert {"files", "bytes", "fetched_bytes", "seconds"} <= done.keys() and done["files"] == 2
    ending = ".vhdx" if format == "vhdx" else ".img"
    stored.run("restore", "srv", str(tmp_path / "back"), "--format", format)
    for name in ("disk", "data"):
        copy = place(to, name + ending)
        assert copy.read_bytes() == (tmp_path / "back" / f"{name}.{format}").read_bytes()
        assert copy.stat().st_mode & 0o777 == 0o444
    assert done["bytes"] == sum(place(to, name + ending).stat().st_size for name in ("disk", "data"))
    if format == "raw":
        assert place(to, "disk.img").read_bytes() == (tmp_path / "disk.source").read_bytes()
    assert (to / "srv").stat().st_mode & 0o777 == 0o700
    again = stored.json("hydrate", "srv:disk", "--to", str(to), "--format", format)
    assert again["fetched_bytes"] == 0 and again["files"] == 1
    assert stored.json("status")["hydrations"] == []


def test_verify_local_needs_nothing_but_the_file(stored: Console, tmp_path: Path) -> None:
    stored.run("hydrate", "srv:disk.vhdx", "--to", str(tmp_path / "to"))
    copy = place(tmp_path / "to", "disk.vhdx")
    alone = Console(tmp_path / "elsewhere", "/nowhere", {"CLOUDMOUNT_PASSPHRASE": ""})
    found = alone.json("verify-local", str(copy))
    assert found["ok"] is True and found["damage"] == [] and found["bytes"] == copy.stat().st_size
    copy.chmod(0o644)
    with copy.open("r+b") as f:
        f.seek(4 * MIB + 200_000)
        f.write(b"?" * 10)
    found = alone.json("verify-local", str(copy), code=4)
    assert found["ok"] is False
    (damage,) = found["damage"]
    assert {"path", "offset", "length", "why"} <= damage.keys()
    assert damage["offset"] == 4 * MIB + (128 << 10) and damage["length"] == 128 << 10
    assert "DAMAGED" in alone.run("verify-local", str(copy), code=4).stdout
    mended = stored.json("hydrate", "srv:disk", "--to", str(tmp_path / "to"))
    assert mended["fetched_bytes"] < MIB
    assert "is sound" in alone.run("verify-local", str(copy)).stdout
    copy.with_name(copy.name + ".hydration").write_bytes(b"nothing that anybody knows")
    assert alone.json("verify-local", str(copy), code=4)["damage"][0]["offset"] == 0
    copy.with_name(copy.name + ".hydration").unlink()
    alone.run("verify-local", str(copy), code=3)
    alone.run("verify-local", str(tmp_path / "missing"), code=3)
    stored.run("hydrate", "srv:disk", "--to", str(tmp_path / "to"), code=8)  # no longer known as ours


def test_it_ends_at_any_time_and_goes_on(stored: Console, tmp_path: Path) -> None:
    to = tmp_path / "to"
    arguments = ("hydrate", "srv:data", "--to", str(to), "--format", "raw")
    running = start(stored, *arguments, "--bandwidth", ":200K")
    told = wait_for(stored, "running")
    copy = place(to, "data.img")
    assert (told["path"], told["disk"], told["pid"]) == (str(copy), "data", running.pid)
    assert told["snapshot"] == f"srv/{copy.parent.name}" and 0 < told["done_bytes"] <= told["total_bytes"]
    assert str(copy) in stored.run("status").stdout
    second = stored.run(*arguments, code=8)
    assert "another process" in second.stderr
    running.send_signal(signal.SIGINT)
    code, _, err = ended(running, 6)
    assert code == 130 and "goes on" in err
    found = stored.json("verify-local", str(copy), code=9)
    assert found["ok"] is False and found["damage"] == [] and 0 < found["done_bytes"] < found["bytes"]
    assert "unfinished" in stored.run("verify-local", str(copy), code=9).stdout
    done = stored.json(*arguments)
    assert done["fetched_bytes"] <= 6 * MIB - found["done_bytes"] + (256 << 10)
    assert copy.read_bytes() == (tmp_path / "data.img").read_bytes()


def test_what_there_is_not_and_what_is_in_the_way(stored: Console, tmp_path: Path) -> None:
    to = str(tmp_path / "to")
    assert "'disk'" in stored.run("hydrate", "srv:other", "--to", to, code=3).stderr
    stored.run("hydrate", "nobody", "--to", to, code=3)
    stored.run("hydrate", "srv", code=2)
    stored.run("backup", "--name", "files", str(tmp_path / "note.txt"))
    assert "no disks" in stored.run("hydrate", "files", "--to", to, code=3).stderr
    (tmp_path / "file").write_text("")
    stored.run("hydrate", "srv", "--to", str(tmp_path / "file"), code=8)
    stored.run("hydrate", "srv:disk", "--to", to)
    copy = place(Path(to), "disk.vhdx")
    copy.with_name("data.vhdx").write_text("mine")
    assert "not overwritten" in stored.run("hydrate", "srv", "--to", to, code=8).stderr
    assert copy.with_name("data.vhdx").read_text() == "mine"


def test_what_is_damaged_in_the_store_is_told_and_the_rest_comes(stored: Console, tmp_path: Path) -> None:
    pack = max(
        (p for p in (Path(stored.repo) / "packs").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(pack.read_bytes())
    data[len(data) - 2 * MIB] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    to = tmp_path / "to"
    told = stored.run("hydrate", "srv", "--to", str(to), code=4).stderr
    assert "can't be completed" in told
    states = [stored.json("verify-local", str(place(to, n)), code=c) for n, c in damaged_one(to)]
    assert sorted(s["ok"] for s in states) == [False, True]


def damaged_one(to: Path) -> list[tuple[str, int]]:
    """The copies, with what `verify-local` should say: the unfinished one is still writable."""
    return [(n, 0 if not place(to, n).stat().st_mode & 0o200 else 9) for n in ("disk.vhdx", "data.vhdx")]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB; needs root."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a tmpfs")
    at = tmp_path / "small"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def test_a_full_disk_pauses_it(stored: Console, tmp_path: Path, small: Path) -> None:
    running = start(stored, "hydrate", "srv:data", "--to", str(small), "--format", "raw")
    try:
        wait_for(stored, "paused: no room")
        subprocess.run(["mount", "-o", "remount,size=32m", str(small)], check=True)
        code, out, err = ended(running, 20)
    finally:
        running.kill()
    assert code == 0 and err.count("no room left") == 1 and "1 disk" in out
    assert place(small, "data.img").read_bytes() == (tmp_path / "data.img").read_bytes()


@pytest.mark.mount
def test_a_drive_completes_what_is_read_and_then_needs_no_store(stored: Console, tmp_path: Path) -> None:
    at, to = tmp_path / "drive", tmp_path / "to"
    stored.run("mount", str(at), "--daemon", "--hydrate-to", str(to), "--io-timeout", "2")
    try:
        vhdx, image = at / "srv/latest/disk.vhdx", at / "srv/latest/disk.img"
        folder = (at / "srv/latest").readlink()
        whole = vhdx.read_bytes()
        wait_for(stored, "complete")
        (told,) = stored.json("status")["hydrations"]
        assert told["path"] == str(to / "srv" / folder / "disk.vhdx") and told["disk"] == "disk"
        assert Path(told["path"]).read_bytes() == whole
        stored.run("restore", "srv:disk.vhdx", str(tmp_path / "back.vhdx"))
        assert (tmp_path / "back.vhdx").read_bytes() == whole
        Path(stored.repo).rename(tmp_path / "gone")
        before = (tmp_path / "disk.source").read_bytes()
        assert image.read_bytes() == before  # never opened before: nothing of it is in the kernel's memory
        with vhdx.open("rb") as f:
            assert os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED) is None
            assert f.read() == whole
    finally:
        (tmp_path / "gone").rename(stored.repo) if (tmp_path / "gone").exists() else None
        stored.run("umount", str(at))
    assert stored.json("status")["hydrations"] == []
    assert stored.json("hydrate", "srv:disk", "--to", str(to))["fetched_bytes"] == 0
