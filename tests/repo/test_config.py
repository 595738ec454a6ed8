"""The config: opened by passphrase or phrase, by its copy when need be, and nothing in it can rot unseen."""

from __future__ import annotations

import json
import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.blobs.memory import MemoryStore
from cloudmount.crypto.phrase import new_phrase
from cloudmount.crypto.slots import KdfCost, canonical
from cloudmount.errors import (
    CloudMountError,
    DamagedError,
    NoRepositoryError,
    TargetExistsError,
    UsageError,
    WrongPassphraseError,
)
from cloudmount.repo.config import Geometry, configs_agree, create_config, open_config
from cloudmount.repo.names import CONFIG, CONFIG_COPY

CHEAP = KdfCost(8, 1, 1)
PHRASE = new_phrase()


def _store(passphrase: str = "secret", geometry: Geometry | None = None) -> MemoryStore:
    store = MemoryStore(prepared=False)
    create_config(store, passphrase, PHRASE, geometry=geometry, cost=CHEAP)
    return store


def _silent(message: str) -> None:
    raise AssertionError(message)


@settings(max_examples=30, deadline=None)
@given(passphrase=st.text(min_size=1, max_size=40))
def test_opened_by_either(passphrase: str) -> None:
    store = _store(passphrase)
    by_passphrase, by_phrase = (open_config(store, text, _silent) for text in (passphrase, PHRASE.upper()))
    assert by_passphrase.keys.tag("m") == by_phrase.keys.tag("m")
    assert by_passphrase.geometry == Geometry()
    assert configs_agree(store) is None
    other_form = unicodedata.normalize("NFD", passphrase)
    assert open_config(store, other_form, _silent).repo_id == by_passphrase.repo_id
    with pytest.raises(WrongPassphraseError):
        open_config(store, passphrase + "x", _silent)


def test_a_mistyped_phrase() -> None:
    store = _store()
    words = PHRASE.split()
    words[6] += "zz"
    with pytest.raises(WrongPassphraseError, match="word 7"):
        open_config(store, " ".join(words), _silent)
    with pytest.raises(WrongPassphraseError, match="not this repository's"):
        open_config(store, new_phrase(), _silent)


def test_a_phrase_as_the_passphrase() -> None:
    """24 words of the list may be someone's passphrase."""
    passphrase = new_phrase()
    assert open_config(_store(passphrase), passphrase, _silent).keys


