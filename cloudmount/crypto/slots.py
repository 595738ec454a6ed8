"""Key slots: one master key wrapped under a passphrase, and again under a recovery phrase.

Decided here and only here: Argon2id's parameters and their bounds, and what a slot
looks like in the config (docs/FORMAT.md section 4). Argon2id as of RFC 9106. Pure.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from cloudmount.crypto.keyring import KEY_BYTES, SEAL_BYTES, Sealer, derive, new_salt
from cloudmount.crypto.phrase import looks_like_phrase, phrase_secret
from cloudmount.errors import DamagedError, WrongPassphraseError

MAX_SLOTS = 16
_BOUNDS = {"memory_kib": (8, 1 << 20), "passes": (1, 16), "lanes": (1, 16)}


@dataclass(frozen=True, slots=True)
class KdfCost:
    """What one guess costs: Argon2id's memory in KiB, passes over it, lanes."""

    memory_kib: int = 64 * 1024  # 0.2 s here; RFC 9106's second recommendation
    passes: int = 3
    lanes: int = 4


def canonical(value: Any) -> bytes:
    """Canonical JSON: ASCII, keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _stretch(secret: bytes, slot: dict[str, Any]) -> Sealer:
    cost = {}
    for name, (low, high) in _BOUNDS.items():
        value = slot.get(name)
        if type(value) is not int or not low <= value <= high:
            raise DamagedError(f"a key slot's {name} is {value!r}, outside {low} to {high}")
        cost[name] = value
    if cost["memory_kib"] * cost["passes"] > 16 << 20:
        raise DamagedError("a key slot asks for more than 16 GiB of memory traffic")
    if cost["memory_kib"] < 8 * cost["lanes"]:
        raise DamagedError("a key slot's memory_kib is less than 8 times its lanes")
    stretched = Argon2id(
        salt=bytes.fromhex(slot["salt"]),
        length=KEY_BYTES,
        iterations=cost["passes"],
        lanes=cost["lanes"],
        memory_cost=cost["memory_kib"],
    ).derive(secret)
    return Sealer(derive(stretched, "slot"))


def _bound(slot: dict[str, Any]) -> bytes:
    return b"slot\0" + canonical({k: v for k, v in slot.items() if k != "key"})


def _secret(kind: str, text: str) -> bytes:
    if kind == "recovery":
        return phrase_secret(text)
    return unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape")


def make_slot(kind: str, text: str, master: bytes, cost: KdfCost) -> dict[str, Any]:
    """A slot of `kind` ("passphrase" or "recovery") that `text` opens, as in the config."""
    slot: dict[str, Any] = {
        "kind": kind,
        "salt": new_salt().hex(),
        "memory_kib": cost.memory_kib,
        "passes": cost.passes,
        "lanes": cost.lanes,
    }
    slot["key"] = _stretch(_secret(kind, text), slot).seal(0, master, _bound(slot)).hex()
    return slot


def open_slots(slots: list[dict[str, Any]], text: str) -> bytes:
    """The master key, from whichever slot `text` opens: passphrase slots and, when it is one, a phrase.

    `WrongPassphraseError` when none does; it names a phrase's mistyped word. A slot that is
    damaged beyond trying raises `DamagedError` only when no other opens.
    """
    damage: DamagedError | None = None
    mistyped: WrongPassphraseError | None = None
    phrase = looks_like_phrase(text)
    if not 1 <= len(slots) <= MAX_SLOTS:
        raise DamagedError(f"the config must have 1 to {MAX_SLOTS} key slots")
    # The likelier kind first: each try costs one Argon2id run.
    for slot in sorted(slots, key=lambda s: (s.get("kind") == "recovery") != phrase):
        kind = slot.get("kind")
        if kind not in ("passphrase", "recovery") or (kind == "recovery" and not phrase):
            continue
        try:
            secret = _secret(kind, text)
        except WrongPassphraseError as error:
            mistyped = error
            continue
        try:
            sealed = bytes.fromhex(slot["key"])
            if len(sealed) != KEY_BYTES + SEAL_BYTES:
                raise DamagedError("its sealed key has the wrong length")
            sealer = _stretch(secret, slot)
        except (KeyError, TypeError, ValueError, DamagedError) as error:
            damage = DamagedError(f"a {kind} slot of the config can't be read: {error}")
            continue
        try:
            return sealer.open(0, sealed, _bound(slot))
        except DamagedError:
            continue
    if mistyped is not None:
        raise mistyped
    if damage is not None:
        raise damage
    if phrase:
        raise WrongPassphraseError("this recovery phrase is not this repository's")
    raise WrongPassphraseError("wrong passphrase: it opens no key slot of this repository")
