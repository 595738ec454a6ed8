"""What check tells: damage by snapshot, path and range, each once; what it reads; what it writes down."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cloudmount.app.check import CheckProgress, check
from cloudmount.blobs.counting import CountingStore
from cloudmount.blobs.memory import MemoryStore
from cloudmount.errors import UsageError
from cloudmount.repo.datacheck import References
from cloudmount.repo.findings import KEPT, Finding, Findings, Spot
from cloudmount.repo.listings import Listing
from cloudmount.repo.locations import Birth, Location
from cloudmount.repo.mapcheck import Reference
from cloudmount.repo.names import map_name, pack_name
from cloudmount.repo.streams import MapCache
from cloudmount.repo.structures import Trailer
from tests.backup.lab import FRAME, PAGE, SEGMENT, Lab, disk_maps, fill, flip, objects, same

MIB = 1 << 20


def _places(lab: Lab, path: str, folder: str = "") -> list[Location]:
    """Where the frames of a disk or file of the latest snapshot lie."""
    snapshot = lab.repository.latest("srv")
    disks = disk_maps(lab.repository, snapshot)
    if path in disks:
        return [f.at for f in disks[path].present()]
    listing = Listing(MapCache(lab.repository), snapshot)
    found = listing.lookup(path)
    assert found is not None
    return [f.at for f in listing.content(*found).present()]


def _spoil(store: MemoryStore, at: Location) -> None:
    flip(store, pack_name(at.pack), 8 * (at.offset + at.length // 2))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Two snapshots that share most of what they hold."""
    lab = Lab(tmp_path)
    source = tmp_path / "s"
    source.mkdir()
    rng = random.Random(1)
    (tmp_path / "disk.img").write_bytes(rng.randbytes(SEGMENT + 10 * FRAME) + b"end".ljust(512))
    (source / "file").write_bytes(rng.randbytes(5 * FRAME + 100))
    (source / "other").write_bytes(b"other")
    for n in range(2):
        (source / "new").write_bytes(f"{n}".encode() * 100)
        lab.backup(source, tmp_path / "disk.img")
    return lab


def _store(lab: Lab) -> MemoryStore:
    assert isinstance(lab.store, MemoryStore)
    return lab.store


def test_a_range_in_every_snapshot(lab: Lab) -> None:
    """Adjoining frames are one range; each snapshot that holds them is named; the frames are read once."""
    places = _places(lab, "disk")
    for n in (3, 4, 5, 9, len(places) - 1):
        _spoil(_store(lab), places[n])
    for n in (1, 5):
        _spoil(_store(lab), _places(lab, "s/file")[n])
    result = lab.check()
    names = sorted({d.snapshot for d in result.damage})
    assert len(names) == 2
    assert all(n.startswith("srv/20") for n in names)
    for name in names:
        assert [(d.path, d.offset, d.length) for d in result.damage if d.snapshot == name] == [
            ("disk.img", 3 * FRAME, 3 * FRAME),
            ("disk.img", 9 * FRAME, FRAME),
            ("disk.img", SEGMENT + 10 * FRAME, 512),
            ("s/file", FRAME, FRAME),
            ("s/file", 5 * FRAME, 100),
        ]
    assert result.recorded is not None
    assert len(objects(_store(lab), "damage/")) == 1


def test_only_maps(lab: Lab) -> None:
    """Without --read-data frames are not read: damage in them is not seen, a pack's absence is."""
    _spoil(_store(lab), _places(lab, "disk")[3])
    counting = CountingStore(lab.store)
    result = check(lab.reopened(counting))
    assert result.ok
    assert result.frames_read == result.bytes_read == 0
    assert counting.snapshot().bytes_down < 200_000
    places = _places(lab, "disk")
    pack = places[40].pack
    lab.store.delete(pack_name(pack))
    result = check(lab.reopened())
    lost = [n for n, at in enumerate(places) if at.pack == pack]
    found = [d for d in result.damage if d.path == "disk.img"]
    assert [(d.offset, d.length) for d in found] == [(lost[0] * FRAME, len(lost) * FRAME)] * 2
    assert [d for d in result.damage if not d.snapshot] == [
        Finding("", pack_name(pack), 0, 0, "missing from the store")
    ]
    assert result.recorded is None  # it may come back: nothing of it was read
    assert not objects(_store(lab), "damage/")


