"""What a volume shows, by our readers and by others, in one form to compare."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cloudmount.disks.raw import RawDisk
from cloudmount.guest.children import Children
from cloudmount.guest.recognise import recognise
from cloudmount.guest.volume import Volume
from cloudmount.nodes import Kind


@dataclass(frozen=True)
class Seen:
    """One path."""

    kind: str
    size: int
    mtime_ns: int
    links: int
    digest: str
    """Of a file's content; a link's target."""


def opened(children: Children, image: Path) -> Volume:
    """The volume that fills an image."""
    disk = RawDisk(image)
    found = recognise(disk)
    assert found.parser is not None, found
    return Volume(children, disk, found.parser, image.name)


def ours(volume: Volume) -> dict[str, Seen]:
    """Everything in it; each file read twice over, in odd pieces the second time."""
    found: dict[str, Seen] = {}

    def walk(path: tuple[str, ...], number: int) -> None:
        for name, entry in volume.folder(path, number).items():
            below = (*path, name)
            digest = ""
            if entry.kind is Kind.LINK:
                digest = entry.target or ""
            elif entry.kind is Kind.FILE and entry.unreadable is None:
                source = volume.open(entry)
                data = source.read_at(0, source.size)
                again = bytearray()
                while len(again) < len(data) < 4 << 20:
                    again += source.read_at(len(again), min(37_777, len(data) - len(again)))
                assert not again or again == data
                digest = hashlib.sha256(data).hexdigest()
            elif entry.unreadable is not None:
                digest = f"unreadable: {entry.unreadable}"
            links = entry.links if entry.kind is Kind.FILE else 1
            found["/".join(below)] = Seen(entry.kind.value, entry.size, entry.mtime_ns, links, digest)
            if entry.kind is Kind.DIR:
                walk(below, entry.number)

    walk((), volume.root)
    return found


def theirs(folder: Path, skip: frozenset[str] = frozenset({"lost+found"})) -> dict[str, Seen]:
    """The same of a folder of this system."""
    found: dict[str, Seen] = {}
    for root, dirs, files in os.walk(folder):
        dirs[:] = [d for d in dirs if d not in skip]
        for name in [*dirs, *files]:
            path = Path(root, name)
            s = path.lstat()
            links, size, digest = 1, 0, ""
            if stat.S_ISLNK(s.st_mode):
                kind, digest = "link", os.readlink(path)
            elif stat.S_ISDIR(s.st_mode):
                kind = "dir"
            else:
                kind, links, size = "file", s.st_nlink, s.st_size
                if stat.S_ISREG(s.st_mode):
                    with path.open("rb") as f:
                        digest = hashlib.file_digest(f, "sha256").hexdigest()
                else:
                    digest = hashlib.sha256(b"").hexdigest()
            found[str(path.relative_to(folder))] = Seen(kind, size, s.st_mtime_ns, links, digest)
    return found
