"""HTTP/1.1 to one host over pooled connections, ended by deadlines of ours.

Decided here and only here: when a connection counts as dead, and what each
failure of it is called in our error tree. Why not the SDK's own transport: its
timeouts are for each socket operation, so an answer that trickles a byte a
second never ends; its name look-ups and its proxies have none; and it costs 0.7
of the 1.1 ms of CPU that a ranged read takes (this one 0.15). Standard library
only; azure.py puts it under the SDK's pipeline.

Four limits end a call, always as `StoreTimeoutError`: `connect` (name, TCP and TLS
together), `quiet` (no byte moved either way), the caller's deadline, and without
one `answer` seconds plus the bytes moved at `slowest` (see sockets.py).

Nothing is retried here, not even on a pooled connection that the server closed
meanwhile; such are mostly noticed before use. Redirects are not followed.

Threading: any number of threads; each request has a connection of its own
meanwhile. `close` ends requests under way.
"""

from __future__ import annotations

import base64
import http.client
import select
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from email.message import Message
from typing import NamedTuple

from cloudmount.blobs.lookup import addresses
from cloudmount.blobs.sockets import Line, Patience, PlainSocket, TLSSocket
from cloudmount.blobs.store import Data
from cloudmount.errors import CloudMountError, StoreRefusedError, StoreTimeoutError, StoreUnreachableError

_READ_PIECE = 64 * 1024 * 1024  # a length the server claims is not believed beyond this
_ERROR_BODY = 1024 * 1024
_IDLE_SECONDS = 60.0  # routers forget quiet connections, the stricter ones after a minute


class Answer(NamedTuple):
    """A whole answer: its status, headers (any case) and body."""

    status: int
    headers: Message
    body: bytes


class _Connection(http.client.HTTPConnection):
    """One connection; `sock` obeys `line`."""

    def __init__(self, pool: HttpPool) -> None:
        super().__init__(pool.host, pool.port)
        self.pool = pool
        self.line = Line(pool.patience)
        self.used = 0.0
        self.sock: PlainSocket | TLSSocket | None = None

    def connect(self) -> None:
        pool, until = self.pool, time.monotonic() + min(self.line.left(), self.pool.patience.connect)
        proxy = pool.proxy
        host, port = (proxy.hostname or "", proxy.port or 80) if proxy else (pool.host, pool.port)
        sock = self._reach(host, port, until)
        if proxy:
            self._tunnel_through(sock, proxy)
        if pool.tls:
            tls = pool.tls.wrap_socket(sock, server_hostname=pool.host, do_handshake_on_connect=False)
            assert isinstance(tls, TLSSocket)
            tls.line, self.sock = self.line, tls
            tls.settimeout(max(0.001, until - time.monotonic()))
            tls.do_handshake()

    def _reach(self, host: str, port: int, until: float) -> PlainSocket:
        found = addresses(host, port, until, lambda: self.pool.closed)
        failure: OSError = TimeoutError()
        for index, (family, kind, protocol, _, address) in enumerate(found):
            if self.pool.closed:
                break
            sock = PlainSocket(family, kind, protocol)
            sock.line, self.sock = self.line, sock  # from here on `close` of the pool ends it
            try:
                # An address that is silent (broken IPv6) must leave time for the others.
                share = (until - time.monotonic()) / (len(found) - index)
                sock.settimeout(max(0.001, share))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                return sock
            except OSError as error:
                sock.close()
                failure = error
        raise failure

    def _tunnel_through(self, sock: PlainSocket, proxy: urllib.parse.SplitResult) -> None:
        lines = [
            f"CONNECT {self.pool.host}:{self.pool.port} HTTP/1.1",
            f"Host: {self.pool.host}:{self.pool.port}",
        ]
        if proxy.username:
            user = urllib.parse.unquote(proxy.username) + ":" + urllib.parse.unquote(proxy.password or "")
            lines.append("Proxy-Authorization: Basic " + base64.b64encode(user.encode()).decode())
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        head, byte = bytearray(), bytearray(1)
        while not head.endswith(b"\r\n\r\n"):
            if len(head) > 65536 or not sock.recv_into(byte):
                raise ConnectionError(f"the proxy {proxy.hostname} gave no answer")
            head += byte
        status = head.split(b"\r\n", 1)[0].split(b" ")
        if len(status) < 2 or status[1] != b"200":
            said = " ".join(part.decode("ascii", "replace") for part in status[1:])
            raise ConnectionError(f"the proxy {proxy.hostname} refused: {said}")

    def fresh(self) -> bool:
        """Whether a pooled connection looks alive: not idle for long, nothing to read (an end, mostly)."""
        return bool(self.sock) and time.monotonic() - self.used < _IDLE_SECONDS and not _readable(self.sock)

    def abort(self) -> None:
        """Wake the thread that waits on this connection."""
        if sock := self.sock:
            with suppress(OSError):  # not connected yet, or closed meanwhile
                sock.shutdown(socket.SHUT_RDWR)


def _readable(sock: socket.socket | None) -> bool:
    if sock is None or sock.fileno() < 0:
        return True
    if hasattr(select, "poll"):  # select() can't take descriptors above 1023; Windows has only it
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])


