"""What differs between systems. Windows' side is held against Python's own `ntpath`; not run on Windows."""

from __future__ import annotations

import io
import ntpath
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount import system, winnames
from cloudmount.app.places import cache_folder, state_folder

NAMES = st.text(
    st.one_of(
        st.sampled_from('ab. :\\/?*<>|"~\x00\x1f\udcff\ud83d$'),
        st.characters(max_codepoint=0x2FF),
    ),
    max_size=12,
)
WINDOWS_PATHS = st.builds(
    lambda root, parts, sep: root + sep.join(parts),
    st.sampled_from(["", "C:\\", "c:/", "\\\\server\\share\\", "\\", "x\\", "..\\", "D:"]),
    st.lists(st.one_of(st.sampled_from(["a", "..", ".", "long " * 30, "ü"]), st.just("b c")), max_size=12),
    st.sampled_from(["\\", "/"]),
)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided by the system's name is decided as on Windows; `os` stays that of this system."""
    monkeypatch.setattr(system, "WINDOWS", True)


@given(NAMES)
def test_a_name_that_windows_takes_stays_one_file_in_its_folder(name: str) -> None:
    if system.windows_refuses(name) is not None:
        return
    whole = ntpath.join("C:\\target", name)
    assert ntpath.split(whole) == ("C:\\target", name)  # no other drive, folder or stream
    assert ntpath.normpath(whole) == whole and ":" not in name
    assert name == name.rstrip(". ") and name.encode("utf-16-le").decode("utf-16-le") == name


@pytest.mark.parametrize(
    "name",
    ["con", "NUL", "nul.txt", "Aux .log", "COM1", "com¹.x", "LPT9", "CONIN$", "prn.", "a:b", "..\\x", "C:x",
     "a ", "a.", "", "..", "tab\t", "\udcff", "x" * 256, "\U0001f600" * 128],
)  # fmt: skip
def test_names_that_windows_can_not_hold(name: str) -> None:
    assert system.windows_refuses(name) is not None


@pytest.mark.parametrize("name", ["console", "null", "com10", "a.con", "x" * 255, "Übung 1.QBW", ".git"])
def test_names_that_it_can(name: str) -> None:
    assert system.windows_refuses(name) is None


@given(NAMES)
def test_what_windows_can_not_hold_is_called_as_on_the_drive(name: str) -> None:
    shown = system.windows_name(name)
    if shown is None:
        assert system.windows_refuses(name) is not None
        return
    assert system.windows_refuses(shown) is None
    assert shown == (name if system.windows_refuses(name) is None else winnames.escape(name))


