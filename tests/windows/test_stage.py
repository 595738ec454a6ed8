"""The commands that need no drive, on a stage that looks like Windows (`stage`). Not run on Windows."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloudmount.cli.main import run
from tests.guest.images import make_fat

PASSPHRASE = "correct horse battery"
MIB = 1 << 20


class Windows:
    """A `C:` in the folder `c`, and commands on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.c = root / "c"
        self.c.mkdir(parents=True)

    def run(self, *commands: list[str], codes: tuple[int, ...] | None = None) -> list[tuple[str, str]]:
        """Run commands in one process; the outputs of each, which end with `codes` (all 0)."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "CLOUDMOUNT_", "AZURE_"))}
        environ |= {"CLOUDMOUNT_PASSPHRASE": PASSPHRASE, "CLOUDMOUNT_REPO": "C:\\repo"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.windows.stage", str(self.root)],
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            env=environ,
            timeout=110,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, done.stderr
        told: list[tuple[int, str, str]] = json.loads(done.stdout)
        for command, wanted, (code, out, said) in zip(
            commands, codes or (0,) * len(commands), told, strict=True
        ):
            assert code == wanted and "unforeseen" not in said, (command, code, out, said)
        return [(out, said) for _, out, said in told]


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    """An empty one."""
    return Windows(tmp_path / "stage")


@pytest.fixture
def linux(windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of this system see the same repository."""
    for name in [n for n in os.environ if n.startswith(("AZURE_", "CLOUDMOUNT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDMOUNT_REPO", str(windows.c / "repo"))
    monkeypatch.setenv("CLOUDMOUNT_PASSPHRASE", PASSPHRASE)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def filled(windows: Windows, tmp_path: Path) -> dict[str, bytes]:
    """Documents with hard links, a raw disk, and one with a file system: content by name."""
    rng = random.Random(7)
    docs = windows.c / "docs"
    deep = docs / "a long folder name of some sixty characters to make it deep" / ("b" * 120) / ("c" * 100)
    deep.mkdir(parents=True)
    files = {"plan.txt": b"plan\n", "日本.txt": b"x", "big.bin": rng.randbytes(300_000), "empty": b""}
    for name, content in files.items():
        (docs / name).write_bytes(content)
    (deep / "end.txt").write_bytes(b"far down")
    os.link(docs / "plan.txt", docs / "same.txt")
    with (windows.c / "disk.img").open("wb") as disk:
        disk.write(rng.randbytes(MIB))
        disk.truncate(5 * MIB)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "company.qbw").write_bytes(rng.randbytes(50_000))
    (inside / "company.qbw.tlg").write_bytes(b"log")
    make_fat(windows.c / "guest.img", 8 * MIB, inside, 12)
    return {**files, "company.qbw": (inside / "company.qbw").read_bytes()}


def test_from_a_backup_to_its_restore(windows: Windows, linux: None, tmp_path: Path) -> None:
    files = filled(windows, tmp_path)
    backup = ["backup", "--name", "srv", "C:\\docs", "c:/disk.img", "C:\\guest.img", "--json"]
    said = windows.run(
        ["init"],
        backup,
        backup,
        ["snapshots", "--json"],
        ["ls", "srv:docs"],
        ["find", "srv", "COMPANY*", "--json"],
        ["versions", "srv:docs\\plan.txt", "--json"],
        ["restore", "srv", "C:\\back\\"],
        ["restore", "srv:docs/plan.txt", "C:\\Back.txt"],
        ["cp", "srv:docs", "C:\\"],
        ["cp", "srv:docs", "C:\\copy"],
        ["cp", "srv:guest\\1-EFI\\company.qbw", "C:\\copy\\"],
        ["check", "--read-data"],
        ["hydrate", "srv:disk", "--to", "C:\\copies"],
        ["hydrate", "srv:disk", "--to", "C:\\copies"],
        ["status", "--json"],
        codes=(0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0),
    )
    first, second = (json.loads(out) for out, _ in said[1:3])
    # Links are seen by inode, and what did not change is not read again: entries of folders tell neither.
    assert first["source_bytes"] == sum(map(len, files.values())) - 50_000 + len(b"far down") + 13 * MIB
    assert second["read_bytes"] == 0
    assert [d["name"] for d in json.loads(said[3][0])[1]["disks"]] == ["disk", "guest"]
    assert "\\u65e5\\u672c.txt" in said[4][0]  # code page 1252 has no such letters
    assert {f["path"].rpartition("/")[2] for f in json.loads(said[5][0])} == {
        "company.qbw",
        "company.qbw.tlg",
    }
    assert len(json.loads(said[6][0])) == 2
    assert said[9][1].startswith("cloudmount: error: C:\\docs\\")  # no \\?\ before it, nothing replaced
    for name in ("plan.txt", "日本.txt", "big.bin", "empty"):
        for folder in ("back/docs", "copy"):
            assert (windows.c / folder / name).read_bytes() == files[name]
    deep = next((windows.c / "back").rglob("end.txt"))
    assert deep.read_bytes() == b"far down" and len(str(deep.relative_to(windows.c))) > 260
    assert (windows.c / "Back.txt").read_bytes() == b"plan\n"
    assert os.path.samefile(windows.c / "back/docs/plan.txt", windows.c / "back/docs/same.txt")
    assert (windows.c / "copy/company.qbw").read_bytes() == files["company.qbw"]
    assert (windows.c / "copy/company.qbw.tlg").read_bytes() == b"log"
    assert (windows.c / "back/disk.raw").read_bytes() == (windows.c / "disk.img").read_bytes()
    assert len(list((windows.c / "copies/srv").rglob("disk.vhdx"))) == 1
    own = windows.c / "Users/me/AppData/Local/cloudmount"
    assert list(own.rglob("maps")) and not list(windows.c.rglob("*.cloudmount"))
    assert not list(windows.c.rglob(".cloudmount-restore*")) and not list(windows.c.rglob("*.part*"))
    # The same repository, by a Linux.
    assert run(["restore", "srv", str(tmp_path / "here"), "--quiet"]) == 0
    assert (tmp_path / "here/docs/日本.txt").read_bytes() == b"x"
    assert (tmp_path / "here/docs/big.bin").read_bytes() == files["big.bin"]


def test_names_that_windows_would_take_for_something_else(
    windows: Windows, linux: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They come from a Linux; on Windows none of them leaves its folder, or writes into another file."""
    source = tmp_path / "docs"
    source.mkdir()
    odd = "a:b|..\\..\\evil|C:\\evil|con|nul.txt|dot.|blank |q?|\udcff"
    hostile = odd.split("|")
    for name in hostile:
        (source / name).write_bytes(b"hostile")
    (source / "a").write_bytes(b"good")
    (source / "aux").mkdir()
    (source / "aux" / "inner").write_bytes(b"hostile")
    assert run(["init", "--quiet"]) == 0
    assert run(["backup", "--name", "srv", str(source), "--quiet"]) == 0
    before = {p for p in windows.c.rglob("*") if "repo" not in p.parts}
    said = windows.run(
        ["restore", "srv", "C:\\back"],
        ["cp", "srv:docs", "C:\\copy", "--json"],
        ["ls", "srv:docs"],
        ["restore", "srv:docs/a:b", "C:\\single"],
        ["restore", "srv:docs/a:b", "C:\\"],
        ["cp", "srv:docs/con", "C:\\"],
    )
    told = "as on the drive: Windows can't hold its name"
    assert [text.count(told) for _, text in said] == [len(hostile) + 1, len(hostile) + 1, 0, 0, 1, 1]
    assert json.loads(said[1][0])["skipped"] == []
    names = ["a\uf03ab", "..\uf05c..\uf05cevil", "C\uf03a\uf05cevil", "\uf063on", "\uf06eul.txt"]
    names += ["dot\uf02e", "blank\uf020", "q\uf03f", "\uf0ff", "\uf061ux", "\uf061ux/inner", "a"]
    made = {
        p.relative_to(windows.c).as_posix()
        for p in windows.c.rglob("*")
        if p not in before and not {"repo", "Users", "work"} & set(p.relative_to(windows.c).parts)
    }
    places = {"back", "back/docs", "copy", "single", "a\uf03ab", "\uf063on"}
    assert made == places | {f"{folder}/{name}" for folder in ("back/docs", "copy") for name in names}
    assert (windows.c / "back/docs/a").read_bytes() == b"good"
    capsys.readouterr()


def test_what_is_not_there_is_said_in_one_line(windows: Windows) -> None:
    """No FUSE, no QEMU, no sockets of Unix, and here no WinFsp: never a traceback."""
    (windows.c / "disk.img").write_bytes(bytes(MIB))
    said = windows.run(
        ["init"],
        ["backup", "--name", "srv", "C:\\disk.img"],
        ["mount", "C:\\drive", "--daemon"],
        ["boot", "srv"],
        ["nbd", "srv", "--listen", "unix:C:\\socket"],
        ["mount", "X:"],
        ["umount", "X:"],
        ["vms"],
        ["service", "status"],
        ["service", "remove", "X:"],
        ["cp", "C:\\docs", "C:\\x"],
        codes=(0, 0, 2, 2, 2, 1, 3, 0, 0, 3, 3),
    )
    for _, error in (*said[2:5], said[5], said[6], said[9], said[10]):
        assert error.count("\n") == 1, error
    assert all("Linux" in error for _, error in said[2:5])
    assert "no path of this computer" in said[10][1]


def test_a_console_window_that_is_closed_interrupts(windows: Windows) -> None:
    """SIGBREAK is among what ends a command."""
    script = (
        "import signal, sys; from tests.windows import stage; stage.set_up(sys.argv[1]);"
        "from cloudmount.system import ENDING; print([int(s) for s in ENDING])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(windows.root)],
        capture_output=True, text=True, timeout=60, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    numbers: Any = json.loads(done.stdout)
    assert numbers == [2, 15, 21]
