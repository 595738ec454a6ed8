"""What is told of a machine's history, and what a backup leaves out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.console import Console


@pytest.fixture
def line(console: Console, source: Path) -> list[str]:
    """Three snapshots; their ids, oldest first."""
    ids = []
    for n in range(3):
        (source / "counter").write_text(str(n))
        ids.append(console.json("backup", "--name", "srv", str(source))["snapshot"])
    return ids


def _object(console: Console, id: str) -> Path:
    (found,) = Path(console.repo).glob(f"snapshots/*/*{id}")
    return found


def test_a_sound_line_is_told_without_a_word(console: Console, line: list[str]) -> None:
    done = console.run("snapshots")
    assert done.stderr == "" and len(done.stdout.splitlines()) == 4
    assert [s["id"] for s in console.json("snapshots", "srv")] == line


def test_a_gap_is_told(console: Console, line: list[str]) -> None:
    _object(console, line[1]).unlink()
    assert "between number 1 " in console.run("snapshots").stderr
    _object(console, line[0]).unlink()
    assert "before number 3 " in console.run("snapshots").stderr
    assert [s["id"] for s in console.json("snapshots")] == line[2:]


def test_a_snapshot_that_does_not_open_is_told_and_skipped(console: Console, line: list[str]) -> None:
    shutil.rmtree(console.home / "cache")
    newest = _object(console, line[2])
    newest.write_bytes(bytes(newest.stat().st_size))
    done = console.run("snapshots")
    assert "unusable" in done.stderr and len(done.stdout.splitlines()) == 3
    assert console.json("show", "srv")["id"] == line[1]
    assert "next newest" in console.run("ls", "srv").stderr
    for id in line[:2]:
        _object(console, id).write_bytes(b"")
    console.run("snapshots", "srv", code=4)
    console.run("snapshots", "other", code=3)


def test_a_fork_is_told_and_both_stand(console: Console, source: Path, tmp_path: Path) -> None:
    console.run("backup", "--name", "srv", str(source))
    shutil.copytree(console.repo, tmp_path / "copy")
    copy = Console(tmp_path / "other home", str(tmp_path / "copy"))
    console.run("backup", "--name", "srv", str(source))
    copy.run("backup", "--name", "srv", str(source))
    shutil.copytree(copy.repo, console.repo, dirs_exist_ok=True)
    done = console.run("snapshots")
    assert "two snapshots have number 2" in done.stderr and len(done.stdout.splitlines()) == 4


def test_machines_are_merged_by_time(console: Console, source: Path) -> None:
    for machine in ("b", "a", "b"):
        console.run("backup", "--name", machine, str(source / "plan.txt"))
    listed = console.json("snapshots")
    assert [s["time"] for s in listed] == sorted(s["time"] for s in listed)
    assert [s["sequence"] for s in listed if s["machine"] == "b"] == [1, 2]
    assert [s["machine"] for s in console.json("snapshots", "a")] == ["a"]


def test_a_machine_that_was_seen_and_is_gone_is_told_by_a_backup(
    console: Console, line: list[str], source: Path
) -> None:
    shutil.rmtree(Path(console.repo) / "snapshots")
    done = console.run("backup", "--name", "srv", str(source))
    assert "number 3 was seen here before" in done.stderr
    assert console.json("snapshots")[0]["sequence"] == 4


def test_another_repository_at_the_same_place_is_told(console: Console, line: list[str]) -> None:
    shutil.rmtree(console.repo)
    console.run("init")
    assert "held another repository" in console.run("snapshots").stderr


def test_own_caches_and_state_are_left_out(tmp_path: Path) -> None:
    """They change while they are read: every backup of a home folder would be incomplete."""
    home = tmp_path / "home"
    console = Console(home, str(home / "repo"))
    home.mkdir()
    (home / "letter").write_text("dear")
    console.run("init")
    for _ in range(2):
        console.run("backup", "--name", "srv", str(home))
        assert console.json("ls", "srv:home/state") == console.json("ls", "srv:home/cache") == []
    assert {e["name"] for e in console.json("ls", "srv:home")} == {"letter", "cache", "state"}
    for folder in ("cache", "state"):
        assert (home / folder / "cloudmount").stat().st_mode & 0o077 == 0
    told = console.run("backup", "--name", "srv", console.repo, code=2)
    assert "can't be backed up" in told.stderr


def test_a_home_that_can_not_be_written_to_costs_only_the_memory(
    console: Console, source: Path, tmp_path: Path
) -> None:
    nowhere = {"XDG_STATE_HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"}
    told = console.run("backup", "--name", "srv", str(source), **nowhere)
    assert "starts anew" in told.stderr
    assert console.json("backup", "--name", "srv", str(source), **nowhere)["new_bytes"] == 0
    assert len(console.json("snapshots", **nowhere)) == 2
    console.run("restore", "srv", str(tmp_path / "back"), **nowhere)
    console.run("ls", "srv", **nowhere)


def test_listings_tell_former_names_and_what_is_near(console: Console, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text("{}")
    disk = tmp_path / "server.raw"
    disk.write_bytes(b"x" * (1 << 20))
    console.run("backup", "--name", "srv", str(tmp_path / "machine.json"), str(disk))
    listed = {e["name"]: e.get("original") for e in console.json("ls", "srv")}
    assert listed == {
        "machine-2.json": "machine.json", "machine.json": None, "server": "server.raw",
        "server.img": "server.raw", "server.vhdx": "server.raw",
    }  # fmt: skip
    told = console.run("ls", "srv").stdout
    assert "(was machine.json)" in told and "the disk server.raw" in told
    assert [e["name"] for e in console.json("ls", "srv:server")] == ["UNSUPPORTED.txt"]
    assert "there is server.vhdx" in console.run("ls", "srv:server.vhd", code=3).stderr
    assert "there is machine-2.json" in console.run("ls", "srv:machin-2.json", code=3).stderr
    assert "is not a folder" in console.run("ls", "srv:machine.json/x", code=3).stderr
    assert console.json("ls", "srv:server.img")[0]["size"] == 1 << 20


def test_strange_times_do_not_stop_a_listing(console: Console, tmp_path: Path) -> None:
    folder = tmp_path / "times"
    folder.mkdir()
    for name, seconds in (("old", -(10**9)), ("new", 253402300800 + 10**9), ("now", 1700000000)):
        (folder / name).touch()
        try:
            os.utime(folder / name, (seconds, seconds))
        except OverflowError:
            continue
    console.run("backup", "--name", "srv", str(folder))
    times = {e["name"]: e["mtime"] for e in console.json("ls", "srv:times")}
    assert times["now"] == "2023-11-14T22:13:20Z" and times["old"].startswith("1938-04-24T22:13:20Z")


def test_a_store_that_went_back_is_told_by_every_command_that_looks(
    console: Console, source: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        console.run("backup", "--name", "m", str(source))
    newest = min((tmp_path / "repo" / "snapshots").glob("*/*"), key=lambda p: p.name)
    newest.rename(tmp_path / "gone")
    for command in (["check"], ["restore", "m", str(tmp_path / "o")], ["ls", "m"], ["show", "m"]):
        assert "number 2 was seen here before" in console.run(*command).stderr
    assert any("was seen here before" in notice for notice in console.json("check")["notices"])


def test_a_name_that_may_have_been_another_snapshot_s_is_told(console: Console, source: Path) -> None:
    first = console.json("backup", "--name", "m", str(source))
    second = console.json("backup", "--name", "m", str(source))
    (gone,) = Path(console.repo).glob(f"snapshots/*/*{first['snapshot']}")
    gone.unlink()
    name = console.json("snapshots")[0]["name"]
    assert second["snapshot"] == console.json("show", f"m/{name}")["id"]
    assert "is missing from the store" in console.run("show", f"m/{name}").stderr


def test_a_machine_whose_only_snapshot_is_damaged_is_4(
    console: Console, source: Path, tmp_path: Path
) -> None:
    console.run("backup", "--name", "m", str(source))
    (snapshot,) = Path(console.repo).glob("snapshots/*/*")
    data = bytearray(snapshot.read_bytes())
    data[100] ^= 1
    snapshot.write_bytes(data)
    empty = {"XDG_CACHE_HOME": str(tmp_path / "empty")}
    console.run("restore", "m", str(tmp_path / "o"), code=4, **empty)