def test_frames_are_read_once(tmp_path: Path) -> None:
    """Ten snapshots of one disk cost no more than one."""
    lab = Lab(tmp_path)
    image = tmp_path / "disk.img"
    content = bytearray(random.Random(1).randbytes(2 * MIB))
    for n in range(10):
        content[0] = n
        image.write_bytes(content)
        lab.backup(image)
    packs = sum(len(data) for data in objects(_store(lab), "packs/").values())
    counting = CountingStore(lab.store)
    progress = CheckProgress()
    result = check(lab.reopened(counting), read_data=100, progress=progress)
    assert result.ok
    assert result.frames_read == progress.frames == progress.total_frames == 2 * MIB // FRAME + 9
    maps = sum(len(data) for name, data in objects(_store(lab), "").items() if not name.startswith("packs/"))
    assert counting.snapshot().bytes_down < packs + 3 * maps + 70_000 * 50
    assert progress.bytes <= progress.total_bytes
    assert progress.snapshots == progress.total_snapshots == 10


@pytest.mark.parametrize("percent", [1, 20, 50, 99])
def test_a_sample(lab: Lab, percent: float) -> None:
    """So many percent of the frames, the same ones for the same seed."""
    total = check(lab.reopened(), read_data=100).frames_read
    reads = [check(lab.reopened(), read_data=percent, seed=s) for s in (1, 1, 2)]
    assert all(r.ok for r in reads)
    assert reads[0].frames_read == reads[1].frames_read
    assert abs(reads[0].frames_read - total * percent / 100) < 60
    assert all(r.read_percent == percent for r in reads)
    for n, at in enumerate(_places(lab, "disk")):
        if n % 10 == 0:
            _spoil(_store(lab), at)
    found = [check(lab.reopened(), read_data=percent, seed=s) for s in (1, 1, 2)]
    assert found[0].damage == found[1].damage
    if percent >= 20:
        assert not found[0].ok
    if percent in (20, 50):
        assert found[0].damage != found[2].damage


def test_percentages(lab: Lab) -> None:
    for wrong in (0, -1, 100.1, float("nan")):
        with pytest.raises(UsageError):
            check(lab.reopened(), read_data=wrong)


def test_damage_in_maps_is_named(tmp_path: Path) -> None:
    """Each item of each map object spoilt in turn: which part of what is lost by it."""
    lab = Lab(tmp_path)
    source = fill(tmp_path / "s", 1)
    disk = tmp_path / "big.img"
    with disk.open("wb") as f:
        f.truncate(PAGE + 3 * SEGMENT)
        f.seek(PAGE + SEGMENT)
        f.write(b"here")
    lab.backup(source, disk)
    store = _store(lab)
    seen: set[tuple[str, int, int]] = set()
    kept = dict(store.objects)
    for name in objects(store, "maps/"):
        # Tables are read by --read-data only.
        table = Trailer.unpack(kept[name], len(kept[name]) - Trailer.SIZE).table_length + Trailer.SIZE
        for place in range(64, len(kept[name]) - table, 60):
            flip(store, name, 8 * place)
            result = check(lab.reopened())
            assert not result.ok
            assert result.recorded
            named = [d for d in result.damage if d.snapshot]
            assert named
            assert {d.path for d in result.damage if not d.snapshot} == {name}
            seen |= {(d.path, d.offset, d.length) for d in named}
            store.objects[name] = kept[name]
            for new in objects(store, "damage/"):
                store.delete(new)
    assert ("big.img", PAGE + SEGMENT, SEGMENT) in seen  # a segment's locations, or ids
    assert ("big.img", PAGE, 3 * SEGMENT) in seen  # the page, or its digests
    assert ("s/disk.img", 0, SEGMENT) in seen
    assert {("s/small0", 0, 5100), ("s/small19", 0, 5100)} <= seen  # a part's segment
    assert any(path == "s/large" and offset == 0 for path, offset, _ in seen)
    assert ("big.img", 0, PAGE) not in seen


def test_damage_heals(tmp_path: Path) -> None:
    """Damage that a check wrote down is stored anew by the next backup of whoever still has it."""
    lab = Lab(tmp_path)
    source = fill(tmp_path / "s", 1)
    lab.backup(source)
    rng = random.Random(5)
    for name, data in objects(_store(lab), "packs/").items():
        for _ in range(3):
            flip(_store(lab), name, 8 * rng.randrange(64, len(data) - 300))
    bad = [d for d in lab.check().damage if d.snapshot]
    assert len(bad) > 10
    healed = lab.backup(source)
    assert healed.progress.new_frames > 10
    same(lab.read(healed), source)
    newest = max(d.snapshot for d in lab.check().damage if d.snapshot)
    assert newest in {d.snapshot for d in bad}
    other = lab.backup(source, machine="other", journal=False)  # neither does anyone else use it
    assert other.progress.new_frames == 0
    same(lab.read(other), source)
    assert lab.backup(source).progress.read_bytes == 0


