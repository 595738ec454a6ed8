"""Content of ext by pytsk3: the files it gets, read as mke2fs and debugfs wrote them and as our own reader
reads them; and nothing that a failed read left behind."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmount.guest import wire
from cloudmount.guest.blocks import BLOCK, ParentBlocks
from cloudmount.guest.ext import ExtVolume
from cloudmount.guest.volumes import Unreadable
from tests.disks.oracles import run
from tests.guest.ext_writer import debugfs, journal_places, three_states, with_journal
from tests.guest.images import MIB, comb, make_ext, sparse
from tests.guest.test_ext_features import filled


class ImageBlocks(ParentBlocks):
    """An image, read in this process; `asked` are its ranges, the `failing`th of which fails."""

    def __init__(self, image: Path | bytes) -> None:
        self._raw = image if isinstance(image, bytes) else image.read_bytes()
        super().__init__(len(self._raw), -1, -1)
        self.asked: list[tuple[int, int]] = []
        self.failing = 0

    def expect(self, ranges: list[tuple[int, int]]) -> None:
        """Nobody to tell."""

    def _ask(self, offset: int, length: int) -> bytes:
        self.asked.append((offset, length))
        if len(self.asked) == self.failing:
            raise wire.BrokenFrameError("no")
        return self._raw[offset : offset + length]


def files(volume: ExtVolume, number: int = 2, path: str = "") -> Iterator[tuple[str, int, int]]:
    """(path, number, size) of all."""
    for found in volume.folder(number):
        if found.kind == "dir":
            yield from files(volume, found.number, f"{path}{found.name}/")
        elif found.kind == "file" and found.unreadable is None:
            yield path + found.name, found.number, found.size


def by_pytsk3(volume: ExtVolume, number: int) -> bool:
    return volume._sleuth.get(number, volume._inode(number), 0) is not None


def compare(volume: ExtVolume, source: Path, rng: random.Random) -> tuple[int, set[str]]:
    """Read every file whole, and in odd pieces, by both readers. How many, and those that pytsk3 doesn't read
    though they have content."""
    count, own = 0, set()
    for path, number, size in files(volume):
        content = (source / path).read_bytes()
        assert len(content) == size, path
        for begin in range(0, size, wire.MOST_READ):
            length = min(wire.MOST_READ, size - begin)
            assert volume.read(number, begin, length) == content[begin : begin + length], path
        for _ in range(3):
            begin = rng.randrange(size + 1)
            length = min(size - begin, rng.choice((1, 511, 4096, 65_000, 65_536, 65_537, 300_001)))
            data = volume.read(number, begin, length)
            assert data == content[begin : begin + length], (path, begin, length)
            assert data == volume._content(volume._inode(number), begin, length)
        count += 1
        if size and not by_pytsk3(volume, number):
            own.add(path)
    return count, own


def many(folder: Path, rng: random.Random, count: int = 300) -> Path:
    """A little of everything, and many small files, some with attributes."""
    source = filled(folder)
    for n in range(count):
        below = source / f"d{n % 23}"
        below.mkdir(exist_ok=True)
        length = rng.choice((1, 100, 1023, 1024, 1025, 4095, 4096, 4097, rng.randrange(90_000)))
        (below / f"file {n}").write_bytes(rng.randbytes(length - 1) + b"x")  # zeros would be a hole
        if n % 7 == 0:
            os.setxattr(below / f"file {n}", "user.some", rng.randbytes(rng.choice((10, 300))))
    for size in (MIB, 5 * MIB + 3):
        (source / f"large {size}").write_bytes(rng.randbytes(size))
    return source


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ext2", ("-b", "1024")),
        ("ext2", ("-b", "4096", "-r", "0")),
        ("ext3", ("-b", "1024", "-I", "128")),
        ("ext3", ("-b", "4096")),
        ("ext4", ("-b", "1024")),
        ("ext4", ("-b", "4096", "-I", "512")),
        ("ext4", ("-b", "2048", "-I", "128", "-O", "^dir_index,^filetype,^flex_bg,^metadata_csum")),
        ("ext4", ("-b", "1024", "-O", "^64bit,sparse_super2", "-g", "512")),
        ("ext4", ("-b", "4096", "-O", "^extent,^64bit")),
        ("ext4", ("-b", "1024", "-O", "inline_data")),
        ("ext4", ("-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode")),
        ("ext4", ("-b", "4096", "-O", "bigalloc,large_dir", "-C", "16384")),
        (
            "ext4",
            (
                "-b",
                "65536",
            ),
        ),
    ],
)
def test_every_kind_of_volume(tmp_path: Path, kind: str, options: tuple[str, ...]) -> None:
    rng = random.Random(str(options))
    source = many(tmp_path, rng)
    image = make_ext(tmp_path / "image", 96 * MIB, source, kind, *options)
    volume = ExtVolume(ImageBlocks(image))
    count, own = compare(volume, source, rng)
    assert count > 600
    if "bigalloc" in str(options) or "meta_bg" in str(options):
        assert not any(by_pytsk3(volume, number) for _, number, _ in files(volume))
        return
    expected = {"sparse", *({"comb"} if options[1] != "65536" else ())}
    if options[1] == "1024" and kind != "ext4":  # more lists than pytsk3 is given
        expected.add(f"large {5 * MIB + 3}")
    if "inline_data" in str(options):
        own = {path for path in own if (source / path).stat().st_size > 200}
    assert own == expected


@pytest.mark.parametrize(("kind", "block"), [("ext4", 1024), ("ext4", 4096), ("ext2", 1024), ("ext2", 4096)])
def test_files_in_pieces(tmp_path: Path, kind: str, block: int) -> None:
    """In a volume that was full and whose every second file was removed: trees and lists of single blocks."""
    rng, source = random.Random(block), tmp_path / "source"
    source.mkdir()
    for n in range(1000):
        (source / f"f{n:04}").write_bytes(rng.randbytes(block))
    options = ("-b", str(block), "-m", "0", "-N", "1200", "-O", "^has_journal")
    image = make_ext(tmp_path / "image", 1400 * block, source, kind, *options)
    contents = tmp_path / "contents"
    contents.mkdir()
    commands = []
    for n in range(0, 1000, 2):
        (source / f"f{n:04}").unlink()
        commands.append(f"rm f{n:04}")
    free = int(run("dumpe2fs", "-h", image).split("Free blocks:")[1].split()[0])
    (contents / "filler").write_bytes(rng.randbytes(max(1, free - 20) * block))
    for count in (40, 200, 150):
        (source / f"in {count}").write_bytes(rng.randbytes(count * block - 5))
    debugfs(
        image,
        [f"write {contents / 'filler'} filler", *commands]
        + [f'write "{source / f"in {count}"}" "in {count}"' for count in (40, 200, 150)],
    )
    (source / "filler").write_bytes((contents / "filler").read_bytes())
    volume = ExtVolume(ImageBlocks(image))
    count, own = compare(volume, source, rng)
    assert (count, own) == (504, set())
    number = next(number for path, number, _ in files(volume) if path == "in 200")
    inode = volume._inode(number)
    assert len(list(volume._runs(inode, 0, 200 * block))) > 100
    if (kind, block) == ("ext4", 1024):  # damage behind the file's end, where pytsk3 would go all the same
        debugfs(image, ['sif "in 200" size 5000'])
        entries = int.from_bytes(inode.map[2:4], "little")
        leaf = int.from_bytes(inode.map[12 * entries + 4 : 12 * entries + 8], "little")
        with image.open("r+b") as f:
            f.seek(leaf * block)
            f.write(b"?")
        volume = ExtVolume(ImageBlocks(image))
        assert not by_pytsk3(volume, number)
        assert volume.read(number, 0, 5000) == (source / "in 200").read_bytes()[:5000]


def test_what_pytsk3_does_not_get(tmp_path: Path) -> None:
    """Holes, what was never written, trees that are deep, lists that are long; and nothing of what is
    refused."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("allocated", "secret", "whole"):
        (source / name).write_bytes(name.encode() * 3000)
    sparse(source / "hole", 5 << 30, (9 * MIB, b"here"))
    comb(source / "comb", 1024, 700)
    image = make_ext(tmp_path / "image", 32 * MIB, source, "ext4", "-b", "1024")
    debugfs(image, ["fallocate allocated 30 3000", "sif allocated size 3072000", "sif secret flags 0x80800"])
    volume = ExtVolume(ImageBlocks(image))
    numbers = {path: number for path, number, _ in files(volume)}
    assert [name for name in numbers if by_pytsk3(volume, numbers[name])] == ["whole"]
    content = (b"allocated" * 3000).ljust(MIB, b"\0")
    assert volume.read(numbers["allocated"], 0, MIB) == content
    assert volume.read(numbers["hole"], 9 * MIB - 1, 6) == b"\0here\0"
    secret = next(found.number for found in volume.folder(2) if found.name == "secret")
    with pytest.raises(Unreadable, match="encrypted"):
        volume.read(secret, 0, 10)


