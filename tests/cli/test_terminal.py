"""What a person at a terminal meets: prompts, bars, and names that mean harm."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.console import PASSPHRASE, PROGRAM, Console

if sys.platform == "win32":
    pytest.skip("ptys are Unix's", allow_module_level=True)


@dataclass
class Seen:
    """What the screen got, and the exit code."""

    text: str
    code: int

    @property
    def plain(self) -> str:
        """The text without what moves the cursor and colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text).replace("\r\n", "\n")


def typed(console: Console, arguments: Sequence[str], answers: Sequence[str] = (), **environ: str) -> Seen:
    """Run a command on a terminal of its own, answering each prompt."""
    environment = {**console.environment, "TERM": "xterm", **environ}
    if answers:
        del environment["CLOUDMOUNT_PASSPHRASE"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(PROGRAM, [PROGRAM, *arguments], environment)  # noqa: S606  # the program itself
    left, text, answered, until = list(answers), "", 0, time.monotonic() + 60
    while time.monotonic() < until:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not data:
            break
        text += data.decode("utf-8", "surrogateescape")
        if left and text[answered:].endswith(": "):
            answered = len(text)
            time.sleep(0.1)  # echo is off by the time the prompt is written
            os.write(terminal, left.pop(0).encode() + b"\n")
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(terminal)
    assert not left, f"no prompt came for {left}: {text}"
    seen = Seen(text, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert "Traceback" not in text
    return seen


def test_a_passphrase_is_asked_for_and_never_echoed(console: Console) -> None:
    seen = typed(console, ["snapshots", "--json"], [PASSPHRASE])
    assert seen.code == 0 and seen.text.endswith("[]\r\n")
    assert PASSPHRASE not in seen.text and seen.text.count("Passphrase or recovery phrase: ") == 1


def test_who_mistypes_is_asked_again_and_told_why(console: Console, tmp_path: Path) -> None:
    made = console.json("init", CLOUDMOUNT_REPO=str(tmp_path / "other"))
    words = made["recovery_phrase"].split()
    mistyped = [*words[:7], "abandn", *words[8:]]
    other = {"CLOUDMOUNT_REPO": str(tmp_path / "other")}
    seen = typed(console, ["snapshots"], [" ".join(mistyped), "wrong", " ".join(words)], **other)
    assert seen.code == 0
    assert "word 8" in seen.text and "abandon" in seen.text and "wrong passphrase" in seen.text
    seen = typed(console, ["snapshots"], ["a", "b", "c"], **other)
    assert seen.code == 6 and seen.text.count("cloudmount: error: ") == 1


def test_nobody_types_for_a_repository_that_is_not_there(console: Console, tmp_path: Path) -> None:
    environ = {"CLOUDMOUNT_PASSPHRASE": ""}
    seen = typed(console, ["snapshots"], CLOUDMOUNT_REPO=str(tmp_path / "none"), **environ)
    assert seen.code == 5 and "Passphrase" not in seen.text
    assert typed(console, ["init"], **environ).code == 8
    (tmp_path / "empty").mkdir()
    seen = typed(console, ["snapshots"], CLOUDMOUNT_REPO=str(tmp_path / "empty"), **environ)
    assert seen.code == 5 and "Passphrase" not in seen.text


def test_init_asks_twice_and_shows_numbered_words(console: Console, tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    answers = ["", "one", "other", "a good one", "a good one"]
    seen = typed(console, ["init"], answers, CLOUDMOUNT_REPO=new)
    assert seen.code == 0 and "good" not in seen.text.partition("Recovery")[0]
    shown = dict(re.findall(r"(\d+)\. ([a-z]+)", seen.plain))
    phrase = " ".join(shown[str(n)] for n in range(1, 25))
    for secret in (phrase, "a good one"):
        console.run("snapshots", CLOUDMOUNT_REPO=new, CLOUDMOUNT_PASSPHRASE=secret)
    told = console.run("init", CLOUDMOUNT_REPO=str(tmp_path / "third"), CLOUDMOUNT_PASSPHRASE="x").stdout
    assert len(re.findall(r"\d+\. [a-z]+", told)) == 24 and "paper" in told
    seen = typed(console, ["init"], ["a", "b"] * 3, CLOUDMOUNT_REPO=str(tmp_path / "fourth"))
    assert seen.code == 2 and not (tmp_path / "fourth").exists()


def test_ctrl_c_at_the_prompt(console: Console) -> None:
    seen = typed(console, ["snapshots"], ["\x03"])
    assert seen.code == 130 and seen.plain.endswith(": \ncloudmount: error: interrupted\n")


def test_a_bar_is_shown_and_gone(console: Console, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "disk.bin").write_bytes(os.urandom(12 << 20))
    (folder / "broken.vhdx").write_bytes(b"vhdxfile" + bytes(1 << 20))
    seen = typed(console, ["backup", "--name", "srv", str(folder), "--bandwidth", "6M"])
    assert seen.code == 9
    assert re.search(r"MiB of 13\.0 MiB  .*MiB/s", seen.plain) and "disk.bin" in seen.plain
    screen = seen.text.rpartition("\x1b[2K")[2]  # after the bar was wiped
    assert "srv/" in screen and "━" not in screen
    assert re.search(r"^cloudmount: .*broken\.vhdx: ", seen.plain, re.M)
    for arguments in (["--quiet"], []):
        seen = typed(console, ["backup", "--name", "srv", str(folder), *arguments], TERM="dumb")
        assert "\x1b" not in seen.text and "━" not in seen.text


def test_a_pipe_gets_no_bar_and_no_colour(console: Console, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(os.urandom(8 << 20))
    done = console.run("backup", "--name", "srv", str(tmp_path / "disk.raw"), "--bandwidth", "6M")
    assert "\x1b" not in done.stdout + done.stderr and done.stderr == ""


def test_names_can_not_command_the_terminal(console: Console, source: Path) -> None:
    for name in (b"red\x1b[31m", b"two\nlines", b"bad\xff utf-8", "rtl\u202egpj.exe".encode(), b"cr\rover"):
        (source / os.fsdecode(name)).touch()
    console.run("backup", "--name", "srv", str(source))
    seen = typed(console, ["ls", "srv:docs"])
    assert seen.code == 0 and "\x1b" not in seen.text and "\u202e" not in seen.text
    assert "red\\x1b[31m" in seen.text and "two\\nlines" in seen.text and "cr\\rover" in seen.text
    names = {e["name"] for e in console.json("ls", "srv:docs")}
    assert {"red\x1b[31m", "two\nlines", os.fsdecode(b"bad\xff utf-8"), "cr\rover"} <= names
    for locale in ("C", "C.UTF-8", "POSIX"):
        told = console.run("ls", "srv:docs/nosuch\x1b[31m\n", code=3, LC_ALL=locale)
        assert told.stderr.count("\n") == 1 and "\x1b" not in told.stderr
        ascii = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        assert {e["name"] for e in console.json("ls", "srv:docs", **ascii)} == names
        assert "red\\x1b" in console.run("ls", "srv:docs", **ascii).stdout
    told = console.run("backup", "--name", "srv", str(source), **ascii)
    assert {e["name"] for e in console.json("ls", "srv:docs")} == names
