"""Proofs: sealed, told by their names to who has the keys, and by nobody else's."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmount.app import proofs as kept
from cloudmount.app.check import check
from cloudmount.blobs.memory import MemoryStore
from cloudmount.blobs.store import Data, Tier
from cloudmount.crypto.keyring import Keyring
from cloudmount.errors import CloudMountError, DamagedError, StoreRefusedError
from cloudmount.repo.names import parse_proof_name
from cloudmount.repo.proofs import MOST_SCREENSHOT, Proof, newest_drills, open_proof, seal_proof, told_by
from tests.backup.lab import new_repository

KEYS = Keyring(os.urandom(32), {0: os.urandom(32)})
OTHER = Keyring(os.urandom(32), {0: os.urandom(32)})
TAG = "0f" * 16
ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
facts = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=20), max_size=4)
proofs = st.builds(
    Proof, ids, st.integers(0, 2**40 - 1), st.booleans(), facts, st.none() | st.binary(max_size=300)
)


@settings(max_examples=50, deadline=None)
@given(tag=ids, proof=proofs)
def test_a_proof_comes_back_and_its_name_tells_it(tag: str, proof: Proof) -> None:
    name, data = seal_proof(KEYS, tag, proof)
    assert open_proof(KEYS, name, data) == proof
    told = told_by(KEYS, name)
    assert told is not None and (told.snapshot, told.time, told.proved) == (
        proof.snapshot,
        proof.time,
        proof.proved,
    )
    parts = parse_proof_name(name)
    assert parts is not None and parts.name == name and parts.tag == tag
    assert told_by(OTHER, name) is None
    with pytest.raises(DamagedError):
        open_proof(OTHER, name, data)


@settings(max_examples=50, deadline=None)
@given(proof=proofs, data=st.data())
def test_no_other_name_tells_anything(proof: Proof, data: st.DataObject) -> None:
    """A digit of the name changed: it is no proof's, or of nothing."""
    name, sealed = seal_proof(KEYS, TAG, proof)
    at = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:at] + random.Random(at).choice("0123456789abcdef".replace(name[at], "")) + name[at + 1 :]
    assert told_by(KEYS, wrong) is None
    with pytest.raises(DamagedError):
        open_proof(KEYS, wrong, sealed)


def test_the_newest_drill_counts() -> None:
    one, two = "11" * 16, "22" * 16
    names = [
        seal_proof(KEYS, TAG, Proof(snapshot, time, proved, {}))[0]
        for snapshot, time, proved in ((one, 5, True), (one, 9, False), (one, 7, True), (two, 6, True))
    ]
    names += [seal_proof(OTHER, TAG, Proof(two, 8, False, {}))[0], "proofs/x", names[0] + "0"]
    random.Random(1).shuffle(names)
    found = newest_drills(KEYS, names)
    assert {s: (d.time, d.proved) for s, d in found.items()} == {one: (9, False), two: (6, True)}


def test_a_huge_screenshot_is_left_out() -> None:
    name, data = seal_proof(KEYS, TAG, Proof("33" * 16, 1, True, {}, bytes(MOST_SCREENSHOT + 1)))
    assert open_proof(KEYS, name, data).screenshot is None


class ReadOnlyStore(MemoryStore):
    """A store whose credential may not create."""

    frozen = False

    def create(
        self, name: str, data: Data, *, tier: Tier | None = None, deadline: float | None = None
    ) -> None:
        if self.frozen:
            raise StoreRefusedError(f"{name}: this credential may not create")
        super().create(name, data, tier=tier, deadline=deadline)


def test_where_proofs_lie(tmp_path: Path) -> None:
    """In the store; on this machine where that refuses; what is there is found with the rest."""
    store = ReadOnlyStore()
    repository = new_repository(store)
    environ = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    tag, snapshot = repository.keys.tag("srv"), "44" * 16
    first = Proof(snapshot, 5, False, {"why": "x"}, b"shot")
    name, why = kept.keep_proof(repository, tag, first, environ)
    assert why is None and [i.name for i in store.list("proofs/")] == [name]
    store.frozen = True
    name, why = kept.keep_proof(repository, tag, replace(first, time=6, proved=True), environ)
    assert why is not None and "may not create" in why
    for asked in (tag, None):
        found = kept.drills(repository, asked, environ)[snapshot]
        assert (found.time, found.proved, found.name) == (6, True, name)
        assert kept.proof_of(repository, found, environ).screenshot == b"shot"
    assert kept.drills(repository, repository.keys.tag("other"), environ) == {}
    elsewhere = {**environ, "XDG_STATE_HOME": str(tmp_path / "other")}
    there = kept.drills(repository, None, elsewhere)[snapshot]
    assert not there.proved and kept.proof_of(repository, there, elsewhere) == first
    assert check(repository).notices == []
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    with pytest.raises(CloudMountError, match="neither in the repository"):
        kept.keep_proof(repository, tag, first, {**environ, "XDG_STATE_HOME": str(blocked)})
