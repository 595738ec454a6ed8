"""Sealed objects put together and taken apart (FORMAT.md section 5).

Decided here and only here: headers, sections, and the common form of packs and map
objects (sealed pieces, table, trailer). Builders belong to one thread; the rest is pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloudmount.crypto.keyring import ID_BYTES, SEAL_BYTES, Keyring, Sealer, new_salt
from cloudmount.errors import CloudMountError, DamagedError
from cloudmount.repo.locations import Birth
from cloudmount.repo.payload import CODEC_BYTES, decode_payload, encode_payload
from cloudmount.repo.structures import (
    FORMAT_VERSION,
    HEADER_BYTES,
    MAGIC,
    SUITE,
    TRAILER_BYTES,
    TRAILER_MAGIC,
    ObjectHeader,
    Trailer,
)

OVERHEAD = CODEC_BYTES + SEAL_BYTES
"""Bytes a sealed piece takes beyond its (compressed) content."""


def id_of(salt: bytes) -> bytes:
    """The 16-byte id of the object with this salt: create-only names keep a salt from being used twice."""
    return salt[:ID_BYTES]


def make_header(kind: int, birth: Birth, lead: int = 0) -> bytes:
    """An object's 64-byte header."""
    return ObjectHeader(MAGIC, FORMAT_VERSION, kind, SUITE, birth.epoch, birth.salt, lead, bytes(12)).pack()


def parse_header(data: bytes, kind: int, name: str) -> ObjectHeader:
    """The header of the object called `name`; `DamagedError` unless it is one of `kind`.

    Its bits are authenticated only by what is opened with it.
    """
    try:
        header = ObjectHeader.unpack(data)
    except ValueError:
        raise DamagedError(f"{name} is cut short") from None
    if header.magic != MAGIC:
        raise DamagedError(f"{name} does not begin like an object of a repository")
    if header.version != FORMAT_VERSION or header.suite != SUITE:
        raise DamagedError(
            f"{name} has format version {header.version}, cipher suite {header.suite}; this program knows "
            f"version {FORMAT_VERSION}, suite {SUITE}: it is damaged, or a newer program wrote it"
        )
    if header.reserved != bytes(12):
        raise DamagedError(f"{name}: its header has bits set that must be zero")
    if header.kind != kind:
        raise DamagedError(f"{name} is an object of kind {header.kind}, not {kind}")
    return header


def seal_sections(
    keys: Keyring,
    kind: int,
    name: str,
    first: bytes,
    others: Sequence[bytes] = (),
    salt: bytes | None = None,
) -> bytes:
    """An object of sections; `first` and `others` are encoded payloads; `salt` where the name tells it."""
    birth = Birth(keys.epoch, salt or new_salt())
    header = make_header(kind, birth, len(first) + SEAL_BYTES)
    sealer = keys.sealer(birth.epoch, birth.salt, "section")
    bound = header + name.encode("ascii")
    return header + b"".join(sealer.seal(n, payload, bound) for n, payload in enumerate([first, *others]))


class SectionReader:
    """Opens the sections of one object from its name and first bytes."""

    def __init__(self, keys: Keyring, kind: int, name: str, data: bytes) -> None:
        header = parse_header(data, kind, name)
        self._sealer = keys.sealer(header.epoch, header.salt, "section")
        self._bound = data[:HEADER_BYTES] + name.encode("ascii")
        self._name = name
        self.lead = header.lead
        """Sealed length of section 0, which follows the header."""

    def open(self, number: int, sealed: bytes) -> bytes:
        """The plain content of a section; `DamagedError` when it does not open."""
        try:
            return decode_payload(self._sealer.open(number, sealed, self._bound))
        except DamagedError as error:
            raise DamagedError(f"{self._name}: section {number}: {error}") from None

    def first(self, data: bytes) -> bytes:
        """Section 0, from an object's first bytes, which must hold it whole."""
        return self.open(0, data[HEADER_BYTES : HEADER_BYTES + self.lead])


