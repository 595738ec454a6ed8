"""The drive through a real mount: what was backed up, as containers and files, on every mount the same."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from cloudmount.repo.names import SNAPSHOTS
from tests import needs
from tests.backup.lab import Lab, flip
from tests.disks.oracles import qemu_agrees, run
from tests.mounts.drivers import each_driver
from tests.mounts.mounting import within
from tests.tree.drives import MIB, mounted_drive, names, raw_disk, vhdx_disk

pytestmark = [pytest.mark.mount, each_driver]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab")


def _fails(number: int, path: Path) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
        path.read_bytes()
    assert caught.value.errno == number


def test_a_disk(lab: Lab, tmp_path: Path, driver: str) -> None:
    raw = vhdx_disk(tmp_path / "disk.vhdx")
    result = lab.backup(tmp_path / "disk.vhdx")
    with mounted_drive(lab, tmp_path / "drive", driver) as mount:
        assert names(mount.path) == ["srv"]
        machine = mount.path / "srv"
        assert names(machine) == sorted([result.key.folder, "latest"])
        assert os.readlink(machine / "latest") == result.key.folder
        at = machine / "latest"
        assert names(at) == ["disk", "disk.img", "disk.vhdx", "machine.json"]
        assert (at / "disk.img").read_bytes() == raw.read_bytes()
        told = json.loads((at / "machine.json").read_text())
        assert told["id"] == result.key.id
        assert told["machine"] == "srv"
        assert told["disks"][0]["size"] == 24 * MIB
        vhdx = at / "disk.vhdx"
        assert "No errors" in run("qemu-img", "check", "-f", "vhdx", vhdx)
        qemu_agrees(vhdx, "vhdx", raw)
        info = json.loads(run("qemu-img", "info", "--output=json", "-f", "vhdx", vhdx))
        assert info["virtual-size"] == 24 * MIB

        s = os.stat(vhdx)
        assert stat.S_ISREG(s.st_mode)
        assert s.st_mtime_ns == (tmp_path / "disk.vhdx").stat().st_mtime_ns
        assert len(vhdx.read_bytes()) == s.st_size
        s = os.stat(at / "disk.img")
        assert s.st_size == 24 * MIB
        assert 0 < s.st_blocks * 512 <= 24 * MIB
        for folder in (mount.path, machine, machine / result.key.folder):
            s = os.stat(folder)
            assert stat.S_ISDIR(s.st_mode)
            assert abs(s.st_mtime - time.time()) < 300, "a time that people understand"
        fs = os.statvfs(mount.path)
        assert fs.f_blocks * fs.f_frsize >= 24 * MIB
        assert fs.f_bavail == 0
        _fails(errno.ENOENT, machine / "none")
        _fails(errno.ENOENT, mount.path / "nobody" / "latest")
        _fails(errno.EISDIR, at)


def test_it_is_the_same_on_every_mount(lab: Lab, tmp_path: Path, driver: str) -> None:
    vhdx_disk(tmp_path / "disk.vhdx")
    result = lab.backup(tmp_path / "disk.vhdx")

    def look() -> tuple[str, list[tuple[int, int, int]]]:
        with mounted_drive(lab, tmp_path / "drive", driver) as mount:
            at = mount.path / "srv" / result.key.folder
            digest = hashlib.sha256((at / "disk.vhdx").read_bytes()).hexdigest()
            paths = [at / "disk.vhdx", at / "disk.img", at / "machine.json", at]
            return digest, [(s.st_ino, s.st_size, s.st_mtime_ns) for s in map(os.stat, paths)]

    assert look() == look()


def test_ordinary_files(lab: Lab, tmp_path: Path, driver: str) -> None:
    src = tmp_path / "src"
    (src / "sub" / "deep").mkdir(parents=True)
    (src / "empty").touch()
    (src / "small").write_bytes(b"small")
    (src / "sub" / "large").write_bytes(os.urandom(3 * MIB + 17))
    os.link(src / "small", src / "sub" / "same")
    os.symlink("../small", src / "sub" / "link")
    os.symlink("/nowhere/\udcff", src / "dangling")
    (src / "odd \udcff\n name").write_bytes(b"odd")
    os.mkfifo(src / "pipe")
    with (src / "sparse").open("wb") as f:
        f.truncate(40 * MIB)
        f.seek(17 * MIB)
        f.write(b"here")
    (src / "small").chmod(0o4750)
    if needs.IS_ROOT:
        os.chown(src / "small", 1234, 2345)
    os.utime(src / "small", ns=(1, 1_500_000_000_123_456_789))
    os.utime(src / "sub", ns=(1, 1_400_000_000_000_000_001))
    lab.backup(src)
    with mounted_drive(lab, tmp_path / "drive", driver) as mount:
        at = mount.path / "srv" / "latest" / "src"
        seen = 0
        for folder, dirs, files in os.walk(src):  # of the source: see `mounting`
            there = at / os.path.relpath(folder, src)
            assert names(there) == sorted(dirs + files)
            for name in dirs + files:
                mine, its = there / name, Path(folder, name)
                a, b = os.lstat(mine), os.lstat(its)
                seen += 1
                assert (a.st_uid, a.st_gid, a.st_mtime_ns) == (b.st_uid, b.st_gid, b.st_mtime_ns)
                if stat.S_ISFIFO(b.st_mode):
                    assert stat.S_ISREG(a.st_mode)
                    assert mine.read_bytes() == b""
                    continue
                assert stat.S_IFMT(a.st_mode) == stat.S_IFMT(b.st_mode)
                if its.is_symlink():
                    assert os.readlink(mine) == os.readlink(its)
                    continue
                assert a.st_mode == b.st_mode
                if its.is_file():
                    assert a.st_size == b.st_size
                    assert mine.read_bytes() == its.read_bytes()
        assert seen == 11
        one, two = os.stat(at / "small"), os.stat(at / "sub" / "same")
        assert one.st_ino == two.st_ino
        assert os.stat(at / "sub" / "link").st_ino == one.st_ino
        found = subprocess.run(["find", at, "-type", "f"], capture_output=True, check=True).stdout
        assert found.count(b"\n") == 7 + 1  # one name has a newline
        copied = tmp_path / "copied"
        subprocess.run(["cp", "-a", at, copied], check=True)
        assert (
            subprocess.run(
                ["diff", "-r", "--no-dereference", "-x", "pipe", src, copied], check=False
            ).returncode
            == 0
        )


def test_names_that_meet(lab: Lab, tmp_path: Path, driver: str) -> None:
    src = tmp_path / "src"
    src.mkdir()
    raw = vhdx_disk(src / "a.vhdx")
    raw.unlink()
    (src / "a.img").write_bytes(b"not a disk at all")
    (tmp_path / "other").mkdir()
    first, second = raw_disk(tmp_path / "d.img", seed=1), raw_disk(tmp_path / "other" / "d.img", seed=2)
    (tmp_path / "machine.json").write_text("mine")
    lab.backup(src, first, second, tmp_path / "machine.json")
    with mounted_drive(lab, tmp_path / "drive", driver) as mount:
        at = mount.path / "srv" / "latest"
        assert names(at) == [
            "d", "d-2", "d-2.img", "d-2.vhdx", "d.img", "d.vhdx", "machine-2.json", "machine.json", "src",
        ]  # fmt: skip
        assert (at / "machine-2.json").read_text() == "mine"
        assert (at / "d.img").read_bytes() == first.read_bytes()
        assert (at / "d-2.img").read_bytes() == second.read_bytes()
        qemu_agrees(at / "d-2.vhdx", "vhdx", second)
        assert names(at / "src") == ["a-2", "a-2.img", "a-2.vhdx", "a.img"]
        assert (at / "src" / "a.img").read_bytes() == b"not a disk at all"


def test_snapshots_of_one_second(
    lab: Lab, tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    now = time.time()
    monkeypatch.setattr("cloudmount.backup.run.clock.time", lambda: now)
    keys = []
    for content in ("one", "two", "three"):
        file.write_text(content)
        keys.append(lab.backup(file).key)
    folder = keys[0].folder
    with mounted_drive(lab, tmp_path / "drive", driver) as mount:
        at = mount.path / "srv"
        assert names(at) == sorted([folder, f"{folder}-2", f"{folder}-3", "latest"])
        assert (at / folder / "file").read_text() == "one"
        assert (at / f"{folder}-2" / "file").read_text() == "two"
        assert os.readlink(at / "latest") == f"{folder}-3"


def test_a_second_snapshot_appears(lab: Lab, tmp_path: Path, driver: str) -> None:
    raw = raw_disk(tmp_path / "disk.img")
    before = raw.read_bytes()
    first = lab.backup(raw)
    with mounted_drive(lab, tmp_path / "drive", driver) as mount:
        at = mount.path / "srv"
        with (at / "latest" / "disk.img").open("rb", buffering=0) as held:
            assert held.read(4096) == before[:4096]
            with raw.open("r+b") as f:
                f.seek(4 * MIB)
                f.write(b"changed" * 1000)
            time.sleep(1.1 - time.time() % 1)
            second = lab.backup(raw, force_read=True)
            assert second.key.folder != first.key.folder
            assert within(6, lambda: os.readlink(at / "latest") == second.key.folder)
            assert names(at) == sorted([first.key.folder, second.key.folder, "latest"])
            assert (at / "latest" / "disk.img").read_bytes() == raw.read_bytes()
            assert (at / first.key.folder / "disk.img").read_bytes() == before
            held.seek(4 * MIB)
            assert held.read(4096) == before[4 * MIB : 4 * MIB + 4096]
        lab.backup(raw, machine="other")
        assert within(3, (mount.path / "other" / "latest" / "disk.img").exists)
        assert within(20, lambda: names(mount.path) == ["other", "srv"])


def test_a_damaged_snapshot(lab: Lab, tmp_path: Path, driver: str) -> None:
    file = tmp_path / "file"
    keys = []
    for content in ("one", "two", "three"):
        file.write_text(content)
        time.sleep(1.1 - time.time() % 1)  # each in a second of its own: its folder's name is its time
        keys.append(lab.backup(file).key)
    store = lab.store
    name = keys[2].name(lab.repository.keys.tag("srv"))
    assert name.startswith(SNAPSHOTS)
    flip(store, name, 8 * 200 + 3)  # type: ignore[arg-type]  # a MemoryStore
    with mounted_drive(lab, tmp_path / "drive", driver) as mount:
        at = mount.path / "srv"
        listed = names(at)
        assert len(listed) == 4
        damaged = listed[2]
        _fails(errno.EIO, at / damaged / "file")
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(at / damaged)
        assert (at / "latest" / "file").read_text() == "two"
        assert (at / "latest" / "machine.json").exists()
    assert any("next newest" in t for t in lab.told)


def test_a_damaged_frame(lab: Lab, tmp_path: Path, driver: str) -> None:
    raw = raw_disk(tmp_path / "disk.img")
    (tmp_path / "file").write_bytes(b"fine" * 1000)
    lab.backup(raw, tmp_path / "file")
    content = raw.read_bytes()
    packs = sorted(n for n in lab.store.objects if n.startswith("packs/"))  # type: ignore[attr-defined]
    flip(lab.store, packs[0], 8 * 3000)  # type: ignore[arg-type]  # a MemoryStore
    with mounted_drive(lab, tmp_path / "drive", driver) as mount:
        at = mount.path / "srv" / "latest"
        failed = 0
        with (at / "disk.img").open("rb", buffering=0) as f:
            for offset in range(0, len(content), 4096):
                try:
                    got = os.pread(f.fileno(), 4096, offset)
                except OSError:
                    failed += 1
                else:
                    assert got == content[offset : offset + 4096]
        assert failed == 1, "that frame, and no other"