class HttpPool:
    """Requests to one `http://` or `https://` origin over at most `connections` idle connections."""

    def __init__(self, origin: str, *, patience: Patience | None = None, connections: int = 16) -> None:
        parts = urllib.parse.urlsplit(origin)
        self.host, self.port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        self.patience = patience or Patience()
        self.proxy = _proxy(self.host) if parts.scheme == "https" else None
        self._secure = parts.scheme == "https"
        self._context: ssl.SSLContext | None = None
        self._most = connections
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self.closed = False

    @property
    def tls(self) -> ssl.SSLContext | None:
        """How TLS is done: the system's certificates, and certifi's beside them where it is installed."""
        if self._secure and self._context is None:
            context = ssl.create_default_context()
            context.sslsocket_class = TLSSocket
            try:  # a bare container has no /etc/ssl/certs
                import certifi

                context.load_verify_locations(certifi.where())
            except ImportError:
                pass
            self._context = context
        return self._context

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Data | None = None,
        *,
        deadline: float | None = None,
        most: int | None = None,
    ) -> Answer:
        """One request and its whole answer, whatever its status.

        `target` is path and query; `most` bounds the body of a good answer in bytes. Raises
        `StoreUnreachableError` (no answer or a broken one), its child `StoreTimeoutError`, or
        `StoreRefusedError` (the host's certificate is not good, or this pool is closed).
        """
        connection = self._take()
        try:
            connection.line.begin(deadline)
            if connection.line.left() <= 0:
                raise TimeoutError
            if connection.sock is None:
                connection.connect()
            answer, reusable = _exchange(connection, method, target, headers, body, most)
        except BaseException as error:
            self._drop(connection)
            if isinstance(error, OSError | http.client.HTTPException):
                raise self._translated(error, connection.line) from error
            raise
        self._give_back(connection, reusable)
        return answer

    def close(self) -> None:
        """End idle connections, and requests under way."""
        with self._lock:
            self.closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for connection in idle:
            connection.close()
        for connection in busy:
            connection.abort()

    def _take(self) -> _Connection:
        with self._lock:
            if self.closed:
                raise StoreRefusedError(f"the connection to {self.host} was closed")
            connection = None
            while self._idle and connection is None:
                connection = self._idle.pop()
                if not connection.fresh():
                    connection.close()
                    connection = None
            connection = connection or _Connection(self)
            self._busy.add(connection)
            return connection

    def _give_back(self, connection: _Connection, reusable: bool) -> None:
        connection.used = time.monotonic()
        with self._lock:
            self._busy.discard(connection)
            if reusable and not self.closed and len(self._idle) < self._most:
                self._idle.append(connection)
                return
        connection.close()

    def _drop(self, connection: _Connection) -> None:
        """A connection failed: its idle siblings have likely met the same end."""
        with self._lock:
            self._busy.discard(connection)
            idle, self._idle = self._idle, []
        for each in (connection, *idle):
            each.close()

    def _translated(self, error: Exception, line: Line) -> CloudMountError:
        if self.closed:
            return StoreRefusedError(f"the connection to {self.host} was closed")
        if isinstance(error, TimeoutError):
            why = "its time was up" if line.left() <= 0 else "nothing came or went for too long"
            return StoreTimeoutError(f"no answer from {self.host}: {why}")
        if isinstance(error, socket.gaierror):
            return StoreUnreachableError(
                f"no address is known for {self.host} ({error.strerror}): "
                "check that this computer is online and the account's name is right"
            )
        if isinstance(error, ssl.SSLCertVerificationError):
            return StoreRefusedError(
                f"{self.host} could not prove who it is ({error.verify_message}): check this "
                "computer's clock, and whether a proxy or virus scanner opens its TLS connections"
            )
        if isinstance(error, ConnectionRefusedError):
            return StoreUnreachableError(f"nothing answers at {self.host} port {self.port}: refused")
        said = str(error) if isinstance(error, ConnectionError) else f"{type(error).__name__}: {error}"
        return StoreUnreachableError(f"the connection to {self.host} broke ({said})")


def _exchange(
    connection: _Connection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: Data | None,
    most: int | None,
) -> tuple[Answer, bool]:
    """Send a request, read its answer; whether the connection can serve another."""
    complete = True
    try:
        connection.request(method, target, body, headers)
    except (BrokenPipeError, ConnectionResetError) as error:
        # A refusal may come, and the connection go, before a large body is all sent.
        complete = False
        try:
            response = connection.getresponse()
        except (OSError, http.client.HTTPException):
            raise error from None
    else:
        response = connection.getresponse()
    if response.status < 300 and not complete:
        response.close()
        raise ConnectionResetError("the answer came before the request was sent")
    with response:  # else an answer that broke keeps its socket open
        content = _body(response, most if response.status < 300 else _ERROR_BODY)
        return Answer(response.status, response.headers, content), complete and not response.will_close


def _body(response: http.client.HTTPResponse, limit: int | None) -> bytes:
    """All of an answer's body; `HTTPException` when it is cut short or longer than `limit`."""
    if response.length is None and not response.chunked:
        raise http.client.HTTPException("an answer without a length")
    if limit is not None and (response.length or 0) > limit:
        raise http.client.HTTPException(f"{response.length} bytes where {limit} were asked for")
    if response.length is not None and response.length <= _READ_PIECE:
        return response.read()
    pieces, total = [], 0
    while piece := response.read(_READ_PIECE if limit is None else min(_READ_PIECE, limit + 1 - total)):
        pieces.append(piece)
        total += len(piece)
        if limit is not None and total > limit:
            raise http.client.HTTPException(f"more than the {limit} bytes that were asked for")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(pieces)


def _proxy(host: str) -> urllib.parse.SplitResult | None:
    """The proxy that the system is set to use for `https://` (HTTPS_PROXY, NO_PROXY, Windows' settings)."""
    proxy = urllib.request.getproxies().get("https")
    if not proxy or host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host):
        return None
    return urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
