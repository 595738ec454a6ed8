"""Proofs: what a drill found of a snapshot (FORMAT.md 6.9).

Decided here and only here: the content of proof objects, and that their names alone tell, to who has the keys
and to nobody else, which snapshots are proved: a name carries a MAC over how the drill ended. The newest
drill of a snapshot counts. Pure but for the store.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cloudmount.blobs.store import BlobInfo
from cloudmount.crypto.keyring import Keyring, new_salt
from cloudmount.crypto.slots import canonical
from cloudmount.errors import BlobMissingError, DamagedError
from cloudmount.repo.names import PROOFS, ProofName, parse_proof_name, proofs_of
from cloudmount.repo.objects import id_of, open_single, seal_single
from cloudmount.repo.repository import Repository
from cloudmount.repo.structures import KIND_PROOF

OBJECT_LIMIT = 4 << 20
MOST_SCREENSHOT = 2 << 20
"""Bytes of a screenshot; a larger one is left out. A screen of 1280 by 800 has 20 to 300 KB."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a drill of the snapshot with this id found, at `time` (whole seconds since 1970 UTC). `facts` are
    JSON, without floating-point numbers; `screenshot` a PNG."""

    snapshot: str
    time: int
    proved: bool
    facts: Mapping[str, Any]
    screenshot: bytes | None = None


class Drilled(NamedTuple):
    """What the name of a proof tells."""

    snapshot: str
    time: int
    proved: bool
    name: str


def seal_proof(keys: Keyring, tag: str, proof: Proof) -> tuple[str, bytes]:
    """A proof object of the machine with this tag: its name and bytes."""
    salt = new_salt()
    id = id_of(salt).hex()
    mark = _mark(keys, tag, proof.time, proof.snapshot, id, proof.proved)
    told = ProofName(tag, proof.time, proof.snapshot, mark, id)
    shot = proof.screenshot
    if shot is not None and len(shot) > MOST_SCREENSHOT:
        shot = None
    value = {
        "snapshot": proof.snapshot,
        "time": proof.time,
        "proved": proof.proved,
        "facts": dict(proof.facts),
        "screenshot": base64.b64encode(shot).decode() if shot is not None else None,
    }
    return seal_single(keys, KIND_PROOF, told.prefix, canonical(value), salt)


def open_proof(keys: Keyring, name: str, data: bytes) -> Proof:
    """The proof in an object; `DamagedError` when it does not open under its name, or makes no sense."""
    told = told_by(keys, name)
    if told is None:
        raise DamagedError(f"{name} is no proof's name, or nobody with the keys gave it")
    if len(data) > OBJECT_LIMIT:
        raise DamagedError(f"{name} is larger than a proof is")
    try:
        value = json.loads(open_single(keys, KIND_PROOF, name, data))
        shot = base64.b64decode(value["screenshot"]) if value["screenshot"] is not None else None
        facts = value["facts"]
        if (value["snapshot"], value["time"], value["proved"]) != told[:3] or not isinstance(facts, dict):
            raise ValueError("it is of another drill than its name")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{name} makes no sense: {error!r}") from None
    return Proof(told.snapshot, told.time, told.proved, facts, shot)


def read_proof(repository: Repository, name: str) -> Proof:
    """The proof in the store's object `name`. Errors as of `open_proof` and the store."""
    return open_proof(repository.keys, name, repository.store.read(name))


def told_by(keys: Keyring, name: str) -> Drilled | None:
    """What the name of an object tells; None when it is no proof's, or was not given with these keys."""
    told = parse_proof_name(name)
    if told is None:
        return None
    for proved in (True, False):
        if told.mark == _mark(keys, told.tag, told.time, told.snapshot, told.id, proved):
            return Drilled(told.snapshot, told.time, proved, name)
    return None


def newest_drills(keys: Keyring, names: Iterable[str]) -> dict[str, Drilled]:
    """The newest drill of each snapshot (by its id) of which one of the `names` tells."""
    found: dict[str, Drilled] = {}
    for name in names:
        told = told_by(keys, name)
        if told is not None and (told.snapshot not in found or found[told.snapshot].time <= told.time):
            found[told.snapshot] = told
    return found


def proof_names(repository: Repository, tag: str | None = None) -> Iterator[str]:
    """The names of a machine's proofs, or of all. One listing."""
    for info in repository.store.list(PROOFS if tag is None else proofs_of(tag)):
        yield info.name


def damaged_proofs(repository: Repository) -> Iterator[DamagedError]:
    """Why each proof object does not open that does not."""
    for info in repository.store.list(PROOFS):
        try:
            _read(repository, info)
        except BlobMissingError:
            continue
        except DamagedError as error:
            yield error


def _read(repository: Repository, info: BlobInfo) -> Proof:
    if info.size > OBJECT_LIMIT:
        raise DamagedError(f"{info.name} is larger than a proof is")
    return read_proof(repository, info.name)


def _mark(keys: Keyring, tag: str, time: int, snapshot: str, id: str, proved: bool) -> str:
    parts = [bytes([proved]), time.to_bytes(8, "little"), *map(bytes.fromhex, (tag, snapshot, id))]
    return keys.digest("proof", parts).hex()
