"""Files inside disks, on the drive: what the guest had; and nothing is read before it is asked for."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from cloudmount.blobs.counting import CountingStore
from cloudmount.nodes import Kind
from tests.backup.lab import Lab
from tests.disks.partition_writer import LINUX, boot_record, write_gpt
from tests.guest.images import MIB, make_ext
from tests.guest.seen import theirs
from tests.mounts.drivers import DRIVERS, each_driver
from tests.mounts.mounting import mounted
from tests.tree.drives import drive, mounted_drive, names, node, raw_disk, read
from tests.tree.guest_disk import guest_disk
from tests.trees.contract import check_shown, check_tree

LEFT = ("lost+found", "link", "out", "same")
FOLDERS = [
    "1-EFI",
    "2-Microsoft reserved partition",
    "3-root",
    "4-A_B_ DATA",
    "5-Secret_",
    "6-Linux filesystem",
]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab")


@each_driver
@pytest.mark.mount
def test_a_disk_of_everything(lab: Lab, tmp_path: Path, driver: str) -> None:
    disk, folders = guest_disk(tmp_path)
    lab.backup(disk)
    with mounted_drive(lab, tmp_path / "drive", driver) as mount:
        at = mount.path / "srv" / "latest"
        assert names(at) == ["disk", "disk.img", "disk.vhdx", "machine.json"]
        assert names(at / "disk") == FOLDERS
        for name, source in folders.items():
            # By a program of its own: `os.walk` holds the interpreter's lock (see `mounting`).
            done = subprocess.run(
                ["diff", "-r", "--no-dereference", *(f"-x{name}" for name in LEFT),
                 source, at / "disk" / name], capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[:2000]
        root, data = at / "disk" / "3-root", at / "disk" / "4-A_B_ DATA"
        assert os.readlink(root / "link") == "Users/Public"
        assert names(root / "link") == names(root / "Users" / "Public")
        assert os.readlink(root / "out").startswith("leads out of this volume")
        with pytest.raises(FileNotFoundError):
            os.stat(root / "out")
        for volume in (root, data):
            one, two = os.stat(volume / "large.bin"), os.stat(volume / "empty" / "same")
            assert one.st_ino == two.st_ino
            assert one.st_nlink == 2
        assert os.stat(data / "USERS" / "public").st_ino == os.stat(data / "Users" / "Public").st_ino
        with pytest.raises(FileNotFoundError):
            os.stat(root / "users")
        assert (
            (at / "disk" / "5-Secret_" / "UNSUPPORTED.txt").read_text().startswith("Partition 5: BitLocker")
        )
        assert "cloudmount restore" in (at / "disk" / "6-Linux filesystem" / "UNSUPPORTED.txt").read_text()
        assert (data / "large.bin").read_bytes() == (folders["4-A_B_ DATA"] / "large.bin").read_bytes()


def test_the_contract_of_trees(lab: Lab, tmp_path: Path) -> None:
    """Also with 4096-byte sectors; and the same inodes the next time."""
    disk, folders = guest_disk(tmp_path, sector=4096, files=5)
    lab.backup(disk)
    looks = []
    for _ in range(2):
        with drive(lab) as tree:
            inside = node(tree, "srv/latest/disk")
            assert check_tree(inside) > 80  # type: ignore[arg-type]  # it is a folder
            data = "srv/latest/disk/4-A_B_ DATA"
            looks.append({p: node(tree, f"{data}/{p}").attr() for p in ("Users", "large.bin", "odd/ß")})
            content = (folders["3-root"] / "large.bin").read_bytes()
            assert read(tree, "srv/latest/disk/3-root/large.bin") == content
    assert looks[0] == looks[1]


@pytest.mark.mount
def test_shown_as_it_is(lab: Lab, tmp_path: Path) -> None:
    disk, _ = guest_disk(tmp_path, files=5)
    lab.backup(disk)
    with drive(lab) as tree:
        count = check_tree(tree)
        with mounted(DRIVERS["native"], tree, tmp_path / "drive") as mount:
            assert check_shown(tree, mount.path) == count


def test_listing_a_snapshot_reads_no_disk(lab: Lab, tmp_path: Path) -> None:
    disk, _ = guest_disk(tmp_path, files=2)
    lab.backup(disk)
    store = CountingStore(lab.store)
    with drive(lab, store) as tree:
        folder = node(tree, "srv/latest")
        before = store.snapshot()
        children = dict(folder.list())  # type: ignore[attr-defined]  # it is a folder
        assert children["disk"].attr().kind is Kind.DIR
        assert store.snapshot().read == before.read
        assert not tree.parsers.pids()
        assert sorted(n for n, _ in children["disk"].list()) == FOLDERS
        assert store.snapshot().read > before.read


def test_tables_of_all_kinds(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"here")
    (tmp_path / "none").mkdir()
    (tmp_path / "mbr").mkdir()
    bare = make_ext(tmp_path / "none" / "bare.img", 4 * MIB, source)
    volume = bare.read_bytes()
    mbr = tmp_path / "mbr" / "mbr.img"
    with mbr.open("wb") as f:
        f.truncate(16 * MIB)
        f.write(boot_record((0x80, 0x83, 2048, 8192), (0, 0x0F, 12288, 16384)))
        f.seek(12288 * 512)
        f.write(boot_record((0, 0x83, 2048, 8192)))
        for sector in (2048, 14336):
            f.seek(sector * 512)
            f.write(volume)
    gpt = write_gpt(
        tmp_path / "gpt.img", 16 * MIB, [(LINUX, 2048, 10239, "x"), (LINUX, 9000, 1 << 40, "y/..")]
    )
    with gpt.open("r+b") as f:
        f.seek(MIB)
        f.write(volume)
        f.seek(512)
        f.write(b"damaged!")  # the first header: its backup counts
    blank = raw_disk(tmp_path / "blank.img")
    lab.backup(bare, mbr, gpt, blank)
    with drive(lab) as tree:
        at = "srv/latest"

        def listed(path: str) -> list[str]:
            return [name for name, _ in node(tree, f"{at}/{path}").list()]  # type: ignore[attr-defined]

        assert listed("bare") == ["1-root"]
        assert listed("mbr") == ["1-root", "5-root"]
        assert listed("gpt") == ["1-root", "2-y_._", "PROBLEMS.txt"]
        assert listed("blank") == ["UNSUPPORTED.txt"]
        for path in ("bare/1-root", "mbr/5-root", "gpt/1-root"):
            assert read(tree, f"{at}/{path}/file") == b"here"
        problems = read(tree, f"{at}/gpt/PROBLEMS.txt").decode()
        assert "its backup is used" in problems
        assert "partition 2 reaches beyond the disk" in problems


@each_driver
@pytest.mark.mount
def test_what_cant_be_read_is_an_error(
    lab: Lab, tmp_path: Path, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("secret", "fine"):
        (source / name).write_bytes(name.encode() * 5000)
    image = make_ext(tmp_path / "disk.img", 8 * MIB, source)
    subprocess.run(
        ["debugfs", "-w", "-R", "sif secret flags 0x80800", image], check=True, capture_output=True
    )
    lab.backup(image)
    with mounted_drive(lab, tmp_path / "drive", driver) as mount:
        at = mount.path / "srv" / "latest" / "disk" / "1-root"
        assert os.stat(at / "secret").st_size == 30_000
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
            (at / "secret").read_bytes()
        assert caught.value.errno == errno.EIO
        assert "encrypted by Linux" in caplog.text
        assert (at / "fine").read_bytes() == b"fine" * 5000
        assert theirs(source).keys() == {"secret", "fine"}