def test_below_a_target_only_windows_is_asked(windows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.refused("docs/plan.docx") is None and system.held("docs/plan.docx") == "docs/plan.docx"
    assert system.held("docs/..\\..\\evil") == "docs/..\uf05c..\uf05cevil"
    assert system.held("aux/a:b") == "\uf061ux/a\uf03ab"
    assert system.refused("aux/plan") is None and system.refused("docs/../plan") is not None
    assert system.held("docs/" + "x" * 256) is None and system.refused("docs/" + "x" * 256) is not None
    monkeypatch.setattr(system, "WINDOWS", False)
    assert system.refused("docs/a:b") is None and system.held("docs/a:b") == "docs/a:b"


@given(WINDOWS_PATHS)
def test_long_paths_mean_the_same_and_are_shown_as_before(path: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "WINDOWS", True)
        patch.setattr(system.os.path, "abspath", _absolute)
        long = system.long_path(path)
        assert long.startswith("\\\\?\\") and system.long_path(long) == long
        assert "/" not in long and ".." not in long.split("\\")  # the system takes it as it is
        assert system.shown_path(f"no room at {long}") == f"no room at {_absolute(path)}"
        short = system.opened_path(path)
        assert short == (path if len(_absolute(path)) < 240 else long)


def _absolute(path: str) -> str:
    """`ntpath.abspath` with a folder to stand in."""
    drive, rest = ntpath.splitdrive(path)
    if not drive and rest.startswith(("\\", "/")):
        path = "C:" + path
    elif not ntpath.isabs(path):
        path = ntpath.join((drive or "C:") + "\\here", rest)
    return ntpath.normpath(path)


def test_elsewhere_paths_and_names_stay_as_they_are() -> None:
    for text in ("a/b", "\\\\?\\x", "C:\\x", "\udcff"):
        assert system.long_path(text) == system.opened_path(text) == system.shown_path(text) == text
        assert system.typed_path(text) == system.stored_name(text) == text


@given(st.text(st.characters(codec="utf-16-le", exclude_categories=()), max_size=8))
def test_every_name_that_windows_lists_can_be_kept(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "WINDOWS", True)
        kept = system.stored_name(name)
    raw = system.name_bytes(kept)
    assert raw.decode("utf-8", "surrogateescape") == kept
    assert raw.decode("utf-8", "surrogatepass") == name  # nothing of it is lost


@pytest.mark.parametrize(
    ("text", "here"),
    [("C:\\x", True), ("c:/x", True), ("C:", True), ("\\\\srv\\share", True), ("srv:docs/x", False),
     ("srv/latest:x", False), ("C:docs", False)],
)  # fmt: skip
def test_what_looks_like_a_path_of_windows(text: str, here: bool) -> None:
    assert system.means_this_computer(text) is here


def test_where_windows_keeps_things(windows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.os.path, "isabs", ntpath.isabs)
    own = {"LOCALAPPDATA": r"C:\Users\me\AppData\Local", "PROGRAMDATA": r"C:\ProgramData"}
    service = {**own, "LOCALAPPDATA": r"C:\Windows\System32\config\systemprofile\AppData\Local"}
    assert system.kept_below("XDG_CACHE_HOME", ".cache", own) == own["LOCALAPPDATA"]
    assert system.kept_below("XDG_CACHE_HOME", ".cache", service) == own["PROGRAMDATA"]
    assert system.kept_below("XDG_CACHE_HOME", ".cache", {**own, "XDG_CACHE_HOME": "D:\\c"}) == "D:\\c"
    assert system.kept_below("XDG_CACHE_HOME", ".cache", {**own, "XDG_CACHE_HOME": "c"}) != "c"


def test_where_linux_keeps_them() -> None:
    home = Path(os.path.expanduser("~"))
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == home / ".cache" / "cloudmount"
    assert state_folder({"XDG_STATE_HOME": "/state"}) == Path("/state/cloudmount")


@given(st.text(max_size=20))
def test_nothing_shown_on_a_console_of_code_page_1252_raises(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "WINDOWS", True)
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="cp1252", newline="")
        encoding, errors = system.stream_encoding(stream)
    assert encoding == "cp1252"
    stream.reconfigure(encoding=encoding, errors=errors)
    stream.write(text + "\udcff日")
    stream.flush()
    assert raw.getvalue().endswith(b"\\udcff\\u65e5")


def test_texts_as_editors_of_windows_write_them(windows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for codec in ("utf-8", "utf-8-sig", "utf-16"):
        assert system.text_of_file("Paßwort\r\n".encode(codec)) == "Paßwort\r\n"
    random_key = b"\xff\xfe" + bytes(range(1, 29))
    assert system.text_of_file(random_key) == random_key.decode("utf-8", "surrogateescape")
    monkeypatch.setattr(system, "WINDOWS", False)
    marked = "x".encode("utf-16")
    assert system.text_of_file(marked) == marked.decode("utf-8", "surrogateescape")


def test_positioned_reads_and_writes_without_such_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many threads on one descriptor: nobody gets another's bytes."""
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "pwrite")
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | system.OPEN)
    wrong: list[int] = []

    def work(n: int) -> None:
        for at in range(n * 100, n * 100 + 100):
            system.pwrite(fd, bytes([n]) * 8, at * 8)
            if system.pread(fd, 8, at * 8) != bytes([n]) * 8:
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    os.close(fd)
    assert not wrong and (tmp_path / "file").read_bytes() == b"".join(bytes([n]) * 800 for n in range(8))


def test_a_process_is_told_by_its_start() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert system.process_start(os.getpid()) > 0
        assert system.process_start(child.pid) >= system.process_start(os.getpid())
    finally:
        child.kill()
        child.wait(60)
        assert child.stdin is not None
        child.stdin.close()
    assert system.process_start(child.pid) == 0 and system.process_start(2**31 - 1) == 0


def test_signals_that_end_a_command() -> None:
    assert system.ENDING == (signal.SIGINT, signal.SIGTERM) and system.KILL == signal.SIGKILL