def test_every_bit_of_the_config() -> None:
    """One altered bit is told, and the copy opens the repository; with the copy gone nothing opens."""
    store = _store()
    good = store.objects[CONFIG]
    rng = random.Random(7)
    for bit in sorted(rng.sample(range(8 * len(good)), 150)):
        wrong = bytearray(good)
        wrong[bit // 8] ^= 1 << bit % 8
        store.objects[CONFIG] = bytes(wrong)
        told: list[str] = []
        assert open_config(store, "secret", told.append).keys
        assert len(told) == 1
        assert "copy was used" in told[0]
        assert configs_agree(store) == "config and config.copy differ"
    for cut in range(0, len(good), 37):
        store.objects[CONFIG] = good[:cut]
        assert open_config(store, "secret", [].append).keys
        store.objects[CONFIG_COPY] = good[:cut]
        with pytest.raises(CloudMountError):
            open_config(store, "secret", [].append)
        store.objects[CONFIG_COPY] = good


def test_either_missing() -> None:
    store = _store()
    store.delete(CONFIG)
    told: list[str] = []
    assert open_config(store, "secret", told.append).keys
    assert told
    assert configs_agree(store) == "config is missing"
    with pytest.raises(WrongPassphraseError):
        open_config(store, "wrong", [].append)
    store.delete(CONFIG_COPY)
    with pytest.raises(NoRepositoryError):
        open_config(store, "secret", [].append)
    store = _store()
    store.delete(CONFIG_COPY)
    assert open_config(store, "secret", _silent).keys
    assert configs_agree(store) == "config.copy is missing"


def test_not_over_something_else() -> None:
    store = _store()
    with pytest.raises(TargetExistsError, match="repository is already"):
        create_config(store, "secret", PHRASE, cost=CHEAP)
    store = MemoryStore()
    store.create("somebody/elses", b"x")
    with pytest.raises(TargetExistsError, match="somebody/elses"):
        create_config(store, "secret", PHRASE, cost=CHEAP)
    with pytest.raises(UsageError):
        create_config(MemoryStore(), "", PHRASE, cost=CHEAP)


def _altered(store: MemoryStore, **changes: object) -> None:
    """The config with other values, under a right MAC no more: only what comes before the MAC can tell."""
    for name in (CONFIG, CONFIG_COPY):
        line, mac, _ = store.objects[name].split(b"\n")
        value = {**json.loads(line), **changes}
        store.objects[name] = json.dumps(value, sort_keys=True).encode() + b"\n" + mac + b"\n"


def test_another_version_or_feature() -> None:
    store = _store()
    _altered(store, cloudmount=1)
    with pytest.raises(CloudMountError, match=r"format version 1.*use the program that made it"):
        open_config(store, "secret", _silent)
    store = _store()
    _altered(store, features=["dictionaries", "prune"])
    with pytest.raises(CloudMountError, match="prune"):
        open_config(store, "secret", _silent)


def test_without_dictionaries() -> None:
    """A repository made before there were any says nothing of them, and goes on without."""
    store = _store(geometry=Geometry(dictionary=0))
    line, _, _ = store.objects[CONFIG].split(b"\n")
    value = json.loads(line)
    assert value["features"] == []
    del value["dictionary"]
    line = canonical(value)
    mac = open_config(store, "secret", _silent).keys.config_mac(line).hex().encode()
    for name in (CONFIG, CONFIG_COPY):
        store.objects[name] = line + b"\n" + mac + b"\n"
    assert open_config(store, "secret", _silent).geometry == Geometry(dictionary=0)


@pytest.mark.parametrize("bytes", [1, 1023, (1 << 20) + 1, -1, 1 << 60])
def test_dictionaries_of_absurd_sizes(bytes: int) -> None:
    with pytest.raises(DamagedError, match="make no sense"):
        Geometry(dictionary=bytes)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_kib": 1 << 30},
        {"passes": 0},
        {"passes": 1 << 40},
        {"lanes": 17},
        {"lanes": "1"},
        {"memory_kib": True},
        {"memory_kib": 8, "lanes": 2},
        {"key": "00"},
        {"key": "zz"},
        {"salt": 5},
        {"kind": "other"},
    ],
)
def test_hostile_slots(changes: dict[str, object]) -> None:
    """A store can't make a reader work without end, or crash."""
    store = _store()
    slots = json.loads(store.objects[CONFIG].split(b"\n")[0])["slots"]
    _altered(store, slots=[{**slot, **changes} for slot in slots])
    with pytest.raises((DamagedError, WrongPassphraseError)):
        open_config(store, "secret", _silent)


@pytest.mark.parametrize("slots", [[], [{}] * 17, None, 5, [5], ["x"], {"a": 1}])
def test_slots_that_are_none(slots: object) -> None:
    store = _store()
    _altered(store, slots=slots)
    with pytest.raises(CloudMountError):
        open_config(store, "secret", _silent)


@pytest.mark.parametrize("line", [b"", b"5", b"[]", b"{}", b"null", b"[" * 30_000, b"\xff", b'{"a":' * 9000])
def test_a_config_that_is_none(line: bytes) -> None:
    store = _store()
    for name in (CONFIG, CONFIG_COPY):
        store.objects[name] = line + b"\n" + b"0" * 64 + b"\n"
    with pytest.raises(DamagedError):
        open_config(store, "secret", _silent)


def test_a_config_too_large_is_not_parsed() -> None:
    store = _store()
    store.objects[CONFIG] = store.objects[CONFIG_COPY] = b"x" * (65 << 10)
    with pytest.raises(DamagedError, match="larger"):
        open_config(store, "secret", _silent)


@given(
    frame=st.sampled_from([1 << n for n in range(10, 24)] + [5000, 0]),
    pack=st.sampled_from([0, 4095, 4096, 1 << 25, 1 << 30, 1 << 31]),
    segment=st.sampled_from([0, 1 << 20, 2 << 20, 3 << 20, 1 << 30, 1 << 34, 1 << 35]),
    page=st.sampled_from([0, 32 << 20, 48 << 20, 4 << 40, 1 << 46, 1 << 47]),
)
def test_sizes(frame: int, pack: int, segment: int, page: int) -> None:
    try:
        g = Geometry(frame, pack, segment, page)
    except DamagedError:
        return
    assert g.segment % g.frame == 0
    assert g.page % g.segment == 0
    assert (2 << 20) % g.frame == 0
    assert g.page % (32 << 20) == 0
