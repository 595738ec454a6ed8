"""A drive letter's life and manners, through winfspy and the double: what Explorer, the driver and a dead
link do to it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloudmount.errors import CloudMountError, StoreTimeoutError, TargetExistsError
from cloudmount.extents import BlockSource, Bytes
from cloudmount.mounts import ntstatus, winfsp_driver
from cloudmount.mounts.driver import DriveOptions
from cloudmount.mounts.winfsp_driver import THREADS, WinFspDrive, account_sid, descriptor
from cloudmount.nodes import Attr, Node
from tests.mounts.mounting import within
from tests.mounts.winfsp.bindings import winfspy_here
from tests.mounts.winfsp.machine import Machine
from tests.mounts.winfsp.mounting import Letters, Mounted, windows
from tests.mounts.winfsp.structures import READ, READ_ATTRIBUTES, NtError, rights
from tests.mounts.winfsp.test_winfsp_conformance import refused
from tests.mounts.winfsp.volume import CREATE, DIRECTORY_FILE, NAME_INVALID, NON_DIRECTORY_FILE
from tests.trees.calls import MIB, Gate
from tests.trees.memory_tree import MemoryDir, MemoryFile, MemoryLink, Pattern, Watched


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Letters]:
    with windows(tmp_path, monkeypatch) as letters:
        yield letters


def time_out(mounted: Mounted) -> None:
    """What is at work has taken too long: as when its time has passed, of which `test_bounded` makes sure."""
    for call in list(mounted.drive._bounded._calls):
        call.give_up(StoreTimeoutError("no answer within 240 s"))


# What Explorer and scanners do


def test_what_explorer_asks_for(letters: Letters, caplog: pytest.LogCaptureFixture) -> None:
    volume = letters.mount(
        MemoryDir(
            {"srv": MemoryDir({"latest": MemoryLink("one"), "one": MemoryDir({"a.txt": MemoryFile(b"a")})})}
        )
    ).volume
    missing = ntstatus.OBJECT_NAME_NOT_FOUND
    for probe in ("\\desktop.ini", "\\AutoRun.inf", "\\srv\\latest\\Thumbs.db", "\\srv\\folder.jpg"):
        refused(missing, lambda p=probe: volume.open(p))
        refused(missing, lambda p=probe: volume.open(p, READ_ATTRIBUTES))
    refused(ntstatus.OBJECT_PATH_NOT_FOUND, lambda: volume.open("\\srv\\latest\\a.txt\\desktop.ini"))
    for stream in ("\\srv\\one\\a.txt:Zone.Identifier", "\\srv:stream:$DATA", "\\*", "\\srv\\?"):
        refused(NAME_INVALID, lambda s=stream: volume.open(s))
    root = volume.open("\\")
    assert [n for n, _ in volume.list(root)] == ["srv"], "no . and .. in the root"
    assert [n for n, _ in volume.list(root, "SRV")] == ["srv"], "in the case that it has"
    assert [n for n, _ in volume.list(root, "desktop.ini")] == []
    folder = volume.open("\\SRV\\Latest\\")
    assert [n for n, _ in volume.list(folder)] == [".", "..", "a.txt"]
    assert [n for n, _ in volume.list(folder, "A*.TXT")] == ["a.txt"]
    assert [n for n, _ in volume.list(folder, "*.doc")] == []
    assert dict(volume.list(folder))["."].index == volume.info("\\srv\\one").index
    assert dict(volume.list(folder))[".."].index == volume.info("\\srv").index
    refused(ntstatus.NOT_A_DIRECTORY, lambda: volume.open("\\srv\\one\\a.txt", options=DIRECTORY_FILE))
    refused(ntstatus.FILE_IS_A_DIRECTORY, lambda: volume.open("\\srv", options=NON_DIRECTORY_FILE))
    for user_mode in (False, True):
        refused(
            ntstatus.NOT_A_DIRECTORY,
            lambda u=user_mode: volume.open("\\srv\\one\\a.txt", options=DIRECTORY_FILE, user_mode=u),
        )
    volume.close(folder)
    volume.close(root)
    assert "Unhandled" not in caplog.text


def test_what_was_opened_is_told_in_its_own_case(letters: Letters) -> None:
    names = ("Plan.Docx", "Örtlich ß", "ſ")
    tree = MemoryDir({name: MemoryFile(name.encode()) for name in names})
    volume = letters.mount(MemoryDir({"srv": MemoryDir({"One": tree, "latest": MemoryLink("One")})})).volume
    for asked, told in (
        ("\\", "\\"),
        ("\\SRV", "\\srv"),
        ("\\SRV\\LATEST\\plan.docx", "\\srv\\latest\\Plan.Docx"),
        ("\\srv\\one\\Örtlich ß", "\\srv\\One\\Örtlich ß"),
        ("\\srv\\one\\örtlich ß", "\\SRV\\ONE\\ÖRTLICH ß"),
        ("\\srv\\one\\ſ", "\\srv\\One\\ſ"),
        ("\\srv\\one\\S", "\\SRV\\ONE\\S"),
    ):
        file = volume.open(asked)
        assert file.node.name == told
        volume.close(file)


def test_long_paths(letters: Letters) -> None:
    tree: Node = MemoryFile(b"deep")
    for _ in range(4):
        tree = MemoryDir({"n" * 250: tree})  # type: ignore[dict-item]  # a Node either way
    volume = letters.mount(MemoryDir({"r": tree})).volume
    path = "\\r" + ("\\" + "n" * 250) * 4
    assert len(path) > 1000
    assert volume.info(path.upper()).size == 4
    refused(NAME_INVALID, lambda: volume.open(path + "\\" + "x" * 20))


def test_a_file_that_is_looked_at_only_is_not_opened(letters: Letters) -> None:
    file = MemoryFile(b"content")
    volume = letters.mount(MemoryDir({"f": file})).volume
    opened = volume.open("\\f", READ_ATTRIBUTES)
    assert volume.file_info(opened).size == 7
    assert file.opens == 0
    assert volume.read(opened, 0, 512) == b"content", "a paging read needs no right of the handle's"
    assert file.opens == 1
    volume.close(opened)


# Reads


def test_reads_past_the_end_and_over_it(letters: Letters) -> None:
    volume = letters.mount(MemoryDir({"f": MemoryFile(b"x" * 1000), "empty": MemoryFile(b"")})).volume
    file = volume.open("\\f")
    assert volume.read(file, 512, 512) == b"x" * 488
    assert volume.read(file, 1024, 512) == volume.read(file, 1 << 50, 512) == b""
    assert volume.read_cached(file, 0, 5000) == b"x" * 1000
    volume.close(file)
    file = volume.open("\\empty")
    assert volume.read_cached(file, 0, 10) == b""
    volume.close(file)
    folder = volume.open("\\")
    refused(ntstatus.FILE_IS_A_DIRECTORY, lambda: volume._read(folder, 0, 512))
    volume.close(folder)


@pytest.mark.parametrize("wrong", [b"", b"y" * 511, b"y" * 2000, b"y" * 9000])
def test_a_source_that_gives_another_length_is_an_error(letters: Letters, wrong: bytes) -> None:
    """winfspy would copy whatever it is given, beyond the driver's buffer."""

    class Wrong(Bytes):
        def read_at(self, offset: int, length: int) -> bytes:
            return wrong

    class Shorter(MemoryFile):
        def open(self) -> BlockSource:
            return Bytes(b"short")

    root = MemoryDir({"f": MemoryFile(Wrong(bytes(4096))), "s": Shorter(bytes(4096))})
    volume = letters.mount(root).volume
    for path in ("\\f", "\\s"):
        file = volume.open(path)
        refused(ntstatus.UNEXPECTED_IO_ERROR, lambda file=file: volume.read(file, 0, 512))
        volume.close(file)


