"""A disk with partitions of several kinds, filled by other people's programs."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from uuid import UUID

from tests.disks.partition_writer import BASIC_DATA, ESP, LINUX, write_gpt
from tests.guest.images import MIB, fill, make_ext, make_fat, make_ntfs, ntfs_mounted

RESERVED = UUID("e3c9e316-0b5c-4db8-817d-f92df00215ae")


def guest_disk(
    folder: Path, *, sector: int = 512, files: int = 30, seed: int = 1
) -> tuple[Path, dict[str, Path]]:
    """A GPT disk (EFI, reserved, ext4, NTFS, BitLocker, nothing) and, by partition folder, what is in it."""
    rng = random.Random(seed)
    made: dict[str, Path] = {}
    images = []
    for name in ("efi", "root", "data"):
        (folder / name).mkdir()
        fill(folder / name, rng, files=files, deep=5)
    (folder / "efi" / "odd" / "\U0001f600 smile").unlink()
    (folder / "root" / "link").symlink_to("/Users/Public")
    (folder / "root" / "out").symlink_to("../../../../../etc/passwd")
    os.link(folder / "root" / "large.bin", folder / "root" / "empty" / "same")
    bits = 32 if sector == 512 else 16  # of 40 MiB
    images.append(
        (ESP, "", make_fat(folder / "efi.img", 40 * MIB, folder / "efi", bits, "-s", "1", "-S", str(sector)))
    )
    images.append((RESERVED, "Microsoft reserved partition", _plain(folder / "msr.img", 1)))
    images.append(
        (LINUX, "ignored", make_ext(folder / "root.img", 30 * MIB, folder / "root", "ext4", "-b", "4096"))
    )
    ntfs = make_ntfs(folder / "data.img", 60 * MIB, sector=sector, label="A/B: DATA")
    with ntfs_mounted(ntfs, folder / "at") as at:
        shutil.copytree(folder / "data", at, dirs_exist_ok=True)
        os.link(at / "large.bin", at / "empty" / "same")
    images.append((BASIC_DATA, "Basic data partition", ntfs))
    locked = _plain(folder / "locked.img", 2)
    with locked.open("r+b") as f:
        f.write(b"\xeb\x58\x90-FVE-FS-")
    images.append((BASIC_DATA, "Secret?", locked))
    images.append((LINUX, "", _plain(folder / "nothing.img", 1)))
    parts, at_sector = [], MIB // sector
    for kind, name, image in images:
        sectors = image.stat().st_size // sector
        parts.append((kind, at_sector, at_sector + sectors - 1, name))
        at_sector += sectors
    disk = write_gpt(folder / "disk.img", (at_sector * sector) + MIB, parts, sector=sector)
    with disk.open("r+b") as f:
        for (_, first, _, _), (_, _, image) in zip(parts, images, strict=True):
            f.seek(first * sector)
            f.write(image.read_bytes())
    made = {"1-EFI": folder / "efi", "3-root": folder / "root", "4-A_B_ DATA": folder / "data"}
    return disk, made


def _plain(path: Path, mib: int) -> Path:
    with path.open("wb") as f:
        f.truncate(mib * MIB)
    return path
