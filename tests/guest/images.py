"""Volumes for tests, filled by other people's programs: ntfs-3g, mke2fs and mtools."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.disks.oracles import run

MIB = 1 << 20
REPARSE, ATTRIBUTES = "system.ntfs_reparse_data", "system.ntfs_attrib"
COMPRESSED = 0x800


def make_ntfs(path: Path, size: int, *, sector: int = 512, cluster: int = 4096, label: str = "DATA") -> Path:
    """An empty NTFS volume in a sparse file."""
    with path.open("wb") as f:
        f.truncate(size)
    run("mkntfs", "-q", "-F", "-f", "-s", str(sector), "-c", str(cluster), "-L", label, path)
    return path


@contextmanager
def ntfs_mounted(image: Path, at: Path, *options: str) -> Iterator[Path]:
    """An NTFS image served by ntfs-3g; written to the last byte at the end."""
    at.mkdir(exist_ok=True)
    told = ",".join(["no_detach", "compression", "streams_interface=none", *options])
    server = subprocess.Popen(["ntfs-3g", "-o", told, image, at], stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 20
        while not os.path.ismount(at):
            assert server.poll() is None and time.monotonic() < until, server.stderr
            time.sleep(0.01)
        yield at
    finally:
        subprocess.run(["umount", at], check=False, stderr=subprocess.DEVNULL)
        try:
            server.wait(20)
        finally:
            server.kill()
            assert server.stderr is not None
            server.stderr.close()


def make_ext(path: Path, size: int, source: Path, kind: str = "ext4", *options: str) -> Path:
    """An ext volume with what lies in `source`."""
    run("mke2fs", "-q", "-F", "-t", kind, "-L", "root", *options, "-d", source, path, f"{size >> 10}k")
    return path


def make_fat(path: Path, size: int, source: Path, bits: int, *options: str) -> Path:
    """A FAT volume with what lies in `source`."""
    with path.open("wb") as f:
        f.truncate(size)
    run("mkfs.vfat", "-F", str(bits), "-n", "EFI", *options, path)
    for entry in sorted(source.iterdir()):
        run("mcopy", "-s", "-m", "-Q", "-i", path, entry, "::")
    return path


def odd_names() -> list[str]:
    """Names that file systems of Windows hold."""
    return [
        "ä ö ü", "日本語.txt", "\U0001f600 smile", "x" * 200, "y" * 250, "日" * 80,
        " lead", "a.b.c.d", "UPPER", "lower.TXT",
        "~tilde~1", "long name with spaces.document", "é" * 100, "$money", "#;,=+[]", "İstanbul", "ß",
    ]  # fmt: skip


def fill(folder: Path, rng: random.Random, *, files: int, deep: int = 30) -> None:
    """Folders, many small files of every length around a cluster, large ones, odd names, deep trees."""
    many = folder / "Users" / "Public" / "many"
    many.mkdir(parents=True)
    for n in range(files):
        length = rng.choice((0, 1, 100, 600, 700, 800, 4095, 4096, 4097, rng.randrange(20_000)))
        (many / f"file {n:05d} {rng.choice(('a', 'é', '日'))}.txt").write_bytes(rng.randbytes(length))
    odd = folder / "odd"
    odd.mkdir()
    for n, name in enumerate(odd_names()):
        (odd / name).write_bytes(f"content {n}".encode() * n * 50)
    below = folder / "deep"
    for n in range(deep):
        below = below / f"level {n}"
    below.mkdir(parents=True)
    (below / "end.bin").write_bytes(rng.randbytes(100_000))
    (folder / "large.bin").write_bytes(rng.randbytes(3 * MIB + 17))
    (folder / "empty").mkdir()


def fragment(folder: Path, rng: random.Random, pieces: int = 400) -> None:
    """Two files written in turns, so that each lies in many pieces."""
    with (
        (folder / "one.frag").open("wb", buffering=0) as one,
        (folder / "two.frag").open("wb", buffering=0) as two,
    ):
        for _ in range(pieces):
            one.write(rng.randbytes(rng.randrange(1, 9000)))
            os.fsync(one.fileno())
            two.write(rng.randbytes(rng.randrange(1, 9000)))
            os.fsync(two.fileno())


def in_pieces(folder: Path, size: int, rng: random.Random) -> bytes:
    """A file `pieces` of `size` bytes in a full volume whose every second cluster was freed; its content."""
    full = folder / "full"
    full.mkdir()
    count = 0
    with contextlib.suppress(OSError):
        while True:
            (full / f"{count:06d}").write_bytes(rng.randbytes(4096))
            count += 1
    for n in range(0, count, 2):
        (full / f"{n:06d}").unlink(missing_ok=True)
    content = rng.randbytes(size)
    (folder / "pieces").write_bytes(content)
    return content


def comb(path: Path, block: int, teeth: int = 3000) -> None:
    """A file of so many blocks with a hole behind each: as many extents, in trees or lists of their own."""
    with path.open("wb", buffering=0) as f:
        f.truncate(teeth * 2 * block)
        for n in range(teeth):
            f.seek(n * 2 * block)
            f.write(n.to_bytes(4, "little") * (block // 4))


def sparse(path: Path, size: int, *pieces: tuple[int, bytes]) -> None:
    """A file of holes with something in it here and there."""
    with path.open("wb") as f:
        f.truncate(size)
        for at, data in pieces:
            f.seek(at)
            f.write(data)
