"""Maps that open but do not fit together, as a faulty program or memory would have written them: noticed.

Each case makes a backup with one part of the writer replaced by one that lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cloudmount.app.check import check
from cloudmount.backup import run
from cloudmount.repo import partwriter, streamwriter
from cloudmount.repo.locations import Location, encode_segment
from cloudmount.repo.mapset import MapSet
from cloudmount.repo.packs import FinishedPack, PackWriter
from cloudmount.repo.pages import ItemRef, Page, encode_page
from cloudmount.repo.snapshots import PageRef, Section, StreamRoot, seal_snapshot
from cloudmount.repo.structures import ITEM_DIGESTS, ITEM_ENTRIES, ITEM_IDS
from tests.backup.lab import SMALL, Lab, fill, same

Patch = pytest.MonkeyPatch
GEOMETRY = dataclasses.replace(SMALL, segment=8 << 20)
CASES: list[Callable[[Patch], str]] = []


def _case(function: Callable[[Patch], str]) -> Callable[[Patch], str]:
    CASES.append(function)
    return function


@_case
def swapped_frames(patch: Patch) -> str:
    """Two frames of a disk trade places: only reading them shows it."""

    def encode(places: Sequence[Location | None]) -> bytes:
        found = [i for i, at in enumerate(places) if at is not None]
        wrong = list(places)
        if len(found) > 2:
            a, b = found[0], found[1]
            wrong[a], wrong[b] = wrong[b], wrong[a]
        return encode_segment(wrong)

    patch.setattr(streamwriter, "encode_segment", encode)
    return "content id is another's"


@_case
def a_frame_beyond_its_pack(patch: Patch) -> str:
    def encode(places: Sequence[Location | None]) -> bytes:
        return encode_segment([at._replace(offset=at.offset + 200_000) if at else None for at in places])

    patch.setattr(streamwriter, "encode_segment", encode)
    return "a pack is cut short"


@_case
def a_frame_in_a_pack_that_is_not_there(patch: Patch) -> str:
    def encode(places: Sequence[Location | None]) -> bytes:
        return encode_segment([at._replace(pack=bytes(16)) if at else None for at in places])

    patch.setattr(streamwriter, "encode_segment", encode)
    return "a pack is missing"


@_case
def a_frame_in_a_header(patch: Patch) -> str:
    def encode(places: Sequence[Location | None]) -> bytes:
        return encode_segment([at._replace(offset=7) if at else None for at in places])

    patch.setattr(streamwriter, "encode_segment", encode)
    return "place makes no sense"


@_case
def presence_of_another_block(patch: Patch) -> str:
    """Within a segment, so that all counts stay the same."""

    def encode(page: Page) -> bytes:
        bits = int.from_bytes(page.presence, "little")
        per = GEOMETRY.segment_blocks
        for segment in range(page.count):
            mine = [(bits >> i) & 1 for i in range(segment * per, min(page.blocks, (segment + 1) * per))]
            if 0 in mine and 1 in mine:
                bits ^= (1 << (segment * per + mine.index(0))) | (1 << (segment * per + mine.index(1)))
        presence = bits.to_bytes(len(page.presence), "little")
        return encode_page(dataclasses.replace(page, presence=presence))

    patch.setattr(streamwriter, "encode_page", encode)
    return "presence of its blocks is not that of its frames"


@_case
def a_count_of_bytes(patch: Patch) -> str:
    patch.setattr(
        streamwriter,
        "encode_page",
        lambda page: encode_page(dataclasses.replace(page, sealed=page.sealed + 1)),
    )
    return "count"


@_case
def a_page_of_another_place(patch: Patch) -> str:
    def encode(page: Page) -> bytes:
        refs = {n + 1: ref for n, ref in page.segments.items()}
        return encode_page(dataclasses.replace(page, first_segment=page.first_segment + 1, segments=refs))

    patch.setattr(streamwriter, "encode_page", encode)
    return "does not open"


def _altered(patch: Patch, kind: int, alter: Callable[[bytes], bytes]) -> None:
    original = MapSet.add

    def add(self: MapSet, k: int, plain: bytes) -> ItemRef:
        return original(self, k, alter(plain) if k == kind else plain)

    patch.setattr(MapSet, "add", add)


@_case
def ids_in_another_order(patch: Patch) -> str:
    _altered(patch, ITEM_IDS, lambda plain: plain[16:] + plain[:16])
    return "a segment's ids are not those of its content"


@_case
def an_id_too_few(patch: Patch) -> str:
    _altered(patch, ITEM_IDS, lambda plain: plain[16:])
    return "does not open"


@_case
def another_digest(patch: Patch) -> str:
    _altered(patch, ITEM_DIGESTS, lambda plain: bytes(16) + plain[16:])
    return "a segment's ids are not those of its content"


@_case
def another_content_of_a_disk(patch: Patch) -> str:
    patch.setattr(streamwriter, "content_digest", lambda *_: b"0" * 16)
    return "its digests are not those of its content"


@_case
def another_entry(patch: Patch) -> str:
    _altered(patch, ITEM_ENTRIES, lambda plain: plain.replace(b"small0", b"smell0"))
    return "listing"


@_case
def another_content_of_a_file(patch: Patch) -> str:
    patch.setattr("cloudmount.backup.files.small_content", lambda *_: "0" * 32)
    return "ids are not those of its content"


@_case
def frames_of_files_in_another_order(patch: Patch) -> str:
    def encode(places: Sequence[Location | None]) -> bytes:
        return encode_segment([*places[1:], places[0]])

    patch.setattr(partwriter, "encode_segment", encode)
    return ""


def _root(patch: Patch, alter: Callable[[StreamRoot], StreamRoot]) -> None:
    def seal(
        keys: object, tag: object, time: object, summary: object, roots: Sequence[StreamRoot],
        files: Section | None, sections: Sequence[bytes], dictionaries: Sequence[int],
    ) -> object:  # fmt: skip
        return seal_snapshot(
            keys, tag, time, summary, [alter(r) for r in roots], files, sections, dictionaries
        )  # type: ignore[arg-type]  # handed on

    patch.setattr(run, "seal_snapshot", seal)


def _page(patch: Patch, alter: Callable[[PageRef], PageRef]) -> None:
    _root(patch, lambda root: dataclasses.replace(root, pages=[alter(p) for p in root.pages]))


@_case
def a_roots_frames(patch: Patch) -> str:
    _root(patch, lambda root: dataclasses.replace(root, frames=root.frames + 1))
    return "counts in its root"


@_case
def a_roots_blocks(patch: Patch) -> str:
    _page(patch, lambda page: dataclasses.replace(page, blocks=page.blocks + 1))
    return "presence is not what its root says"


@_case
def a_roots_large_blocks(patch: Patch) -> str:
    _page(patch, lambda page: dataclasses.replace(page, large_blocks=page.large_blocks + 1))
    return "presence is not what its root says"


@_case
def a_page_too_many(patch: Patch) -> str:
    _root(patch, lambda root: dataclasses.replace(root, pages=[*root.pages, *root.pages]))
    return "pages where"


@_case
def half_a_page(patch: Patch) -> str:
    _root(
        patch,
        lambda root: dataclasses.replace(
            root, pages=[dataclasses.replace(p, digests=None) for p in root.pages]
        ),
    )
    return "half there"


@_case
def ids_in_a_packs_table(patch: Patch) -> str:
    """The index would give others the wrong frame for a content id."""
    original = PackWriter.finish

    def finish(self: PackWriter) -> FinishedPack:
        self._ids.reverse()
        return original(self)

    patch.setattr(PackWriter, "finish", finish)
    return "no snapshot holds it"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_noticed(tmp_path: Path, case: Callable[[Patch], str]) -> None:
    lab = Lab(tmp_path, geometry=GEOMETRY)
    source = fill(tmp_path / "s", 1)
    disk = tmp_path / "big.img"
    with disk.open("wb") as f:
        f.truncate(70 << 20)
        f.write(b"begin")
        f.seek(66 << 20)
        f.write(b"here" * 5000)
    with pytest.MonkeyPatch.context() as patch:
        why = case(patch)
        lab.backup(source, disk)
    result = check(lab.reopened(), read_data=100)
    assert not result.ok
    assert any(why in d.why for d in result.damage), result.damage
    # It keeps nobody from making the next backup; one that reads everything is sound.
    assert not lab.backup(source, disk).incomplete
    same(lab.read(lab.backup(source, disk, force_read=True)), source)
