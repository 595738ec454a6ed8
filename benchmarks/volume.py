"""A server's data volume: NTFS with 100,000 files, and among them one company file.

Decided here and only here: what copying files out of disks is measured with. A raw disk without a partition
table, made through ntfs-3g once and kept in the user's cache: 4 GiB, FILES files of 0.2 to 4 KB in FOLDERS
folders, 256 MiB of noise, and QBW, 20 MiB of which half compresses. The same bytes on every machine but for
times. Or `fragmented`: QBW lies in about PIECES pieces. One thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.commands import MIB, program, stop, wait_up

SIZE_MIB = 4096
FILES, FOLDERS = 100_000, 100
NOISE_MIB = 256
FOLDER = "Users/Public/Documents"
QBW = f"{FOLDER}/company.QBW"
QBW_MIB = 20
PIECES = 640
LABEL = "BOOKS"
_UP_SECONDS = 60


def company() -> bytes:
    """The company file: pages of noise and of text, in turn."""
    rng = random.Random(20)
    pages = (
        rng.randbytes(4096) if n % 2 else (b"invoice %d, " % n * 400)[:4096] for n in range(QBW_MIB * 256)
    )
    return b"".join(pages)


@contextlib.contextmanager
def mounted(image: Path, at: Path, *options: str) -> Iterator[Path]:
    """The NTFS in `image` at the empty folder `at`, by ntfs-3g, until the block ends."""
    command = [program("ntfs-3g", "ntfs-3g"), "-o", ",".join(["no_detach", *options]), str(image), str(at)]
    serving = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_up(serving, at.is_mount, _UP_SECONDS)
        yield at
    finally:
        if at.is_mount():
            subprocess.run([program("fusermount3", "fuse3"), "-u", str(at)], check=False)
        try:
            serving.wait(_UP_SECONDS)
        finally:
            stop(serving, patience=1)


def cached_volume(*, fragmented: bool = False) -> Path:
    """The raw disk in the user's cache, built when it is not there yet."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudmount" / "bench"
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    kind = "fragmented" if fragmented else "volume"
    volume = folder / f"{kind}-{recipe}.img"
    if not volume.exists():
        print(f"files: building {volume}, once; this takes a minute or two", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{volume.name}.part"
        _build(part, folder / f"{volume.name}.mount", fragmented)
        part.rename(volume)
        for older in folder.glob(f"{kind}-*.img"):
            if older != volume:
                older.unlink()  # of an older recipe
    return volume


def _build(image: Path, at: Path, fragmented: bool) -> None:
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(SIZE_MIB * MIB)
    subprocess.run(
        [program("mkntfs", "ntfs-3g"), "-Q", "-q", "-F", "-L", LABEL, str(image)],
        check=True,
        capture_output=True,
    )
    at.mkdir(exist_ok=True)
    rng = random.Random(1)
    with mounted(image, at) as root:
        for folder in range(FOLDERS):
            below = root / "data" / f"{folder:03}"
            below.mkdir(parents=True)
            for n in range(FILES // FOLDERS):
                (below / f"letter {n:04}.txt").write_bytes(rng.randbytes(100) * rng.randrange(2, 40))
        with (root / "data" / "noise.bin").open("wb") as noise:
            for _ in range(NOISE_MIB):
                noise.write(rng.randbytes(MIB))
        (root / FOLDER).mkdir(parents=True)
        for n in range(40):
            (root / FOLDER / f"report {n}.pdf").write_bytes(rng.randbytes(30_000))
        if fragmented:
            _in_pieces(root, company())
        else:
            (root / QBW).write_bytes(company())
    at.rmdir()


def _in_pieces(root: Path, content: bytes) -> None:
    """`content` as QBW into the only room that a full volume has: gaps between small files."""
    gaps = 2 * PIECES
    length = len(content) // gaps
    small = [root / "small" / f"{n:04}" for n in range(2 * gaps)]
    (root / "small").mkdir()
    for path in small:
        path.write_bytes(content[:length])
    with (root / QBW).open("wb", buffering=0) as company_file:  # made before there is no room for its record
        filler = root / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB))
        for path in random.Random(2).sample(small, gaps + gaps // 8):  # and room for where they lie
            path.unlink()
        for at in range(0, len(content), length):
            company_file.write(content[at : at + length])
    filler.unlink()
