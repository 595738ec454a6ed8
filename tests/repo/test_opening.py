"""Opening costs nothing: at most 6 requests and 1 MiB to the first byte, whatever the repository holds.

(architecture.md, "Opening costs nothing"; FORMAT.md section 10.)
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cloudmount.blobs.counting import CountingStore, Counts
from cloudmount.blobs.memory import MemoryStore
from cloudmount.repo.config import Geometry
from cloudmount.repo.locations import Birth, Location, encode_segment
from cloudmount.repo.mapset import MapSet
from cloudmount.repo.names import iso_time, pack_name
from cloudmount.repo.packs import PACK_SLACK, PackWriter, open_frame
from cloudmount.repo.pages import ItemRef, Page, SegmentRef, encode_page
from cloudmount.repo.payload import encode_frame
from cloudmount.repo.repository import Repository
from cloudmount.repo.snapshots import seal_snapshot
from cloudmount.repo.streams import MapCache, StreamMap
from cloudmount.repo.streamwriter import BuiltPage, BuiltStream
from cloudmount.repo.structures import ITEM_IDS, ITEM_LOCATIONS
from tests.backup.lab import PASSPHRASE, Lab, disk_maps, new_repository
from tests.trained import text, trained

MAX_REQUESTS, MAX_BYTES = 6, 1 << 20


def _first_byte(
    store: MemoryStore, machine: str, frame: int, requests: int = MAX_REQUESTS
) -> tuple[bytes, Counts]:
    """The frame of `machine`'s latest disk, read as a blank PC would, and what that cost: at most so many
    requests."""
    counting = CountingStore(store)
    repository = Repository.open(counting, PASSPHRASE)
    snapshot = repository.latest(machine)
    (stream,) = disk_maps(repository, snapshot).values()
    at = stream.locate(frame)
    assert at is not None
    sealed = counting.read(pack_name(at.pack), at.offset, at.length)
    plain = open_frame(repository.keys, at, sealed, stream.frame_length(frame), repository.dictionaries.get)
    cost = counting.snapshot()
    assert cost.requests <= requests, cost
    assert cost.bytes_down < MAX_BYTES, cost
    return plain, cost


@pytest.mark.parametrize("snapshots", [1, 200])
def test_a_disk(tmp_path: Path, snapshots: int) -> None:
    """With frames, packs, segments and pages of real size; 200 snapshots, each a little changed."""
    lab = Lab(tmp_path, geometry=Geometry())
    image = tmp_path / "disk.img"
    rng = random.Random(3)
    content = bytearray(24 << 20)
    content[: 4 << 20] = text(3, 4 << 20)
    image.write_bytes(content)
    last = None
    for _ in range(snapshots):
        at = rng.randrange(len(content) - 1000)
        content[at : at + 1000] = rng.randbytes(1000)
        with image.open("r+b") as f:
            f.seek(at)
            f.write(content[at : at + 1000])
        last = lab.backup(image, journal=False, worth_bytes=1 << 20)
    assert last is not None
    assert isinstance(lab.store, MemoryStore)
    frame, cost = _first_byte(lab.store, "srv", 5)
    assert frame == content[5 * 131_072 : 6 * 131_072]
    assert cost.requests == MAX_REQUESTS
    assert len(list(lab.store.list("dictionaries/"))) == 2


def test_among_many_machines(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    image = tmp_path / "disk.img"
    for n in range(30):
        image.write_bytes(random.Random(n).randbytes(1 << 20))
        lab.backup(image, machine=f"pc{n}", journal=False)
    assert isinstance(lab.store, MemoryStore)
    frame, _ = _first_byte(lab.store, "pc17", 3)
    assert frame == random.Random(17).randbytes(1 << 20)[3 * 4096 : 4 * 4096]


def _scattered(real: Location, rng: random.Random) -> list[Location | None]:
    """A segment in 96 packs, from which it would be gathered: 1 % scattered change a day for months.

    Runs of an old pack with single frames of newer ones between them. The first frame is `real`.
    """
    born = [Birth(0, rng.randbytes(32)) for _ in range(96)]
    ends, numbers = [64] * 96, [0] * 96
    places: list[Location | None] = [real]
    for n in range(1, 8192):
        pack = rng.randrange(1, 96) if rng.random() < 0.4 else 0
        if rng.random() < 0.3:
            ends[pack] += rng.randrange(17, 90_000)
            numbers[pack] += 1
        length = rng.randrange(20_000, 131_000) if n % 3 else 131_088
        places.append(Location(born[pack].salt[:16], ends[pack], length, born[pack], numbers[pack]))
        ends[pack] += length
        numbers[pack] += 1
    return places


def _synthetic(pages: int, geometry: Geometry) -> int:
    """The cost in bytes of the first byte of a disk whose map is as large as one can be.

    Half of all blocks are present, at random; every segment's items lie at random in a thousand
    map objects, as after as many backups. Segment 0 is real, and of its frames the first.
    """
    store, rng = MemoryStore(), random.Random(1)
    repository = new_repository(store, geometry)
    keys = repository.keys
    writer = PackWriter(keys, memoryview(bytearray((1 << 20) + PACK_SLACK)))
    noise = random.Random(2).randbytes(geometry.frame - 9000)
    plain = noise[: len(noise) // 2] + text(2, 9000) + noise[len(noise) // 2 :]
    dictionary = repository.dictionaries.add(trained(geometry.dictionary), {}, store.create)
    payload = encode_frame(plain, dictionary)
    assert payload != encode_frame(plain), "it needs the dictionary"
    real = writer.add(keys.content_id(plain), payload)
    pack = writer.finish()
    store.create(pack.name, bytes(pack.data))
    maps = MapSet(keys, store.create)
    places = _scattered(real, rng)
    locations = maps.add(ITEM_LOCATIONS, encode_segment(places))
    assert locations.length <= 48 << 10
    first = SegmentRef(len(places), locations, maps.add(ITEM_IDS, bytes(16 * len(places))))
    objects = [Birth(0, rng.randbytes(32)) for _ in range(1000)]

    def item() -> ItemRef:
        length = rng.randrange(15_000, 48_000)
        return ItemRef(rng.choice(objects), rng.randrange(32 << 20), length, rng.randrange(700))

    built = []
    count = geometry.page // geometry.segment
    blocks = count * geometry.segment_blocks
    for page in range(pages):
        refs = {page * count + n: SegmentRef(rng.randrange(8192), item(), item()) for n in range(count)}
        refs = {**refs, 0: first} if page == 0 else refs
        presence = rng.randbytes(blocks // 8)
        data = encode_page(Page(page * count, count, blocks, presence, 0, refs))
        built.append(BuiltPage(data, rng.randbytes(16 * count), blocks // 2, blocks // 16))
    stream = BuiltStream(built, "0" * 32, 0, 0)
    sections: list[bytes] = []
    if pages == 1:
        sections = [built[0].page, built[0].digests]
        root = stream.root_in_sections(1, 2)
    else:
        root = stream.root_in_items(maps)
    maps.close()
    disk = {"name": "disk", "path": "", "size": pages * geometry.page, "content": "0" * 32}
    summary = {"machine": "srv", "sequence": 1, "time": iso_time(5), "disks": [disk]}
    name, data, _ = seal_snapshot(keys, keys.tag("srv"), 5, summary, [root], None, sections)
    store.create(name, data)
    frame, cost = _first_byte(store, "srv", 0, MAX_REQUESTS + (pages > 1))
    assert frame == plain
    return cost.bytes_down


def test_the_worst_map_of_4_tib() -> None:
    """About 800 KiB, which is why a snapshot object above 384 KiB is not read whole."""
    assert _synthetic(1, Geometry()) > 600 << 10


def test_more_than_a_page() -> None:
    """12 TiB: the pages lie in map objects, which takes a request more."""
    _synthetic(3, Geometry())


def test_presence_without_reading_maps(tmp_path: Path) -> None:
    """`stat` of a disk needs the snapshot object alone: 3 requests."""
    lab = Lab(tmp_path, geometry=Geometry())
    image = tmp_path / "disk.img"
    with image.open("wb") as f:
        f.truncate(1 << 30)
        f.seek(77 << 20)
        f.write(b"x")
    lab.backup(image)
    counting = CountingStore(lab.store)
    repository = Repository.open(counting, PASSPHRASE)
    snapshot = repository.latest("srv")
    summary = snapshot.summary["disks"][0]
    stream = StreamMap(MapCache(repository), snapshot, summary["size"], snapshot.roots[0], summary["content"])
    presence = stream.presence()
    assert [i for i in range(512) if presence[i // 8] >> i % 8 & 1] == [38]
    assert counting.snapshot().requests == 3
