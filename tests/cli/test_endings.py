"""How commands end: on signals, on closed and full outputs, on what nobody foresaw. Never a traceback,
never a hang, one line."""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cloudmount.cli import main as program
from cloudmount.cli.main import run
from tests.azurite_server import AzuriteServer
from tests.cli.console import PROGRAM, Console
from tests.wanlink import WanLink


def start(console: Console, *arguments: str) -> subprocess.Popen[str]:
    """A command in the background, its output caught."""
    return subprocess.Popen(
        [PROGRAM, *arguments],
        env=console.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(running: subprocess.Popen[str], within: float) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr; killed, and a failure, when it takes longer."""
    try:
        out, err = running.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        running.kill()
        running.communicate()
        raise AssertionError(f"it did not end within {within} s") from None
    assert "Traceback" not in err
    return running.returncode, out, err


@pytest.fixture
def silent(console: Console) -> Iterator[Console]:
    """A store that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        yield Console(console.home, f"http://127.0.0.1:{port}/devstoreaccount1/office?sv=1&sp=rcl&sig=secret")


def test_a_silent_store_is_5_within_30_seconds(silent: Console) -> None:
    code, out, err = ended(start(silent, "snapshots"), 30)
    assert (code, out) == (5, "")
    assert re.fullmatch("cloudmount: error: .*\n", err) and "secret" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_who_waits_for_a_silent_store(silent: Console, number: int) -> None:
    running = start(silent, "ls", "srv")
    time.sleep(1.5)
    running.send_signal(number)
    assert ended(running, 7) == (130, "", "cloudmount: error: interrupted\n")


@pytest.mark.azurite
@pytest.mark.parametrize("command", ["backup", "restore", "check", "cp"])
def test_ctrl_c_when_the_line_died_under_way(azurite: AzuriteServer, tmp_path: Path, command: str) -> None:
    """Threads are held by sends and reads that nobody answers; nobody waits for them."""
    parts = urlsplit(azurite.account_url)
    assert parts.hostname is not None and parts.port is not None
    container = azurite.new_container()
    tail = f"{parts.path}/{container}/office?{azurite.sas(container, 'rcl')}"
    straight = Console(tmp_path / "home", f"http://{parts.netloc}{tail}")
    straight.run("init")
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(60 << 20))
    arguments = {
        "backup": ["backup", "--name", "srv", str(disk)],
        "restore": ["restore", "srv", str(tmp_path / "back")],
        "check": ["check", "--read-data"],
        "cp": ["cp", "srv:disk.img", str(tmp_path / "copy"), "--quiet"],
    }[command]
    if command != "backup":
        straight.run("backup", "--name", "srv", str(disk))
    with WanLink((parts.hostname, parts.port), rtt=0.01, down_mbit=60, up_mbit=60) as link:
        host, port = link.address
        far = Console(tmp_path / "home", f"http://{host}:{port}{tail}")
        running = start(far, *arguments)
        while max(link.traffic().up_bytes, link.traffic().down_bytes) < 5 << 20:
            assert running.poll() is None
            time.sleep(0.02)
        link.stall()
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        code, out, err = ended(running, 7)
        assert (code, out) == (130, "")
        assert re.fullmatch("cloudmount: error: interrupted.*\n", err)
        assert ("it goes on" in err) == (command in program.GO_ON)
        assert not (tmp_path / "copy").exists()
    straight.run(*arguments)
    assert straight.json("check", "--read-data")["ok"]


def test_a_second_ctrl_c_ends_at_once(console: Console, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(50 << 20))
    running = start(console, "backup", "--name", "srv", str(disk), "--bandwidth", "1M")
    while not (tmp_path / "home/state/cloudmount/repositories").exists():
        time.sleep(0.02)
    for _ in range(2):
        running.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    assert ended(running, 3)[0] == 130


def test_a_restore_that_was_interrupted_goes_on(console: Console, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(40 << 20))
    console.run("backup", "--name", "srv", str(disk))
    target = tmp_path / "back"
    running = start(console, "restore", "srv", str(target), "--bandwidth", ":8M")
    while not (target / "disk.raw").exists():
        time.sleep(0.02)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    code, _, err = ended(running, 7)
    assert code == 130 and "it goes on" in err
    console.run("restore", "srv", str(target))
    assert (target / "disk.raw").read_bytes() == disk.read_bytes()


