"""Parsers' processes: what they may do, and what their crashes, hangs and lies cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudmount.disks.raw import RawDisk
from cloudmount.errors import CloudMountError, StoreTimeoutError, UnreadableInputError
from cloudmount.extents import BlockSource
from cloudmount.guest import children as processes
from cloudmount.guest.children import Children
from cloudmount.guest.volume import KeptFolders, Volume
from tests.guest.images import MIB, make_ext
from tests.mounts.mounting import outside, within
from tests.trees.memory_tree import Watched


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ext4 volume with 20 files."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "source").mkdir()
    for n in range(20):
        (folder / "source" / f"f{n}").write_bytes(bytes([n]) * 100_000)
    return make_ext(folder / "e.img", 16 * MIB, folder / "source")


@pytest.fixture
def pool() -> Iterator[Callable[..., Children]]:
    made: list[Children] = []

    def make(**options: float) -> Children:
        made.append(Children(**options))  # type: ignore[arg-type]  # tests give what it takes
        return made[-1]

    yield make
    for one in made:
        one.close()


def volume(children: Children, image: Path, source: BlockSource | None = None) -> Volume:
    return Volume(children, source or RawDisk(image), "ext4", "e.img")


def read(opened: Volume, name: str = "f7") -> bytes:
    entry = opened.lookup((), opened.root, name)
    assert entry is not None
    return opened.open(entry).read_at(0, entry.size)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_what_a_child_has(pool: Callable[..., Children], image: Path) -> None:
    """No environment, no descriptor but its pipes, no more memory; on Linux few system calls."""
    os.environ["CLOUDMOUNT_PASSPHRASE"] = "not for children"
    try:
        children = pool()
        opened = volume(children, image)
        assert opened.confined() is (sys.platform == "linux")
        (pid,) = children.pids()
        proc = Path(f"/proc/{pid}")
        assert proc.joinpath("environ").read_bytes() == b"TZ=UTC\0"
        assert b"not for children" not in proc.joinpath("cmdline").read_bytes()
        targets = {os.readlink(f) for f in proc.joinpath("fd").iterdir()}
        assert sum(t.startswith("pipe:") for t in targets) == 2
        assert targets - {t for t in targets if t.startswith("pipe:")} == {os.devnull}
        status = proc.joinpath("status").read_text()
        assert "Seccomp:\t2" in status
        limits = proc.joinpath("limits").read_text()
        for line in (
            "Max open files            0",
            "Max file size             0",
            "Max processes             0",
        ):
            assert line in limits
        opened.close()
    finally:
        del os.environ["CLOUDMOUNT_PASSPHRASE"]


_CONFINED = """
import os, socket, signal, sys, subprocess, ctypes
from cloudmount.guest import confine
assert confine.confine()
def refused(what):
    try:
        what()
    except (OSError, MemoryError):
        return
    os.write(1, b"allowed: " + what.__name__.encode())
    os._exit(1)
def files(): open("/etc/passwd")
def write(): open("/tmp/x", "w")
def net(): socket.socket()
def pair(): socket.socketpair()
def fork(): os.fork()
def run(): os.execv("/bin/true", ["true"])
def hurt(): os.kill(os.getppid(), signal.SIGTERM)
def memory(): bytearray(1 << 30)
def others():
    import resource
    resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))
