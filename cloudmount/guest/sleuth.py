"""In the child: FAT12, 16 and 32, by pytsk3, the type always named.

Decided here and only here: what of such a volume is shown: no deleted names, none that The Sleuth Kit makes
up, no volume label; and which files are refused: those whose chain of clusters is shorter than their size.
One thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytsk3

from cloudmount.guest.blocks import ParentBlocks
from cloudmount.guest.fat_names import fat_names
from cloudmount.guest.sleuth_image import Image
from cloudmount.guest.volumes import STALE, Found, Unreadable, Volume

_FAT = {
    "fat12": pytsk3.TSK_FS_TYPE_FAT12,
    "fat16": pytsk3.TSK_FS_TYPE_FAT16,
    "fat32": pytsk3.TSK_FS_TYPE_FAT32,
}
_ALLOCATED = 1  # TSK_FS_NAME_FLAG_ALLOC
_SPARSE, _FILLER = 1, 2  # TSK_FS_ATTR_RUN_FLAG_*
_LABEL = " (Volume Label Entry)"
_OPENED = 16
_REPLACED, _CUT = "^", 97
"""pytsk3 (20260715) shows `^` for what is not ASCII in short names, and of names with more than 195 UTF-16
units it loses the last part; where one of either may be, names are read here (`fat_names`)."""


def opener(kind: str) -> Callable[[ParentBlocks], Volume]:
    """What opens volumes of this kind."""
    return lambda blocks: FatVolume(blocks, kind)


class FatVolume:
    """A `volumes.Volume`. The times are the guest's local ones, taken as UTC: FAT doesn't say more."""

    def __init__(self, blocks: ParentBlocks, kind: str) -> None:
        self._image = Image(blocks.read_at, blocks.size)
        self._fs: Any = pytsk3.FS_Info(self._image, offset=0, type=_FAT[kind])
        self.root = int(self._fs.info.root_inum)
        self._block = int(self._fs.info.block_size)
        self._opened: OrderedDict[int, Any] = OrderedDict()
        boot = blocks.read_at(0, 512)
        self._cluster = int.from_bytes(boot[11:13], "little") * boot[13]
        self.warning = "" if _clean(kind, boot, blocks) else f"it was not unmounted: {STALE}"
        self.label = ""
        for name, entry in self._names(self.root):
            if _is_label(entry):
                self.label = name.removesuffix(_LABEL).rstrip()
                break

    def folder(self, number: int) -> Iterator[Found]:
        found = [self._found(name, entry) for name, entry in self._names(number) if not _is_label(entry)]
        if any(_REPLACED in f.name or len(f.name) >= _CUT for f in found):
            folder = self._fs.open_meta(inode=number)
            names = fat_names(folder.read_random(0, folder.info.meta.size))
            if len(names) != len(found) or any(
                f.size not in (0, size) for f, (_, size) in zip(found, names, strict=True)
            ):
                raise ValueError("names that pytsk3 shows otherwise than they are")
            found = [f._replace(name=name) for f, (name, _) in zip(found, names, strict=True)]
        return iter(found)

    def lookup(self, path: list[str], number: int) -> Found | None:
        raise NotImplementedError

    def read(self, number: int, offset: int, length: int) -> bytes:
        file = self._opened.get(number)
        if file is None:
            file = self._fs.open_meta(inode=number)
            why = self._refused(file)
            if why is not None:
                raise Unreadable(why)
            self._opened[number] = file
            if len(self._opened) > _OPENED:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end(number)
        parts = []
        while length:
            part: bytes = self._image.asked(partial(file.read_random, offset, length))
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

    def data(self, number: int) -> None:
        """FAT has no holes."""

    def _names(self, number: int) -> Iterator[tuple[str, Any]]:
        for entry in self._fs.open_dir(inode=number):
            name = entry.info.name
            if name is None or int(name.flags) & _ALLOCATED == 0 or name.name in (b".", b".."):
                continue
            if name.type in (pytsk3.TSK_FS_NAME_TYPE_VIRT, pytsk3.TSK_FS_NAME_TYPE_VIRT_DIR):
                continue
            yield name.name.decode("utf-8", "surrogateescape"), entry

    @staticmethod
    def _runs(file: Any) -> Iterator[Any]:
        for attribute in file:
            if attribute.info.type in (pytsk3.TSK_FS_ATTR_TYPE_DEFAULT, pytsk3.TSK_FS_ATTR_TYPE_NTFS_DATA):
                yield from attribute
                return

    def _found(self, name: str, entry: Any) -> Found:
        number, meta = int(entry.info.name.meta_addr), entry.info.meta
        if meta is None:
            return Found(name, number, "file", 0, 0, 0, 0o444, 1, unreadable="its entry can't be read")
        folder = meta.type == pytsk3.TSK_FS_META_TYPE_DIR
        size = 0 if folder else int(meta.size)
        allocated = -(-size // self._cluster) * self._cluster
        kind, mode = ("dir", 0o555) if folder else ("file", 0o444)
        return Found(name, number, kind, size, allocated, int(meta.mtime) * 10**9, mode, 1)

    def _refused(self, file: Any) -> str | None:
        there = 0
        for run in self._runs(file):
            if int(run.flags) & (_SPARSE | _FILLER):
                return "its chain of clusters is damaged"
            there += int(run.len) * self._block
        return None if there >= int(file.info.meta.size) else "its chain of clusters is too short"


def _clean(kind: str, boot: bytes, blocks: ParentBlocks) -> bool:
    """Whether it was unmounted: as Linux tells it, in the boot sector, and as Windows, in the table."""
    if kind == "fat12":
        return True
    state = boot[65 if kind == "fat32" else 37]
    table = int.from_bytes(boot[14:16], "little") * int.from_bytes(boot[11:13], "little")
    width = 4 if kind == "fat32" else 2
    second = int.from_bytes(blocks.read_at(table + width, width), "little")
    return not state & 1 and bool(second >> (27 if kind == "fat32" else 15) & 1)


def _is_label(entry: Any) -> bool:
    name = entry.info.name
    return name.name.endswith(_LABEL.encode()) and not name.shrt_name
