"""The names that scripts rely on: commands, options, JSON keys, exit codes. They change only with the
changelog saying so."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import click
import pytest

from cloudmount import errors
from cloudmount.cli.main import COMMANDS, INTERRUPTED, program
from tests.cli.console import Console

STORE = {"--repo", "--passphrase-file"}
OUTPUT = {"--json", "--quiet", "--verbose"}
MOVES = {"--bandwidth"}
OPTIONS = {
    "init": STORE | OUTPUT | {"--tier"},
    "backup": STORE | OUTPUT | MOVES | {"--name", "--exclude", "--as-file", "--force-read", "--machine"},
    "snapshots": STORE | OUTPUT,
    "show": STORE | OUTPUT,
    "ls": STORE | OUTPUT,
    "restore": STORE | OUTPUT | MOVES | {"--format"},
    "cp": STORE | OUTPUT | MOVES | {"--only"},
    "find": STORE | OUTPUT,
    "versions": STORE | OUTPUT | MOVES | {"--content"},
    "check": STORE | OUTPUT | MOVES | {"--read-data"},
    "mount": STORE | OUTPUT | MOVES
    | {"--cache-dir", "--cache-size", "--driver", "--io-timeout", "--allow-other", "--daemon",
       "--hydrate-to"},
    "umount": OUTPUT,
    "hydrate": STORE | OUTPUT | MOVES | {"--to", "--format"},
    "verify-local": OUTPUT,
    "preflight": STORE | OUTPUT | MOVES | {"--hydrate-to"},
    "boot": STORE | OUTPUT | MOVES
    | {"--resume", "--memory", "--cpus", "--network", "--bus", "--firmware", "--hydrate-to", "--ready",
       "--timeout", "--foreground"},
    "drill": STORE | OUTPUT | MOVES | {"--from-kit", "--ready", "--timeout"},
    "vms": OUTPUT,
    "stop": OUTPUT | {"--timeout", "--delete"},
    "console": OUTPUT,
    "nbd": STORE | OUTPUT | MOVES | {"--listen", "--io-timeout", "--cache-dir", "--cache-size"},
    "hyperv": set(),
    "service": set(),
    "status": OUTPUT,
}  # fmt: skip
HYPERV = {
    "boot": STORE | OUTPUT | MOVES | {"--via", "--output"},
    "preflight": OUTPUT | {"--output", "--read"},
}
SERVICE = {
    "install": OPTIONS["mount"] - {"--daemon"} | {"--credentials", "--fstab", "--root"},
    "remove": OUTPUT | {"--root"},
    "status": OUTPUT | {"--root"},
}
SNAPSHOT = {"id", "machine", "time", "disks", "files", "consistent", "proved"}
EXIT_CODES = {
    "CloudMountError": 1, "UsageError": 2, "NotFoundError": 3, "DamagedError": 4, "StoreError": 5,
    "NoRepositoryError": 5, "StoreUnreachableError": 5, "StoreRefusedError": 5,
    "WrongPassphraseError": 6, "UnreadableInputError": 7, "NoRoomError": 8, "TargetExistsError": 8,
}  # fmt: skip
PROMISE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def _command(name: str) -> click.Command:
    found = importlib.import_module(f"cloudmount.cli.{name.replace('-', '_')}").command
    assert isinstance(found, click.Command)
    return found


def test_commands() -> None:
    assert set(COMMANDS) == set(OPTIONS)
    assert set(program.list_commands(click.Context(program))) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    options = [p for p in _command(name).params if isinstance(p, click.Option)]
    found = {o for option in options for o in option.opts}
    assert found == OPTIONS[name]
    assert all((option.help or "").endswith((".", "]")) for option in options)
    for text in found:
        assert re.search(rf"[`\[ ]{text}\b", PROMISE), f"docs/cli.md does not tell of {text}"
    assert f"| `{name}" in PROMISE


@pytest.mark.parametrize("name", HYPERV)
def test_options_of_hyperv(name: str) -> None:
    group = _command("hyperv")
    assert isinstance(group, click.Group) and set(group.commands) == set(HYPERV)
    options = [p for p in group.commands[name].params if isinstance(p, click.Option)]
    assert {o for option in options for o in option.opts} == HYPERV[name]
    assert all((option.help or "").endswith((".", "]")) for option in options)
    assert f"| `hyperv {name}" in PROMISE


@pytest.mark.parametrize("name", SERVICE)
def test_options_of_service(name: str) -> None:
    group = _command("service")
    assert isinstance(group, click.Group)
    assert {n for n, command in group.commands.items() if not command.hidden} == set(SERVICE)
    options = [p for p in group.commands[name].params if isinstance(p, click.Option)]
    assert {o for option in options for o in option.opts} == SERVICE[name]
    assert all((option.help or "").endswith((".", "]")) for option in options)
    assert f"`service {name}" in PROMISE


def test_exit_codes() -> None:
    found = {
        name: value.exit_code
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.CloudMountError) and name in EXIT_CODES
    }
    assert found == EXIT_CODES
    every = {
        value.exit_code
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.CloudMountError)
    }
    for code in every | {0, 9, INTERRUPTED}:
        assert f"\n| {code} | " in PROMISE


def test_json_keys(tmp_path: Path, source: Path) -> None:
    console = Console(tmp_path / "home", str(tmp_path / "repo"))
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    assert {"repo_id", "recovery_phrase"} <= console.json("init").keys()
    made = console.json("backup", "--name", "srv", str(source), str(disk))
    assert {
        "snapshot", "machine", "time", "source_bytes", "read_bytes", "new_bytes", "stored_bytes", "frames",
        "new_frames", "writes", "seconds", "incomplete",
    } <= made.keys()  # fmt: skip
    (listed,) = console.json("snapshots", "srv")
    shown = console.json("show", "srv/latest")
    assert listed.keys() >= SNAPSHOT <= shown.keys()
    assert {k: listed[k] for k in SNAPSHOT - {"disks"}} == {k: shown[k] for k in SNAPSHOT - {"disks"}}
    assert listed["disks"] == [{"name": "disk", "size": 1 << 20}]
    assert {"name", "size", "stored_bytes"} <= shown["disks"][0].keys()
    assert listed["id"] == made["snapshot"] and listed["proved"] is False and listed["files"] == 2
    assert all({"name", "type", "size", "mtime"} <= e.keys() for e in console.json("ls", "srv:docs"))
    copied = console.json("cp", "srv:docs", str(tmp_path / "copy"))
    assert {"files", "bytes", "fetched_bytes"} <= copied.keys()
    assert all({"path", "size", "mtime"} <= e.keys() for e in console.json("find", "srv", "*"))
    told = console.json("versions", "srv:docs/plan.txt")
    assert all({"snapshot", "time", "size", "mtime", "content"} <= e.keys() for e in told)
    done = console.json("restore", "srv", str(tmp_path / "back"))
    assert {"files", "bytes", "fetched_bytes", "seconds"} <= done.keys()
    copies = str(tmp_path / "copies")
    done = console.json("hydrate", "srv", "--to", copies)
    assert {"files", "bytes", "fetched_bytes", "seconds"} <= done.keys()
    (copy,) = Path(copies).glob("srv/*/disk.vhdx")
    assert {"ok", "bytes", "damage"} <= console.json("verify-local", str(copy)).keys()
    assert {"ok", "findings"} <= console.json("preflight", "srv").keys()
    checked = console.json("check", "--read-data", "50")
    assert {"ok", "damage"} <= checked.keys()
    assert {"mounts", "hydrations", "vms"} <= console.json("status").keys()
    pack = next(p for p in (tmp_path / "repo/packs").rglob("*") if p.is_file())
    pack.write_bytes(pack.read_bytes()[:100] + b"?" + pack.read_bytes()[101:])
    damaged = console.json("check", "--read-data", code=4)
    assert damaged["ok"] is False
    assert all({"snapshot", "path", "offset", "length", "why"} <= d.keys() for d in damaged["damage"])
    told = console.run("check", "--read-data", code=4).stdout
    assert "docs/" in told and "DAMAGED" in told


def test_environment_variables_are_those_promised() -> None:
    """No environment variable as an interface beyond those that the README and docs/cli.md name."""
    sources = "".join(p.read_text() for p in Path(errors.__file__).parent.rglob("*.py"))
    named = set(re.findall(r"\bCLOUDMOUNT_[A-Z_]+\b", sources))
    assert named == {"CLOUDMOUNT_REPO", "CLOUDMOUNT_PASSPHRASE"}
