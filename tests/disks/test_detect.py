"""What is a disk: the rule of cli.md, on real file systems; identities; parents among a folder's files."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from cloudmount.disks.detect import DiskKind, detect, open_disk, parents_in
from cloudmount.disks.signatures import file_system
from cloudmount.errors import UnreadableInputError
from cloudmount.extents import Bytes
from tests.disks.disk_model import Model, check_reads
from tests.disks.oracles import run
from tests.disks.partition_writer import BASIC_DATA, BIOS_BOOT, ESP, boot_record, write_gpt
from tests.disks.vhd_writer import FIXED, VhdFile
from tests.disks.vhdx_writer import FULL, VhdxFile, patch

MIB = 1 << 20


def blank(path: Path, size: int = 64 * MIB) -> Path:
    """A file of zeros."""
    with path.open("wb") as f:
        f.truncate(size)
    return path


MAKERS: dict[str, list[str]] = {
    "fat12": ["mkfs.vfat", "-F", "12"],
    "fat16": ["mkfs.vfat", "-F", "16"],
    "fat32": ["mkfs.vfat", "-F", "32"],
    "ntfs": ["mkntfs", "-q", "-F", "-f"],
    "ext2": ["mkfs.ext4", "-q", "-F", "-t", "ext2"],
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "swap": ["mkswap"],
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS.keys())
def test_file_systems_while_walking(tmp_path: Path, maker: list[str]) -> None:
    path = blank(tmp_path / "a.img", 4 * MIB if "12" in maker else 64 * MIB)
    assert detect(path, named=False) is None
    run(*maker, path)
    assert detect(path, named=False) is DiskKind.RAW
    path.rename(tmp_path / "a.dat")
    assert detect(tmp_path / "a.dat", named=False) is None
    assert detect(tmp_path / "a.dat", named=True) is None


MARKS: list[tuple[str, int, bytes]] = [
    ("exfat", 3, b"EXFAT   "),
    ("refs", 3, b"ReFS\0\0\0\0"),
    ("bitlocker", 3, b"-FVE-FS-"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("xfs", 0, b"XFSB"),
    ("iso9660", 32769, b"CD001"),
    ("btrfs", 65600, b"_BHRfS_M"),
    ("lvm", 512, b"LABELONE".ljust(24, b"\1") + b"LVM2 001"),
    ("lvm in sector 0", 0, b"LABELONE".ljust(24, b"\1") + b"LVM2 001"),
]


@pytest.mark.parametrize(("offset", "mark"), [m[1:] for m in MARKS], ids=[m[0] for m in MARKS])
def test_marks_while_walking(tmp_path: Path, offset: int, mark: bytes) -> None:
    path = blank(tmp_path / "a.RAW", 2 * MIB)
    patch(path, offset, mark)
    assert detect(path, named=False) is DiskKind.RAW
    os.truncate(path, offset + len(mark) - 1)
    assert detect(path, named=False) is None


def test_partition_tables_while_walking(tmp_path: Path) -> None:
    gpt = write_gpt(tmp_path / "gpt.img", MIB, [(BASIC_DATA, 64, 127, "")])
    assert detect(gpt, named=False) is DiskKind.RAW
    mbr = blank(tmp_path / "mbr.raw")
    patch(mbr, 0, boot_record((0x80, 7, 63, 1000)))
    assert detect(mbr, named=False) is DiskKind.RAW


def test_a_camera_s_raw_is_a_file(tmp_path: Path) -> None:
    rng = random.Random(1)
    for n in range(500):
        path = tmp_path / "photo.raw"
        path.write_bytes(
            rng.choice((b"II*\0", b"MM\0*", b"FUJIFILM")) + rng.randbytes(512 * 9 - 8)[: 512 * 9]
        )
        size = path.stat().st_size
        os.truncate(path, size - size % 512)
        if n % 2:
            patch(path, 510, b"\x55\xaa")
        assert detect(path, named=False) is None
        assert detect(path, named=True) is DiskKind.RAW


def test_a_mark_alone_is_no_file_system() -> None:
    """The two bytes of ext's magic, or a boot signature."""
    for at, mark in ((1024 + 56, b"\x53\xef"), (510, b"\x55\xaa")):
        assert file_system(Bytes(bytes(at) + mark + bytes(8192))) is None


