"""Names of objects: they sort newest first, and only they are taken apart."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from cloudmount.blobs.store import check_name
from cloudmount.repo.names import (
    SnapshotKey,
    SnapshotName,
    folder_time,
    folders,
    iso_time,
    map_name,
    pack_id,
    pack_name,
    parse_snapshot_name,
)
from tests.strategies import ids, snapshot_keys

TAG = "0123456789abcdef" * 2


@given(keys=st.lists(snapshot_keys, max_size=20, unique=True))
def test_snapshots_sort_newest_first(keys: list[SnapshotKey]) -> None:
    by_name = sorted(keys, key=lambda k: k.name(TAG))
    by_age = sorted(keys, key=lambda k: (k.sequence, k.time), reverse=True)
    assert [k[:2] for k in by_name] == [k[:2] for k in by_age]


@given(key=snapshot_keys)
def test_snapshot_names(key: SnapshotKey) -> None:
    name = check_name(key.name(TAG))
    assert parse_snapshot_name(name) == SnapshotName(TAG, key, 0)
    assert parse_snapshot_name(f"{name}.{2**32 - 1 - 7:08x}") == SnapshotName(TAG, key, 7)
    for wrong in (
        name[:-1],
        name + "0",
        name.upper(),
        name.replace("/", "-"),
        name + ".",
        f"{name}.0",
        "x" + name,
    ):
        assert parse_snapshot_name(wrong) is None
    assert parse_snapshot_name(name + "\n") is None


@given(text=st.text(max_size=40))
def test_other_names(text: str) -> None:
    assert parse_snapshot_name(text) is None
    assert parse_snapshot_name(f"snapshots/{text}") is None
    assert pack_id(f"packs/{text}") is None


@given(id=ids)
def test_packs_and_maps(id: bytes) -> None:
    assert pack_id(check_name(pack_name(id))) == id
    assert pack_id(pack_name(id) + "\n") is None
    assert check_name(map_name(id)).endswith(id.hex())
    other = pack_name(id).split("/")
    other[1] = f"{(int(other[1], 16) + 1) % 256:02x}"
    assert pack_id("/".join(other)) is None


@given(keys=st.lists(snapshot_keys, max_size=12, unique=True))
def test_folders(keys: list[SnapshotKey]) -> None:
    named = folders(keys)
    assert sorted(named.values()) == sorted(keys)
    assert list(named.values()) == sorted(keys)
    # One more, newer than all, changes no earlier name: a folder's name stays.
    newest = SnapshotKey(2**64 - 1, keys[0].time if keys else 0, "f" * 32)
    if newest not in keys:
        assert folders([*keys, newest]).items() > named.items()


@given(time=st.integers(0, 2**38 - 1))
def test_times(time: int) -> None:
    text = folder_time(time)
    if time < 253402300800:  # the year 10000
        when = dt.datetime.strptime(text, "%Y-%m-%dT%H-%M-%SZ").replace(tzinfo=dt.UTC)
        assert when.timestamp() == time
        assert iso_time(time).replace(":", "-") == text
    else:
        assert text == f"time-{time}"
