"""The config object: settings and key slots (FORMAT.md section 4).

Decided here and only here: the config's form, its bounds, and when the copy is used. Pure
but for the store it is given.
"""

from __future__ import annotations

import datetime as dt
import hmac
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from cloudmount.blobs.store import BlobStore, Tier
from cloudmount.crypto.keyring import KEY_BYTES, Keyring, new_salt, unwrap_epoch
from cloudmount.crypto.slots import KdfCost, canonical, make_slot, open_slots
from cloudmount.errors import (
    BlobExistsError,
    BlobMissingError,
    CloudMountError,
    DamagedError,
    NoRepositoryError,
    StoreRefusedError,
    StoreUnreachableError,
    TargetExistsError,
    UsageError,
    WrongPassphraseError,
)
from cloudmount.repo.names import CONFIG, CONFIG_COPY
from cloudmount.repo.structures import BLOCK_BYTES, FORMAT_VERSION, SUITE

CONFIG_LIMIT = 64 << 10
TIERS = ("hot", "cool", "cold")
DICTIONARIES = "dictionaries"
FEATURES = (DICTIONARIES,)
"""What a config may say that a program must know (FORMAT.md section 4)."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes chosen at `init`, in bytes (FORMAT.md section 1)."""

    frame: int = 128 << 10
    pack: int = 32 << 20
    segment: int = 1 << 30
    page: int = 4 << 40
    dictionary: int = 96 << 10
    """Bytes of a dictionary object; 0 where frames are compressed without."""

    def __post_init__(self) -> None:
        ok = (
            all(type(v) is int for v in asdict(self).values())
            and 4096 <= self.frame <= BLOCK_BYTES
            and self.frame & (self.frame - 1) == 0
            and 4096 <= self.pack <= 1 << 30
            and BLOCK_BYTES <= self.segment <= 1 << 34
            and self.segment % BLOCK_BYTES == 0
            and self.segment <= self.page <= 1 << 46
            and self.page % self.segment == 0
            and self.page % (32 << 20) == 0
            and (self.dictionary == 0 or 1024 <= self.dictionary <= 1 << 20)
        )
        if not ok:
            raise DamagedError(f"the sizes of this repository make no sense: {asdict(self)}")

    @property
    def segment_frames(self) -> int:
        """Frames in a whole segment."""
        return self.segment // self.frame

    @property
    def segment_blocks(self) -> int:
        """2 MiB blocks in a whole segment."""
        return self.segment // BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Config:
    """An opened config."""

    repo_id: str
    geometry: Geometry
    tier: Tier
    created: str
    keys: Keyring


def _line(value: dict[str, Any], keys: Keyring) -> bytes:
    line = canonical(value)
    return line + b"\n" + keys.config_mac(line).hex().encode() + b"\n"


def create_config(
    store: BlobStore,
    passphrase: str,
    phrase: str,
    *,
    geometry: Geometry | None = None,
    tier: Tier = "hot",
    cost: KdfCost | None = None,
) -> Config:
    """Make a new repository's config in `store`. `TargetExistsError` when there is one already."""
    geometry, cost = geometry or Geometry(), cost or KdfCost()
    if tier not in TIERS:
        raise UsageError(f"the tier {tier!r} is none of {', '.join(TIERS)}")
    if not passphrase:
        raise UsageError("the passphrase is empty")
    store.prepare()
    there = next(iter(store.list("", limit=1)), None)
    if there is not None:
        names = {info.name for info in store.list("config", limit=10)} & {CONFIG, CONFIG_COPY}
        what = "a repository is already at" if names else f"{there.name!r} and perhaps more is already at"
        raise TargetExistsError(f"{what} {store.address}; choose an empty place")
    master, epoch_key = os.urandom(KEY_BYTES), os.urandom(KEY_BYTES)
    keys = Keyring(master, {0: epoch_key})
    salt = new_salt()
    value = {
        "cloudmount": FORMAT_VERSION,
        "repo_id": os.urandom(16).hex(),
        "created": f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "suite": SUITE,
        "generation": 1,
        "features": [DICTIONARIES] if geometry.dictionary else [],
        "tier": tier,
        **asdict(geometry),
        "epochs": [{"epoch": 0, "salt": salt.hex(), "key": keys.wrap_epoch(0, salt).hex()}],
        "slots": [
            make_slot("passphrase", passphrase, master, cost),
            make_slot("recovery", phrase, master, cost),
        ],
    }
    data = _line(value, keys)
    opened = _open(data, passphrase)
    _open(data, phrase)
    for name in (CONFIG_COPY, CONFIG):
        try:
            store.create(name, data)
        except BlobExistsError:  # it was looked for before: somebody was quicker
            raise TargetExistsError(f"a repository is already at {store.address}") from None
    return opened


