"""A read-only NBD server: block sources, for whoever speaks that protocol.

Decided here and only here: what a client may ask (everything that reads; TLS not, so it listens on loopback
or a Unix socket only), in what pieces it is answered, and what a connection may cost: a thread and its
readers, and `MOST_WAITING` bytes. Content never changes, so any number of connections see the same
(`CAN_MULTI_CONN`).

Threading: one thread accepts, one for each connection, and up to `READERS` for each that read; `close` on
any.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cloudmount.extents import BlockSource, merged
from cloudmount.mounts import nbd_protocol as nbd
from cloudmount.mounts.failures import Failures

READERS = 8
MOST_CONNECTIONS = 64
LONGEST_READ = 32 << 20
PREFERRED = 128 << 10
"""Bytes: one stored frame."""
MOST_WAITING = 64 << 20
PIECE = 1 << 20
MOST_EXTENTS = 1024
_LONGEST_OPTION = 64 << 10
_GREETING_SECONDS = 30.0

log = logging.getLogger("cloudmount.mounts")


@dataclass(frozen=True, slots=True)
class Export:
    """A disk that is served; `sector` in bytes is the least that is asked of it."""

    source: BlockSource
    description: str = ""
    sector: int = 512


class NbdServer:
    """Serves `exports` by their names on a listening socket, which it owns; the first one also as ""."""

    def __init__(self, listener: socket.socket, exports: Mapping[str, Export]) -> None:
        self._listener, self.exports = listener, dict(exports)
        self.failures = Failures()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="cloudmount-nbd", daemon=True)
        self._thread.start()

    def export(self, name: str) -> Export | None:
        """The one of that name."""
        if not name:
            return next(iter(self.exports.values()), None)
        return self.exports.get(name)

    def close(self) -> None:
        """End every connection; reads under way are left to end when they can."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed or len(self._connections) >= MOST_CONNECTIONS:
                    connection.close()
                    continue
                self._connections.add(connection)
            threading.Thread(
                target=self._serve, args=(connection,), name="cloudmount-nbd-client", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Client(self, connection).serve()
        except (OSError, EOFError):
            pass  # it left
        except nbd.ProtocolError as error:
            log.warning("an NBD client was left: it does not speak the protocol (%s)", error)
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()


class _Client:
    """One connection."""

    def __init__(self, server: NbdServer, connection: socket.socket) -> None:
        self._server, self._connection = server, connection
        self._structured = self._tells_allocation = False
        self._export: Export | None = None
        self._sending = threading.Lock()
        self._budget = threading.Condition()
        self._waiting = 0

    def serve(self) -> None:
        """Until it leaves."""
        self._connection.settimeout(_GREETING_SECONDS)
        if not self._negotiate() or self._export is None:
            return
        self._connection.settimeout(None)
        readers = ThreadPoolExecutor(READERS, "cloudmount-nbd-reader")
        try:
            while True:
                request = nbd.request(self._receive(nbd.REQUEST_BYTES))
                if request.command == nbd.DISCONNECT:
                    return
                if request.command == 1:  # WRITE: its data follows
                    self._skip(request.length)
                weight = request.length if request.command == nbd.READ else 0
                with self._budget:
                    while self._waiting and self._waiting + weight > MOST_WAITING:
                        self._budget.wait()
                    self._waiting += weight
                readers.submit(self._answer, self._export, request, weight)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)

    def _receive(self, length: int) -> bytes:
        found = bytearray()
        while len(found) < length:
            more = self._connection.recv(length - len(found))
            if not more:
                raise EOFError
            found += more
        return bytes(found)

    def _skip(self, length: int) -> None:
        while length:
            length -= len(self._receive(min(length, PIECE)))

    def _send(self, *parts: bytes) -> None:
        with self._sending:
            for part in parts:
                self._connection.sendall(part)

    # What is agreed upon

    def _negotiate(self) -> bool:
        """Whether a disk was chosen."""
        self._send(nbd.GREETING + struct.pack(">H", nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES))
        (flags,) = struct.unpack(">I", self._receive(4))
        if flags & ~(nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES):
            raise nbd.ProtocolError(f"unknown flags {flags:#x}")
        while True:
            number, length = nbd.option(self._receive(nbd.OPTION_BYTES))
            if length > _LONGEST_OPTION:
                raise nbd.ProtocolError(f"an option of {length} bytes")
            data = self._receive(length)
            if number == nbd.EXPORT_NAME:
                self._export = self._server.export(data.decode("utf-8", "surrogateescape"))
                if self._export is None:
                    return False  # there is no other way to refuse
                padding = b"" if flags & nbd.NO_ZEROES else bytes(124)
                self._send(struct.pack(">QH", self._export.source.size, self._flags) + padding)
                return True
            if number == nbd.ABORT:
                self._send(nbd.option_reply(number, nbd.ACK))
                return False
            try:
                self._send(*self._option(number, data))
            except (nbd.ProtocolError, struct.error):
                self._send(nbd.option_reply(number, nbd.ERR_INVALID, b"this option is malformed"))
            if number == nbd.GO and self._export is not None:
                return True

    @property
    def _flags(self) -> int:
        structured = nbd.SEND_DF if self._structured else 0
        return nbd.HAS_FLAGS | nbd.READ_ONLY | nbd.CAN_MULTI_CONN | structured

    def _option(self, number: int, data: bytes) -> list[bytes]:
        """The answers to an option."""
        ack = nbd.option_reply(number, nbd.ACK)
        if number == nbd.LIST:
            if data:
                raise nbd.ProtocolError("LIST has no data")
            names = self._server.exports
            return [*(nbd.option_reply(number, nbd.SERVER, nbd.counted(name)) for name in names), ack]
        if number == nbd.STRUCTURED_REPLY:
            if data:
                raise nbd.ProtocolError("STRUCTURED_REPLY has no data")
            self._structured = True
            return [ack]
        if number in (nbd.INFO, nbd.GO):
            return self._info(number, data)
        if number in (nbd.LIST_META, nbd.SET_META):
            return self._meta(number, data)
        return [nbd.option_reply(number, nbd.ERR_UNSUPPORTED, b"not known here")]

    def _info(self, number: int, data: bytes) -> list[bytes]:
        name, at = nbd.text(data, 0)
        (count,) = struct.unpack_from(">H", data, at)
        wanted = struct.unpack_from(f">{count}H", data, at + 2)
        export = self._server.export(name)
        if export is None:
            return [nbd.option_reply(number, nbd.ERR_UNKNOWN, b"there is no such disk")]
        told = [struct.pack(">HQH", nbd.INFO_EXPORT, export.source.size, self._flags)]
        told.append(struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 1, max(PREFERRED, export.sector), LONGEST_READ))
        if nbd.INFO_NAME in wanted:
            told.append(struct.pack(">H", nbd.INFO_NAME) + name.encode("utf-8", "surrogateescape"))
        if nbd.INFO_DESCRIPTION in wanted and export.description:
            told.append(
                struct.pack(">H", nbd.INFO_DESCRIPTION) + export.description.encode("utf-8", "replace")
            )
        if number == nbd.GO:
            self._export = export
        replies = [nbd.option_reply(number, nbd.INFO_REPLY, part) for part in told]
        return [*replies, nbd.option_reply(number, nbd.ACK)]

    def _meta(self, number: int, data: bytes) -> list[bytes]:
        if not self._structured:
            raise nbd.ProtocolError("structured replies come first")
        name, at = nbd.text(data, 0)
        (count,) = struct.unpack_from(">I", data, at)
        at += 4
        queries = []
        for _ in range(min(count, _LONGEST_OPTION)):
            query, at = nbd.text(data, at)
            queries.append(query)
        if self._server.export(name) is None:
            return [nbd.option_reply(number, nbd.ERR_UNKNOWN, b"there is no such disk")]
        listing = number == nbd.LIST_META
        chosen = nbd.ALLOCATION in queries or (listing and (not queries or "base:" in queries))
        if not listing:
            self._tells_allocation = chosen
        answer = struct.pack(">I", 0 if listing else 1) + nbd.ALLOCATION.encode()
        replies = [nbd.option_reply(number, nbd.META_CONTEXT, answer)] if chosen else []
        return [*replies, nbd.option_reply(number, nbd.ACK)]

    # What is read

    def _answer(self, export: Export, request: nbd.Request, weight: int) -> None:
        try:
            error, why = self._refusal(export, request), "this can't be asked"
            if not error:
                try:
                    if request.command == nbd.READ:
                        self._read(export.source, request)
                    else:
                        self._status(export.source, request)
                    return
                except OSError:
                    raise
                except Exception as failure:
                    self._server.failures.errno(failure, "reading for an NBD client")
                    error, why = nbd.EIO, str(failure)
            if self._structured:
                self._send(nbd.error_chunk(request.handle, error, why))
            else:
                self._send(nbd.simple_reply(request.handle, error))
        except OSError:  # it left
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        finally:
            with self._budget:
                self._waiting -= weight
                self._budget.notify()

    def _refusal(self, export: Export, request: nbd.Request) -> int:
        """Why a request is refused, as NBD's error; 0: it is not."""
        if request.command in nbd.CHANGES:
            return nbd.EPERM
        if request.command not in (nbd.READ, nbd.BLOCK_STATUS):
            return nbd.EINVAL
        if request.command == nbd.BLOCK_STATUS and not (self._structured and self._tells_allocation):
            return nbd.EINVAL
        if not request.length or request.offset + request.length > export.source.size:
            return nbd.EINVAL
        return nbd.EOVERFLOW if request.command == nbd.READ and request.length > LONGEST_READ else 0

    def _read(self, source: BlockSource, request: nbd.Request) -> None:
        offset, length, handle = request.offset, request.length, request.handle
        if not self._structured:
            data = source.read_at(offset, length)
            self._send(nbd.simple_reply(handle, 0), data)
            return
        if request.flags & nbd.FLAG_DF:
            data = source.read_at(offset, length)
            self._send(
                nbd.chunk(handle, nbd.DONE, nbd.OFFSET_DATA, 8 + length), struct.pack(">Q", offset), data
            )
            return
        for at, size, is_data in _pieces(source, offset, length):
            place = struct.pack(">Q", at)
            if is_data:
                data = source.read_at(at, size)
                self._send(nbd.chunk(handle, 0, nbd.OFFSET_DATA, 8 + size), place, data)
            else:
                self._send(nbd.chunk(handle, 0, nbd.OFFSET_HOLE, 12), place, struct.pack(">I", size))
        self._send(nbd.chunk(handle, nbd.DONE, nbd.NONE, 0))

    def _status(self, source: BlockSource, request: nbd.Request) -> None:
        most = 1 if request.flags & nbd.FLAG_ONE else MOST_EXTENTS
        found = bytearray(struct.pack(">I", 1))
        for number, extent in enumerate(merged(source.extents(request.offset, request.length))):
            if number == most:
                break
            found += struct.pack(">II", extent.length, 0 if extent.data else nbd.HOLE | nbd.ZERO)
        self._send(nbd.chunk(request.handle, nbd.DONE, nbd.STATUS, len(found)), bytes(found))


def _pieces(source: BlockSource, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """(offset, length, whether it is data) of a range, data in pieces of `PIECE`."""
    for extent in merged(source.extents(offset, length)):
        at = extent.offset
        while at < extent.end:
            size = min(extent.end - at, PIECE) if extent.data else extent.end - at
            yield at, size, extent.data
            at += size
