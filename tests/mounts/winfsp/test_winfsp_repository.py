"""The drive of a real repository, as Windows sees it: `latest` a folder, disks, odd names, a new snapshot."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from cloudmount.nodes import Dir, File
from cloudmount.winnames import unescape
from tests.backup.lab import Lab
from tests.mounts.mounting import within
from tests.mounts.winfsp.mounting import windows
from tests.mounts.winfsp.volume import Volume
from tests.tree.drives import drive, raw_disk


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A disk, and files with names that Windows can't hold."""
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "plan.docx").write_bytes(os.urandom(70_001))
    (source / "empty").touch()
    (source / "NUL").write_bytes(b"a device's name")
    (source / "what: is it?").write_bytes(b"odd")
    (source / os.fsdecode(b"raw \xff\n")).write_bytes(b"x")
    (source / "README").write_bytes(b"large")
    (source / "readme").write_bytes(b"small letters")
    (source / "link").symlink_to("deep/er/plan.docx")
    raw_disk(source / "disk.raw")
    return source


def _walk(volume: Volume, path: str = "") -> Iterator[str]:
    folder = volume.open(path or "\\")
    entries = [(n, i) for n, i in volume.list(folder) if n not in (".", "..")]
    volume.close(folder)
    for name, info in entries:
        below = f"{path}\\{name}"
        yield below
        if info.is_dir:
            yield from _walk(volume, below)


def _same(volume: Volume, path: str, file: File) -> None:
    opened, source = volume.open(path), file.open()
    try:
        info = volume.file_info(opened)
        assert (info.size, info.index) == (source.size, file.attr().inode), path
        rng = random.Random(path)
        for offset in (0, max(0, source.size - 5000), *(rng.randrange(source.size + 1) for _ in range(4))):
            length = min(rng.choice((1, 4096, 131_073)), source.size - offset)
            assert volume.read_cached(opened, offset, length) == source.read_at(offset, length), path
        start = max(0, source.size - 1) // 512 * 512
        assert volume.read(opened, start, 4096) == source.read_at(start, source.size - start), path
    finally:
        volume.close(opened)
        source.close()


def test_every_file_of_a_snapshot(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path / "lab")
    lab.backup(source, source / "disk.raw")
    with drive(lab) as tree, windows(tmp_path, monkeypatch) as letters:
        volume = letters.mount(tree).volume
        (machine,) = (name for name, _ in volume.list(volume.open("\\")) if name not in (".", ".."))
        node = cast(Dir, tree.lookup(machine))
        at = f"\\{machine}"
        folders = [n for n, i in volume.list(volume.open(at)) if n not in (".", "..") and i.is_dir]
        assert len(folders) == 2 and "latest" in folders, "a plain folder"
        snapshot = cast(Dir, node.lookup(next(f for f in folders if f != "latest")))
        shown = set(_walk(volume, at + "\\latest"))
        assert {p.partition("latest")[2] for p in shown} == {
            p.partition(folders[0])[2] for p in _walk(volume, f"{at}\\{folders[0]}")
        }
        below = at + "\\latest"
        docs = cast(Dir, snapshot.lookup("source"))
        for name in ("empty", "NUL", "what: is it?", os.fsdecode(b"raw \xff\n"), "README"):
            (path,) = (p for p in shown if unescape(p.rpartition("\\")[2]) == name and "source" in p)
            _same(volume, path.upper(), cast(File, docs.lookup(name)))
        _same(volume, below + "\\source\\readme-2", cast(File, docs.lookup("readme")))
        plan = cast(File, cast(Dir, cast(Dir, docs.lookup("deep")).lookup("er")).lookup("plan.docx"))
        for path in ("\\Source\\Deep\\ER\\Plan.docx", "\\source\\link"):
            _same(volume, below + path, plan)
        for name in ("disk.vhdx", "disk.img", "machine.json"):
            assert volume.info(f"{below}\\{name}").attributes == 0x2001
            _same(volume, f"{below}\\{name}", cast(File, snapshot.lookup(name)))


def test_a_backup_while_latest_is_open(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path / "lab")
    lab.backup(source, source / "disk.raw")
    with drive(lab) as tree, windows(tmp_path, monkeypatch) as letters:
        mounted = letters.mount(tree)
        volume = mounted.volume
        (machine,) = (name for name, _ in volume.list(volume.open("\\")) if name not in (".", ".."))
        disk, beside = f"\\{machine}\\latest\\disk.img", f"\\{machine}\\latest\\source\\empty"
        opened = volume.open(disk)
        before = volume.read(opened, 0, 65536)
        raw_disk(source / "disk.raw", seed=2)
        (source / "empty").write_bytes(b"no more")
        lab.backup(source, source / "disk.raw")
        assert within(60, lambda: volume.info(beside).size == 7)
        again = volume.open(disk.upper())
        assert volume.read(again, 0, 65536) == volume.read_cached(again, 0, 65536) == before
        volume.close(opened)
        assert volume.read_cached(again, 0, 65536) == before
        volume.close(again)
        opened = volume.open(disk)
        assert volume.read_cached(opened, 0, 24 << 20) == (source / "disk.raw").read_bytes()
        volume.close(opened)
