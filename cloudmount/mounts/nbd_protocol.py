"""The Network Block Device protocol's numbers and messages.

Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md: the fixed newstyle negotiation,
simple and structured replies, block status. Pure.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

GREETING = b"NBDMAGICIHAVEOPT"
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_MAGIC, CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF

FIXED_NEWSTYLE, NO_ZEROES = 1, 2

EXPORT_NAME, ABORT, LIST, INFO, GO, STRUCTURED_REPLY, LIST_META, SET_META = 1, 2, 3, 6, 7, 8, 9, 10
ACK, SERVER, INFO_REPLY, META_CONTEXT = 1, 2, 3, 4
ERR_UNSUPPORTED, ERR_INVALID, ERR_UNKNOWN = (1 << 31) + 1, (1 << 31) + 3, (1 << 31) + 6
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

HAS_FLAGS, READ_ONLY, SEND_DF, CAN_MULTI_CONN = 1, 2, 1 << 7, 1 << 8

READ, DISCONNECT, BLOCK_STATUS = 0, 2, 7
CHANGES = {1, 4, 6}
"""Commands that would write: WRITE, TRIM, WRITE_ZEROES."""
FLAG_DF, FLAG_ONE = 1 << 2, 1 << 3
DONE = 1
NONE, OFFSET_DATA, OFFSET_HOLE, STATUS, ERROR = 0, 1, 2, 5, (1 << 15) + 1
HOLE, ZERO = 1, 2

EPERM, EIO, EINVAL, EOVERFLOW = 1, 5, 22, 75

ALLOCATION = "base:allocation"

_OPTION = struct.Struct(">QII")
_REQUEST = struct.Struct(">IHHQQI")
OPTION_BYTES, REQUEST_BYTES = _OPTION.size, _REQUEST.size


class Request(NamedTuple):
    """A command of a client's."""

    flags: int
    command: int
    handle: int
    offset: int
    length: int


class ProtocolError(Exception):
    """The other side does not speak this protocol."""


def option(data: bytes) -> tuple[int, int]:
    """(option, length of its data)."""
    magic, number, length = _OPTION.unpack(data)
    if magic != OPTION_MAGIC:
        raise ProtocolError("no option")
    return number, length


def option_reply(number: int, kind: int, data: bytes = b"") -> bytes:
    """An answer to an option."""
    return struct.pack(">QIII", OPTION_REPLY_MAGIC, number, kind, len(data)) + data


def request(data: bytes) -> Request:
    """A client's command."""
    magic, *rest = _REQUEST.unpack(data)
    if magic != REQUEST_MAGIC:
        raise ProtocolError("no request")
    return Request(*rest)


def simple_reply(handle: int, error: int) -> bytes:
    """What goes before a simple reply's data."""
    return struct.pack(">IIQ", SIMPLE_MAGIC, error, handle)


def chunk(handle: int, flags: int, kind: int, length: int) -> bytes:
    """What goes before a chunk's `length` bytes."""
    return struct.pack(">IHHQI", CHUNK_MAGIC, flags, kind, handle, length)


def error_chunk(handle: int, error: int, why: str) -> bytes:
    """The last chunk of a reply that failed."""
    text = why.encode()[:4000]
    return chunk(handle, DONE, ERROR, 6 + len(text)) + struct.pack(">IH", error, len(text)) + text


def text(data: bytes, at: int) -> tuple[str, int]:
    """A counted string at `at`, and where it ends."""
    if at + 4 > len(data):
        raise ProtocolError("cut off")
    (length,) = struct.unpack_from(">I", data, at)
    end = at + 4 + int(length)
    if end > len(data):
        raise ProtocolError("cut off")
    return data[at + 4 : end].decode("utf-8", "surrogateescape"), end


def counted(value: str) -> bytes:
    """A counted string."""
    encoded = value.encode("utf-8", "surrogateescape")
    return struct.pack(">I", len(encoded)) + encoded
