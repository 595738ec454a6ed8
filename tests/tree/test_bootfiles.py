"""Of a disk that was never booted, the files that its system starts from come ahead, and others don't."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from cloudmount.blobs.faulty import Fault, FaultyStore
from cloudmount.errors import StoreRefusedError
from cloudmount.tree.bootfiles import mft_offset, system_ranges
from cloudmount.tree.drive import Drive
from cloudmount.tree.snapshotdir import OpenedSnapshot, StoredDisk
from tests.backup.lab import Lab
from tests.disks.partition_writer import LINUX, write_gpt
from tests.guest.images import MIB, make_ext
from tests.tree.drives import drive
from tests.tree.test_bootguess import IMG, opened_file, settle

AT, SIZE = 1 * MIB, 40 * MIB
DEBIAN = {
    "usr/lib/systemd/systemd": 90_000,
    "usr/lib/systemd/system/basic.target": 900,
    "usr/lib/x86_64-linux-gnu/libc.so.6": 1_900_000,
    "usr/lib/x86_64-linux-gnu/libfancy.so.1": 1_000_000,
    "usr/lib/modules/6.1.0/modules.dep.bin": 100_000,
    "usr/lib/modules/5.9.0/modules.dep.bin": 100_001,
    "boot/vmlinuz-6.1": 700_000,
    "boot/initrd.img-6.1": 800_000,
    "boot/vmlinuz-5.9": 600_000,
    "srv/data": 9_000_000,
}
WINDOWS = {
    "Windows/System32/config/SYSTEM": 500_000,
    "Windows/System32/config/COMPONENTS": 700_000,
    "Windows/System32/ntoskrnl.exe": 900_000,
    "Windows/System32/drivers/ntfs.sys": 200_000,
    "Windows/System32/drivers/mouse.sys": 100_000,
    "pagefile.sys": 2_000_000,
}


def backed_up(folder: Path, files: dict[str, int]) -> tuple[Lab, dict[str, bytes]]:
    """A disk with one ext4 partition with these files, those of higher numbers newer; and their content."""
    contents = {}
    for name, length in files.items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        contents[name] = random.Random(name).randbytes(length)
        path.write_bytes(contents[name])
    for name in files:
        if "5.9" in name:
            os.utime(folder / "root" / name, (1_000_000_000, 1_000_000_000))
            os.utime((folder / "root" / name).parent, (1_000_000_000, 1_000_000_000))
    volume = make_ext(folder / "root.img", SIZE, folder / "root", "ext4", "-b", "4096")
    disk = write_gpt(
        folder / "disk.img", SIZE + 2 * MIB, [(LINUX, AT // 512, (AT + SIZE) // 512 - 1, "root")]
    )
    with disk.open("r+b") as f:
        f.seek(AT)
        f.write(volume.read_bytes())
    lab = Lab(folder / "lab")
    lab.backup(disk)
    return lab, contents


def disk_of(tree: Drive) -> StoredDisk:
    (disk,) = OpenedSnapshot(tree, tree.repository.latest("srv")).disks
    return disk


def test_where_an_ntfs_volume_has_its_table_of_files() -> None:
    def boot(sector: int, per_cluster: int, cluster: int) -> bytes:
        start = b"\xeb\x52\x90NTFS    " + sector.to_bytes(2, "little") + bytes([per_cluster])
        return start.ljust(48, b"\0") + cluster.to_bytes(8, "little") + bytes(8)

    assert mft_offset(boot(512, 8, 786_432)) == 3 << 30
    assert mft_offset(boot(4096, 1, 4)) == 16384
    assert mft_offset(boot(512, 256 - 9, 2)) == 2 * 512 * 512
    assert mft_offset(bytes(64)) == 0


def found(lab: Lab, contents: dict[str, bytes], kernel: bool) -> set[str]:
    """The files that the ranges hold whole."""
    disk = (lab.folder.parent / "disk.img").read_bytes()
    with drive(lab) as tree:
        ranges = [r for r in system_ranges(disk_of(tree), kernel) if r[0] != AT]  # not the volume's own
    held = b"".join(disk[offset : offset + length] for offset, length in ranges)
    return {name for name, content in contents.items() if content in held}


def test_linux(tmp_path: Path) -> None:
    lab, contents = backed_up(tmp_path, DEBIAN)
    system = {
        "usr/lib/systemd/systemd",
        "usr/lib/systemd/system/basic.target",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/modules/6.1.0/modules.dep.bin",
    }
    kernel = {"boot/vmlinuz-6.1", "boot/initrd.img-6.1"}
    assert found(lab, contents, False) == system
    assert found(lab, contents, True) == system | kernel


def test_they_come_ahead_of_a_boot(tmp_path: Path) -> None:
    lab, contents = backed_up(tmp_path, DEBIAN)
    image = (tmp_path / "disk.img").read_bytes()
    gone = [False]
    with drive(lab, FaultyStore(lab.store, lambda operation: Fault.REFUSED if gone[0] else None)) as tree:
        opened = opened_file(tree, IMG)
        opened.read_at(0, 512)
        opened.read_at(opened.size - 512, 512)
        settle()
        ranges = list(system_ranges(disk_of(tree), True))
        gone[0] = True
        for offset, length in ranges:
            assert opened.read_at(offset, length) == image[offset : offset + length]
        with pytest.raises(StoreRefusedError):
            opened.read_at(image.index(contents["srv/data"][:4096]), 9_000_000)


def test_windows(tmp_path: Path) -> None:
    lab, contents = backed_up(tmp_path, WINDOWS)
    assert found(lab, contents, False) == {
        "Windows/System32/config/SYSTEM",
        "Windows/System32/ntoskrnl.exe",
        "Windows/System32/drivers/ntfs.sys",
    }


@pytest.mark.parametrize("files", [{"srv/data": 50_000}, {"usr/lib/systemd": 10}])
def test_a_disk_without_a_system(tmp_path: Path, files: dict[str, int]) -> None:
    lab, contents = backed_up(tmp_path, files)
    assert found(lab, contents, True) == set()


def test_boot_as_a_file_system_of_its_own(tmp_path: Path) -> None:
    lab, contents = backed_up(
        tmp_path, {"vmlinuz-6.1": 700_000, "initrd.img-6.1": 60_000, "grub/grub.cfg": 100, "other": 9}
    )
    assert found(lab, contents, True) == {"vmlinuz-6.1", "initrd.img-6.1"}
    assert found(lab, contents, False) == set()