def test_named_files(tmp_path: Path) -> None:
    for name, size, kind in (
        ("a.raw", 512, DiskKind.RAW),
        ("a.IMG", 1024, DiskKind.RAW),
        ("b.raw", 513, None),
        ("c.img", 0, None),
        ("d.bin", 512, None),
        ("e.vhdx", 512, None),
        ("raw", 512, None),
    ):
        assert detect(blank(tmp_path / name, size), named=True) is kind, name
    os.mkfifo(tmp_path / "f.raw")
    (tmp_path / "g.raw").mkdir()
    assert detect(tmp_path / "f.raw", named=True) is None
    assert detect(tmp_path / "g.raw", named=True) is None
    assert detect(Path("/dev/null"), named=True) is None
    with pytest.raises(UnreadableInputError, match=r"gone\.raw: can't look at it: No such file"):
        detect(tmp_path / "gone.raw", named=True)
    for name in ("b.raw", "d.bin", "g.raw"):
        with pytest.raises(UnreadableInputError, match="not a disk"):
            open_disk(tmp_path / name)


def test_a_block_device_is_a_disk_when_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it holds: a guest can write a container's signature into its first sector."""
    path = blank(tmp_path / "device", MIB)
    patch(path, 0, b"vhdxfile")
    monkeypatch.setattr("stat.S_ISBLK", lambda _: True)
    assert detect(path, named=True) is DiskKind.RAW
    assert detect(path, named=False) is None
    with open_disk(path) as disk:
        assert disk.source.size == MIB


def test_containers_by_signature(tmp_path: Path) -> None:
    """Whatever they are called."""
    rng = random.Random(2)
    vhdx = VhdxFile(Model(MIB))
    vhdx.fill(0, rng, FULL)
    fixed, dynamic = VhdFile(Model(MIB), FIXED), VhdFile(Model(MIB))
    for name in ("a", "a.raw", "a.iso", "a.avhdx"):
        for named in (True, False):
            assert detect(vhdx.write(tmp_path / name), named=named) is DiskKind.VHDX
            assert detect(fixed.write(tmp_path / name), named=named) is DiskKind.VHD
            assert detect(dynamic.write(tmp_path / name), named=named) is DiskKind.VHD
    path = dynamic.write(tmp_path / "cut.vhd")
    os.truncate(path, path.stat().st_size - 512)
    assert detect(path, named=False) is DiskKind.VHD
    path.write_bytes(b"vhdxfil")
    assert detect(path, named=False) is None
    path.write_bytes(b"vhdxfile")
    assert detect(path, named=False) is DiskKind.VHDX
    with pytest.raises(UnreadableInputError, match="shorter than the header section"):
        open_disk(path)


class TestIdentity:
    """What is kept of a disk beside its content."""

    def test_raw(self, tmp_path: Path) -> None:
        path = write_gpt(tmp_path / "a.raw", MIB, [(ESP, 64, 127, ""), (BASIC_DATA, 128, 200, "")])
        with open_disk(path) as disk:
            i = disk.identity
            assert (i.logical_sector, i.physical_sector) == (512, 512)
            assert (i.virtual_disk_id, i.source_format, i.generation) == (None, "raw", 2)
            assert disk.files == (path,)

    def test_raw_of_4_kib_sectors(self, tmp_path: Path) -> None:
        path = write_gpt(tmp_path / "a.raw", 8 * MIB, [(BASIC_DATA, 64, 127, "")], sector=4096)
        with open_disk(path) as disk:
            assert (disk.identity.logical_sector, disk.identity.physical_sector) == (4096, 4096)

    @pytest.mark.parametrize(
        ("make", "generation"),
        [
            (lambda p: write_gpt(p, MIB, [(ESP, 64, 127, ""), (BIOS_BOOT, 128, 130, "")]), None),
            (lambda p: write_gpt(p, MIB, [(BASIC_DATA, 64, 127, "")]), None),
            (lambda p: p.write_bytes(boot_record((0x80, 7, 63, 100)).ljust(MIB, b"\0")), 1),
            (lambda p: p.write_bytes(boot_record((0, 7, 63, 100)).ljust(MIB, b"\0")), None),
            (lambda p: p.write_bytes(boot_record((0x80, 0xEF, 63, 100)).ljust(MIB, b"\0")), None),
        ],
    )
    def test_generation(self, tmp_path: Path, make: Callable[[Path], object], generation: int | None) -> None:
        make(tmp_path / "a.raw")
        with open_disk(tmp_path / "a.raw") as disk:
            assert disk.identity.generation == generation

    def test_vhdx(self, tmp_path: Path) -> None:
        file = VhdxFile(Model(MIB), logical=512, physical=4096, disk_id=UUID(int=77))
        with open_disk(file.write(tmp_path / "a.vhdx")) as disk:
            i = disk.identity
            assert (i.logical_sector, i.physical_sector) == (512, 4096)
            assert (i.virtual_disk_id, i.source_format, i.generation) == (UUID(int=77), "vhdx", None)