def test_a_lost_index(lab: Lab) -> None:
    """No damage: nothing is lost by it. It is told."""
    for name in objects(_store(lab), "index/"):
        lab.store.delete(name)
    result = lab.check()
    assert result.ok
    assert any("named by no index object" in n for n in result.notices)


def test_snapshots_that_do_not_open(lab: Lab) -> None:
    names = list(objects(_store(lab), "snapshots/"))
    flip(_store(lab), names[0], 8 * 200)
    result = lab.check()
    (damage,) = result.damage
    assert (damage.path, damage.offset, damage.length) == ("", 0, 0)
    assert damage.snapshot.startswith("srv/20")  # its machine is known by the other
    assert result.snapshots == 1
    flip(_store(lab), names[1], 8 * 200)
    result = lab.check()
    assert len(result.damage) == 2
    assert result.snapshots == 0


def test_the_cache_is_not_asked(lab: Lab) -> None:
    class Cache:
        def get(self, key: str) -> bytes | None:
            raise AssertionError(key)

        def put(self, key: str, sealed: bytes) -> None:
            raise AssertionError(key)

        def drop(self, key: str) -> None:
            raise AssertionError(key)

    repository = lab.reopened()
    repository.cache = Cache()
    assert check(repository, read_data=100).ok


def test_an_empty_repository(tmp_path: Path) -> None:
    result = Lab(tmp_path).clean()
    assert (result.snapshots, result.packs, result.maps, result.notices) == (0, 0, 0, [])


def test_config_damage(lab: Lab) -> None:
    flip(_store(lab), "config.copy", 99)
    result = lab.check()
    assert [(d.snapshot, d.path, d.why) for d in result.damage] == [
        ("", "config", "config and config.copy differ")
    ]


def test_missing_and_short_maps(lab: Lab) -> None:
    for name, data in objects(_store(lab), "maps/").items():
        lab.store.delete(name)
        result = lab.check()
        assert any(d.snapshot for d in result.damage)
        assert any((d.path, d.why) == (name, "missing from the store") for d in result.damage)
        assert result.recorded is None
        lab.store.create(name, data)
    lab.clean()


def test_findings_are_merged_and_bounded() -> None:
    findings = Findings()
    for n in reversed(range(100)):
        findings.add("m/x", Spot("disk.img", n * 10, 10, "gone"))
    findings.add("m/x", Spot("disk.img", 500, 10, "gone"))
    findings.add("m/x", Spot("disk.img", 500, 10, "other"))
    findings.add("m/x", Spot("disk.img", 1001, 5, "gone"))
    assert findings.all() == [
        Finding("m/x", "disk.img", 0, 1000, "gone"),
        Finding("m/x", "disk.img", 500, 10, "other"),
        Finding("m/x", "disk.img", 1001, 5, "gone"),
    ]
    assert findings.dropped == 0
    many = Findings()
    for n in range(KEPT + 77):
        many.add("", Spot("p", 3 * n, 1, "x"))
    assert (len(many.all()), many.dropped) == (KEPT, 77)


def test_references_are_distinct() -> None:
    """The same frame from many segments is kept once; two that differ in anything are both kept."""
    references = References(100, 0)
    birth, pack = Birth(0, bytes(32)), bytes(16)
    at = Location(pack, 64, 100, birth, 0)
    some = [
        Reference(at, b"a" * 16, 4096),
        Reference(at._replace(offset=164), b"b" * 16, 4096),
        Reference(at, b"c" * 16, 4096),
        Reference(at._replace(birth=Birth(1, bytes(32))), b"a" * 16, 4096),
    ]
    for _ in range(3):
        references.take(some)
    assert references.totals() == (4, 400)
    assert references.packs() == [pack]
    assert sorted(references.of_pack(pack)) == sorted(some)
    assert references.of_pack(b"x" * 16) == []
    references.close()


def test_map_names_in_findings(lab: Lab) -> None:
    """An object's finding carries its name, as the store has it."""
    name = next(iter(objects(_store(lab), "maps/")))
    flip(_store(lab), name, 8 * 70)
    paths = {d.path for d in lab.check().damage if not d.snapshot}
    assert paths == {name}
    assert map_name(bytes.fromhex(name.removeprefix("maps/"))) == name