def seal_single(
    keys: Keyring, kind: int, prefix: str, content: bytes, salt: bytes | None = None
) -> tuple[str, bytes]:
    """An object of section 0 alone, called `prefix` and its id: name and bytes, opened again to be sure.
    `salt`: a fresh one, where the prefix depends on it."""
    salt = salt or new_salt()
    name = prefix + id_of(salt).hex()
    data = seal_sections(keys, kind, name, encode_payload(content), salt=salt)
    if open_single(keys, kind, name, data) != content:
        raise CloudMountError(f"{name} does not open to what was sealed: this machine's memory may be faulty")
    return name, data


def open_single(keys: Keyring, kind: int, name: str, data: bytes) -> bytes:
    """The content of an object that has section 0 alone."""
    reader = SectionReader(keys, kind, name, data)
    if HEADER_BYTES + reader.lead != len(data):
        raise DamagedError(f"{name} has {len(data)} bytes where {HEADER_BYTES + reader.lead} belong")
    return reader.first(data)


def seal_table(keys: Keyring, birth: Birth, header: bytes, name: str, table: bytes) -> bytes:
    """What ends a pack or map object: its sealed table and trailer."""
    payload = encode_payload(table)
    trailer = Trailer(len(payload) + SEAL_BYTES, TRAILER_MAGIC).pack()
    sealer = keys.sealer(birth.epoch, birth.salt, "table")
    return sealer.seal(0, payload, header + trailer + name.encode("ascii")) + trailer


class PieceWriter:
    """Collects the sealed pieces of a map object behind its header."""

    def __init__(self, keys: Keyring, kind: int, purpose: str) -> None:
        self.birth = Birth(keys.epoch, new_salt())
        self.id = id_of(self.birth.salt)
        self.keys = keys
        self._kind = kind
        self._sealer: Sealer = keys.sealer(self.birth.epoch, self.birth.salt, purpose)
        self._parts = [make_header(kind, self.birth)]
        self.size = HEADER_BYTES
        """Bytes so far, without table and trailer."""
        self.count = 0

    def append(self, payload: bytes, bound: bytes = b"") -> tuple[int, int, int]:
        """Seal an encoded payload as the next number: (offset, sealed length, number)."""
        sealed = self._sealer.seal(self.count, payload, bound)
        at = (self.size, len(sealed), self.count)
        self._parts.append(sealed)
        self.size += len(sealed)
        self.count += 1
        return at

    def sealed_object(self, name: str, table: bytes) -> bytes:
        """The whole object, closed with its `table` and trailer."""
        data = b"".join([*self._parts, seal_table(self.keys, self.birth, self._parts[0], name, table)])
        self._parts = []  # while it is sent, one copy in memory is enough
        return data


def read_table(keys: Keyring, kind: int, name: str, header: bytes, tail: bytes) -> tuple[bytes, Birth, int]:
    """A pack's or map object's table from its header and last bytes: content, birth, and the length of
    table and trailer. `tail` must hold both. Authenticates header, table and trailer."""
    told = parse_header(header, kind, name)
    if id_of(told.salt).hex() != name.rpartition("/")[2]:
        raise DamagedError(f"{name} stands under another's name")
    try:
        trailer = Trailer.unpack(tail, len(tail) - TRAILER_BYTES)
    except ValueError:
        raise DamagedError(f"{name} is cut short") from None
    length = trailer.table_length + TRAILER_BYTES
    if trailer.magic != TRAILER_MAGIC or length > len(tail):
        raise DamagedError(f"{name} does not end like an object of a repository; it may be cut short")
    sealer = keys.sealer(told.epoch, told.salt, "table")
    bound = header[:HEADER_BYTES] + tail[-TRAILER_BYTES:] + name.encode("ascii")
    try:
        payload = sealer.open(0, tail[-length:-TRAILER_BYTES], bound)
    except DamagedError as error:
        raise DamagedError(f"{name}: its table: {error}") from None
    return decode_payload(payload), Birth(told.epoch, told.salt), length
