"""Boot packs are read as they were written; a changed bit, and what makes no sense, does not open."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.crypto.keyring import Keyring, new_salt
from cloudmount.crypto.slots import canonical
from cloudmount.errors import CloudMountError, DamagedError
from cloudmount.reader.aside import Aside
from cloudmount.repo.bootpacks import Source, open_boot_pack, seal_boot_pack
from cloudmount.repo.locations import Birth, Location
from cloudmount.repo.names import boot_pack_prefix
from cloudmount.repo.objects import seal_single
from cloudmount.repo.packs import open_frame
from cloudmount.repo.payload import no_dictionary
from cloudmount.repo.structures import KIND_BOOT_PACK

KEYS = Keyring(bytes(32), {0: b"k" * 32, 1: b"l" * 32})
TAG = "ab" * 16
UNIT, SIZE = 4096, 100 * 4096 - 7


def source(frame: int, birth: Birth, number: int) -> Source:
    plain = random.Random(frame).randbytes(min(UNIT, SIZE - frame * UNIT))
    sealed = KEYS.sealer(birth.epoch, birth.salt, "frame").seal(number, plain)
    return Source(frame, Location(b"p" * 16, 64, len(sealed), birth, number), KEYS.content_id(plain), sealed)


def made(frames: list[Source]) -> tuple[str, bytes]:
    return seal_boot_pack(
        KEYS,
        TAG,
        disk="d/disk",
        snapshot="s",
        time=1_800_000_000,
        size=SIZE,
        frame_bytes=UNIT,
        frames=frames,
        find=no_dictionary,
    )


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 1), st.integers(0, 2**32 - 1)), max_size=20))
def test_it_is_read_as_it_was_written(rows: list[tuple[int, int, int]]) -> None:
    births = [Birth(epoch, new_salt()) for epoch in (0, 1)]
    frames = [source(frame, births[row], number) for frame, row, number in rows]
    name, data = made(frames)
    pack = open_boot_pack(KEYS, name, len(data), data)
    assert (pack.disk, pack.snapshot, pack.time, pack.size) == ("d/disk", "s", 1_800_000_000, SIZE)
    assert name.startswith(boot_pack_prefix(TAG, pack.time)) and pack.id.hex() == name[-32:]
    assert [(c.frame, c.birth, c.number, c.content) for c in pack.copies] == [
        (f.frame, f.at.birth, f.at.number, f.content) for f in frames
    ]
    for copy, frame in zip(pack.copies, frames, strict=True):
        assert data[copy.offset : copy.offset + copy.length] == frame.sealed


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 18), min_size=1, max_size=15), st.lists(st.booleans(), min_size=15, max_size=15)
)
def test_what_spans_two_is_copied_with_both(starts: list[int], spanning: list[bool]) -> None:
    """In a run what they have in common is there once; in any order each opens to its content."""
    birth = Birth(0, b"s" * 32)
    whole = [source(n, birth, n) for n in range(20)]
    offset, placed = 64, []
    for each in whole:
        placed.append(each._replace(at=each.at._replace(offset=offset)))
        offset += each.at.length
    frames = []
    for n, spans in zip(starts, spanning, strict=False):
        one, two = placed[n], placed[n + 1]
        if spans:
            at = one.at._replace(length=one.at.length + two.at.length, cut=one.at.length, skip=100)
            sealed = one.sealed + two.sealed
            plain = open_frame(KEYS, at, sealed, UNIT, no_dictionary)
            frames.append(Source(n, at, KEYS.content_id(plain), sealed))
        else:
            frames.append(one)
    name, data = made(frames)
    pack = open_boot_pack(KEYS, name, len(data), data)
    aside = Aside(pack, print)
    for copy, frame in zip(pack.copies, frames, strict=True):
        assert data[copy.offset : copy.offset + copy.length] == frame.sealed
        assert (copy.cut, copy.skip) == (frame.at.cut, frame.at.skip)
        found = aside.where(frame.at)
        assert found is not None
        assert data[found.offset : found.offset + found.length] == frame.sealed
        assert found._replace(pack=frame.at.pack, offset=frame.at.offset) == frame.at
    if starts == sorted(set(starts)) and all(spanning) and len(starts) == starts[-1] - starts[0] + 1:
        assert len(data) - pack.copies[0].offset == (len(starts) + 1) * (UNIT + 16)


def test_a_changed_bit_does_not_open() -> None:
    frames = [source(n, Birth(0, b"s" * 32), n) for n in range(3)]
    name, data = made(frames)
    pack = open_boot_pack(KEYS, name, len(data), data)
    for at in range(len(data)):
        wrong = bytearray(data)
        wrong[at] ^= 1 << at % 8
        try:
            told = open_boot_pack(KEYS, name, len(data), bytes(wrong))
        except DamagedError:
            assert at < pack.copies[0].offset
            continue
        assert at >= pack.copies[0].offset
        (harmed,) = [copy for copy in told.copies if copy.offset <= at < copy.offset + copy.length]
        with pytest.raises(DamagedError):
            told.open(
                KEYS, harmed, bytes(wrong[harmed.offset : harmed.offset + harmed.length]), no_dictionary
            )
    for length in (0, 10, 63, pack.copies[0].offset - 1, len(data) - 1):
        with pytest.raises(DamagedError):
            open_boot_pack(KEYS, name, length, data[:length])
    with pytest.raises(DamagedError):
        open_boot_pack(KEYS, boot_pack_prefix(TAG, 7) + name[-32:], len(data), data)


def test_frames_that_do_not_open_are_not_stored() -> None:
    frame = source(1, Birth(0, b"s" * 32), 1)
    wrong = frame._replace(sealed=bytes(len(frame.sealed)))
    with pytest.raises(CloudMountError, match="memory may be faulty"):
        made([frame, wrong])


@pytest.mark.parametrize(
    "change",
    [
        {"frame": 0},
        {"frames": [[0, 0, 0, 20]]},
        {"frames": [[0, 1, 0, 100]]},
        {"frames": [[-1, 0, 0, 100]]},
        {"frames": [[100, 0, 0, 100]]},
        {"frames": [[0, 0, 1 << 32, 100]]},
        {"frames": [[0, 0, 0, UNIT + 17]]},
        {"frames": [[0, 0, 0]]},
        {"frames": [[0, 0, 0, 100, 20]]},
        {"frames": [[0, 0, 0, 100, 100, 1, 0]]},
        {"frames": [[0, 0, 0, 100, 20, 0, 0]]},
        {"frames": [[0, 0, 0, 100, 0, 1, 0]]},
        {"frames": [[0, 0, 0, 100, 20, UNIT, 0]]},
        {"frames": [[0, 0, 0, 100, 20, 1, 1]]},
        {"frames": [[0, 0, 0, 100, -1, 1, 0]]},
        {"frames": [["x", 0, 0, 100]]},
        {"frames": 7},
        {"ids": ""},
        {"ids": "?"},
        {"births": [[0, "00"]]},
        {"births": None},
        {"size": None},
        {"disk": ...},
    ],
)
def test_what_makes_no_sense_is_damage(change: dict[str, object]) -> None:
    table: dict[str, object] = {
        "disk": "disk",
        "snapshot": "s",
        "time": 1,
        "size": SIZE,
        "frame": UNIT,
        "births": [[0, "00" * 32]],
        "frames": [[0, 0, 0, 100]],
        "ids": base64.b64encode(bytes(16)).decode(),
    }
    good = table | {"frames": [[0, 0, 0, 100]]}
    name, head = seal_single(KEYS, KIND_BOOT_PACK, boot_pack_prefix(TAG, 1), canonical(good))
    assert len(open_boot_pack(KEYS, name, len(head) + 100, head).copies) == 1
    bad = {key: value for key, value in (table | change).items() if value is not ...}
    name, head = seal_single(KEYS, KIND_BOOT_PACK, boot_pack_prefix(TAG, 1), canonical(bad))
    with pytest.raises(DamagedError):
        open_boot_pack(KEYS, name, len(head) + 100, head)