def _open(data: bytes, text: str) -> Config:
    if len(data) > CONFIG_LIMIT:
        raise DamagedError("the config is larger than a config is")
    try:
        line, mac, rest = data.split(b"\n")
        value = json.loads(line)
        if value["cloudmount"] != FORMAT_VERSION or value["suite"] != SUITE:
            raise CloudMountError(
                f"this repository has format version {value['cloudmount']}, cipher suite {value['suite']}; "
                f"this program knows version {FORMAT_VERSION}, suite {SUITE}: use the program that made it"
            )
        lacking = [name for name in value["features"] if name not in FEATURES]
        if lacking:
            raise CloudMountError(f"this repository needs features that this program lacks: {lacking}")
        master = open_slots(value["slots"], text)
        epochs = {
            e["epoch"]: unwrap_epoch(master, e["epoch"], bytes.fromhex(e["salt"]), bytes.fromhex(e["key"]))
            for e in value["epochs"]
        }
        keys = Keyring(master, epochs)
        if rest or not hmac.compare_digest(keys.config_mac(line).hex().encode(), mac):
            raise DamagedError("the config's MAC is wrong: some byte of it was altered")
        dictionary = value["dictionary"] if DICTIONARIES in value["features"] else 0
        frame, pack, segment, page = (value[k] for k in ("frame", "pack", "segment", "page"))
        geometry = Geometry(frame, pack, segment, page, dictionary)
        return Config(value["repo_id"], geometry, value["tier"], value["created"], keys)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"the config can't be read: {error!r}") from None


def open_config(store: BlobStore, text: str, tell: Callable[[str], None]) -> Config:
    """The config, opened by a passphrase or recovery phrase.

    When `config` is missing or does not open, `config.copy` is tried and `tell` told.
    `NoRepositoryError` when neither is there, `WrongPassphraseError`, `DamagedError`.
    """
    first: CloudMountError
    data = b""
    try:
        data = store.read(CONFIG)
        return _open(data, text)
    except StoreUnreachableError:
        raise
    except BlobMissingError:
        first = NoRepositoryError(f"there is no repository at {store.address}: it has no object {CONFIG!r}")
    except (StoreRefusedError, NoRepositoryError):
        raise
    except CloudMountError as error:
        first = error
    try:
        copy = store.read(CONFIG_COPY)
        if copy == data:
            raise first
        opened = _open(copy, text)
    except StoreUnreachableError:
        raise
    except CloudMountError as error:
        # Neither opens. What the copy says counts where the first was not there, or where the copy is sound.
        better = isinstance(first, NoRepositoryError) and not isinstance(error, BlobMissingError)
        sound = isinstance(first, DamagedError) and isinstance(error, WrongPassphraseError)
        raise (error if better or sound else first) from None
    tell(f"the object {CONFIG!r} is unusable ({first}); its copy was used: run 'cloudmount check'")
    return opened


def configs_agree(store: BlobStore) -> str | None:
    """None when config and copy are the same bytes; else what is wrong, for `check`."""
    parts = []
    for name in (CONFIG, CONFIG_COPY):
        try:
            parts.append(store.read(name))
        except BlobMissingError:
            return f"{name} is missing"
    return None if parts[0] == parts[1] else f"{CONFIG} and {CONFIG_COPY} differ"
