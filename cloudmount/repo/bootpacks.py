"""Boot packs: what a boot reads of a disk, copied into one object in that order (FORMAT.md 6.8).

Decided here and only here: the content of boot packs. Their frames are sealed bytes as they lie in packs, so
they open under the births that the map gives, and under no others: a boot pack can only help to read sooner,
and what is wrong with one is read from the packs. Pure but for the store.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cloudmount.blobs.store import BlobInfo
from cloudmount.crypto.keyring import ID_BYTES, SALT_BYTES, SEAL_BYTES, Keyring, new_salt
from cloudmount.crypto.slots import canonical
from cloudmount.errors import BlobMissingError, CloudMountError, DamagedError
from cloudmount.repo.locations import Birth, Location
from cloudmount.repo.names import BOOT_PACKS, boot_pack_prefix
from cloudmount.repo.objects import SectionReader, id_of, seal_sections
from cloudmount.repo.packs import open_frame
from cloudmount.repo.payload import FindDictionary, encode_payload
from cloudmount.repo.repository import Repository
from cloudmount.repo.structures import HEADER_BYTES, KIND_BOOT_PACK

HEAD_BYTES = 128 << 10
"""What is read first of a boot pack: the table of 5,000 frames, and often the first frames too."""
TABLE_LIMIT = 4 << 20
MOST_FRAMES = 1 << 16
MOST_BYTES = 192 << 20
"""Sealed bytes of frames in a boot pack, at most: it is put together in memory."""


class Copy(NamedTuple):
    """A frame in a boot pack: its number in the disk, its birth and number under that, its content id, and
    where its `length` sealed bytes begin in the object; `cut` and `skip` as of a `Location`."""

    frame: int
    birth: Birth
    number: int
    content: bytes
    offset: int
    length: int
    cut: int = 0
    skip: int = 0


@dataclass(frozen=True, slots=True)
class BootPack:
    """What was copied of `disk` (its path on the drive, without ending) of the snapshot with this id, in the
    order in which a boot reads it.

    `time` in whole seconds since 1970; `size` of the disk, `frame_bytes` and `length` of the object in bytes.
    """

    name: str
    length: int
    disk: str
    snapshot: str
    time: int
    size: int
    frame_bytes: int
    copies: tuple[Copy, ...]

    @property
    def id(self) -> bytes:
        """Its 16-byte id, which no pack has."""
        return bytes.fromhex(self.name[-2 * ID_BYTES :])

    def plain_length(self, frame: int) -> int:
        """Plain bytes of a frame of the disk."""
        return min(self.frame_bytes, self.size - frame * self.frame_bytes)

    def open(self, keys: Keyring, copy: Copy, sealed: bytes | memoryview, find: FindDictionary) -> bytes:
        """A frame's plain bytes; `DamagedError` unless they are those that its content id names."""
        at = Location(self.id, copy.offset, copy.length, copy.birth, copy.number, copy.cut, copy.skip)
        plain = open_frame(keys, at, sealed, self.plain_length(copy.frame), find)
        if keys.content_id(plain) != copy.content:
            raise DamagedError("a frame is not the one that its content id names")
        return plain


class Source(NamedTuple):
    """A frame to be copied: its number in the disk, where it lies, its content id, its sealed bytes."""

    frame: int
    at: Location
    content: bytes
    sealed: bytes


def seal_boot_pack(
    keys: Keyring,
    tag: str,
    *,
    disk: str,
    snapshot: str,
    time: int,
    size: int,
    frame_bytes: int,
    frames: Sequence[Source],
    find: FindDictionary,
) -> tuple[str, bytes]:
    """A boot pack of the machine with this tag: its name and bytes. Everything is opened again from the bytes
    to be sent; `CloudMountError` when something does not open."""
    births = {birth: row for row, birth in enumerate(dict.fromkeys(f.at.birth for f in frames))}
    rows: list[list[int]] = []
    pieces: list[bytes | memoryview] = []
    last: Location | None = None
    for f in frames:
        row = [f.frame, births[f.at.birth], f.at.number, len(f.sealed)]
        again = _again(last, f.at)
        if f.at.cut:
            row += [f.at.cut, f.at.skip, again]
        rows.append(row)
        pieces.append(memoryview(f.sealed)[again:] if again else f.sealed)
        last = f.at
    table = {
        "disk": disk,
        "snapshot": snapshot,
        "time": time,
        "size": size,
        "frame": frame_bytes,
        "births": [[birth.epoch, birth.salt.hex()] for birth in births],
        "frames": rows,
        "ids": base64.b64encode(b"".join(f.content for f in frames)).decode(),
    }
    salt = new_salt()
    name = boot_pack_prefix(tag, time) + id_of(salt).hex()
    head = seal_sections(keys, KIND_BOOT_PACK, name, encode_payload(canonical(table)), salt=salt)
    data = b"".join([head, *pieces])
    try:
        made = open_boot_pack(keys, name, len(data), data)
        view = memoryview(data)
        for copy in made.copies:
            made.open(keys, copy, view[copy.offset : copy.offset + copy.length], find)
    except DamagedError as error:
        raise CloudMountError(
            f"{name}: what was just put together does not open ({error}): this machine's memory may be "
            "faulty; it was not stored"
        ) from None
    return name, data


