"""Journals of ext that hold what is not in its place yet: as e2fsck applies them."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmount.errors import UnreadableInputError
from cloudmount.guest.children import Children
from cloudmount.guest.ext_journal import STALE
from tests.guest.ext_writer import (
    changed_blocks,
    debugfs,
    journal_places,
    replayed,
    three_states,
    with_journal,
    with_log,
)
from tests.guest.seen import Seen, opened, ours

MAGIC, ESCAPED_LAST = 0xC03B3998, 0xA


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.close()


def shown(children: Children, image: Path) -> tuple[dict[str, Seen], str]:
    """What an image shows, and what is said of it."""
    volume = opened(children, image)
    found = ours(volume), volume.warning
    volume.close()
    return found


@pytest.mark.parametrize(
    ("kind", "block", "options", "made"),
    [
        ("ext4", 1024, "-c -v 3", ()),
        ("ext4", 4096, "-c -v 2", ()),
        ("ext4", 4096, "-c -v 3", ("-O", "^64bit")),
        ("ext4", 2048, "", ("-O", "^metadata_csum")),
        ("ext4", 4096, "-c", ("-O", "fast_commit")),
        ("ext3", 1024, "", ()),
    ],
)
def test_as_e2fsck_applies_it(
    tmp_path: Path, children: Children, kind: str, block: int, options: str, made: tuple[str, ...]
) -> None:
    before, first, second = three_states(tmp_path, kind, block, *made)
    image = tmp_path / "image"
    with_journal(before, [first, second], block, image, options)
    found, warning = shown(children, image)
    assert warning == ""
    assert found == shown(children, replayed(image))[0] == shown(children, second)[0]
    assert found != shown(children, before)[0]
    with_journal(before, [first], block, image, options)
    assert shown(children, image)[0] == shown(children, first)[0]


def test_revoked_blocks_stay_as_they_are(tmp_path: Path, children: Children) -> None:
    before, first, second = three_states(tmp_path, "ext4", 1024)
    image, content = tmp_path / "image", tmp_path / "blocks"
    numbers = changed_blocks(before, first, 1024)
    raw = first.read_bytes()
    content.write_bytes(b"".join(raw[n * 1024 : (n + 1) * 1024] for n in numbers))
    listed = ",".join(map(str, numbers))
    for again in (False, True):
        shutil.copyfile(before, image)
        commands = [
            "journal_open -c -v 3",
            f"journal_write -b {listed} {content}",
            f"journal_write -r {listed} /dev/null",
            *([f"journal_write -b {listed} {content}"] if again else []),
            "journal_close",
        ]
        debugfs(image, commands)
        expected = shown(children, first if again else before)[0]
        assert shown(children, image) == (expected, "")
        assert shown(children, replayed(image))[0] == expected
    assert second.exists()


def test_a_log_that_goes_on_at_the_begin(tmp_path: Path, children: Children) -> None:
    """Wherever in the journal it begins: in the middle of a transaction it wraps, or between two."""
    before, first, second = three_states(tmp_path, "ext4", 1024, "-O", "^metadata_csum")
    image = tmp_path / "image"
    with_journal(before, [first, second], 1024, image, "")
    expected = shown(children, second)[0]
    whole, places = image.read_bytes(), journal_places(image, 1024)
    head, *log = [whole[at : at + 1024] for at in places]
    end, blocks = max(n for n, content in enumerate(log) if any(content)), len(places)
    for begin in (blocks - 1, blocks - end // 2, blocks - end, blocks // 2):
        turned = log[1 - begin :] + log[: 1 - begin]
        moved = head[:28] + struct.pack(">I", begin) + head[32:]
        image.write_bytes(with_log(whole, places, [moved, *turned]))
        assert shown(children, image) == (expected, "")
        assert shown(children, replayed(image))[0] == expected


def patched(image: Path, at: int, value: bytes) -> None:
    with image.open("r+b") as f:
        f.seek(at)
        f.write(value)


def test_what_is_not_whole_does_not_count(tmp_path: Path, children: Children) -> None:
    """Transactions without a sound commit block, journals that make no sense: told."""
    before, first, second = three_states(tmp_path, "ext4", 4096)
    image = tmp_path / "image"
    with_journal(before, [first, second], 4096, image, "-c -v 3")
    sound = image.read_bytes()
    places = journal_places(image, 4096)
    states = [shown(children, i)[0] for i in (before, first, second)]
    commit = struct.pack(">II", MAGIC, 2)
    commits = [n for n, at in enumerate(places) if sound[at : at + 8] == commit]
    assert len(commits) == 2
    for number, place, value, state, told in (
        (commits[1], 50, b"x", 1, f"its journal's last transactions are not whole: {STALE}"),
        (commits[1], 0, b"x", 1, ""),  # a log that ends so is one that was cut off
        (commits[0] + 1, 17, b"x", 1, "damaged where its last transactions are"),
        (commits[0], 0, b"x", 0, ""),
        (0, 100, b"x", 0, "its superblock is damaged"),
        (0, 0, b"x", 0, "it has no superblock"),
        (0, 12, b"\1", 0, "it has no superblock"),
        (0, 40, b"\x80", 0, "features 0x80000000, which are not known"),
    ):
        image.write_bytes(sound)
        patched(image, places[number] + place, value)
        found, warning = shown(children, image)
        assert found == states[state]
        assert told in warning and bool(told) is bool(warning)
    for place, value, told in (
        (1024 + 224, bytes(4), "another disk"),
        (1024 + 224, b"\xff", "it has 0 blocks"),
    ):
        image.write_bytes(sound)
        patched(image, place, value)
        found, warning = shown(children, image)
        assert found == states[0]
        assert told in warning and warning.endswith(STALE)
    image.write_bytes(sound)
    for n in range(2, commits[0]):
        patched(image, places[n] + 9, b"x")
    volume = opened(children, image)
    with pytest.raises(UnreadableInputError, match="a block that the journal holds is damaged"):
        volume.folder((), volume.root)
    volume.close()


def test_logs_that_never_end(tmp_path: Path, children: Children) -> None:
    """Descriptors that lead to each other, revoke blocks without end: done after one round at most."""
    before, first, second = three_states(tmp_path, "ext4", 1024, "-O", "^metadata_csum")
    image = tmp_path / "image"
    with_journal(before, [first, second], 1024, image, "")
    sound = image.read_bytes()
    places = journal_places(image, 1024)
    expected = shown(children, before)[0]
    empty = struct.pack(">III", MAGIC, 1, 1) + bytes(1012)  # tags of block 0 as long as there is room
    last = struct.pack(">IIIIHH", MAGIC, 1, 1, 77, 0, ESCAPED_LAST) + bytes(1004)
    revoke = struct.pack(">IIII", MAGIC, 5, 1, 1024) + bytes(range(252)) * 4
    for block in (empty, last, revoke):
        image.write_bytes(with_log(sound, places[1:], [block] * (len(places) - 1)))
        assert shown(children, image)[0] == expected


def crc32_be(data: bytes, crc: int = 0xFFFFFFFF) -> int:
    """Bit by bit, the highest first, as the kernel's."""
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    return crc


