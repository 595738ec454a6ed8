"""Other people's readers as judges: QEMU's tools and libvhdi, run on real files."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pyvhdi

from cloudmount.extents import BlockSource

_PIECE = 8 << 20


def run(*command: str | Path) -> str:
    """Standard output; the error's text in the assertion when the command fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def qemu_agrees(image: Path, kind: str, raw: Path) -> None:
    """`qemu-img compare` finds the same content in `image` (vhdx or vpc) as in `raw`."""
    assert "Images are identical" in run("qemu-img", "compare", "-f", kind, "-F", "raw", image, raw)


def qemu_sha256(image: Path, kind: str) -> str:
    """Digest of the content as `qemu-img convert` sees it."""
    raw = image.with_suffix(".converted")
    run("qemu-img", "convert", "-f", kind, "-O", "raw", image, raw)
    with raw.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    raw.unlink()
    return digest


def qemu_reads(image: Path, kind: str, pattern: int, offset: int, length: int) -> None:
    """`qemu-io` finds `length` bytes of value `pattern` at `offset`."""
    out = run("qemu-io", "-r", "-f", kind, "-c", f"read -P {pattern} {offset} {length}", image)
    assert "failed" not in out, out


def sha256(source: BlockSource, size: int) -> str:
    """Digest of `source` with zeros up to `size`."""
    digest = hashlib.sha256()
    for at in range(0, source.size, _PIECE):
        digest.update(source.read_at(at, min(_PIECE, source.size - at)))
    digest.update(bytes(size - source.size))
    return digest.hexdigest()


class Libvhdi:
    """An image as libvhdi reads it."""

    def __init__(self, image: Path) -> None:
        self.file = pyvhdi.file()
        self.file.open(str(image))
        self.size: int = self.file.get_media_size()

    def read_at(self, offset: int, length: int) -> bytes:
        """libvhdi's answer to one read, at most 16 MiB."""
        return bytes(self.file.read_buffer_at_offset(length, offset))

    def sha256(self) -> str:
        """Digest of the whole content."""
        digest = hashlib.sha256()
        for at in range(0, self.size, _PIECE):
            digest.update(self.read_at(at, min(_PIECE, self.size - at)))
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
