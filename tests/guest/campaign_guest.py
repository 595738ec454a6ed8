"""The long campaign against file systems inside disks: small volumes, a few bytes of their metadata changed.

Whatever a volume's bytes are: every call gives an answer or one of our errors within seconds, names and
numbers are what `entries` allows, and a sound volume read afterwards is right. Bytes are changed where the
parsers look: a volume's own reads tell where. `make campaign` runs many, the tests a few.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cloudmount.errors import CloudMountError, UnreadableInputError
from cloudmount.extents import Extent, check_range
from cloudmount.guest import children as processes
from cloudmount.guest.children import Children
from cloudmount.guest.recognise import recognise
from cloudmount.guest.volume import Path as Names
from cloudmount.guest.volume import Volume
from cloudmount.nodes import Kind
from tests.guest.ext_writer import three_states, with_journal
from tests.guest.images import MIB, fragment, make_ext, make_fat, make_ntfs, ntfs_mounted, sparse
from tests.guest.mutant_worker import DIFFER

START = processes._START.replace("cloudmount.guest.worker", "tests.guest.mutant_worker")
LATE = 15.0
MOST_NODES = 400
INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF)


class MutantSource:
    """A volume's bytes, some of which can be changed; notes where it is read."""

    def __init__(self, content: bytes) -> None:
        self.sound = content
        self._content = bytearray(content)
        self._changed: list[int] = []
        self.size = len(content)
        self.read: set[int] = set()
        """Numbers of sectors that were read one or few at a time: metadata, mostly."""

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(self.size, offset, length)
        if length <= 64 << 10:
            self.read.update(range(offset // 512, (offset + length + 511) // 512))
        return bytes(memoryview(self._content)[offset : offset + length])

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, True)

    def close(self) -> None:
        """Nothing to release."""

    def change(self, at: int, value: bytes) -> None:
        """Other bytes there, until `mend`."""
        value = value[: self.size - at]
        self._changed.append(at)
        self._content[at : at + len(value)] = value

    def mend(self) -> None:
        """As it was."""
        for at in self._changed:
            self._content[at : at + 64] = self.sound[at : at + 64]
        self._changed.clear()


class MutantVolume(Volume):
    """A volume that may become another one."""

    def forget(self) -> None:
        """Know nothing, and have its parser know nothing."""
        self._folders.clear()
        self._about = None
        self._children.call(self, "forget")


class Base:
    """A sound volume, what it shows, and where its metadata lies."""

    def __init__(self, image: Path) -> None:
        self.name = image.stem
        self.source = MutantSource(image.read_bytes())
        found = recognise(self.source)
        assert found.parser is not None
        self.parser = found.parser
        self.expected: dict[str, bytes] = {}
        self.places: list[int] = []

    def learn(self, children: Children) -> None:
        """Read it as it is; a sector of zeros is no place to change much."""
        self.source.read.clear()
        self.volume = MutantVolume(children, self.source, self.parser, self.name)
        self.expected = walk(self.volume, Counter())
        assert len(self.expected) > 20, (self.name, self.expected.keys())
        looked, sound = set(self.source.read), self.source.sound
        for entry in list(self.volume.folder((), self.volume.root).values()):
            if entry.kind is Kind.FILE:
                for place in self.volume.places(entry):
                    looked -= set(range(place.at // 512, (place.at + place.length) // 512))
        self.places = [n for n in sorted(looked) if any(sound[n * 512 : n * 512 + 512])]


def few(folder: Path, rng: random.Random) -> None:
    """A handful of files that between them use what a file system has."""
    for n in range(6):
        (folder / f"name {n}").write_bytes(rng.randbytes(rng.choice((0, 10, 700, 5000))))
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "ä long name that takes more entries than one.document").write_bytes(b"x" * 50)
    many = folder / "many"
    many.mkdir()
    for n in range(14):
        (many / f"a name of {n} and some length to fill blocks").touch()
    (folder / "large.bin").write_bytes(rng.randbytes(60_000))


def bases(folder: Path) -> list[Base]:
    """A few small volumes of each kind."""
    rng = random.Random(7)
    source = folder / "source"
    source.mkdir()
    few(source, rng)
    images = [make_fat(folder / f"fat{bits}.img", size, source, bits, *more) for bits, size, more in (
        (12, 2 * MIB, ()), (16, 9 * MIB, ("-s", "1")), (32, 36 * MIB, ("-s", "1")))]  # fmt: skip
    os.symlink("../name 3", source / "deep" / "link")
    os.symlink("/Users/" + "x" * 80, source / "deep" / "far")
    sparse(source / "sparse", 3 * MIB, (MIB, b"here"))
    images += [make_ext(folder / f"{kind}.img", 4 * MIB, source, kind) for kind in ("ext2", "ext4")]
    images.append(make_ext(folder / "ext4 inline.img", 4 * MIB, source, "ext4", "-O", "inline_data"))
    before, first, second = three_states(folder / "states", "ext4", 1024, "-O", "^metadata_csum")
    images.append(folder / "ext4 in use.img")
    with_journal(before, [first, second], 1024, images[-1], "")
    for name, cluster in (("ntfs", 4096), ("ntfs small", 512)):
        image = make_ntfs(folder / f"{name}.img", 8 * MIB, cluster=cluster)
        with ntfs_mounted(image, folder / "at") as at:
            few(at, rng)
            sparse(at / "sparse", 3 * MIB, (MIB, b"here"))
            fragment(at, rng, 20)
            (at / "packed").mkdir()
            os.setxattr(at / "packed", "system.ntfs_attrib", (0x800).to_bytes(4, "little"))
            (at / "packed" / "text").write_bytes(b"some text " * 20_000)
        images.append(image)
    return [Base(image) for image in images]


def walk(volume: Volume, done: Counter[str]) -> dict[str, bytes]:
    """All that can be had, as far as `MOST_NODES`: paths and bytes of files. Failures are counted."""
    found: dict[str, bytes] = {}

    def folder(path: Names, number: int) -> None:
        try:
            listed = volume.folder(path, number)
        except CloudMountError as error:
            done[_kind(error)] += 1
            return
        for name, entry in listed.items():
            if len(found) >= MOST_NODES:
                return
            assert "/" not in name and name not in ("", ".", "..")
            assert entry.kind is not Kind.LINK or entry.target
            found["/".join((*path, name))] = b""
            if entry.kind is Kind.DIR and len(path) < 12:
                folder((*path, name), entry.number)
            elif entry.kind is Kind.FILE:
                try:
                    source = volume.open(entry)
                    size = source.size
                    data = source.read_at(0, min(size, 70_000))
                    if size > 10_000:
                        data += source.read_at(size - 5000, 5000)
                        volume.places(entry)
                    found["/".join((*path, name))] = data
                except CloudMountError as error:
                    done[_kind(error)] += 1

    try:
        assert volume.lookup((), volume.root, "no such name") is None
        folder((), volume.root)
    except CloudMountError as error:
        done[_kind(error)] += 1
    return found


def _kind(error: CloudMountError) -> str:
    assert isinstance(error, UnreadableInputError), error
    text = str(error)
    assert DIFFER not in text, text
    return "crashes" if "crashed" in text else "late" if "was ended" in text else "errors"


def mutate(source: MutantSource, places: list[int], rng: random.Random) -> None:
    """Change a few bytes of the metadata, which lies in these sectors."""
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.choice(places) * 512 + rng.randrange(512)
        width = rng.choice((1, 1, 2, 4, 8))
        at -= at % rng.choice((1, width))
        how = rng.randrange(4)
        if how == 0:
            value = bytes([source._content[at] ^ 1 << rng.randrange(8)])
        elif how == 1:
            value = bytes([rng.choice(INTERESTING)]) * width
        elif how == 2:
            value = rng.randbytes(width)
        else:
            other = rng.choice(places) * 512 + rng.randrange(512)
            value = bytes(source._content[other : other + rng.choice((width, 16, 64))])
        source.change(at, value)


def campaign(seed: int, count: int, kind: str = "") -> str:
    """`count` mutated volumes, only those whose name begins with `kind`; `AssertionError` naming the seed of
    what was wrong. What was done."""
    done: Counter[str] = Counter()
    old, processes._START = processes._START, START
    children = Children(10, thinking=8.0, idle=600)
    try:
        with tempfile.TemporaryDirectory(prefix="guest-campaign-") as folder:
            made = [base for base in bases(Path(folder)) if base.name.startswith(kind)]
        for base in made:
            base.learn(children)
        slowest = 0.0
        for n in range(count):
            rng = random.Random(f"{seed}/{n}")
            base = made[n % len(made)]
            mutate(base.source, base.places, rng)
            began = time.monotonic()
            try:
                base.volume.forget()
                found = walk(base.volume, done)
            except BaseException as error:
                raise AssertionError(f"seed {seed}, volume {n} ({base.name}): {error!r}") from error
            finally:
                base.source.mend()
            took = time.monotonic() - began
            slowest = max(slowest, took)
            if took > LATE * 20:
                raise AssertionError(f"seed {seed}, volume {n} ({base.name}) took {took:.1f} s")
            done["same" if found == base.expected else "other"] += 1
            if n % 500 == 499:
                for sound in made:
                    sound.volume.forget()
                    if walk(sound.volume, Counter()) != sound.expected:
                        raise AssertionError(f"seed {seed}, after volume {n}: {sound.name} reads wrong")
        assert len(children.pids()) <= 10
        told = f"guest: {count} mutated volumes, {dict(sorted(done.items()))}"
        return f"{told}, {children.started} parsers, the slowest {slowest:.1f} s"
    finally:
        processes._START = old
        children.close()
