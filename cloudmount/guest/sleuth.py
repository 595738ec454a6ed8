"""In the child: FAT12, 16, 32 and ext2, 3, 4, by pytsk3, the type always named.

Decided here and only here: what of such a volume is shown: no deleted names, none that The Sleuth Kit makes
up, no volume label; and which files are refused: encrypted ones, and those of FAT whose chain of clusters is
shorter than their size. One thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytsk3

from cloudmount.guest import ext_inode
from cloudmount.guest.blocks import ParentBlocks
from cloudmount.guest.fat_names import fat_names
from cloudmount.guest.volumes import BESIDE, INSIDE, Found, Unreadable, Volume

_FAT = {
    "fat12": pytsk3.TSK_FS_TYPE_FAT12,
    "fat16": pytsk3.TSK_FS_TYPE_FAT16,
    "fat32": pytsk3.TSK_FS_TYPE_FAT32,
}
_EXT = {
    "ext2": pytsk3.TSK_FS_TYPE_EXT2,
    "ext3": pytsk3.TSK_FS_TYPE_EXT3,
    "ext4": pytsk3.TSK_FS_TYPE_EXT4,
}
_ALLOCATED = 1  # TSK_FS_NAME_FLAG_ALLOC
_SPARSE, _FILLER = 1, 2  # TSK_FS_ATTR_RUN_FLAG_*
_LABEL = " (Volume Label Entry)"
_MOST_TARGET = 4096
_OPENED = 16
_REPLACED, _CUT = "^", 97
"""pytsk3 (20260715) shows `^` for what is not ASCII in short names, and of names with more than 195 UTF-16
units it loses the last part; where one of either may be, names are read here (`fat_names`)."""


def opener(kind: str) -> Callable[[ParentBlocks], Volume]:
    """What opens volumes of this kind."""
    if kind in _FAT:
        return lambda blocks: FatVolume(blocks, _FAT[kind])
    return lambda blocks: ExtVolume(blocks, _EXT[kind])


class _Image(pytsk3.Img_Info):  # type: ignore[misc]  # pytsk3 has no types
    def __init__(self, blocks: ParentBlocks) -> None:
        self._blocks = blocks
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def read(self, offset: int, length: int) -> bytes:
        return self._blocks.read_at(offset, length)

    def get_size(self) -> int:
        return self._blocks.size

    def close(self) -> None:
        """Nothing to release."""


class _SleuthVolume:
    """What both have in common."""

    def __init__(self, blocks: ParentBlocks, type: Any) -> None:
        self._blocks = blocks
        self._image = _Image(blocks)
        self._fs: Any = pytsk3.FS_Info(self._image, offset=0, type=type)
        self.root = int(self._fs.info.root_inum)
        self._block = int(self._fs.info.block_size)
        self.label, self.in_use = "", False
        self._opened: OrderedDict[int, Any] = OrderedDict()

    def folder(self, number: int) -> Iterator[Found]:
        for name, entry in self._names(number):
            if not _is_label(entry):
                yield self._found(name, entry)

    def lookup(self, path: list[str], number: int) -> Found | None:
        raise NotImplementedError

    def read(self, number: int, offset: int, length: int) -> bytes:
        file = self._opened.get(number)
        if file is None:
            file = self._fs.open_meta(inode=number)
            why = self._refused(number, file)
            if why is not None:
                raise Unreadable(why)
            self._opened[number] = file
            if len(self._opened) > _OPENED:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end(number)
        parts = []
        while length:
            part: bytes = file.read_random(offset, length)
            if not part:
                raise ValueError("a file ends before its size")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def extents(self, number: int) -> Iterator[tuple[int, int, int]]:
        for run in self._runs(self._fs.open_meta(inode=number)):
            if not int(run.flags) & (_SPARSE | _FILLER):
                yield run.offset * self._block, run.addr * self._block, run.len * self._block

    def _names(self, number: int) -> Iterator[tuple[str, Any]]:
        for entry in self._fs.open_dir(inode=number):
            name = entry.info.name
            if name is None or int(name.flags) & _ALLOCATED == 0 or name.name in (b".", b".."):
                continue
            if name.type in (pytsk3.TSK_FS_NAME_TYPE_VIRT, pytsk3.TSK_FS_NAME_TYPE_VIRT_DIR):
                continue
            yield name.name.decode("utf-8", "surrogateescape"), entry

    def _found(self, name: str, entry: Any) -> Found:
        raise NotImplementedError

    def _refused(self, number: int, file: Any) -> str | None:
        raise NotImplementedError

    @staticmethod
    def _runs(file: Any) -> Iterator[Any]:
        for attribute in file:
            if attribute.info.type in (pytsk3.TSK_FS_ATTR_TYPE_DEFAULT, pytsk3.TSK_FS_ATTR_TYPE_NTFS_DATA):
                yield from attribute
                return


def _is_label(entry: Any) -> bool:
    name = entry.info.name
    return name.name.endswith(_LABEL.encode()) and not name.shrt_name


class FatVolume(_SleuthVolume):
    """A `volumes.Volume`. The times are the guest's local ones, taken as UTC: FAT doesn't say more."""

    def __init__(self, blocks: ParentBlocks, type: Any) -> None:
        super().__init__(blocks, type)
        boot = blocks.read_at(0, 512)
        self._cluster = int.from_bytes(boot[11:13], "little") * boot[13]
        for name, entry in self._names(self.root):
            if _is_label(entry):
                self.label = name.removesuffix(_LABEL).rstrip()
                break

    def folder(self, number: int) -> Iterator[Found]:
        found = list(super().folder(number))
        if any(_REPLACED in f.name or len(f.name) >= _CUT for f in found):
            folder = self._fs.open_meta(inode=number)
            names = fat_names(folder.read_random(0, folder.info.meta.size))
            if len(names) != len(found) or any(
                f.size not in (0, size) for f, (_, size) in zip(found, names, strict=True)
            ):
                raise ValueError("names that pytsk3 shows otherwise than they are")
            found = [f._replace(name=name) for f, (name, _) in zip(found, names, strict=True)]
        return iter(found)

    def _found(self, name: str, entry: Any) -> Found:
        number, meta = int(entry.info.name.meta_addr), entry.info.meta
        if meta is None:
            return Found(name, number, "file", 0, 0, 0, 0o444, 1, unreadable="its entry can't be read")
        folder = meta.type == pytsk3.TSK_FS_META_TYPE_DIR
        size = 0 if folder else int(meta.size)
        allocated = -(-size // self._cluster) * self._cluster
        kind, mode = ("dir", 0o555) if folder else ("file", 0o444)
        return Found(name, number, kind, size, allocated, int(meta.mtime) * 10**9, mode, 1)

    def _refused(self, number: int, file: Any) -> str | None:
        there = 0
        for run in self._runs(file):
            if int(run.flags) & (_SPARSE | _FILLER):
                return "its chain of clusters is damaged"
            there += int(run.len) * self._block
        return None if there >= int(file.info.meta.size) else "its chain of clusters is too short"


class ExtVolume(_SleuthVolume):
    """A `volumes.Volume`."""

    def __init__(self, blocks: ParentBlocks, type: Any) -> None:
        super().__init__(blocks, type)
        raw = blocks.read_at(ext_inode.SUPERBLOCK_AT, ext_inode.SUPERBLOCK_LENGTH)
        self._about = ext_inode.superblock(raw)
        self.label, self.in_use = self._about.label, self._about.in_use

    def _found(self, name: str, entry: Any) -> Found:
        number, meta = int(entry.info.name.meta_addr), entry.info.meta
        try:
            inode = ext_inode.inode(number, self._about, self._blocks.read_at)
        except ValueError as error:
            return Found(name, number, "file", 0, 0, 0, 0o444, 1, unreadable=str(error))
        if meta is None:
            return Found(name, number, "file", 0, 0, 0, 0o444, 1, unreadable="its inode can't be read")
        kind = "dir" if meta.type == pytsk3.TSK_FS_META_TYPE_DIR else "file"
        target = why = None
        if meta.type == pytsk3.TSK_FS_META_TYPE_LNK:
            why = self._why(inode)
            if why is None:
                kind, target = "link", self._target(number, meta)
        elif meta.type == pytsk3.TSK_FS_META_TYPE_REG:
            why = self._why(inode)
        return Found(
            name,
            number,
            kind,
            int(meta.size) if kind == "file" and meta.type == pytsk3.TSK_FS_META_TYPE_REG else 0,
            inode.allocated if kind == "file" else 0,
            inode.mtime_ns,
            int(meta.mode) & 0o7777,
            1 if kind == "dir" else max(1, int(meta.nlink)),
            int(meta.uid),
            int(meta.gid),
            target,
            why,
        )

    @staticmethod
    def _why(inode: ext_inode.Inode) -> str | None:
        if inode.flags & ext_inode.ENCRYPTED:
            return "encrypted by Linux (fscrypt)"
        if inode.flags & (ext_inode.INLINE | ext_inode.COMPRESSED):
            return "kept in its inode, or compressed"
        return None

    def _target(self, number: int, meta: Any) -> tuple[str, str]:
        raw: bytes = meta.link or b""
        if len(raw) != meta.size:
            length = min(int(meta.size), _MOST_TARGET)
            raw = self._fs.open_meta(inode=number).read_random(0, length)
        path = raw.decode("utf-8", "surrogateescape")
        return (INSIDE if path.startswith("/") else BESIDE), path

    def _refused(self, number: int, _file: Any) -> str | None:
        return self._why(ext_inode.inode(number, self._about, self._blocks.read_at))
