"""Volumes of ext with something in their journal, written by debugfs."""

from __future__ import annotations

import random
import re
import shutil
import struct
from pathlib import Path

from tests.disks.oracles import run
from tests.guest.images import MIB, make_ext


def changed_blocks(before: Path, after: Path, block: int) -> list[int]:
    """The numbers of the blocks in which two images of one size differ."""
    a, b = before.read_bytes(), after.read_bytes()
    assert len(a) == len(b)
    return [
        n
        for n in range(len(a) // block)
        if a[n * block : n * block + block] != b[n * block : n * block + block]
    ]


def with_journal(before: Path, steps: list[Path], block: int, made: Path, options: str) -> None:
    """`before`, and in its journal a transaction for each of `steps`, leading to that image; `options` are
    those of debugfs' journal_open."""
    shutil.copyfile(before, made)
    commands = [f"journal_open {options}"]
    last = before
    for n, step in enumerate(steps):
        numbers = changed_blocks(last, step, block)
        raw, content = step.read_bytes(), made.with_name(f"{made.name}.{n}")
        content.write_bytes(b"".join(raw[b * block : (b + 1) * block] for b in numbers))
        commands.append(f"journal_write -b {','.join(map(str, numbers))} {content}")
        last = step
    debugfs(made, [*commands, "journal_close"])


def debugfs(image: Path, commands: list[str]) -> None:
    """Have debugfs do something to an image."""
    script = image.with_name(f"{image.name}.commands")
    script.write_text("\n".join(commands) + "\n")
    run("debugfs", "-w", "-f", script, image)


def replayed(image: Path) -> Path:
    """A copy of an image, its journal applied by e2fsck."""
    copy = image.with_name(f"{image.name}.replayed")
    shutil.copyfile(image, copy)
    run("e2fsck", "-E", "journal_only", "-p", copy)
    return copy


def three_states(folder: Path, kind: str, block: int, *options: str) -> tuple[Path, Path, Path]:
    """A volume, and what it became by two changes of files and folders."""
    rng, source = random.Random(3), folder / "source"
    source.mkdir(parents=True)
    for n in range(40):
        (source / f"f{n}").write_bytes(rng.randbytes(3000))
    before = make_ext(folder / "before.img", 16 * MIB, source, kind, "-b", str(block), *options)
    content, like = folder / "content", folder / "like a journal"
    content.write_bytes(rng.randbytes(100_000))
    like.write_bytes(b"\xc0\x3b\x39\x98" * 5000)
    first, second = folder / "first.img", folder / "second.img"
    shutil.copyfile(before, first)
    debugfs(first, [f"write {content} large", "rm f5", "mkdir d", f'write "{like}" d/like'])
    shutil.copyfile(first, second)
    debugfs(second, [f"write {content} d/other", "symlink d/l /etc/x", "rm f6", f'write "{like}" again'])
    return before, first, second


def journal_places(image: Path, block: int) -> list[int]:
    """Where in an image each block of its journal lies, in bytes."""
    told = run("debugfs", "-R", "stat <8>", image).split("EXTENTS:")[1]
    pieces = [tuple(map(int, p)) for p in re.findall(r"\((\d+)-(\d+)\):(\d+)", told)]
    return [(at + i) * block for first, last, at in pieces for i in range(last - first + 1)]


def with_log(image: bytes, places: list[int], log: list[bytes]) -> bytes:
    """An image with these blocks in its journal."""
    made = bytearray(image)
    for at, content in zip(places, log, strict=True):
        made[at : at + len(content)] = content
    return bytes(made)


def folder_of(names: list[str], inode: int, block: int) -> bytes:
    """A folder's content in which these names all lead to one inode."""
    blocks: list[bytes] = []
    entries: list[bytes] = []

    def close() -> None:
        last = entries.pop()
        room = block - sum(map(len, entries))
        entries.append(last[:4] + room.to_bytes(2, "little") + last[6:])
        blocks.append(b"".join(entries).ljust(block, b"\0"))
        entries.clear()

    for name in names:
        raw = name.encode()
        length = len(raw) + 11 & ~3
        if sum(map(len, entries)) + length > block:
            close()
        entries.append(struct.pack("<IHBB", inode, length, len(raw), 1) + raw.ljust(length - 8, b"\0"))
    close()
    return b"".join(blocks)
