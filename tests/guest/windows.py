"""What only Windows writes to NTFS: reparse points, files compressed by WOF, encrypted ones; made by hand."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from tests.guest.images import REPARSE

WOF, DEDUP, ONEDRIVE, CLOUD, UNKNOWN = 0x80000017, 0x80000013, 0x80000021, 0x9000301A, 0x80001234
ALGORITHMS = {0: (4096, 1), 1: (32768, 2), 2: (8192, 1), 3: (16384, 1)}
"""Of WOF: XPRESS4K, LZX, XPRESS8K, XPRESS16K: bytes of a chunk, and wimlib's name of the codec."""


def reparse(path: Path, tag: int, value: bytes) -> None:
    """Make `path` (on ntfs-3g) a reparse point."""
    os.setxattr(path, REPARSE, struct.pack("<IHH", tag, len(value), 0) + value, follow_symlinks=False)


def symlink_value(target: str, *, relative: bool) -> bytes:
    """Reparse data of a symbolic link."""
    name = target.encode("utf-16-le")
    return struct.pack("<HHHHI", 0, len(name), 0, len(name), relative) + name


def junction_value(target: str) -> bytes:
    """Reparse data of a junction."""
    name = target.encode("utf-16-le")
    return struct.pack("<HHHH", 0, len(name), len(name) + 2, 0) + name + b"\0\0\0\0"


def compressed_chunks(data: bytes, algorithm: int) -> bytes:
    """The stream `WofCompressedData` for `data`: offsets of all chunks but the first, then the chunks, stored
    as they are where they don't shrink. The codecs are wimlib's."""
    library = ctypes.CDLL("libwim.so.15")
    size, codec = ALGORITHMS[algorithm]
    library.wimlib_global_init(0)
    made = ctypes.c_void_p()
    library.wimlib_create_compressor.argtypes = [
        ctypes.c_int, ctypes.c_size_t, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p)
    ]  # fmt: skip
    assert library.wimlib_create_compressor(codec, size, 50, ctypes.byref(made)) == 0
    library.wimlib_compress.restype = ctypes.c_size_t
    library.wimlib_compress.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p
    ]  # fmt: skip
    chunks = []
    for at in range(0, len(data), size):
        plain = data[at : at + size]
        room = ctypes.create_string_buffer(len(plain))
        length = library.wimlib_compress(plain, len(plain), room, len(plain) - 1, made)
        chunks.append(room.raw[:length] if length else plain)
    library.wimlib_free_compressor.argtypes = [ctypes.c_void_p]
    library.wimlib_free_compressor(made)
    offsets, there = [], 0
    for chunk in chunks[:-1]:
        there += len(chunk)
        offsets.append(there)
    return struct.pack(f"<{len(offsets)}I", *offsets) + b"".join(chunks)


def write_wof(path: Path, data: bytes, algorithm: int) -> None:
    """A file on ntfs-3g (with `streams_interface=xattr`) as `compact /exe` leaves it."""
    with path.open("wb") as f:
        f.truncate(len(data))
    os.setxattr(path, "user.WofCompressedData", compressed_chunks(data, algorithm))
    reparse(path, WOF, struct.pack("<IIII", 1, 2, 1, algorithm))


def record_at(image: Path, number: int) -> int:
    """Where the file record `number` lies in an image whose MFT is not fragmented there."""
    with image.open("rb") as f:
        boot = f.read(512)
    cluster = int.from_bytes(boot[11:13], "little") * boot[13]
    return int.from_bytes(boot[48:56], "little") * cluster + 1024 * number


def patch_attribute(image: Path, number: int, kind: int, offset: int, value: bytes) -> None:
    """Bytes at `offset` of the first attribute of this kind in a file's record."""
    start = record_at(image, number)
    with image.open("r+b") as f:
        f.seek(start)
        record = f.read(1024)
        at = int.from_bytes(record[20:22], "little")
        while int.from_bytes(record[at : at + 4], "little") != kind:
            at += int.from_bytes(record[at + 4 : at + 8], "little")
        assert at + offset < 510, "outside of what the update sequence touches"
        f.seek(start + at + offset)
        f.write(value)