def test_checksums_of_whole_transactions(tmp_path: Path, children: Children) -> None:
    """As early ext4 with `journal_checksum` has them; debugfs can't write them, e2fsck checks them."""
    before, first, second = three_states(tmp_path, "ext4", 1024, "-O", "^metadata_csum")
    image = tmp_path / "image"
    with_journal(before, [first, second], 1024, image, "")
    whole, places = image.read_bytes(), journal_places(image, 1024)
    log = [bytearray(whole[at : at + 1024]) for at in places]
    log[0][36:40] = struct.pack(">I", 1)
    commits = [n for n, content in enumerate(log) if content[:8] == struct.pack(">II", MAGIC, 2)]
    begin = 1
    for n in commits:
        log[n][12:14] = b"\1\4"
        log[n][16:20] = struct.pack(">I", crc32_be(b"".join(log[begin:n])))
        begin = n + 1
    image.write_bytes(with_log(whole, places, [bytes(content) for content in log]))
    expected = shown(children, second)[0]
    assert shown(children, image) == (expected, "")
    assert shown(children, replayed(image))[0] == expected
    log[commits[1] - 1][100] ^= 1
    image.write_bytes(with_log(whole, places, [bytes(content) for content in log]))
    found, warning = shown(children, image)
    assert found == shown(children, first)[0] and warning.endswith(STALE)


def test_places_of_what_lies_in_the_journal(tmp_path: Path, children: Children) -> None:
    """They are those in the journal: what tells versions apart by frames must not look at stale ones. Blocks
    that the journal holds otherwise than they are lie nowhere."""
    before, first, _ = three_states(tmp_path, "ext4", 1024)
    image = tmp_path / "image"
    with_journal(before, [first], 1024, image, "-c -v 3")
    raw, logged = image.read_bytes(), set(journal_places(image, 1024))
    volume = opened(children, image)
    large = volume.lookup((), volume.root, "large")
    like = volume.lookup(("d",), volume.folder((), volume.root)["d"].number, "like")
    assert large is not None and like is not None
    places = volume.places(large)
    assert {p.at for p in places} & logged
    assert b"".join(raw[p.at : p.at + p.length] for p in places)[: large.size] == volume.open(large).read_at(
        0, large.size
    )
    assert sum(p.length for p in volume.places(like)) < like.size
    assert volume.open(like).read_at(0, like.size) == (tmp_path / "like a journal").read_bytes()
    volume.close()