def test_it_sees_the_journal(tmp_path: Path) -> None:
    """Content that lies in the journal alone; where that is damaged an error, never zeros."""
    before, first, _ = three_states(tmp_path, "ext4", 1024)
    image = tmp_path / "image"
    with_journal(before, [first], 1024, image, "-c -v 3")
    content = (tmp_path / "content").read_bytes()
    volume = ExtVolume(ImageBlocks(image))
    number = next(number for path, number, _ in files(volume) if path == "large")
    assert by_pytsk3(volume, number)
    assert volume.read(number, 0, len(content)) == content
    places = [(first, at, length) for first, at, length in volume.extents(number)]
    logged = set(journal_places(image, 1024)) & {p for _, at, n in places for p in range(at, at + n, 1024)}
    hit = sorted(logged)[len(logged) // 2]
    with image.open("r+b") as f:
        f.seek(hit + 100)
        f.write(b"x")
    (at,) = [first + hit - at for first, at, length in places if at <= hit < at + length]
    refused = 0
    whole, some, few = (0, len(content)), (at - 30_001, 30_002), (at - 3000, 999)
    for begin, length in (whole, (0, 99_999), (at + 500, 7), (at, 1024), some, few):
        volume = ExtVolume(ImageBlocks(image))
        assert by_pytsk3(volume, number)
        touched = begin < at + 1024 and at < begin + length
        if touched:
            with pytest.raises(ValueError, match="a block that the journal holds is damaged"):
                volume.read(number, begin, length)
        else:
            assert volume.read(number, begin, length) == content[begin : begin + length]
        refused += touched
    assert 2 < refused < 6


@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_reads_that_fail(tmp_path: Path, kind: str) -> None:
    """Whichever of a parser's reads fails: it is told, and no byte is made up."""
    source = tmp_path / "source"
    source.mkdir()
    rng = random.Random(3)
    contents = [rng.randbytes(size) for size in (777, 70_001, 300_000)]
    for n, content in enumerate(contents):
        (source / str(n)).write_bytes(content)
    image = make_ext(tmp_path / "image", 8 * MIB, source, kind, "-b", "1024")
    listed = {path: number for path, number, _ in files(ExtVolume(ImageBlocks(image)))}
    raw, failing, failed = image.read_bytes(), 0, True
    while failed:
        failing, failed = failing + 1, False
        blocks = ImageBlocks(raw)
        blocks.failing = failing
        for n, content in enumerate(contents):
            try:
                volume = ExtVolume(blocks)
                for begin in (0, 500):
                    length = len(content) - begin
                    assert volume.read(listed[str(n)], begin, length) == content[begin:]
            except wire.BrokenFrameError:
                failed = True
                break
    assert failing > 4


def test_it_asks_for_no_neighbours(tmp_path: Path) -> None:
    """What a file takes beside its own blocks of 64 KiB: where it lies, and the bitmap of its inode."""
    source = tmp_path / "source"
    source.mkdir()
    rng = random.Random(4)
    for n in range(300):
        (source / f"{n:03}").write_bytes(rng.randbytes(rng.choice((100, 5000, 30_000, 200_000))))
    image = make_ext(tmp_path / "image", 64 * MIB, source, "ext4", "-b", "4096").read_bytes()
    listing = ExtVolume(ImageBlocks(image))
    for _, number, size in files(listing):
        blocks = ImageBlocks(image)
        volume = ExtVolume(blocks)
        inode = volume._inode(number)
        own = {
            n
            for _, at, length in listing.extents(number)
            for n in range(at // BLOCK, (at + length - 1) // BLOCK + 1)
        }
        before = len(blocks.asked)
        assert len(volume.read(number, 0, size)) == inode.size
        asked = [
            n for at, length in blocks.asked[before:] for n in range(at // BLOCK, -(-(at + length) // BLOCK))
        ]
        assert set(asked) - own <= {volume._table.bitmap_at(number) // BLOCK}
