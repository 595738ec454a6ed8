"""Every command does what docs/cli.md says, with its exit codes, and tells scripts one document."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.console import PASSPHRASE, PROGRAM, Console


def test_the_whole_way(console: Console, source: Path, tmp_path: Path) -> None:
    first = console.json("backup", "--name", "srv", str(source))
    assert first["machine"] == "srv" and not first["incomplete"]
    assert first["new_frames"] == 3 and first["read_bytes"] == 512_005
    second = console.json("backup", "--name", "srv", str(source))
    assert second["new_bytes"] == second["read_bytes"] == 0 and second["writes"] <= 3
    listed = console.json("snapshots")
    assert [s["id"] for s in listed] == [first["snapshot"], second["snapshot"]]
    assert {"id", "machine", "time", "disks", "files", "consistent", "proved"} <= listed[0].keys()
    assert {e["name"]: e["type"] for e in console.json("ls", "srv:docs")} == {
        "inner": "dir", "link": "link", "plan.txt": "file",
    }  # fmt: skip
    (plan,) = console.json("ls", "srv:docs/plan.txt")
    assert plan["size"] == 5
    back = console.json("restore", "srv", str(tmp_path / "back"))
    assert back["files"] == 3 and back["bytes"] == 512_005 and back["fetched_bytes"] > 0
    subprocess.run(["diff", "-r", "--no-dereference", str(source), str(tmp_path / "back/docs")], check=True)
    assert console.json("show", first["snapshot"][:8])["id"] == first["snapshot"]
    assert console.json("check", "--read-data")["ok"]


def test_backup_promises_its_keys(console: Console, source: Path) -> None:
    value = console.json("backup", "--name", "srv", str(source))
    promised = "snapshot machine time source_bytes read_bytes new_bytes stored_bytes frames new_frames writes"
    assert set(promised.split()) | {"seconds", "incomplete"} <= value.keys()


def test_exit_codes(console: Console, source: Path, tmp_path: Path) -> None:
    console.run("init", code=8)
    console.run("backup", "--name", "a/b", str(source), code=2)
    console.run("backup", "--nosuch", str(source), code=2)
    console.run("nosuch", code=2)
    console.run("backup", code=2)
    console.run("ls", "srv", code=3)
    console.run("backup", "--name", "srv", str(source), str(tmp_path / "missing"), code=7)
    assert console.json("snapshots") == []  # a named path that can't be read makes no snapshot
    console.run("backup", "--name", "srv", str(source))
    console.run("ls", "srv/2001-01-01T00-00-00Z", code=3)
    console.run("ls", "srv:docs/none", code=3)
    console.run("ls", "deadbeef", code=3)
    console.run("ls", "srv", code=6, CLOUDMOUNT_PASSPHRASE="wrong")
    console.run("ls", "srv", code=5, CLOUDMOUNT_REPO=str(tmp_path / "nothing"))
    console.run("ls", "srv", code=2, CLOUDMOUNT_REPO="")
    console.run("ls", "srv", code=2, CLOUDMOUNT_REPO="ftp://x/y")
    console.run("umount", str(tmp_path), code=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    console.run("restore", "srv", str(tmp_path / "full"), code=8)
    console.run("restore", "srv:docs/plan.txt", str(tmp_path / "full" / "x"), code=8)
    console.run("mount", str(tmp_path / "full"), code=8)
    console.run("mount", str(tmp_path / "no" / "parent"), code=3)


def test_passphrases(console: Console, source: Path, tmp_path: Path) -> None:
    repo = str(tmp_path / "other")
    made = console.json("init", CLOUDMOUNT_REPO=repo)
    words = made["recovery_phrase"].split()
    assert len(words) == 24
    console.run("snapshots", CLOUDMOUNT_REPO=repo, CLOUDMOUNT_PASSPHRASE=" ".join(words).upper())
    file = tmp_path / "phrase.txt"
    file.write_text("\n".join(f"{n}. {w}" for n, w in enumerate(words, 1)) + "\n")
    console.run("snapshots", "--passphrase-file", str(file), CLOUDMOUNT_REPO=repo)
    file.write_text(PASSPHRASE + "\n")
    console.run("snapshots", "--passphrase-file", str(file), CLOUDMOUNT_REPO=repo, CLOUDMOUNT_PASSPHRASE="x")
    wrong = [*words]
    wrong[4] = "zebrra"
    told = console.run("snapshots", CLOUDMOUNT_REPO=repo, CLOUDMOUNT_PASSPHRASE=" ".join(wrong), code=6)
    assert "zebrra" in told.stderr and "zebra" in told.stderr and "word 5" in told.stderr
    environ = {k: v for k, v in console.environment.items() if k != "CLOUDMOUNT_PASSPHRASE"}
    done = subprocess.run(
        [PROGRAM, "snapshots"],
        env=environ,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 2 and "--passphrase-file" in done.stderr


def test_what_is_met_but_not_readable_is_9(console: Console, source: Path) -> None:
    vhdx = source / "broken.vhdx"
    vhdx.write_bytes(b"vhdxfile" + bytes(1 << 20))
    value = console.json("backup", "--name", "srv", str(source), code=9)
    assert value["incomplete"]
    assert "broken.vhdx" in console.run("backup", "--name", "srv", str(source), code=9).stderr
    assert [p["path"] for p in console.json("show", "srv")["problems"]] == [str(vhdx)]
    console.run("backup", "--name", "srv", str(vhdx), code=7)
    console.run("backup", "--name", "srv", str(source), "--as-file", "*.vhdx")
    console.run("backup", "--name", "srv", str(source), "--exclude", "broken.*")


def test_disks_and_names(console: Console, source: Path, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    with open(raw, "wb") as file:
        file.truncate(40 << 20)
        file.seek(5 << 20)
        file.write(os.urandom(300_000))
    subprocess.run(["qemu-img", "convert", "-O", "vhdx", str(raw), str(source / "vm.vhdx")], check=True)
    (source / "vm.img.note").write_text("n")
    (source / "vm").mkdir()
    console.run("backup", "--name", "srv", str(raw), str(source))
    names = [e["name"] for e in console.json("ls", "srv")]
    assert names == ["disk", "disk.img", "disk.vhdx", "docs", "machine.json"]
    names = [e["name"] for e in console.json("ls", "srv:docs")]
    assert {"vm", "vm-2.vhdx", "vm-2.img", "vm.img.note"} <= set(names)
    disks = console.json("show", "srv")["disks"]
    assert {d["name"] for d in disks} == {"disk", "docs/vm-2"} and all(
        d["stored_bytes"] > 300_000 for d in disks
    )
    for format in ("raw", "vhdx", "vhd", "qcow2"):
        out = tmp_path / f"new.{format}"
        console.run("restore", "srv:disk", str(out), "--format", format)
        kind = {"vhd": "vpc"}.get(format, format)
        done = subprocess.run(
            ["qemu-img", "compare", "-f", "raw", "-F", kind, str(raw), str(out)],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (format, done.stdout, done.stderr)
        assert out.stat().st_blocks * 512 < 12 << 20
    console.run("restore", "srv", str(tmp_path / "all"))
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["disk.raw", "docs"]
    assert (tmp_path / "all/docs/vm-2.vhdx").exists()


def test_a_restore_that_was_killed_goes_on(console: Console, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(os.urandom(48 << 20))
    console.run("backup", "--name", "srv", str(raw))
    target = tmp_path / "back"
    limited = [PROGRAM, "restore", "srv", str(target), "--bandwidth", ":8M", "--quiet"]
    running = subprocess.Popen(limited, env=console.environment)
    while not (target / "disk.raw").exists():
        time.sleep(0.05)
    time.sleep(1)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    console.run("restore", "srv:disk", str(target), code=8)  # something else
    console.run("restore", "srv", str(target))
    assert (target / "disk.raw").read_bytes() == raw.read_bytes()
    assert [p.name for p in target.iterdir()] == ["disk.raw"]


def test_ctrl_c_in_a_backup_loses_only_what_was_in_flight(console: Console, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(os.urandom(288 << 20))
    command = [PROGRAM, "backup", "--name", "srv", str(raw), "--bandwidth", "48M", "--quiet"]
    running = subprocess.Popen(command, env=console.environment, stderr=subprocess.PIPE, text=True)
    packs = Path(console.repo) / "packs"
    while sum(1 for p in packs.glob("*/*")) < 5:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert running.wait(40) == 130
    assert time.monotonic() - began < 20  # a second, when nothing else runs
    assert running.stderr is not None
    assert "interrupted" in running.stderr.read()
    running.stderr.close()
    stored = sum(p.stat().st_size for p in packs.glob("*/*"))
    value = console.json("backup", "--name", "srv", str(raw))
    in_flight = 3 * (33 << 20)  # stored, and perhaps not yet in the journal
    assert value["stored_bytes"] < (289 << 20) - stored + in_flight
    assert console.json("check", "--read-data")["ok"]


def test_a_repository_inside_what_is_backed_up_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "x").write_text("x")
    console = Console(tmp_path / "home", str(folder / "repo"))
    console.run("init")
    console.run("backup", "--name", "srv", str(folder))
    assert [e["name"] for e in console.json("ls", "srv:all")] == ["x"]


def test_output_is_quiet_and_plain(console: Console, source: Path) -> None:
    done = console.run("backup", "--name", "srv", str(source), "--quiet")
    assert done.stderr == "" and "\x1b" not in done.stdout
    assert json.loads(console.run("status", "--json").stdout) == {"mounts": [], "hydrations": [], "vms": []}
    pipe = subprocess.run(
        ["bash", "-c", f"{PROGRAM} snapshots | true"],
        env=console.environment,
        capture_output=True,
        check=False,
    )
    assert pipe.stderr == b""
    assert re.fullmatch(r"cloudmount, version \d+\.\d+\.\d+\n", console.run("--version").stdout)


def test_going_back_in_time_is_told(console: Console, source: Path, tmp_path: Path) -> None:
    console.run("backup", "--name", "srv", str(source))
    shutil.copytree(console.repo, tmp_path / "old")
    console.run("backup", "--name", "srv", str(source))
    shutil.rmtree(console.repo)
    shutil.copytree(tmp_path / "old", console.repo)
    assert "number 2 was seen here before" in console.run("snapshots").stderr


@pytest.mark.azurite
def test_azure_under_a_write_once_sas(azurite, source: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    container = azurite.new_container()
    url = f"{azurite.account_url}/{container}/office?{azurite.sas(container, 'rcl')}"
    console = Console(tmp_path / "home", url)
    made = console.run("init")
    assert "sig=" not in made.stdout + made.stderr
    console.run("backup", "--name", "srv", str(source))
    (source / "new.txt").write_text("new")
    value = console.json("backup", "--name", "srv", str(source))
    assert value["new_frames"] == 1
    assert console.json("check", "--read-data")["ok"]
    console.run("restore", "srv", str(tmp_path / "back"))
    subprocess.run(["diff", "-r", "--no-dereference", str(source), str(tmp_path / "back/docs")], check=True)
    other = Console(
        tmp_path / "home2",
        f"azure://{container}/office",
        {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string},
    )
    assert len(other.json("snapshots")) == 2


@pytest.mark.azurite
def test_an_azure_that_is_not_there_is_5_within_30_seconds(tmp_path: Path) -> None:
    console = Console(tmp_path / "home", "http://127.0.0.1:9/devstoreaccount1/container?sig=secret")
    began = time.monotonic()
    told = console.run("snapshots", code=5)
    assert time.monotonic() - began < 30 and "secret" not in told.stderr
