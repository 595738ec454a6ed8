"""In the child: ext2, 3 and 4.

Decided here and only here: what of such a volume is shown, and which files are refused: encrypted and
compressed ones, and pipes, sockets and devices, which have no content. Everything is read with the journal
applied (`ext_journal`), so as a kernel that mounts the volume would read it. Content of ordinary files comes
from pytsk3 (`ext_sleuth`), everything else is read here. One thread.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator

from cloudmount.guest import ext_inode
from cloudmount.guest.blocks import ParentBlocks
from cloudmount.guest.ext_folder import inline_names, names
from cloudmount.guest.ext_inode import Inode
from cloudmount.guest.ext_journal import Journalled
from cloudmount.guest.ext_map import Run, runs
from cloudmount.guest.ext_sleuth import SleuthFiles
from cloudmount.guest.volumes import BESIDE, INSIDE, Found, Unreadable
from cloudmount.guest.wire import MOST_ENTRIES

ROOT = 2
_MOST_FOLDER = 512 << 20
"""Bytes: a million names of 255 letters in blocks half full."""
_MOST_TARGET = 4096
_STEP = 1 << 20
_AT_ONCE = 4096
"""Inodes read in the order in which they lie."""
_OPENED = 64
Name = tuple[bytes, int]


class ExtVolume:
    """A `volumes.Volume`."""

    root = ROOT

    def __init__(self, blocks: ParentBlocks) -> None:
        self._blocks = Journalled(blocks)
        self._about = self._blocks.about
        self._read_at = self._blocks.read_at
        self.label, self.warning = self._about.label, self._blocks.warning
        self._table = ext_inode.Inodes(self._about, self._read_at)
        self._sleuth = SleuthFiles(self._blocks, self._table)
        self._inodes: OrderedDict[int, Inode] = OrderedDict()
        self._folders: OrderedDict[int, list[Name]] = OrderedDict()

    def folder(self, number: int) -> Iterator[Found]:
        listed, damage = self._names(number)
        if damage is not None:
            raise damage
        for at in range(0, len(listed), _AT_ONCE):
            some = listed[at : at + _AT_ONCE]
            self._expect({n for _, n in some})
            found = [(i, self._found(*one)) for i, one in sorted(enumerate(some), key=lambda o: o[1][1])]
            yield from (one for _, one in sorted(found, key=lambda o: o[0]))

    def lookup(self, path: list[str], number: int) -> Found | None:
        listed, damage = self._names(number)
        wanted = path[-1].encode("utf-8", "surrogateescape")
        found = next((n for n in listed if n[0] == wanted), None)
        if found is None and damage is not None:
            raise damage
        return None if found is None else self._found(*found)

    def read(self, number: int, offset: int, length: int) -> bytes:
        found = self._inode(number)
        why = "no file" if found.kind == ext_inode.FOLDER else _refused(found)
        if why is not None:
            raise Unreadable(why)
        file = self._sleuth.get(number, found, offset)
        if file is not None:
            with contextlib.suppress(OSError, ValueError):  # it may have met damage in what lies behind
                return file.read(offset, length)
        return self._content(found, offset, length)

    def extents(self, number: int) -> Iterator[tuple[int, int, int]]:
        found = self._inode(number)
        if found.flags & ext_inode.INLINE:
            return
        block = self._about.block
        for run in self._runs(found, 0, found.size):
            for first, at, length in self._blocks.really(run):
                yield first * block, at * block, length * block

    def data(self, number: int) -> Iterator[tuple[int, int]] | None:
        found = self._inode(number)
        if found.flags & ext_inode.INLINE:
            return None
        block = self._about.block
        return ((r.first * block, r.length * block) for r in self._runs(found, 0, found.size))

    def _inode(self, number: int) -> Inode:
        found = self._inodes.get(number)
        if found is None:
            found = self._inodes[number] = self._table.get(number)
            if len(self._inodes) > _OPENED:
                self._inodes.popitem(last=False)
        else:
            self._inodes.move_to_end(number)
        return found

    def _runs(self, found: Inode, offset: int, length: int) -> Iterator[Run]:
        block = self._about.block
        begin, end = offset // block, -(-(offset + length) // block)
        return runs(found, self._about, self._read_at, self._blocks.expect, begin, end)

    def _content(self, found: Inode, offset: int, length: int) -> bytes:
        """Bytes of a file, folder or link that lie within its size."""
        if found.flags & ext_inode.INLINE:
            whole = ext_inode.inline_content(found)
            if found.size > len(whole):
                raise ValueError("content kept in an inode is too short")
            return whole[offset : offset + length]
        block, parts, end = self._about.block, [], offset + length
        for run in self._runs(found, offset, length):
            begin, stop = max(offset, run.first * block), min(end, (run.first + run.length) * block)
            parts.append(bytes(begin - offset))
            data = self._read_at(run.at * block + begin - run.first * block, stop - begin)
            if len(data) != stop - begin:
                raise ValueError("a file lies outside its volume")
            parts.append(data)
            offset = stop
        parts.append(bytes(end - offset))
        return b"".join(parts)

    # Folders

    def _names(self, number: int) -> tuple[list[Name], ValueError | None]:
        """What a folder holds, and what is wrong with the rest of it."""
        kept = self._folders.get(number)
        if kept is not None:
            self._folders.move_to_end(number)
            return kept, None
        found = self._inode(number)
        if found.kind != ext_inode.FOLDER:
            raise ValueError("no folder")
        if found.flags & (ext_inode.ENCRYPTED | ext_inode.COMPRESSED):
            raise Unreadable(_refused(found) or "")
        listed: list[Name] = []
        damage: ValueError | None = None
        filetype, inodes = bool(self._about.incompatible & ext_inode.FILETYPE), self._about.inodes
        if found.flags & ext_inode.INLINE:
            listed += inline_names(self._content(found, 0, found.size), filetype, inodes)
            return listed, None
        block = self._about.block
        if found.size % block or found.size > _MOST_FOLDER:
            raise ValueError("a folder's size makes no sense")
        for step in range(0, found.size, _STEP):
            raw = self._content(found, step, min(_STEP, found.size - step))
            for at in range(0, len(raw), block):
                try:
                    listed += names(raw[at : at + block], filetype, inodes)
                except ValueError as error:
                    damage = error
            if len(listed) > MOST_ENTRIES:
                raise Unreadable(f"a folder of more than {MOST_ENTRIES:,} names")
        if damage is None:
            self._folders[number] = listed
            while len(self._folders) > 1 and sum(map(len, self._folders.values())) > MOST_ENTRIES // 4:
                self._folders.popitem(last=False)
        return listed, damage

    def _expect(self, numbers: set[int]) -> None:
        """Tell the parent where these inodes lie: they are read next."""
        groups = {(n - 1) // self._about.inodes_per_group for n in numbers}
        size = self._about.descriptor_size
        self._blocks.expect([(self._about.descriptor_at(g), size) for g in groups])
        places = []
        for n in sorted(numbers):
            try:
                at = self._table.at(n)
            except ValueError:
                continue
            places.append((at, self._about.inode_size))
        self._blocks.expect(places)

    def _found(self, raw_name: bytes, number: int) -> Found:
        name = raw_name.decode("utf-8", "surrogateescape")
        try:
            found = self._table.get(number)
            if not found.links:
                raise ValueError("its inode is not in use")
            why = _refused(found)
            link = found.kind == ext_inode.LINK and why is None
            target = self._target(found) if link else None
        except ValueError as error:
            return Found(name, number, "file", 0, 0, 0, 0o444, 1, unreadable=str(error))
        kind = "dir" if found.kind == ext_inode.FOLDER else "link" if link else "file"
        return Found(
            name,
            number,
            kind,
            found.size if found.kind == ext_inode.FILE else 0,
            found.allocated if kind == "file" else 0,
            found.mtime_ns,
            found.mode & 0o7777,
            1 if kind == "dir" else found.links,
            found.uid,
            found.gid,
            target,
            why if kind == "file" else None,
        )

    def _target(self, found: Inode) -> tuple[str, str]:
        if not 0 < found.size < _MOST_TARGET:
            raise ValueError("a link whose length makes no sense")
        if found.size < ext_inode.MAP_LENGTH and not found.flags & (ext_inode.EXTENTS | ext_inode.INLINE):
            raw = found.map[: found.size]
        else:
            raw = self._content(found, 0, found.size)
        path = raw.decode("utf-8", "surrogateescape")
        return (INSIDE if path.startswith("/") else BESIDE), path


def _refused(found: Inode) -> str | None:
    """Why there is no content to be had."""
    if found.special is not None:
        return f"{found.special}: it has no content"
    if found.flags & ext_inode.ENCRYPTED:
        return "encrypted by Linux (fscrypt)"
    if found.flags & ext_inode.COMPRESSED:
        return "compressed in a way that is not known"
    return None
