"""A raw-socket HTTP server that misbehaves as told: silence, trickles, resets, lies about lengths.

    with FakeAzure(answering(206, ranged(b"data"))) as fake:
        store = fake.store(quiet=0.3)

A handler is called with each request as it was read, and the connection; what it returns says
whether the connection goes on. Loopback only.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Self

from cloudmount.blobs.azure import AzureStore
from cloudmount.blobs.azure_place import from_web_url
from cloudmount.blobs.sockets import Patience

SECRET = "aSecretSignature"
BUSY = 5.0  # seconds that a machine with other work may add to what a test waits for


@dataclass(frozen=True)
class Request:
    """What a client sent: `target` is path and query; header names in small letters."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """The server's end of a connection."""

    def __init__(self, sock: socket.socket, stopped: threading.Event) -> None:
        self.sock = sock
        self.stopped = stopped

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def trickle(self, data: bytes, seconds: float) -> None:
        """One byte each `seconds`."""
        for byte in data:
            if self.stopped.wait(seconds):
                return
            self.sock.sendall(bytes([byte]))

    def silence(self) -> None:
        """Until the test ends."""
        self.stopped.wait(60)

    def reset(self) -> None:
        """An RST instead of an orderly end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Handler = Callable[[Request, Connection], bool]


class FakeAzure:
    """Serves `handler` until closed; `requests` are all it read, `connections` how many were made."""

    def __init__(
        self,
        handler: Handler,
        *,
        tls: ssl.SSLContext | None = None,
        read_body: bool = True,
        on_connect: Callable[[Connection], bool] = lambda _: True,
    ) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._handler, self._tls, self._read_body, self._on_connect = handler, tls, read_body, on_connect
        self._stopped = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def store(
        self,
        *,
        connect: float = 5.0,
        quiet: float = 5.0,
        answer: float = 10.0,
        slowest: float = 1e6,
        host: str = "127.0.0.1",
    ) -> AzureStore:
        """A store that takes this for Azure."""
        scheme = "https" if self._tls else "http"
        address = f"{scheme}://{host}:{self.port}/account/container?sv=2024-11-04&sp=rcl&sig={SECRET}"
        return AzureStore(from_web_url(address, {}), patience=Patience(connect, quiet, answer, slowest))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        # Wakes accept(), which closing alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in [self._accepting, *self._threads]:
            thread.join(5)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        self._open.add(sock)
        try:
            if not self._on_connect(Connection(sock, self._stopped)):
                return
            if self._tls:
                raw, sock = sock, self._tls.wrap_socket(sock, server_side=True)
                self._open.discard(raw)
                self._open.add(sock)
            with sock.makefile("rb") as stream:
                while request := self._read(stream):
                    self.requests.append(request)
                    if not self._handler(request, Connection(sock, self._stopped)):
                        return
        except (OSError, ValueError):
            pass  # the client left, or the handler reset the connection
        finally:
            self._open.discard(sock)
            sock.close()

    def _read(self, stream: BinaryIO) -> Request | None:
        line = stream.readline().decode()
        if not line:
            return None
        method, target, _ = line.split(" ")
        headers = {}
        while (line := stream.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0)) if self._read_body else 0
        return Request(method, target, headers, stream.read(length) if length else b"")


def head(status: int, length: int | None, **headers: str) -> bytes:
    """Status line and headers; underscores in their names stand for hyphens."""
    lines = [f"HTTP/1.1 {status} Something", "x-ms-version: 2021-12-02", "x-ms-request-id: 1234"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def wanted(request: Request, size: int) -> tuple[int, int]:
    """First and last byte of a ranged read of an object of `size` bytes."""
    first, _, last = request.headers["x-ms-range"].removeprefix("bytes=").partition("-")
    return int(first), min(int(last or size - 1), size - 1)


def range_head(request: Request, size: int) -> bytes:
    """A right head for a ranged read."""
    first, last = wanted(request, size)
    return head(206, last - first + 1, Content_Range=f"bytes {first}-{last}/{size}")


def serving(data: bytes) -> Handler:
    """Every read gives (a range of) `data`, every write succeeds."""

    def handle(request: Request, connection: Connection) -> bool:
        if request.method == "PUT":
            connection.send(head(201, 0))
        elif "x-ms-range" in request.headers:
            first, last = wanted(request, len(data))
            connection.send(range_head(request, len(data)) + data[first : last + 1])
        else:
            connection.send(head(200, len(data)) + data)
        return True

    return handle


def answering(status: int, body: bytes = b"", **headers: str) -> Handler:
    """Every request gets this answer."""

    def handle(_: Request, connection: Connection) -> bool:
        connection.send(head(status, len(body), **headers) + body)
        return True

    return handle


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block ends within so many seconds, and those that a busy machine adds."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took < seconds + BUSY, f"took {took:.2f} s"