def test_a_background_job_of_a_shell_keeps_ignoring_ctrl_c(console: Console, source: Path) -> None:
    """A shell's `&` and nohup set SIGINT to be ignored; a backup left running must stay so."""
    script = f"trap '' INT; exec {PROGRAM} backup --name srv {source} --bandwidth 200K"
    running = subprocess.Popen(
        ["sh", "-c", script],
        env=console.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    assert ended(running, 30)[0] == 0


def test_a_reader_that_left_is_no_failure(console: Console, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for n in range(3000):
        (many / f"a file with a rather long name, number {n}").touch()
    console.run("backup", "--name", "srv", str(many))
    for arguments in ("ls srv:many", "ls srv:many --json", "--help", "backup --help"):
        shell = (
            f"set -o pipefail; {PROGRAM} {arguments} | head -c 1 >/dev/null; exec 1>&-; {PROGRAM} {arguments}"
        )
        done = subprocess.run(
            ["bash", "-c", shell], env=console.environment, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr, done.stderr


def test_nobody_to_tell_is_no_failure(console: Console, source: Path) -> None:
    """stderr closed, or its reader gone: the backup is made all the same."""
    (source / "broken.vhdx").write_bytes(b"vhdxfile" + bytes(1 << 20))
    for ending in ("2>&-", "2>/dev/full", "2>&1 >&2 | true"):
        script = f"{PROGRAM} backup --name srv {source} {ending}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", script], env=console.environment, check=False, capture_output=True
        )
        assert done.returncode == 9, (ending, done)
    assert len(console.json("snapshots")) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_full_output_is_told(console: Console, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [PROGRAM, "status", "--json"],
            env=console.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "standard output" in done.stderr
        done = subprocess.run(
            [PROGRAM, "init"],
            env=console.environment | {"CLOUDMOUNT_REPO": str(tmp_path / "new")},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 1 and "nobody read its recovery phrase" in done.stderr


def test_what_nobody_foresaw_is_one_line(
    console: Console, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a\nkey\x1b[31m")

    monkeypatch.setattr("cloudmount.app.status.status", broken)
    assert run(["status", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"cloudmount: error: unforeseen: KeyError: .* \(--verbose .*\)\n", err)
    assert run(["status", "--verbose"]) == 1
    assert "in broken" in capsys.readouterr().err


def test_a_failing_thread_prints_nothing(console: Console, tmp_path: Path) -> None:
    """Python would print the traceback of a thread; ours don't fail, libraries' might."""
    code = (
        "import threading, sys; from cloudmount.cli import main as m\n"
        "def fail(): raise ValueError('in a thread')\n"
        "m._hush(); t = threading.Thread(target=fail); t.start(); t.join()\n"
    )
    for extra, told in (([], False), (["--verbose"], True)):
        done = subprocess.run(
            [Path(PROGRAM).with_name("python"), "-c", code, *extra],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("in a thread" in done.stderr) == told


def test_every_usage_error_is_one_line_with_a_hint(console: Console) -> None:
    for arguments in (
        [], ["nosuch"], ["--nosuch"], ["backup"], ["ls"], ["ls", "a", "b"], ["restore", "srv"],
        ["mount"], ["mount", "x", "--io-timeout", "soon"], ["mount", "x", "--driver", "none"],
        ["init", "--tier", "warm"], ["restore", "srv", "x", "--format", "vmdk"],
        ["backup", "--name"], ["status", "extra"],
    ):  # fmt: skip
        done = console.run(*arguments, code=2)
        assert done.stdout == "" and done.stderr.count("\n") == 1, (arguments, done.stderr)
        command = " ".join(["cloudmount", *(a for a in arguments[:1] if a in program.COMMANDS)])
        assert done.stderr.endswith(f" (see '{command} --help')\n")
    for arguments in (
        ["mount", "x", "--cache-size", "many"],
        ["backup", "x", "--bandwidth", "0"],
        ["backup", "x", "--bandwidth", "fast"],
        ["check", "--read-data", "0"],
        ["check", "--read-data", "nan"],
        ["check", "--read-data", "101"],
        ["show", "srv:path"],
        ["backup", "--name", "a/b", str(console.home.parent)],
    ):
        console.run(*arguments, code=2)


def test_help_and_version_start_quickly(console: Console) -> None:
    """In seconds of processor, so that a busy machine counts little. Measured: 0.04, 0.06 and 0.1; on a slow
    one beside another test 0.5 for the last."""
    for arguments, most in ((["--version"], 0.4), (["--help"], 0.6), (["status"], 1.0)):
        times = []
        for _ in range(6):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = console.run(*arguments)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            assert done.stderr == ""
        assert min(times) < most, (arguments, times)


def test_the_table_of_interrupts_is_complete() -> None:
    assert set(program.GO_ON) < set(program.COMMANDS)


def test_a_recovery_phrase_that_nobody_can_read_is_an_error(tmp_path: Path) -> None:
    console = Console(tmp_path / "home", str(tmp_path / "repo"))
    for extra in ([], ["--json"]):
        shutil.rmtree(tmp_path / "repo", ignore_errors=True)
        command = shlex.join([PROGRAM, "init", *extra])
        done = subprocess.run(
            ["sh", "-c", f"exec {command} >&-"],
            env=console.environment,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "nobody read its recovery phrase" in done.stderr


def test_a_file_that_hides_its_content_is_told(console: Console, tmp_path: Path) -> None:
    """Files of /proc say that they are empty."""
    assert "says that it is empty and is not" in console.run("backup", "/proc/version", code=7).stderr


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e400", "0.5", "-1"])
def test_an_io_timeout_is_a_number_of_seconds(console: Console, tmp_path: Path, seconds: str) -> None:
    console.run("mount", str(tmp_path), "--io-timeout", seconds, code=2)