def test_as_many_threads_as_were_asked_for(letters: Letters) -> None:
    gate = Gate()
    files = {f"f{i}": MemoryFile(Watched(Pattern(MIB, i), gate)) for i in range(THREADS)}
    volume = letters.mount(MemoryDir(dict(files))).volume
    assert volume.guard is None, "opens that hang must not hold up others"
    opened = [volume.open(f"\\f{i}") for i in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        reads = [pool.submit(volume.read, file, 4096 * i, 4096) for i, file in enumerate(opened)]
        try:
            assert within(60, lambda: gate.waiting == THREADS)
        finally:
            gate.open.set()
        for i, read in enumerate(reads):
            assert read.result(60) == Pattern(MIB, i).read_at(4096 * i, 4096)
    for file in opened:
        volume.close(file)


def test_an_open_that_hangs_holds_up_nobody(letters: Letters) -> None:
    gate = Gate()

    class Hangs(MemoryFile):
        def open(self) -> BlockSource:
            gate(0, 0)
            return super().open()

    volume = letters.mount(MemoryDir({"f": Hangs(b"f"), "g": MemoryFile(b"g")})).volume
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(volume.open, "\\f")
        try:
            assert within(60, lambda: gate.waiting == 1)
            refused(ntstatus.MEDIA_WRITE_PROTECTED, lambda: volume.open("\\new", disposition=CREATE))
            file = volume.open("\\g")
            assert volume.read(file, 0, 512) == b"g"
            volume.close(file)
            assert not opening.done()
        finally:
            gate.open.set()
        volume.close(opening.result(60))


def test_a_read_is_answered_before_winfsp_gives_up(letters: Letters) -> None:
    gate = Gate()
    source = Watched(Pattern(MIB), gate)
    closed: list[Watched] = []

    class Kept(MemoryFile):
        def open(self) -> BlockSource:
            closed.append(source.again())
            return closed[-1]

    mounted = letters.mount(MemoryDir({"f": Kept(source), "g": MemoryFile(b"g")}))
    volume = mounted.volume
    file = volume.open("\\f")
    try:
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(volume.read, file, 0, 512)
            assert within(60, lambda: gate.waiting == 1)
            time_out(mounted)
            refused(ntstatus.IO_TIMEOUT, lambda: reading.result(60))
        volume.close(file)
        assert volume.info("\\g").size == 1
        assert closed[0].closed == 0, "a read is still at work in it"
    finally:
        gate.open.set()
    assert within(60, lambda: closed[0].closed == 1)


def test_a_late_open_is_closed(letters: Letters) -> None:
    gate = Gate()
    sources: list[Watched] = []

    class Late(MemoryFile):
        def open(self) -> BlockSource:
            time_out(mounted)
            gate(0, 0)
            sources.append(Watched(self.source, lambda *_: None))
            return sources[-1]

    mounted = letters.mount(MemoryDir({"f": Late(b"late")}))
    try:
        refused(ntstatus.IO_TIMEOUT, lambda: mounted.volume.open("\\f"))
    finally:
        gate.open.set()
    assert within(60, lambda: [s.closed for s in sources] == [1])


# The end


def test_it_ends_with_reads_in_flight(letters: Letters) -> None:
    gate = Gate()
    mounted = letters.mount(MemoryDir({"f": MemoryFile(Watched(Pattern(MIB), gate))}))
    volume = mounted.volume
    files = [volume.open("\\f") for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        reads = [pool.submit(volume.read, file, 0, 4096) for file in files]
        try:
            assert within(60, lambda: gate.waiting == 16)
            assert within(60, lambda: mounted.drive.waiting(0.01) == 16)
            mounted.end()
            for read in reads:
                refused(ntstatus.CANCELLED, lambda read=read: read.result(60))
        finally:
            gate.open.set()
    assert not letters.machine.volumes


def test_it_ends_before_it_ever_answered(letters: Letters) -> None:
    gate = Gate()

    class Silent(MemoryDir):
        def attr(self) -> Attr:
            if threading.current_thread().name.startswith("cloudmount-winfsp"):
                gate(0, 0)
            return super().attr()

    drive = WinFspDrive(Silent(), "X:", DriveOptions())
    running = threading.Thread(target=drive.run)
    running.start()
    try:
        assert within(60, lambda: gate.waiting == 1)
        drive.unmount()
        running.join(60)
        assert not running.is_alive()
        assert not drive.up.is_set()
    finally:
        gate.open.set()


def test_what_is_left_open_is_closed_at_the_end(letters: Letters) -> None:
    sources: list[Watched] = []

    class Counted(MemoryFile):
        def open(self) -> BlockSource:
            sources.append(Watched(self.source, lambda *_: None))
            return sources[-1]

    mounted = letters.mount(MemoryDir({"f": Counted(b"f")}))
    for _ in range(3):
        mounted.volume.open("\\f")
    mounted.end()
    assert [s.closed for s in sources] == [1, 1, 1]


def test_winfsp_itself_ends_it(letters: Letters) -> None:
    mounted = letters.mount(MemoryDir())
    mounted.volume.result = 0xC000026E  # its driver was unloaded
    mounted.thread.join(60)
    assert not mounted.thread.is_alive()
    assert "WinFsp ended the drive at X: (NTSTATUS 0xc000026e)" in str(mounted.failure)


# The beginning


def test_the_letter_is_seen_by_services(letters: Letters) -> None:
    letters.mount(MemoryDir(), letter="Q:")
    assert letters.machine.session_letters == set()
    with pytest.raises(TargetExistsError, match="C: is in use already; choose another letter"):
        letters.mount(MemoryDir(), letter="C:")
    assert len(letters.machine.volumes) == 1


def test_without_an_administrator_it_is_told_who_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with windows(tmp_path, monkeypatch, Machine(admin=False)) as letters:
        mounted = letters.mount(MemoryDir({"f": MemoryFile(b"f")}), letter="Q:")
        assert letters.machine.session_letters == {"Q:"}
        assert mounted.volume.info("\\f").size == 1
    assert "this logon session only" in caplog.text


@pytest.mark.parametrize("version", [(1, 12), (2, 0), (2, 1)])
def test_an_old_winfsp_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    with windows(tmp_path, monkeypatch, Machine(version=version)) as letters:
        with pytest.raises(CloudMountError, match=r"known holes .*CVE-2026-7162.*2\.2 Beta 2"):
            letters.mount(MemoryDir())


def test_without_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.driver_there = False
    with windows(tmp_path, monkeypatch, machine) as letters:
        with pytest.raises(CloudMountError, match=r"WinFsp makes no volume: .*STATUS_NO_SUCH_DEVICE"):
            letters.mount(MemoryDir())


def test_without_winfspy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "winfspy", None)
    with pytest.raises(CloudMountError, match=r"winfspy, which there is for Python 3\.11 and older"):
        WinFspDrive(MemoryDir(), "X:", DriveOptions())


def test_without_winfsp(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "winfspy":
                raise RuntimeError("The WinFsp library path is not provided")

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(CloudMountError, match=r"needs WinFsp, 2\.2 Beta 2 or later .*not provided"):
        WinFspDrive(MemoryDir(), "X:", DriveOptions())


def test_the_descriptor_lives_as_long_as_the_drive(letters: Letters) -> None:
    mounted = letters.mount(MemoryDir({"f": MemoryFile(b"f")}))
    assert mounted.drive._descriptor.handle not in letters.machine.lib.freed
    mounted.end()


def test_who_may() -> None:
    text = descriptor(None, everyone=False)
    assert text == "O:BAG:BAD:P(A;;FRFX;;;SY)(A;;FRFX;;;BA)(A;;FRFX;;;S-1-5-83-0)(A;;FRFX;;;OW)"
    assert not rights(text, frozenset({"BA", "OW"})) & ~(READ | 0x1200A0)
    assert descriptor("S-1-5-21-7", everyone=True).endswith("(A;;FRFX;;;S-1-5-21-7)(A;;FRFX;;;AU)")
    assert descriptor("SY", everyone=False).count("SY") == 1


@pytest.mark.parametrize(
    ("output", "sid"),
    [
        (b'"pc\\anna","S-1-5-21-3979-6268-1884-1001"\r\n', "S-1-5-21-3979-6268-1884-1001"),
        (b'"nt authority\\system","S-1-5-18"\r\n', "S-1-5-18"), (b"", None), (b"ERROR: denied", None),
        (b'"x","S-1-5-18;;;WD)(A;;FA"', None),
    ],
)  # fmt: skip
def test_whose_account(output: bytes, sid: str | None) -> None:
    assert account_sid(lambda *_, **__: SimpleNamespace(stdout=output)) == sid


def test_an_account_that_is_not_told() -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("whoami", 10)

    assert account_sid(fails) is None


def test_this_system_has_no_winfspy() -> None:
    """What the tests put there is taken away again."""
    assert "winfspy" not in sys.modules and "winreg" not in sys.modules
    assert winfsp_driver.NOTICE.startswith(
        "WinFsp - Windows File System Proxy, Copyright (C) Bill Zissimopoulos"
    )


def test_a_timeout_of_the_store_is_told_as_one(letters: Letters) -> None:
    def silent(offset: int, length: int) -> None:
        raise StoreTimeoutError("the store is silent")

    volume = letters.mount(MemoryDir({"f": MemoryFile(Watched(Pattern(MIB), silent))})).volume
    file = volume.open("\\f")
    refused(ntstatus.IO_TIMEOUT, lambda: volume.read(file, 0, 512))
    volume.close(file)


def test_the_double_notices_a_guard(tmp_path: Path) -> None:
    """That a create waits for opens that hang, and then holds up others, were it there."""
    from tests.mounts.winfsp.machine import Guard

    guard, entered = Guard(), threading.Event()
    with guard.shared():
        creator = threading.Thread(target=lambda: guard.enter(exclusive=True))
        creator.start()
        assert within(60, lambda: guard._waiting == 1)
        late = threading.Thread(target=lambda: (guard.enter(exclusive=False), entered.set()))
        late.start()
        assert not entered.is_set()
    creator.join(60)
    assert not entered.is_set()
    guard.leave(exclusive=True)
    assert entered.wait(60)
    late.join(60)
    with winfspy_here(Machine(), tmp_path / "w") as winfspy, pytest.raises(ValueError, match="operations"):
        winfspy.FileSystem("X:", object())
    with pytest.raises(NtError):
        Machine().volume("X:")