def _again(last: Location | None, at: Location) -> int:
    """The sealed bytes at the beginning of a frame that spans two that the one copied before it ends with."""
    if last is None or not at.cut or at.pack != last.pack or at.offset < last.offset:
        return 0
    end = last.offset + last.length
    return end - at.offset if at.offset < end < at.offset + at.length else 0


def open_boot_pack(keys: Keyring, name: str, length: int, head: bytes) -> BootPack:
    """The boot pack of `length` bytes that begins with `head`, which must hold its table; `DamagedError` when
    it does not open under its name, or makes no sense."""
    reader = SectionReader(keys, KIND_BOOT_PACK, name, head)
    try:
        value = json.loads(reader.first(head))
        births = [Birth(int(epoch), bytes.fromhex(salt)) for epoch, salt in value["births"]]
        ids = base64.b64decode(value["ids"], validate=True)
        rows, size, frame_bytes = value["frames"], int(value["size"]), int(value["frame"])
        if frame_bytes <= 0 or len(rows) > MOST_FRAMES or len(ids) != ID_BYTES * len(rows):
            raise ValueError("its counts disagree")
        if any(len(birth.salt) != SALT_BYTES for birth in births):
            raise ValueError("a birth that is none")
        copies: list[Copy] = []
        offset = HEADER_BYTES + reader.lead
        for place, numbers in enumerate(rows):
            frame, row, number, sealed, cut, skip, again = map(int, (*numbers, 0, 0, 0)[:7])
            if not (0 <= frame * frame_bytes < size and 0 <= row < len(births)):
                raise ValueError("a frame that is none")
            most = (2 if cut else 1) * (frame_bytes + SEAL_BYTES)
            if not (SEAL_BYTES <= sealed <= most and 0 <= number < 1 << 32):
                raise ValueError("a frame that is none")
            if len(numbers) not in (4, 7) or not (
                0 <= cut < sealed and (0 < skip < frame_bytes) == bool(cut)
            ):
                raise ValueError("a frame that is none")
            if again and not (copies and 0 < again <= copies[-1].length and again < sealed):
                raise ValueError("a frame that is none")
            content = ids[ID_BYTES * place : ID_BYTES * (place + 1)]
            copies.append(Copy(frame, births[row], number, content, offset - again, sealed, cut, skip))
            offset += sealed - again
        made = int(value["time"])
        disk, snapshot = str(value["disk"]), str(value["snapshot"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DamagedError(f"{name} makes no sense: {error!r}") from None
    if offset != length:
        raise DamagedError(f"{name} has {length} bytes where {offset} belong")
    return BootPack(name, length, disk, snapshot, made, size, frame_bytes, tuple(copies))


def read_boot_pack(repository: Repository, info: BlobInfo, *, deadline: float | None = None) -> BootPack:
    """The table of the boot pack that a listing told of: one request, two when it is very large. Errors as of
    `open_boot_pack` and the store."""
    keys, name = repository.keys, info.name
    head = repository.store.read(name, 0, min(info.size, HEAD_BYTES), deadline=deadline)
    lead = SectionReader(keys, KIND_BOOT_PACK, name, head).lead
    missing = HEADER_BYTES + lead - len(head)
    if lead > TABLE_LIMIT or HEADER_BYTES + lead > info.size:
        raise DamagedError(f"{name} claims more bytes than it has, or than a boot pack's table may have")
    if missing > 0:
        head += repository.store.read(name, len(head), missing, deadline=deadline)
    return open_boot_pack(keys, name, info.size, head)


PIECE = 4 << 20


def damaged_boot_packs(repository: Repository, *, whole: bool) -> Iterator[DamagedError]:
    """What is wrong with each boot pack that is not sound: its table, or, of the `whole` of them, a frame."""
    for info in repository.store.list(BOOT_PACKS):
        try:
            pack = read_boot_pack(repository, info)
            if whole:
                _prove(repository, pack)
        except BlobMissingError:
            continue
        except DamagedError as error:
            yield error


def _prove(repository: Repository, pack: BootPack) -> None:
    """Open all frames of a boot pack, some megabytes at a time; `DamagedError` at the first that does not."""
    begin = 0
    while begin < len(pack.copies):
        first, stop = pack.copies[begin].offset, begin
        while stop < len(pack.copies) and pack.copies[stop].offset - first < PIECE:
            stop += 1
        end = pack.copies[stop - 1].offset + pack.copies[stop - 1].length
        data = memoryview(repository.store.read(pack.name, first, end - first))
        for copy in pack.copies[begin:stop]:
            try:
                sealed = data[copy.offset - first :][: copy.length]
                pack.open(repository.keys, copy, sealed, repository.dictionaries.get)
            except DamagedError as error:
                raise DamagedError(
                    f"{pack.name}: the {copy.length} bytes at {copy.offset}: {error}"
                ) from None
        begin = stop
