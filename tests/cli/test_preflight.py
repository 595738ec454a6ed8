"""`preflight` as its users meet it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.console import Console
from tests.disks.partition_writer import boot_record

FINDING = {"what", "level", "text", "advice"}
STAGE = {"stage", "seconds", "bytes", "requests", "cost"}


@pytest.fixture
def server(console: Console, tmp_path: Path) -> Console:
    """A server in the repository, and no cache or state of it."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(boot_record((0x80, 0x83, 1, 8000)) + os.urandom(1 << 20) + bytes(3 << 20))
    (tmp_path / "machine.toml").write_text('memory = "64MiB"\n')
    console.run("backup", "--name", "srv", "--machine", str(tmp_path / "machine.toml"), str(disk))
    shutil.rmtree(console.home)
    return console


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """All files below, by when and how they are."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.stat()
        found[str(path)] = (status.st_mtime_ns, status.st_size)
    return found


def test_it_tells_and_writes_nothing(server: Console) -> None:
    before = everything(Path(server.repo))
    told = server.json("preflight", "srv", "--hydrate-to", str(server.home / "copies"))
    assert {
        "ok",
        "findings",
        "snapshot",
        "machine",
        "stages",
        "link",
        "fetched_bytes",
        "reads",
    } <= told.keys()
    assert told["ok"] is True and all(f.keys() == FINDING for f in told["findings"])
    assert [s["stage"] for s in told["stages"]] == ["opening", "boot", "hydration"]
    assert all(s.keys() == STAGE and s["cost"] is None for s in told["stages"])
    assert told["stages"][2]["bytes"] >= 1 << 20 and told["fetched_bytes"] >= 1 << 20
    assert told["machine"]["firmware"] == "bios" and told["machine"]["memory"] == 64 << 20
    assert told["prices"] is None and told["link"]["bytes_per_second"] > 0
    words = server.run("preflight", "srv/latest").stdout
    assert "It will run." in words and "hydration" in words and "is a guess" in words
    assert not server.home.exists() and everything(Path(server.repo)) == before


def test_a_pc_without_qemu(server: Console, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    told = server.json("preflight", "srv", code=1, PATH=str(tmp_path / "nothing"))
    assert told["ok"] is False
    assert {"qemu", "qemu-img"} <= {f["what"] for f in told["findings"] if f["level"] == "problem"}
    done = server.run("preflight", "srv", code=1, PATH=str(tmp_path / "nothing"))
    assert "qemu-system-x86" in done.stdout and "WILL NOT RUN" in done.stdout
    assert "will not run on this PC: qemu" in done.stderr


def test_what_can_not_be_asked(server: Console, tmp_path: Path) -> None:
    server.run("preflight", "nosuch", code=3)
    server.run("preflight", "srv:disk", code=2)
    Console(tmp_path / "home", str(tmp_path / "none")).run("preflight", "srv", code=5)
    server.run("preflight", "srv", code=6, CLOUDMOUNT_PASSPHRASE="wrong")
    assert not server.home.exists() and not (tmp_path / "home").exists()