for what in (files, write, net, pair, fork, run, hurt, memory, others): refused(what)
trace = ctypes.CDLL(None, use_errno=True).ptrace
assert trace(16, os.getppid(), 0, 0) == -1
os.write(1, b"fine")
"""


def test_what_a_child_may_do() -> None:
    assert outside(_CONFINED) == "fine"


def test_a_call_has_its_processor_time() -> None:
    script = (
        "from cloudmount.guest import confine; confine.CALL_SECONDS = 1\n"
        "confine.confine(); confine.begin_call()\nwhile True: pass\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == -signal.SIGXCPU
    assert time.monotonic() - began < 30


def test_a_crash_costs_one_error(pool: Callable[..., Children], image: Path) -> None:
    children = pool()
    opened = volume(children, image)
    expected = bytes([7]) * 100_000
    assert read(opened) == expected
    (pid,) = children.pids()
    os.kill(pid, signal.SIGSEGV)
    assert within(5, lambda: gone(pid))
    with pytest.raises(UnreadableInputError, match=r"e\.img: its parser crashed \(signal 11\)"):
        read(opened)
    assert read(opened) == expected
    assert children.started == 2
    opened.close()


def test_a_crash_in_the_middle(pool: Callable[..., Children], image: Path) -> None:
    children = pool()
    killed: list[int] = []

    def before(offset: int, length: int) -> None:
        if offset > MIB and not killed:
            killed.extend(children.pids())
            os.kill(killed[0], signal.SIGKILL)

    opened = volume(children, image, Watched(RawDisk(image), before))
    with pytest.raises(UnreadableInputError, match="its parser crashed"):
        read(opened)
    assert killed and read(opened) == bytes([7]) * 100_000
    opened.close()


def test_a_hang_costs_one_error(pool: Callable[..., Children], image: Path) -> None:
    children = pool()
    opened = volume(children, image)
    assert opened.root == 2
    children._thinking = 0.6  # not before: on a busy machine a start may take as long
    (pid,) = children.pids()
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(UnreadableInputError, match=r"it said nothing for 0\.6 s"):
        read(opened)
    assert time.monotonic() - began < 30
    assert gone(pid)
    children._thinking = 40
    assert read(opened) == bytes([7]) * 100_000
    opened.close()


def test_a_slow_store_is_not_a_hang(pool: Callable[..., Children], image: Path) -> None:
    children = pool()
    slow: list[float] = []
    opened = volume(
        children, image, Watched(RawDisk(image), lambda *_: time.sleep(slow.pop() if slow else 0))
    )
    assert opened.root == 2
    children._thinking = 3.0
    slow.append(4.0)
    assert read(opened) == bytes([7]) * 100_000
    assert children.started == 1
    opened.close()


def test_a_failed_read_is_told_as_it_is(pool: Callable[..., Children], image: Path) -> None:
    """The store's error, not the parser's; and a parser that met one is not used again."""
    children = pool()
    bad = threading.Event()

    def before(offset: int, length: int) -> None:
        if bad.is_set():
            raise StoreTimeoutError("silent")

    opened = volume(children, image, Watched(RawDisk(image), before))
    assert opened.root == 2
    bad.set()
    for _ in range(2):
        with pytest.raises(StoreTimeoutError, match="silent"):
            read(opened)
    bad.clear()
    assert read(opened) == bytes([7]) * 100_000
    assert children.started == 3
    opened.close()


@pytest.mark.parametrize(
    "lie",
    [
        "os.write(1, b'X' * 5)",
        "os.write(1, b'V' + struct.pack('<I', 1 << 31))",
        "os.write(1, b'V' + struct.pack('<I', 4) + b'nope')",
        "os.write(1, b'V' + struct.pack('<I', 2) + b'[]')",
        "os.write(1, b'V' + struct.pack('<I', 40000) + b'[' * 40000)",
        "os.write(1, b'F' + struct.pack('<I', 2) + b'[]')",
        "os.write(1, b'B' + struct.pack('<I', 2) + b'[]')",
        "os.write(1, b'A' + struct.pack('<IQI', 12, 1 << 40, 10))",
        "os.write(1, b'A' + struct.pack('<IQI', 12, 0, 1 << 30))",
        "os.write(1, b'A' + struct.pack('<I', 3) + b'abc')",
        "os.write(1, b'E' + struct.pack('<I', 5) + b'abcde')",
        "[os.write(1, b'A' + struct.pack('<IQI', 12, 0, 1)) for _ in range(100000)]",
        "os._exit(3)",
        "os.close(1); time.sleep(60)",
    ],
)
def test_lies(pool: Callable[..., Children], image: Path, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a child that was taken over says: an error, soon, and nothing else."""
    monkeypatch.setattr(
        processes, "_START", f"import os, struct, sys, time; os.read(0, 99); {lie}; time.sleep(60)"
    )
    monkeypatch.setattr(processes, "MOST_BYTES", 4 << 20)
    children = pool(thinking=20)
    opened = volume(children, image)
    began = time.monotonic()
    with pytest.raises(UnreadableInputError, match=r"e\.img"):
        assert opened.root
    assert time.monotonic() - began < 18
    opened.close()


def test_entries_that_are_none(pool: Callable[..., Children], image: Path) -> None:
    """A listing's every field is looked at."""
    from cloudmount.guest.entries import entries
    from cloudmount.guest.wire import BrokenFrameError

    good = ["a", 5, "file", 1, 2, 3, 0o644, 1, None, None, None, None]
    assert entries([good], 0, "x")["a"].size == 1
    for at, values in enumerate([
        (None, 5), (-1, 1.5, "5", None, True, 1 << 70), ("pipe", None, []), (-1, 1 << 63, 0.5), (-1, "x"),
        (1 << 70, None), (0o10000, -1), (0, None), ("x", -1), ("x", -1),
        ("x", 5, ["volume"], ["volume", "/x"]), (5,),
    ]):  # fmt: skip
        for value in values:
            with pytest.raises(BrokenFrameError):
                entries([[*good[:at], value, *good[at + 1 :]]], 0, "x")
    for told in (None, {}, [1], [good[:-1]], [[*good, 1]], "abc"):
        with pytest.raises(BrokenFrameError):
            entries(told, 0, "x")
    for name in ("", ".", "..", "a/b", "nul\0", "\ud800", "x" * 1025):
        assert entries([[name, *good[1:]], good], 0, "x").keys() == {"a"}


