"""What is a disk: the rule of `cli.md`, and what an open disk tells of itself."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest

from cloudmount.disks.detect import DiskIdentity, DiskKind, detect, open_disk, parents_in
from cloudmount.disks.raw import RawDisk
from cloudmount.disks.signatures import file_system
from cloudmount.errors import UnreadableInputError
from cloudmount.extents import Bytes
from tests.disks.disk_model import Model, check_reads
from tests.disks.oracles import run
from tests.disks.partition_writer import BIOS_BOOT, ESP, LINUX, boot_record, write_gpt, write_mbr
from tests.disks.vhd_writer import DIFFERENCING, FIXED, VhdFile
from tests.disks.vhdx_writer import FULL, PARTIAL, VhdxFile, patch

MIB = 1 << 20
MBR = boot_record((0, 0x83, 1, 10)).ljust(16384, b"\0")
EXT4 = bytes(1024) + (
    (100).to_bytes(4, "little") + (400).to_bytes(4, "little") + bytes(48) + b"\x53\xef"
).ljust(16384 - 1024, b"\0")
NOISE = random.Random(1).randbytes(16384)


def put(path: Path, content: bytes) -> Path:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class TestRule:
    """Named on the command line, or met while walking."""

    @pytest.mark.parametrize(
        ("name", "content", "named", "walked"),
        [
            ("a.raw", NOISE, DiskKind.RAW, None),  # a camera's picture, unless it was meant
            ("a.img", NOISE, DiskKind.RAW, None),
            ("a.RAW", MBR, DiskKind.RAW, DiskKind.RAW),
            ("a.Img", EXT4, DiskKind.RAW, DiskKind.RAW),
            ("a.img", bytes(16384), DiskKind.RAW, None),
            ("a.img", MBR + b"x", None, None),  # not whole sectors
            ("a.raw", b"", None, None),
            ("a.bin", MBR, None, None),
            ("a.iso", bytes(32769) + b"CD001" + bytes(16384 - 6), None, None),
            ("img", MBR, None, None),
            (".img", MBR, None, None),  # a name without an ending
            ("a.img.gz", MBR, None, None),
            ("a.vhdx", NOISE, None, None),  # the signature counts, not the ending
            ("a.vhd", NOISE, None, None),
            ("a.img", b"vhdxfile" + NOISE[8:], DiskKind.VHDX, DiskKind.VHDX),
            ("a.txt", b"vhdxfile", DiskKind.VHDX, DiskKind.VHDX),
            ("a", b"vhdxfil", None, None),
            ("a.img", b"QFI\xfb" + NOISE[4:], DiskKind.RAW, None),  # a guest may write what it likes
        ],
    )
    def test_files(
        self, tmp_path: Path, name: str, content: bytes, named: DiskKind | None, walked: DiskKind | None
    ) -> None:
        path = put(tmp_path / name, content)
        assert detect(path, named=True) == named
        assert detect(path, named=False) == walked
        assert detect(str(path), named=True) == named

    def test_containers_of_any_name(self, tmp_path: Path) -> None:
        vhdx = VhdxFile(Model(MIB)).write(tmp_path / "a.avhdx")
        vhd = VhdFile(Model(MIB)).write(tmp_path / "b.dat")
        fixed = VhdFile(Model(MIB), FIXED).write(tmp_path / "c.img")
        for named in (True, False):
            assert detect(vhdx, named=named) is DiskKind.VHDX
            assert detect(vhd, named=named) is DiskKind.VHD
            assert detect(fixed, named=named) is DiskKind.VHD

    def test_a_vhd_cut_short_is_one_still(self, tmp_path: Path) -> None:
        """Its copy at the start says so: told as broken, never stored as a file of something else."""
        path = VhdFile(Model(MIB), own={0: None}).write(tmp_path / "a.vhd")
        with path.open("r+b") as f:
            f.truncate(path.stat().st_size - 4096)
        assert detect(path, named=False) is DiskKind.VHD

    def test_what_is_neither_file_nor_device(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder.img"
        folder.mkdir()
        pipe = tmp_path / "pipe.img"
        os.mkfifo(pipe)
        for path in (folder, pipe, Path("/dev/null")):
            for named in (True, False):
                assert detect(path, named=named) is None
            with pytest.raises(UnreadableInputError, match=f"{path}: not a disk"):
                open_disk(path)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "s.img"))
            assert detect(tmp_path / "s.img", named=True) is None

    @pytest.mark.parametrize("name", ["gone.img", "a\0b.img", "x" * 300 + ".img", "file/a.img"])
    def test_what_can_not_be_looked_at(self, tmp_path: Path, name: str) -> None:
        put(tmp_path / "file", b"")
        with pytest.raises(UnreadableInputError, match="can't look at it"):
            detect(tmp_path / name, named=True)
        with pytest.raises(UnreadableInputError, match="can't look at it"):
            open_disk(tmp_path / name)

    def test_links_are_followed(self, tmp_path: Path) -> None:
        path = put(tmp_path / "a.img", MBR)
        (tmp_path / "b.img").symlink_to(path)
        assert detect(tmp_path / "b.img", named=False) is DiskKind.RAW
        (tmp_path / "c.img").symlink_to(tmp_path / "c.img")
        with pytest.raises(UnreadableInputError, match="can't look at it"):
            detect(tmp_path / "c.img", named=True)


class TestBlockDevices:
    """A disk when named, of no interest while walking."""

    @pytest.fixture(params=[512, 4096])
    def device(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[tuple[Path, Model, int]]:
        """A read-only loop device over `tmp_path/backing`, what it holds, its sector size.

        Without root or loop devices the file itself, which then looks like one.
        """
        sector: int = request.param
        model = Model(8 * MIB)
        model.scribble(random.Random(sector), 0, model.size, runs=20)
        write_gpt(model, [(ESP, 512, 600, "esp")], sector=sector)
        path = put(tmp_path / "backing", model.read(0, model.size))
        losetup = shutil.which("losetup", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if losetup is not None:
            command = [losetup, "--read-only", "--sector-size", str(sector), "--find", "--show", str(path)]
            made = subprocess.run(command, capture_output=True, check=False, text=True)
            if made.returncode == 0:
                loop = Path(made.stdout.strip())
                try:
                    yield loop, model, sector
                finally:
                    subprocess.run([losetup, "--detach", loop], check=True)
                return
        real_stat, real_fstat = os.stat, os.fstat

        def as_device(status: os.stat_result) -> SimpleNamespace:
            fields = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
            return SimpleNamespace(**fields | {"st_mode": stat.S_IFBLK | 0o600, "st_size": 0})

        def stat_of(name: int | Path, **options: bool) -> object:
            status = real_stat(name, **options)  # type: ignore[arg-type]  # whatever it was called with
            return as_device(status) if name == path else status

        monkeypatch.setattr("os.stat", stat_of)
        monkeypatch.setattr("os.fstat", lambda fd: as_device(real_fstat(fd)))
        monkeypatch.setattr(RawDisk, "sector_sizes", lambda self: (sector, sector))
        yield path, model, sector

    def test_read(self, device: tuple[Path, Model, int]) -> None:
        path, model, sector = device
        assert detect(path, named=True) is DiskKind.RAW
        assert detect(path, named=False) is None
        with open_disk(path) as disk:
            assert isinstance(disk.source, RawDisk)
            assert disk.source.is_block_device
            check_reads(disk.source, model, random.Random(2))
            assert disk.identity == DiskIdentity(sector, sector, None, "raw", 2)

    def test_a_container_on_a_device_is_content(
        self, device: tuple[Path, Model, int], tmp_path: Path
    ) -> None:
        """Whatever a guest wrote there: it is never taken for a container."""
        path, model, _ = device
        patch(tmp_path / "backing", 0, b"vhdxfile")
        patch(tmp_path / "backing", model.size - 512, b"conectix")
        assert detect(path, named=True) is DiskKind.RAW
        with open_disk(path) as disk:
            assert disk.identity.source_format == "raw"


class TestIdentity:
    """What is kept beside the content."""

    def test_vhdx(self, tmp_path: Path) -> None:
        file = VhdxFile(Model(4 * MIB), logical=512, physical=4096, disk_id=UUID(int=7))
        with open_disk(file.write(tmp_path / "a.vhdx")) as disk:
            assert disk.identity == DiskIdentity(512, 4096, UUID(int=7), "vhdx", None)
            assert disk.files == (tmp_path / "a.vhdx",)

    def test_vhd_is_known_by_its_base(self, tmp_path: Path) -> None:
        base = VhdFile(Model(4 * MIB), unique_id=UUID(int=9))
        base.write(tmp_path / "a.vhd")
        child = base.child("a.vhd")
        assert child.kind == DIFFERENCING
        with open_disk(child.write(tmp_path / "b.avhd")) as disk:
            assert disk.identity == DiskIdentity(512, 512, UUID(int=9), "vhd", 1)
            assert disk.files == (tmp_path / "b.avhd", tmp_path / "a.vhd")

    @pytest.mark.parametrize("sector", [512, 4096])
    @pytest.mark.parametrize("container", ["raw", "vhdx"])
    @pytest.mark.parametrize(
        ("types", "generation"), [([ESP, LINUX], 2), ([LINUX], None), ([ESP, BIOS_BOOT], None)]
    )
    def test_generation_by_gpt(
        self, tmp_path: Path, sector: int, container: str, types: list[UUID], generation: int | None
    ) -> None:
        model = Model(8 * MIB)
        write_gpt(model, [(t, 256 + 8 * i, 256 + 8 * i, "") for i, t in enumerate(types)], sector=sector)
        if container == "raw":
            path = put(tmp_path / "a.img", model.read(0, model.size))
        else:
            states = {block: FULL for block in range(8)}
            path = VhdxFile(model, logical=sector, states=states).write(tmp_path / "a.vhdx")
        with open_disk(path) as disk:
            assert disk.identity.generation == generation
            assert disk.identity.logical_sector == sector

    @pytest.mark.parametrize(
        ("slots", "generation"),
        [
            ([(0x80, 7, 1, 10)], 1),
            ([(0, 7, 1, 10)], None),  # data: nothing boots from it
            ([(0x80, 7, 1, 10), (0, 0xEF, 20, 10)], None),
            ([], None),
        ],
    )
    def test_generation_by_mbr(
        self, tmp_path: Path, slots: list[tuple[int, int, int, int]], generation: int | None
    ) -> None:
        model = Model(MIB)
        write_mbr(model, *slots)
        path = put(tmp_path / "a.img", model.read(0, model.size))
        with open_disk(path) as disk:
            assert disk.identity.generation == generation
        path = VhdFile(model, FIXED).write(tmp_path / "a.vhd")
        with open_disk(path) as disk:
            assert disk.identity.generation == 1  # whatever it holds: generation 2 takes no VHD

    def test_nothing_stays_open(self, tmp_path: Path) -> None:
        """Neither after closing nor after an error."""
        base = VhdxFile(Model(MIB))
        base.write(tmp_path / "a.vhdx")
        child = base.child("a.vhdx").write(tmp_path / "b.avhdx")
        before = len(os.listdir("/proc/self/fd"))
        with open_disk(child) as disk:
            assert len(os.listdir("/proc/self/fd")) == before + 2
            disk.close()
        patch(tmp_path / "a.vhdx", 3 * MIB, b"\xff" * 8)
        with pytest.raises(UnreadableInputError):
            open_disk(child)
        put(tmp_path / "c.vhdx", b"vhdxfile")
        with pytest.raises(UnreadableInputError):
            open_disk(tmp_path / "c.vhdx")
        assert len(os.listdir("/proc/self/fd")) == before


class TestParents:
    """`parents_in`."""

    def tree(self, folder: Path) -> dict[str, Path]:
        """base <- mid <- leaf; base <- other; and one alone."""
        rng = random.Random(3)
        base = VhdxFile(Model(2 * MIB))
        mid, other = base.child("base.vhdx"), base.child("base.vhdx")
        mid.fill(0, rng, PARTIAL)
        leaf = mid.child("mid.avhdx")
        files = {"base.vhdx": base, "mid.avhdx": mid, "leaf.avhdx": leaf, "other.avhdx": other}
        files["alone.vhdx"] = VhdxFile(Model(MIB))
        return {name: file.write(folder / name) for name, file in files.items()}

    def test_near_and_far(self, tmp_path: Path) -> None:
        paths = self.tree(tmp_path)
        put(tmp_path / "readme.txt", b"text")
        everything = [*paths.values(), tmp_path / "readme.txt", tmp_path / "gone", tmp_path]
        assert parents_in(everything) == {paths["base.vhdx"], paths["mid.avhdx"]}
        assert parents_in(map(str, reversed(everything))) == {paths["base.vhdx"], paths["mid.avhdx"]}
        assert parents_in([paths["leaf.avhdx"], paths["base.vhdx"]]) == {paths["base.vhdx"]}
        assert parents_in([paths["base.vhdx"], paths["alone.vhdx"]]) == set()
        assert parents_in([]) == set()

    def test_a_broken_child_makes_no_parent(self, tmp_path: Path) -> None:
        """What it was made on is then the best that is left, and is kept."""
        paths = self.tree(tmp_path)
        patch(paths["mid.avhdx"], 0, b"vhdxfile" + bytes(200))
        patch(paths["mid.avhdx"], 64 * 1024, bytes(4096))
        patch(paths["mid.avhdx"], 128 * 1024, bytes(4096))
        assert parents_in([paths["base.vhdx"], paths["mid.avhdx"], paths["leaf.avhdx"]]) == set()
        assert parents_in(paths.values()) == {paths["base.vhdx"]}

    def test_each_spelling_of_a_parent(self, tmp_path: Path) -> None:
        """Two links to one file are one parent, under every path it was met."""
        paths = self.tree(tmp_path)
        (tmp_path / "hard.vhdx").hardlink_to(paths["base.vhdx"])
        found = parents_in([paths["other.avhdx"], paths["base.vhdx"], tmp_path / "hard.vhdx"])
        assert found == {paths["base.vhdx"], tmp_path / "hard.vhdx"}

    def test_vhd(self, tmp_path: Path) -> None:
        base = VhdFile(Model(MIB))
        first, second = base.write(tmp_path / "a.vhd"), base.child("a.vhd").write(tmp_path / "b.vhd")
        assert parents_in([first, second]) == {first}

    def test_a_vhdx_is_no_parent_of_a_vhd(self, tmp_path: Path) -> None:
        VhdxFile(Model(MIB)).write(tmp_path / "a.vhd")
        child = VhdFile(Model(MIB)).child("a.vhd").write(tmp_path / "b.vhd")
        assert parents_in([tmp_path / "a.vhd", child]) == set()
        with pytest.raises(UnreadableInputError, match=r"b\.vhd: .*a\.vhd"):
            open_disk(child)


class TestFileSystems:
    """Made by others, and known."""

    @pytest.mark.parametrize(
        ("name", "command"),
        [
            ("ext", ["mkfs.ext4", "-q", "-F"]),
            ("ext", ["mkfs.ext4", "-q", "-F", "-b", "1024", "-t", "ext2"]),
            ("fat", ["mkfs.vfat", "-F", "12"]),
            ("fat", ["mkfs.vfat", "-F", "16"]),
            ("fat", ["mkfs.vfat", "-F", "32"]),
            ("fat", ["mkfs.vfat", "--mbr=yes"]),
            ("ntfs", ["mkntfs", "-q", "-F", "-f"]),
            ("swap", ["mkswap"]),
        ],
    )
    def test_made(self, tmp_path: Path, name: str, command: list[str]) -> None:
        path = tmp_path / "disk.img"
        with path.open("wb") as f:
            f.truncate(40 * MIB)
        run(*command, path)
        assert detect(path, named=False) is DiskKind.RAW
        disk = RawDisk(path)
        assert file_system(disk) == name
        disk.close()

    @pytest.mark.parametrize(
        ("offset", "mark", "name"),
        [
            (0, b"XFSB", "xfs"),
            (3, b"EXFAT   ", "exfat"),
            (3, b"-FVE-FS-", "bitlocker"),
            (0, b"LUKS\xba\xbe", "luks"),
            (32, b"NXSB", "apfs"),
            (65536 + 64, b"_BHRfS_M", "btrfs"),
            (3, b"ReFS\0\0\0\0", "refs"),
            (512, b"LABELONE" + bytes(16) + b"LVM2 001", "lvm"),
            (4096 - 10, b"SWAPSPACE2", "swap"),
        ],
    )
    def test_marks(self, offset: int, mark: bytes, name: str) -> None:
        content = (bytes(offset) + mark).ljust(80 << 10, b"\0")
        assert file_system(Bytes(content)) == name
        for size in range(offset, offset + len(mark)):
            assert file_system(Bytes(content[:size])) is None

    def test_pictures_are_not(self) -> None:
        """Cameras' raw files start as TIFF; noise must not pass either."""
        rng = random.Random(4)
        for start in (b"II*\0\x10\0\0\0CR\2\0", b"MM\0*\0\0\0\x08", b"IIU\0\x18\0\0\0", b"FUJIFILMCCD-RAW "):
            for _ in range(50):
                assert file_system(Bytes((start + rng.randbytes(128 << 10))[: 128 << 10])) is None
        # the two bytes of ext's magic alone, or a boot signature alone
        for at, mark in ((1024 + 56, b"\x53\xef"), (510, b"\x55\xaa")):
            assert file_system(Bytes(bytes(at) + mark + bytes(8192))) is None