class TestParents:
    """Which of a folder's containers are parents of others."""

    def test_a_tree_of_checkpoints(self, tmp_path: Path) -> None:
        """Two children of one parent are two disks; all that lies below them is a parent."""
        rng = random.Random(3)
        base = VhdxFile(Model(3 * MIB))
        base.fill(0, rng, FULL)
        middle = base.child("base.vhdx")
        middle.fill(1, rng, FULL)
        one, two = middle.child("middle.avhdx"), middle.child("middle.avhdx")
        one.fill(2, rng, FULL)
        files = {"base.vhdx": base, "middle.avhdx": middle, "one.avhdx": one, "two.avhdx": two}
        paths = [file.write(tmp_path / name) for name, file in files.items()]
        paths.append(VhdxFile(Model(MIB)).write(tmp_path / "alone.vhdx"))
        paths.append(blank(tmp_path / "note.txt", 10))
        (tmp_path / "folder").mkdir()
        paths += [tmp_path / "folder", tmp_path / "gone"]
        for order in (paths, paths[::-1]):
            assert parents_in(order) == {tmp_path / "base.vhdx", tmp_path / "middle.avhdx"}
        assert parents_in([tmp_path / "one.avhdx", tmp_path / "alone.vhdx"]) == set()
        assert parents_in([str(tmp_path / "one.avhdx"), str(tmp_path / "base.vhdx")]) == {
            tmp_path / "base.vhdx"
        }
        with open_disk(tmp_path / "one.avhdx") as disk:
            check_reads(disk.source, one.model, rng)
            assert disk.files == (
                tmp_path / "one.avhdx",
                tmp_path / "middle.avhdx",
                tmp_path / "base.vhdx",
            )

    def test_vhd(self, tmp_path: Path) -> None:
        rng = random.Random(4)
        base = VhdFile(Model(3 * MIB))
        base.fill(0, rng, whole=True)
        child = base.child("base.vhd")
        paths = [base.write(tmp_path / "base.vhd"), child.write(tmp_path / "child.avhd")]
        assert parents_in(paths) == {paths[0]}

    def test_a_broken_child_makes_no_parent(self, tmp_path: Path) -> None:
        """What it was made on is then the best that is left, and is kept."""
        base = VhdxFile(Model(3 * MIB))
        child = base.child("base.vhdx")
        grandchild = child.child("child.vhdx")
        paths = [base.write(tmp_path / "base.vhdx"), child.write(tmp_path / "child.vhdx")]
        base.data_write_guid = uuid4()
        base.write(tmp_path / "base.vhdx")
        paths.append(grandchild.write(tmp_path / "grandchild.vhdx"))
        assert parents_in(paths) == set()

    def test_the_same_parent_by_two_paths(self, tmp_path: Path) -> None:
        base = VhdxFile(Model(MIB))
        child = base.child("base.vhdx")
        path = base.write(tmp_path / "base.vhdx")
        os.link(path, tmp_path / "link.vhdx")
        (tmp_path / "symlink.vhdx").symlink_to(path)
        paths = [path, tmp_path / "link.vhdx", tmp_path / "symlink.vhdx"]
        assert parents_in([child.write(tmp_path / "child.vhdx"), *paths]) == set(paths)

    def test_a_vhdx_is_no_parent_of_a_vhd(self, tmp_path: Path) -> None:
        VhdxFile(Model(MIB)).write(tmp_path / "a.vhd")
        child = VhdFile(Model(MIB)).child("a.vhd").write(tmp_path / "b.vhd")
        assert parents_in([tmp_path / "a.vhd", child]) == set()
        with pytest.raises(UnreadableInputError, match=r"b\.vhd: .*a\.vhd"):
            open_disk(child)
