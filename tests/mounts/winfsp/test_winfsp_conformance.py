"""The conformance suite of trees through winfspy and the double of WinFsp.

What means nothing on Windows (modes, links, `df`, signals) has a test of the same name here that says what
holds there instead.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cloudmount.errors import TargetExistsError
from cloudmount.mounts import ntstatus, winfsp_names
from cloudmount.mounts.driver import DriveOptions, Space
from cloudmount.nodes import Dir
from cloudmount.winnames import fold
from tests.mounts.mounting import within
from tests.mounts.winfsp.machine import DISMOUNTED
from tests.mounts.winfsp.mounting import ACCOUNT, Letters, Mounted, windows
from tests.mounts.winfsp.structures import EXECUTE, MAXIMUM_ALLOWED, READ, WRITE_DAC, NtError, rights
from tests.mounts.winfsp.volume import CREATE, OPEN_IF, OVERWRITE, OVERWRITE_IF, SUPERSEDE
from tests.mounts.winfsp.windows_os import EPOCH, DrivePath, WindowsOs
from tests.trees import calls, conformance, conformance_life
from tests.trees.calls import MIB, TIB, Gate
from tests.trees.conformance import TreeConformance
from tests.trees.conformance_life import TreeLifeConformance
from tests.trees.memory_tree import WHEN, MemoryDir, MemoryFile, MemoryLink, Pattern, Watched

Mount = Any
"""As `calls.Mount`, for drives of the double."""


class TestWinfsp(TreeConformance, TreeLifeConformance):
    @pytest.fixture
    def letters(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Letters]:
        with windows(tmp_path, monkeypatch) as letters:
            yield letters

    @pytest.fixture
    def mount(self, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> Mount:  # type: ignore[override]
        system = WindowsOs()
        for module in (calls, conformance, conformance_life):
            monkeypatch.setattr(module, "os", system)
        for module in (conformance, conformance_life):
            monkeypatch.setattr(module, "content", lambda path: content(system, path))

        def mount(root: Dir, options: DriveOptions | None = None, path: DrivePath | None = None) -> Mounted:
            at = None if path is None else next(m.letter for m in made if m.path == path)
            made.append(letters.mount(root, options, at))
            return made[-1]

        made: list[Mounted] = []
        return mount

    # Attributes

    def test_attributes(self, mount: Mount) -> None:
        """No modes, no owners: everything may be read, nothing written. Nothing looks sparse."""
        inode = (1 << 62) + 12345
        volume = mount(
            MemoryDir({
                "file": MemoryFile(b"x" * 5000, mode=0o4751, uid=1234, gid=2345, inode=inode, allocated=1536),
                "ancient": MemoryFile(b"", mtime_ns=-(10**9) * 86400 * 365 * 500),
                "old": MemoryFile(b"", mtime_ns=-(10**9) * 86400 * 365 + 700),
                "new": MemoryFile(b"", mtime_ns=(1 << 33) * 10**9 + 999_999_900),
                "folder": MemoryDir(mode=0o700),
                "link": MemoryLink("nowhere"),
            })
        ).path.volume  # fmt: skip
        file = volume.info("\\file")
        assert file.attributes == 0x2001, "read-only, not for the index of Windows Search; not sparse"
        assert (file.size, file.allocation, file.index) == (5000, 8192, inode)
        assert file.write == file.creation == file.access == file.change == WHEN // 100 + EPOCH
        assert volume.info("\\ancient").write == 0
        assert volume.info("\\old").write == -(10**7) * 86400 * 365 + 7 + EPOCH
        assert volume.info("\\new").write == (1 << 33) * 10**7 + 9_999_999 + EPOCH
        folder = volume.info("\\folder")
        assert (folder.attributes, folder.size, folder.allocation) == (0x2010, 0, 0)
        assert volume.info("").is_dir
        assert volume.info("\\link").size == len("nowhere")
        for missing, status in (
            ("\\missing", ntstatus.OBJECT_NAME_NOT_FOUND),
            ("\\missing\\below", ntstatus.OBJECT_PATH_NOT_FOUND),
            ("\\file\\below", ntstatus.OBJECT_PATH_NOT_FOUND),
        ):
            refused(status, lambda missing=missing: volume.info(missing))

    def test_64_tib(self, mount: Mount) -> None:
        pattern = Pattern(64 * TIB)
        volume = mount(MemoryDir({"f": MemoryFile(pattern, allocated=1 << 30)})).path.volume
        info = volume.info("\\f")
        assert info.size == info.allocation == 64 * TIB, "never smaller on disk than it is: that is sparse"
        file = volume.open("\\f")
        for offset in (0, 1 << 31, 1 << 32, (1 << 44) - 512, 64 * TIB - 4096):
            assert volume.read(file, offset, 4096) == pattern.read_at(offset, 4096)[: 64 * TIB - offset]
        assert volume.read(file, 64 * TIB, 512) == b""
        volume.close(file)

    # Reading

    def test_mmap(self, mount: Mount) -> None:
        """A mapped file is the cache's pages, which may be read when its handle is long closed."""
        pattern = Pattern(MIB + 123)
        volume = mount(MemoryDir({"f": MemoryFile(pattern)})).path.volume
        file = volume.open("\\f")
        assert volume.read_cached(file, 0, 10) == pattern.read_at(0, 10)
        volume.params["post_cleanup_when_modified_only"] = 0  # a driver that tells of each
        volume.cleanup(file)
        assert volume.read_cached(file, 0, 2 * MIB) == pattern.read_at(0, pattern.size)
        volume.close(file)

    def test_programs_run_from_it(self, mount: Mount) -> None:
        """An image is mapped from a handle that may execute."""
        volume = mount(MemoryDir({"run.exe": MemoryFile(b"MZ" + bytes(600))})).path.volume
        file = volume.open("\\run.exe", EXECUTE)
        assert volume.read_cached(file, 0, 2) == b"MZ"
        volume.close(file)

    # Names

    def test_odd_names(self, mount: Mount) -> None:
        """What Windows can't hold is escaped; what it compares as equal gets another name."""
        names = [
            "a\nnewline", "tab\t", " lead", "trail ", "dot.", "ä ö", "日本語", "\udcff\udc80 raw", "x" * 255,
            "é" * 127, "日" * 255, "-rf", "a\\b", "*?", "\x01\x7f", "...", "C:", "\U0001f600", "CON",
            "nul.txt", "com1", "\uf03a mine", "LPT¹.x",
        ]  # fmt: skip
        at = mount(MemoryDir({name: MemoryFile(os.fsencode(name)) for name in names})).path
        system = WindowsOs()
        assert sorted(system.listdir(at)) == sorted(names)
        for name in names:
            assert content(system, at / name) == os.fsencode(name)
        for _, shown in enumerate(e for e, _ in at.volume.list(at.volume.open("\\"))):
            assert at.volume.info("\\" + fold(shown)) == at.volume.info("\\" + shown)
        for missing in ("y" * 255, "y" * 256, "a:b", "x?"):
            with pytest.raises(NtError):
                at.volume.info("\\" + missing)

    def test_50000_names(self, mount: Mount) -> None:
        """5,000, through buffers of the size that the driver has and of one that holds few; by name too."""
        names = [f"file {i:06d}" for i in range(5000)]
        one = MemoryFile(b"x", inode=77)
        volume = mount(MemoryDir({"many": MemoryDir(dict.fromkeys(names, one))})).path.volume
        folder = volume.open("\\many")
        for _ in range(2):
            assert [n for n, _ in volume.list(folder)] == [".", "..", *names]
        volume.listing_buffer = 1024
        assert [n for n, _ in itertools.islice(volume.list(folder), 100)] == [".", "..", *names][:100]
        assert [n for n, _ in volume.list(folder, "FILE 004999")] == ["file 004999"]
        assert list(volume.list(folder, "file 005000")) == []
        assert [n for n, _ in volume.list(folder, "*99?")] == [n for n in names if n[-3:-1] == "99"]
        assert volume.info("\\many\\FILE 004999").index == 77
        volume.close(folder)

    def test_more_names_than_nodes_are_kept(self, mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
        """Folders whose names were dropped are asked for them again."""
        monkeypatch.setattr(winfsp_names, "KEPT_NAMES", 20)
        folders = {f"d{i}": MemoryDir({f"f{i}.{j}": MemoryFile(b"") for j in range(8)}) for i in range(8)}
        volume = mount(MemoryDir(dict(folders))).path.volume
        for _ in range(2):
            for i in range(8):
                assert volume.info(f"\\d{i}\\F{i}.7").size == 0

    def test_links(self, mount: Mount) -> None:
        """Followed where that can't lead round in circles; else a small file with the target."""
        root = MemoryDir({
            "d": MemoryDir({
                "t": MemoryFile(b"there"), "up": MemoryLink("../f"), "round": MemoryLink(".."),
                "self": MemoryLink("."), "out": MemoryLink("../../etc/passwd"), "deep": MemoryDir(),
            }),
            "f": MemoryFile(b"file"), "beside": MemoryLink("d"), "file": MemoryLink("d/t"),
            "twice": MemoryLink("file"), "loop": MemoryLink("loop"), "elsewhere": MemoryLink("d/deep"),
            "absolute": MemoryLink("/d/t"), "odd": MemoryLink("\udcff\n"), "folder/": MemoryLink("d"),
        })  # fmt: skip
        at = mount(root).path
        system = WindowsOs()
        assert sorted(system.listdir(at / "beside")) == sorted(system.listdir(at / "d"))
        assert content(system, at / "beside" / "t") == b"there"
        assert content(system, at / "file") == content(system, at / "twice") == b"there"
        assert content(system, at / "d" / "up") == content(system, at / "beside" / "up") == b"file"
        for name, target in (
            ("d/round", b".."), ("d/self", b"."), ("d/out", b"../../etc/passwd"), ("loop", b"loop"),
            ("elsewhere", b"d/deep"), ("absolute", b"/d/t"), ("odd", b"\xff\n"),
        ):  # fmt: skip
            assert content(system, at / name) == target
            assert at.volume.info((at / name).nt).size == len(target)
        assert {e.name for e in system.scandir(at) if e.info.is_dir} == {"d", "beside"}

    # Read-only

    def test_every_write_is_refused(self, mount: Mount) -> None:
        """Whatever a handle was granted, and whatever the kernel asks past all checks."""
        volume = mount(MemoryDir({"f": MemoryFile(b"f", mode=0o666), "d": MemoryDir(mode=0o777)})).path.volume
        protected = ntstatus.MEDIA_WRITE_PROTECTED
        for right in (0x2, 0x4, 0x10, 0x40, 0x100, 0x10000, 0x40000, 0x80000):
            for path in ("\\f", "\\d"):
                refused(ntstatus.ACCESS_DENIED, lambda p=path, r=right: volume.open(p, READ | r))
                refused(protected, lambda p=path, r=right: volume.open(p, READ | r, user_mode=False))
        refused(protected, lambda: volume.open("\\f", options=0x1000, user_mode=False))
        for disposition in (SUPERSEDE, OVERWRITE, OVERWRITE_IF):
            refused(ntstatus.ACCESS_DENIED, lambda d=disposition: volume.open("\\f", disposition=d))
        for disposition in (SUPERSEDE, CREATE, OPEN_IF, OVERWRITE_IF):
            refused(protected, lambda d=disposition: volume.open("\\new", disposition=d))
        refused(ntstatus.OBJECT_NAME_COLLISION, lambda: volume.open("\\d", disposition=CREATE))
        refused(ntstatus.OBJECT_PATH_NOT_FOUND, lambda: volume.open("\\no\\new", disposition=CREATE))
        volume.close(volume.open("\\f", disposition=OPEN_IF))
        ffi = volume.machine.ffi
        info, got, name = ffi.new("FSP_FSCTL_FILE_INFO*"), ffi.new("ULONG*"), ffi.new("WCHAR[]", "\\g")
        for path in ("\\f", "\\d"):
            file = volume.open(path)
            for call, *arguments in (
                ("Overwrite", 0, 0, 0, info), ("Write", b"x", 0, 1, 0, 0, got, info),
                ("SetBasicInfo", 0, 1, 1, 1, 1, info), ("SetFileSize", 0, 0, info), ("CanDelete", name),
                ("Rename", name, name, 1), ("SetSecurity", 4, ffi.NULL),
                ("SetReparsePoint", name, ffi.NULL, 0), ("DeleteReparsePoint", name, ffi.NULL, 0),
            ):  # fmt: skip
                given = [ffi.from_buffer(a) if isinstance(a, bytes) else a for a in arguments]
                assert volume.call(call, file, *given) == protected, call
            assert volume.call("Flush", file, info) == 0
            assert volume.call("GetReparsePoint", file, name, ffi.NULL, ffi.NULL) == 0xC0000275
            volume.close(file)
        assert volume.call_volume("SetVolumeLabel", name, ffi.new("FSP_FSCTL_VOLUME_INFO*")) == protected
        assert volume.call_volume("Flush", ffi.NULL, info) == 0, "of the whole volume"
        assert [n for n, _ in volume.list(volume.open("\\"))] == ["d", "f"]

    @pytest.mark.parametrize("allowed", [False, True])
    def test_other_users(self, mount: Mount, allowed: bool) -> None:
        """Who may read is one descriptor for all, whatever was backed up."""
        volume = mount(
            MemoryDir({"mine": MemoryFile(b"mine", mode=0o600, uid=0)}), DriveOptions(allow_other=allowed)
        ).path.volume
        file = volume.open("\\mine")
        text = volume.security(file)
        assert volume.security_by_name("\\mine")[1] == text
        volume.close(file)
        for who in ("SY", "BA", "S-1-5-83-0", ACCOUNT):
            assert rights(text, frozenset({who})) == READ | EXECUTE, who
            file = volume.open("\\mine", MAXIMUM_ALLOWED, token=frozenset({who}))
            assert not file.granted & WRITE_DAC, "not even for who owns it"
            volume.close(file)
        assert rights(text, frozenset({"AU", "WD", "BU"})) == (READ | EXECUTE if allowed else 0)
        if not allowed:
            refused(ntstatus.ACCESS_DENIED, lambda: volume.open("\\mine", token=frozenset({"AU"})))
        volume.security_buffer = 16  # the DLL tries again with what it was told
        assert volume.security_by_name("\\mine")[1] == text

    # What changes

    def test_latest_moves_under_a_reader(self, mount: Mount, caplog: pytest.LogCaptureFixture) -> None:
        """A path that is open stays what it was, for others who open it too: they share one cache."""
        latest = MemoryLink("one")
        volume = mount(
            MemoryDir({
                "one": MemoryDir({"f": MemoryFile(b"1" * 90000), "g": MemoryFile(b"1")}),
                "two": MemoryDir({"f": MemoryFile(b"2" * 99000), "g": MemoryFile(b"22")}),
                "latest": latest,
            })
        ).path.volume  # fmt: skip
        first = volume.open("\\latest\\f")
        assert volume.read_cached(first, 0, 1) == b"1"
        latest.to = "two"
        again = [volume.open(path) for path in ("\\latest\\f", "\\LATEST\\F")]
        for file in (first, *again):
            assert volume.file_info(file).size == 90000
            assert volume.read_cached(file, 80000, 10) == b"1" * 10
        assert caplog.text.count("stays what it was") == 1
        assert volume.info("\\latest\\g").size == 2, "what nobody has open is the new one"
        for file in (first, *again):
            volume.close(file)
        assert volume.info("\\latest\\f").size == 99000
        file = volume.open("\\latest\\f")
        assert volume.read_cached(file, 0, 99000) == b"2" * 99000
        volume.close(file)
        assert volume.mixed == []

    def test_df(self, mount: Mount) -> None:
        """One size, nothing free; and what the volume says of itself."""
        volume = mount(MemoryDir(inode=(7 << 32) + 9), DriveOptions(space=lambda: Space(5 * TIB + 1, 1234)))
        volume = volume.path.volume
        info = volume.machine.ffi.new("FSP_FSCTL_VOLUME_INFO*")
        assert volume.call_volume("GetVolumeInfo", info) == 0
        assert (info.TotalSize, info.FreeSize) == (5 * TIB + 4096, 0)
        label = volume.machine.ffi.unpack(info.VolumeLabel, info.VolumeLabelLength // 2)
        assert label == "CloudMount"
        params = volume.params
        assert (params["file_system_name"], params["prefix"], params["sector_size"]) == ("NTFS", "", 512)
        assert params["read_only_volume"] and not params["case_sensitive_search"]
        assert params["case_preserved_names"] and params["max_component_length"] == 255
        assert params["volume_serial_number"] == 9

    def test_a_killed_program_does_not_wait_for_its_read(self, mount: Mount) -> None:
        """It does: WinFsp takes no request back that is at work. But its handle closes, no other waits."""
        gate = Gate()
        source = Watched(Pattern(MIB), gate)
        volume = mount(MemoryDir({"f": MemoryFile(source), "g": MemoryFile(b"g")})).path.volume
        file = volume.open("\\f")
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(volume.read, file, 0, 4096)
            try:
                assert within(60, lambda: gate.waiting > 0)
                volume.cleanup(file)
                assert volume.info("\\g").size == 1
                assert not reading.done()
            finally:
                gate.open.set()
            assert reading.result(60) == Pattern(MIB).read_at(0, 4096)
        volume.close(file)

    def test_unmounted_under_load(self, mount: Mount) -> None:
        """Reads end with right bytes or an error, and none of WinFsp's threads is kept."""
        pattern = Pattern(64 * MIB)
        mounted = mount(MemoryDir({"f": MemoryFile(pattern)}))
        volume = mounted.volume
        going, wrong = threading.Semaphore(0), []

        def reader(number: int) -> int:
            rng = random.Random(number)
            while True:
                try:
                    file = volume.open("\\f")
                    for _ in range(16):
                        offset = rng.randrange(64 * 256) * 4096
                        if volume.read(file, offset, 4096) != pattern.read_at(offset, 4096):
                            wrong.append(offset)
                        going.release()
                    volume.close(file)
                except NtError as error:
                    return error.status

        with ThreadPoolExecutor(16) as pool:
            readers = [pool.submit(reader, i) for i in range(16)]
            for _ in range(64):
                assert going.acquire(timeout=60)
            mounted.end()
            assert {r.result(60) for r in readers} <= {ntstatus.CANCELLED, DISMOUNTED}
        assert not wrong

    def test_the_next_drive_at_the_same_path_stays(self, mount: Mount) -> None:
        """A letter is free when its drive has ended, whatever was open; then it is another volume's."""
        first = mount(MemoryDir({"f": MemoryFile(b"first")}))
        file = first.volume.open("\\f")
        with pytest.raises(TargetExistsError, match="in use"):
            mount(MemoryDir(), path=first.path)
        first.end()
        second = mount(MemoryDir({"f": MemoryFile(b"second")}), path=first.path)
        first.volume.close(file)
        assert second.volume.info("\\f").size == 6
        assert first.volume is not second.volume


def refused(status: int, call: Callable[[], object]) -> None:
    """`call` ends with exactly this NTSTATUS."""
    with pytest.raises(NtError) as caught:
        call()
    assert hex(caught.value.status) == hex(status)


def content(system: WindowsOs, path: DrivePath) -> bytes:
    """The whole file."""
    fd = system.open(path, os.O_RDONLY)
    try:
        return system.pread(fd, system.lseek(fd, 0, os.SEEK_END) + 1, 0)
    finally:
        system.close(fd)