def test_bounded_and_right_from_many_threads(pool: Callable[..., Children], image: Path) -> None:
    children = pool(most=3, each=2)
    volumes = [volume(children, image) for _ in range(5)]
    most = 0

    def work(n: int) -> None:
        nonlocal most
        opened = volumes[n % 5]
        assert read(opened, f"f{n % 20}") == bytes([n % 20]) * 100_000
        most = max(most, len(children.pids()))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(60)))
    assert 2 <= most <= 3
    for opened in volumes:
        opened.close()


def test_folders_kept_are_bounded(pool: Callable[..., Children], image: Path) -> None:
    kept, children = KeptFolders(30), pool()
    volumes = [Volume(children, RawDisk(image), "ext4", str(n), kept) for n in range(3)]
    for opened in [*volumes, volumes[0]]:
        assert len(opened.folder((), opened.root)) == 21
        assert kept.get(opened, opened.root) is not None, "the last one is kept, however large"
        assert sum(kept.get(v, v.root) is not None for v in volumes) == 1
    kept.clear()
    assert kept.get(volumes[0], volumes[0].root) is None
    for opened in volumes:
        opened.close()


def test_idle_ones_end(pool: Callable[..., Children], image: Path) -> None:
    children = pool(idle=0.3)
    opened = volume(children, image)
    assert opened.root == 2
    (pid,) = children.pids()
    assert within(5, lambda: not children.pids() and gone(pid))
    assert read(opened) == bytes([7]) * 100_000
    opened.close()


def test_the_end(pool: Callable[..., Children], image: Path) -> None:
    """Closing ends calls at work too, and nothing is started after it."""
    children = pool()
    waits, go = threading.Event(), threading.Event()

    def before(offset: int, length: int) -> None:
        waits.set()
        go.wait(20)

    opened = volume(children, image, Watched(RawDisk(image), before))
    failed: list[BaseException] = []

    def call() -> None:
        try:
            read(opened)
        except CloudMountError as error:
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert waits.wait(10)
    pids = children.pids()
    children.close()
    go.set()
    thread.join(10)
    assert failed and "reading has ended" in str(failed[0])
    assert all(within(5, lambda pid=pid: gone(pid)) for pid in pids)  # type: ignore[misc]  # bound now
    with pytest.raises(CloudMountError, match="reading has ended"):
        read(opened)
    opened.close()


_PARENT = """
import sys, time
from pathlib import Path
from cloudmount.disks.raw import RawDisk
from cloudmount.guest.children import Children
from cloudmount.guest.volume import Volume
children = Children()
opened = Volume(children, RawDisk(Path(sys.argv[1])), "ext4", "x")
opened.root
print(*children.pids(), flush=True)
time.sleep(60)
"""


def test_children_end_with_their_parent(image: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, image], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 1
        assert not gone(pids[0])
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
    assert within(5, lambda: gone(pids[0]))


_SPINS = """
import sys; sys.path[:] = sys.argv[3:]
from cloudmount.guest import confine, ext, worker
confine.CALL_SECONDS = 1
sound = ext.ExtVolume.read
def read(self, number, offset, length):
    while self._inode(number).size == 99:
        pass
    return sound(self, number, offset, length)
ext.ExtVolume.read = read
worker.main(sys.argv[1], int(sys.argv[2]))
"""


def test_what_makes_a_parser_spin_is_tried_once(
    pool: Callable[..., Children], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails at once from then on, and nothing else does."""
    monkeypatch.setattr(processes, "_START", _SPINS)
    (tmp_path / "source").mkdir()
    for name, length in (("bad", 99), ("good", 98)):
        (tmp_path / "source" / name).write_bytes(name.encode() * 25)
        os.truncate(tmp_path / "source" / name, length)
    children = pool(thinking=300)  # a second of processor time may take long
    opened = volume(children, make_ext(tmp_path / "e.img", 4 * MIB, tmp_path / "source"))
    with pytest.raises(UnreadableInputError, match="one call took too much processor time"):
        read(opened, "bad")
    started = children.started
    for _ in range(20):
        with pytest.raises(UnreadableInputError, match="too much processor time; it is not tried again"):
            read(opened, "bad")
    assert children.started <= started + 1  # its name is looked up by another one
    assert len(read(opened, "good")) == 98
    opened.close()


def test_silence_counts_the_second_time(pool: Callable[..., Children], image: Path) -> None:
    """A machine that slept makes parsers silent once."""
    children = pool()
    opened = volume(children, image)
    entry = opened.lookup((), opened.root, "f7")
    assert entry is not None
    children._thinking = 0.6
    for _ in range(2):
        (pid,) = children.pids()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(UnreadableInputError, match=r"said nothing for 0\.6 s$"):
            opened.read(entry.number, 0, 10)
        children._thinking = 40
        assert opened.root == 2
        assert opened.lookup((), opened.root, "f8") is not None
        children._thinking = 0.6
    with pytest.raises(UnreadableInputError, match="twice; it is not tried again"):
        opened.read(entry.number, 0, 10)
    opened.close()
