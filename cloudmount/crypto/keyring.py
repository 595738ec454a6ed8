"""The keys of one repository and what is derived from them.

Decided here and only here: every derivation of docs/FORMAT.md section 3, content
ids and digests, and how a number is sealed under a salt. Wrapping by passphrase is
`slots`. A `Keyring` is immutable but for a cache of sub-keys; safe on any thread.
"""

from __future__ import annotations

import hmac
import os
import threading
import unicodedata
from collections.abc import Iterable, Mapping

import cachetools
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloudmount.errors import DamagedError

KEY_BYTES = 32
SALT_BYTES = 32
ID_BYTES = 16
SEAL_BYTES = 16
"""What a seal adds to its plain bytes: the GCM tag."""
ZERO_ID = bytes(ID_BYTES)
"""Content id of an absent frame, digest of an absent segment."""


def derive(key: bytes, purpose: str, salt: bytes = b"") -> bytes:
    """HKDF-SHA256 (RFC 5869): a 32-byte key for `purpose`."""
    info = b"cloudmount 0 " + purpose.encode("ascii")
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt or None, info=info).derive(key)


def new_salt() -> bytes:
    """256 random bits, for one sealed object."""
    return os.urandom(SALT_BYTES)


class Sealer:
    """AES-256-GCM under one sub-key; the number is the nonce, sealed once by the caller's care."""

    __slots__ = ("_gcm",)

    def __init__(self, key: bytes) -> None:
        self._gcm = AESGCM(key)

    def seal(self, number: int, plain: bytes, bound: bytes = b"") -> bytes:
        """`plain` sealed as `number` (0..2**96-1), bound to the authenticated data `bound`."""
        return self._gcm.encrypt(number.to_bytes(12, "big"), plain, bound)

    def seal_into(self, number: int, plain: bytes | memoryview, room: memoryview, bound: bytes = b"") -> None:
        """As `seal`, into `room`, which has exactly the length of `plain` and `SEAL_BYTES`."""
        self._gcm.encrypt_into(number.to_bytes(12, "big"), plain, bound, room)

    def open(self, number: int, sealed: bytes | memoryview, bound: bytes = b"") -> bytes:
        """What was sealed; `DamagedError` when a bit of it, its number or `bound` differs."""
        try:
            return self._gcm.decrypt(number.to_bytes(12, "big"), sealed, bound)
        except (InvalidTag, ValueError):
            raise DamagedError("a seal does not open: its bytes are altered, or not these") from None


class Keyring:
    """The master key and the epoch keys of one repository."""

    def __init__(self, master: bytes, epoch_keys: Mapping[int, bytes]) -> None:
        self._master = master
        self._epoch_keys = dict(epoch_keys)
        self.epoch = max(self._epoch_keys)
        """The epoch new objects are sealed under."""
        self._content = derive(master, "content id")
        self._tree = derive(master, "tree")
        self._tag = derive(master, "tag")
        self._config = derive(master, "config")
        self._sealers: cachetools.LRUCache[tuple[int, bytes, str], Sealer] = cachetools.LRUCache(4096)
        self._lock = threading.Lock()

    def sealer(self, epoch: int, salt: bytes, purpose: str) -> Sealer:
        """The sealer of one object's salt; `DamagedError` for an epoch whose key we don't have."""
        at = (epoch, salt, purpose)
        with self._lock:
            found = self._sealers.get(at)
        if found is None:
            try:
                key = self._epoch_keys[epoch]
            except KeyError:
                raise DamagedError(f"sealed under key epoch {epoch}, which the config lacks") from None
            found = Sealer(derive(key, purpose, salt))
            with self._lock:
                self._sealers[at] = found
        return found

    def content_id(self, plain: bytes | memoryview) -> bytes:
        """16 bytes naming a frame's plain bytes (not for all-zero frames: those are absent): keyed BLAKE3,
        6 GB/s a core where HMAC-SHA256 is 1.6."""
        return blake3(plain, key=self._content).digest(length=ID_BYTES)

    def digest(self, kind: str, parts: Iterable[bytes]) -> bytes:
        """The 16-byte tree digest of `kind` over the concatenated `parts`."""
        mac = hmac.new(self._tree, kind.encode("ascii") + b"\0", "sha256")
        for part in parts:
            mac.update(part)
        return mac.digest()[:ID_BYTES]

    def tag(self, machine: str) -> str:
        """The 32 hex digits that stand for a machine's name in object names."""
        name = unicodedata.normalize("NFC", machine).encode("utf-8", "surrogateescape")
        return hmac.digest(self._tag, name, "sha256")[:ID_BYTES].hex()

    def config_mac(self, line: bytes) -> bytes:
        """The 32-byte MAC over the config's line."""
        return hmac.digest(self._config, line, "sha256")

    def wrap_epoch(self, epoch: int, salt: bytes) -> bytes:
        """The key of `epoch` sealed under the master key."""
        wrap = Sealer(derive(self._master, "wrap", salt))
        return wrap.seal(0, self._epoch_keys[epoch], _epoch_bound(epoch))


def _epoch_bound(epoch: int) -> bytes:
    return b"epoch\0" + epoch.to_bytes(4, "little")


def unwrap_epoch(master: bytes, epoch: int, salt: bytes, wrapped: bytes) -> bytes:
    """The key of an epoch from its entry in the config; `DamagedError` when it doesn't open."""
    return Sealer(derive(master, "wrap", salt)).open(0, wrapped, _epoch_bound(epoch))
