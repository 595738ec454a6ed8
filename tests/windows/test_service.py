"""A Windows service against a double of the service manager, DPAPI and access control. Not run on Windows."""

from __future__ import annotations

import ctypes
import dataclasses
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmount import __version__
from cloudmount.app import winservice
from cloudmount.app.service import Wanted
from cloudmount.app.winservice import (
    command_line,
    drive_of,
    install,
    remove,
    run,
    service_name,
    starts,
    status,
)
from cloudmount.errors import (
    CloudMountError,
    NotFoundError,
    TargetExistsError,
    UsageError,
    WrongPassphraseError,
)
from cloudmount.service import changes, notify, winmain
from cloudmount.service import winapi as w
from tests.service.conftest import PASSPHRASE
from tests.windows.double import Kept, Windows


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Windows:
    """A Windows without services."""
    monkeypatch.setattr(notify, "_listeners", [])
    (tmp_path / "ProgramData").mkdir()
    return Windows()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """What an administrator's prompt has."""
    return {
        "PROGRAMDATA": str(tmp_path / "ProgramData"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


@pytest.fixture
def wanted(repository: Path) -> Wanted:
    """A drive X: with an option."""
    return Wanted(str(repository), PASSPHRASE, "X:", ["--hydrate-to=C:\\vms"])


def silent(line: str | float) -> None:
    """Remarks, and waiting, that don't matter here."""


def there(environ: dict[str, str]) -> set[str]:
    """What lies in %PROGRAMDATA%."""
    root = Path(environ["PROGRAMDATA"])
    return {p.relative_to(root).as_posix() for p in root.rglob("*")}


def test_structures_are_as_large_as_windows_has_them() -> None:
    """On 64 bits: winsvc.h, dpapi.h, minwinbase.h."""
    sizes = {
        w.ServiceStatus: 28, w.Description: 8, w.Action: 8, w.FailureActions: 40, w.Flag: 4, w.TableEntry: 16,
        w.Blob: 16, w.SecurityAttributes: 24,
    }  # fmt: skip
    assert {kind: ctypes.sizeof(kind) for kind in sizes} == sizes
    assert w.FailureActions.lpsaActions.offset == 32 and w.Blob.pbData.offset == 8


def test_from_install_to_remove(wanted: Wanted, computer: Windows, environ: dict[str, str]) -> None:
    made = install(wanted, silent, environ, computer.dlls, silent)
    assert (made.unit, made.credentials) == ("cloudmount-X", "dpapi")
    kept = computer.services["cloudmount-X"]
    assert kept.command == command_line("cloudmount-X") and "X:" in kept.display and kept.description
    assert kept.actions == [(1, 30_000)] * 3 and kept.reset == 86_400 and kept.flags == {3: 1, 4: 1}
    assert kept.state == w.RUNNING and computer.settled()
    data = Path(environ["PROGRAMDATA"])
    assert computer.private == dict.fromkeys(
        (str(data / "cloudmount"), str(data / "cloudmount/services")),
        "O:BAG:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)",
    )
    everything = b"".join(p.read_bytes() for p in data.rglob("*") if p.is_file())
    assert PASSPHRASE.encode() not in everything
    assert not any(PASSPHRASE in word or wanted.address in word for word in computer.words)
    (told,) = status(None, environ, computer.dlls)
    assert (told.state, told.mounted, told.mountpoint, told.kind) == ("running", True, "X:", "windows")
    with pytest.raises(TargetExistsError):
        install(wanted, silent, environ, computer.dlls, silent)
    assert remove("\\\\.\\x:", silent, environ, computer.dlls, silent).unit == "cloudmount-X"
    assert not computer.services and computer.settled() and there(environ) == {"cloudmount"}
    with pytest.raises(NotFoundError):
        remove("X:", silent, environ, computer.dlls, silent)


@pytest.mark.parametrize(
    "call",
    ["CreateServiceW", "ChangeServiceConfig2W", "StartServiceW", "QueryServiceStatus", "CryptProtectData"],
)
def test_a_call_that_fails_leaves_nothing(
    wanted: Wanted, computer: Windows, environ: dict[str, str], call: str
) -> None:
    computer.fails[call] = 5
    with pytest.raises(CloudMountError, match="administrator"):
        install(wanted, silent, environ, computer.dlls, silent)
    assert computer.settled()
    if call == "QueryServiceStatus":  # nor could it be seen to end
        assert not [p for p in there(environ) if p.endswith((".json", ".credentials"))]
    else:
        assert not computer.services and there(environ) == {"cloudmount"}


@pytest.mark.parametrize("call", ["OpenSCManagerW", "ConvertStringSecurityDescriptorToSecurityDescriptorW",
                                  "CreateDirectoryW"])  # fmt: skip
def test_without_rights_nothing_is_begun(
    wanted: Wanted, computer: Windows, environ: dict[str, str], call: str
) -> None:
    computer.fails[call] = 5
    with pytest.raises(CloudMountError, match="administrator"):
        install(wanted, silent, environ, computer.dlls, silent)
    assert not computer.services and computer.settled() and there(environ) <= {"cloudmount"}


def test_a_folder_that_somebody_made_before_becomes_private(
    wanted: Wanted, computer: Windows, environ: dict[str, str]
) -> None:
    folder = Path(environ["PROGRAMDATA"]) / "cloudmount"
    folder.mkdir()
    install(wanted, silent, environ, computer.dlls, silent)
    assert computer.private[str(folder)] == w.PRIVATE


def test_a_service_that_does_not_come_up_is_taken_away(
    wanted: Wanted, computer: Windows, environ: dict[str, str]
) -> None:
    computer.starts_as = (w.STOPPED, 5)
    with pytest.raises(CloudMountError, match=r"code 5.*mount\.log"):
        install(wanted, silent, environ, computer.dlls, silent)
    assert not computer.services and there(environ) == {"cloudmount"}


def test_somebody_else_s_service_and_wrong_use_change_nothing(
    wanted: Wanted, computer: Windows, environ: dict[str, str]
) -> None:
    computer.services["cloudmount-X"] = other = Kept("other.exe", "other")
    with pytest.raises(TargetExistsError):
        install(wanted, silent, environ, computer.dlls, silent)
    assert computer.services == {"cloudmount-X": other} and there(environ) == {"cloudmount"}
    with pytest.raises(WrongPassphraseError):
        install(dataclasses.replace(wanted, passphrase="x"), silent, environ, computer.dlls, silent)
    for wrong in ({"line": "add"}, {"keep": "systemd"}, {"root": Path("/x")}):
        with pytest.raises(UsageError):
            install(dataclasses.replace(wanted, **wrong), silent, environ, computer.dlls, silent)  # type: ignore[arg-type]  # of three kinds
    with pytest.raises(CloudMountError, match="PROGRAMDATA"):
        status(None, {}, computer.dlls)


def test_after_a_power_cut_remove_clears_what_is_there(
    wanted: Wanted, computer: Windows, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    computer.fails["CreateServiceW"] = 5
    with monkeypatch.context() as patch:
        patch.setattr(changes.Changes, "__exit__", lambda *_: None)
        with pytest.raises(CloudMountError):
            install(wanted, silent, environ, computer.dlls, silent)
    (told,) = status("X:", environ, computer.dlls)
    assert told.state.startswith("half installed") and not told.mounted
    remove("X:", silent, environ, computer.dlls, silent)
    assert there(environ) == {"cloudmount"}


class Running:
    """A service's process: its main thread is one of ours, which `stop` asks."""

    def __init__(self, computer: Windows, code: int = 0, *, hangs: bool = False) -> None:
        self.asked, self.died = threading.Event(), threading.Event()
        self.service = winmain.Service("cloudmount-X", computer.dlls)
        self._code, self._hangs = code, hangs

    def work(self) -> int:
        """A drive: up, until it is asked to end."""
        self.service.ready()
        assert self.asked.wait(60)
        if self._hangs:
            assert self.died.wait(60)
        return self._code


def test_states_from_start_to_stop(computer: Windows) -> None:
    running = Running(computer)
    stopping = threading.Thread(target=_stop_when_up, args=(computer,), daemon=True)
    stopping.start()
    assert running.service.serve(running.work, running.asked.set, lambda code: None) == 0
    stopping.join(60)
    assert computer.told[0] == (w.START_PENDING, 0, 0, 0)
    assert [state for state, *_ in computer.told[1:]] == [w.RUNNING, w.RUNNING, w.STOP_PENDING, w.STOPPED]
    assert computer.told[1][1] == w.ACCEPT_STOP | w.ACCEPT_SHUTDOWN
    assert computer.told[-1][1:] == (0, 0, 0)


def _stop_when_up(computer: Windows) -> None:
    for _ in range(6000):
        if w.RUNNING in [state for state, *_ in computer.told]:
            break
        threading.Event().wait(0.01)
    assert computer.handler(w.INTERROGATE, 0, None, None) == 0
    assert computer.handler(0x80, 0, None, None) == 120  # a control that it does not know
    assert computer.handler(w.STOP, 0, None, None) == 0
    assert computer.handler(w.STOP, 0, None, None) == 0  # asked twice: told once


def test_what_hangs_is_ended(computer: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    assert winmain.STOP_SECONDS < 5
    monkeypatch.setattr(winmain, "STOP_SECONDS", 0.05)
    running = Running(computer, hangs=True)
    stopping = threading.Thread(target=_stop_when_up, args=(computer,), daemon=True)
    stopping.start()
    running.service.serve(running.work, running.asked.set, lambda code: running.died.set())
    stopping.join(60)
    assert running.died.is_set()
    assert [state for state, *_ in computer.told].count(w.STOPPED) == 1


@pytest.mark.parametrize(("code", "told"), [(5, (1066, 5)), (1, (1066, 1)), (2, (0, 0)), (6, (0, 0))])
def test_which_ends_windows_starts_it_again_after(
    computer: Windows, code: int, told: tuple[int, int]
) -> None:
    service = winmain.Service("cloudmount-X", computer.dlls)
    assert service.serve(lambda: code, lambda: None, lambda code: None) == code
    assert computer.told[-1] == (w.STOPPED, 0, *told)


def test_a_work_that_raises_has_failed(computer: Windows) -> None:
    service = winmain.Service("cloudmount-X", computer.dlls)

    def work() -> int:
        raise NotFoundError("no record")

    with pytest.raises(NotFoundError):
        service.serve(work, lambda: None, lambda code: None)
    assert computer.told[-1] == (w.STOPPED, 0, 1066, 1)


def test_only_the_service_manager_starts_it(computer: Windows) -> None:
    computer.is_service = False
    with pytest.raises(CloudMountError, match="1063"):
        winmain.Service("cloudmount-X", computer.dlls).serve(lambda: 0, lambda: None, lambda code: None)


def test_the_process_mounts_with_the_credentials_of_the_install(
    wanted: Wanted, computer: Windows, environ: dict[str, str]
) -> None:
    install(wanted, silent, environ, computer.dlls, silent)
    seen: list[tuple[list[str], dict[str, str]]] = []

    def mount(arguments: Sequence[str], variables: dict[str, str]) -> int:
        seen.append((list(arguments), variables))
        notify.ready()
        return 0

    assert run("cloudmount-X", mount, environ, computer.dlls) == 0
    assert seen == [
        (
            ["--hydrate-to=C:\\vms", "--", "X:"],
            {"CLOUDMOUNT_REPO": wanted.address, "CLOUDMOUNT_PASSPHRASE": PASSPHRASE},
        )
    ]
    assert [state for state, *_ in computer.told] == [w.START_PENDING, w.RUNNING, w.STOPPED]
    (Path(environ["PROGRAMDATA"]) / "cloudmount/services/cloudmount-X.credentials").write_bytes(b"changed")
    with pytest.raises(CloudMountError, match="error 13"):
        run("cloudmount-X", mount, environ, Windows().dlls)


def test_stopping_reaches_the_main_thread() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        asking = threading.Thread(target=winmain.ask_main_thread_to_end)
        asking.start()
        asking.join(60)
        for _ in range(6000):
            if got:
                break
            threading.Event().wait(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]


def test_what_windows_starts_is_this_program() -> None:
    """Without this virtual environment's own python, which would start another process."""
    words = starts("cloudmount-X")
    assert words[-3:] == ["service", "manager", "cloudmount-X"]
    done = subprocess.run([*words[:-3], "--version"], capture_output=True, timeout=60, check=True, text=True)
    assert __version__ in done.stdout
    assert command_line("cloudmount-X").endswith(" service manager cloudmount-X")


@given(st.text(min_size=1, max_size=30))
def test_every_mount_point_has_a_name_that_windows_takes(folder: str) -> None:
    name = service_name(f"C:\\{folder}")
    assert (
        len(name) <= 256 and not set("/\\") & set(name) and name.isascii() and name.startswith("cloudmount-")
    )


@pytest.mark.parametrize("letter", ["x:", "X:\\", "\\\\.\\x:", "\\\\?\\X:"])
def test_a_letter_is_no_folder(letter: str) -> None:
    assert drive_of(letter) == letter and service_name(letter) == "cloudmount-X"
    assert drive_of("folder") != "folder" and winservice.service_name("C:\\a") == service_name("c:/A")
