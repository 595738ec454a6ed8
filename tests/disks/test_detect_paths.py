"""Paths that are no plain files, real block devices, and descriptors that must not stay open."""

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

import pytest

from cloudmount.disks.detect import DiskIdentity, DiskKind, detect, open_disk
from cloudmount.disks.raw import RawDisk
from cloudmount.errors import UnreadableInputError
from tests.disks.disk_model import Model, check_reads
from tests.disks.vhd_writer import VhdFile
from tests.disks.vhdx_writer import VhdxFile, patch

MIB = 1 << 20


def put(path: Path, content: bytes) -> Path:
    """A file."""
    path.write_bytes(content)
    return path


class TestPaths:
    """What a path may be."""

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
        path = put(tmp_path / "a.img", bytes(510) + b"\x55\xaa")
        (tmp_path / "b.img").symlink_to(path)
        assert detect(tmp_path / "b.img", named=True) is DiskKind.RAW
        (tmp_path / "c.img").symlink_to(tmp_path / "c.img")
        with pytest.raises(UnreadableInputError, match="can't look at it"):
            detect(tmp_path / "c.img", named=True)

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
            status = real_stat(name, **options)
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
            assert disk.identity == DiskIdentity(sector, sector, None, "raw", None)

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
