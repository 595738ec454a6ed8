"""TLS, proxies and logins of the Azure store, against a server of our own certificate."""

from __future__ import annotations

import datetime as dt
import ipaddress
import random
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloudmount.blobs.azure import AzureStore
from cloudmount.blobs.azure_place import from_web_url
from cloudmount.blobs.sockets import Patience
from cloudmount.errors import (
    StoreRefusedError,
    StoreTimeoutError,
    StoreUnreachableError,
    UsageError,
)
from tests.blobs.fake_azure import Connection, FakeAzure, Request, answering, range_head, serving, within

DATA = random.Random(1).randbytes(3_000_000)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate with its key, for localhost, 127.0.0.1 and store.test; signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.DNSName("store.test")]
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This computer trusts the certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


@pytest.mark.usefixtures("trusted")
def test_reads_and_writes(tls: ssl.SSLContext) -> None:
    with FakeAzure(serving(DATA), tls=tls) as fake, fake.store() as store:
        assert store.read("x", 5, 2_000_000) == DATA[5:2_000_005]
        assert store.read("x") == DATA
        store.create("y", DATA)
        assert fake.requests[-1].body == DATA
        assert fake.connections == 1


def test_an_unknown_certificate_is_refused(tls: ssl.SSLContext) -> None:
    with FakeAzure(serving(DATA), tls=tls) as fake, fake.store() as store:
        with pytest.raises(StoreRefusedError, match=r"could not prove who it is.*clock"):
            store.read("x")


@pytest.mark.usefixtures("trusted")
def test_another_hosts_certificate_is_refused(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, port, **rest: real("127.0.0.1", port, **rest))
    with FakeAzure(serving(DATA), tls=tls) as fake:
        with AzureStore(from_web_url(f"https://other.test:{fake.port}/container?sig=x", {})) as store:
            with pytest.raises(StoreRefusedError, match=r"other\.test could not prove who it is"):
                store.read("x")


def test_a_server_without_tls() -> None:
    def speak_first(connection: Connection) -> bool:
        connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        return False

    with FakeAzure(serving(DATA), on_connect=speak_first) as fake:
        place = from_web_url(f"https://127.0.0.1:{fake.port}/account/container?sig=x", {})
        with AzureStore(place) as store, pytest.raises(StoreUnreachableError):
            store.read("x")


def test_a_silent_handshake_keeps_the_deadline() -> None:
    def mute(connection: Connection) -> bool:
        connection.silence()
        return False

    with FakeAzure(serving(DATA), on_connect=mute) as fake:
        place = from_web_url(f"https://127.0.0.1:{fake.port}/account/container?sig=x", {})
        with AzureStore(place) as store, within(1.3), pytest.raises(StoreTimeoutError):
            store.read("x", deadline=time.monotonic() + 0.3)
        with AzureStore(place, patience=Patience(connect=0.3)) as store:
            with within(1.3), pytest.raises(StoreTimeoutError):
                store.read("x")


@pytest.mark.usefixtures("trusted")
def test_a_trickle_within_tls_keeps_the_deadline(tls: ssl.SSLContext) -> None:
    def trickle(request: Request, connection: Connection) -> bool:
        connection.send(range_head(request, len(DATA)))
        connection.trickle(DATA, 0.02)
        return False

    with FakeAzure(trickle, tls=tls) as fake, fake.store() as store:
        with within(1.4), pytest.raises(StoreTimeoutError):
            store.read("x", 0, 100_000, deadline=time.monotonic() + 0.4)


class Proxy:
    """An HTTP proxy that connects wherever it is told to `target`'s port; `heads` are what it was asked."""

    def __init__(self, target: int, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(target, answer), daemon=True)
        self._thread.start()

    def _serve(self, target: int, answer: bytes) -> None:
        near, _ = self._listener.accept()
        with near, socket.create_connection(("127.0.0.1", target)) as far:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += near.recv(1)
            self.heads.append(head)
            near.sendall(answer)
            back = threading.Thread(target=self._copy, args=(far, near), daemon=True)
            back.start()
            self._copy(near, far)
            back.join(5)

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other end left

    def stop(self) -> None:
        self._thread.join(5)
        self._listener.close()


@pytest.mark.usefixtures("trusted")
def test_through_a_proxy(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeAzure(serving(DATA), tls=tls) as fake:
        proxy = Proxy(fake.port)
        monkeypatch.setenv("https_proxy", f"http://user:pass%20word@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "other.test")
        place = from_web_url("https://store.test/container?sig=x", {})
        with AzureStore(place) as store:
            assert store.read("x", 0, 100) == DATA[:100]
        proxy.stop()
        head = proxy.heads[0].decode()
        assert head.startswith("CONNECT store.test:443 HTTP/1.1\r\n")
        assert "Proxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n" in head


def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeAzure(serving(DATA)) as fake:
        proxy = Proxy(fake.port, b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        with AzureStore(from_web_url("https://store.test/container?sig=x", {})) as store:
            with pytest.raises(StoreUnreachableError, match="refused: 407 Proxy Authentication Required"):
                store.read("x")
        proxy.stop()


class Login:
    """Stands for DefaultAzureCredential."""

    def __init__(self) -> None:
        self.asked = 0
        self.failing: Exception | None = None
        self.hanging = threading.Event()
        self.hanging.set()
        self.valid = 3600.0

    def get_token(self, *scopes: str, **_: object) -> object:
        from azure.core.credentials import AccessToken

        assert scopes == ("https://storage.azure.com/.default",)
        self.asked += 1
        self.hanging.wait(20)
        if self.failing:
            raise self.failing
        return AccessToken(f"token-{self.asked}", int(time.time() + self.valid))


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Iterator[Login]:
    import azure.identity

    found = Login()
    monkeypatch.setattr(azure.identity, "DefaultAzureCredential", lambda: found)
    yield found
    found.hanging.set()


def logged_in(fake: FakeAzure) -> AzureStore:
    return AzureStore(from_web_url(f"https://127.0.0.1:{fake.port}/account/container", {}))


@pytest.mark.usefixtures("trusted")
def test_a_login_is_asked_once(tls: ssl.SSLContext, login: Login) -> None:
    with FakeAzure(serving(DATA), tls=tls) as fake, logged_in(fake) as store:
        for _ in range(3):
            assert store.read("x", 0, 10) == DATA[:10]
        store.create("y", b"123")
        assert {request.headers["authorization"] for request in fake.requests} == {"Bearer token-1"}
        assert login.asked == 1


@pytest.mark.usefixtures("trusted")
def test_no_login_is_told(tls: ssl.SSLContext, login: Login) -> None:
    from azure.core.exceptions import ClientAuthenticationError

    login.failing = ClientAuthenticationError("many lines\nof secrets")
    with FakeAzure(serving(DATA), tls=tls) as fake, logged_in(fake) as store:
        with pytest.raises(StoreRefusedError, match="az login") as caught:
            store.read("x")
        assert "secrets" not in str(caught.value)


@pytest.mark.usefixtures("trusted")
def test_a_login_that_hangs_keeps_the_deadline(tls: ssl.SSLContext, login: Login) -> None:
    login.hanging.clear()
    with FakeAzure(serving(DATA), tls=tls) as fake, logged_in(fake) as store, within(1.2):
        with pytest.raises(StoreTimeoutError, match="login"):
            store.read("x", deadline=time.monotonic() + 0.2)


@pytest.mark.usefixtures("trusted")
def test_a_login_that_can_not_be_renewed_is_used_up_then_tried_again(
    tls: ssl.SSLContext, login: Login
) -> None:
    """A night without a line in a backup of two days must not end it."""
    login.valid = 12.0  # so short that each request asks for another
    with FakeAzure(serving(DATA), tls=tls) as fake, logged_in(fake) as store:
        store.read("x", 0, 1)
        login.failing = OSError("no line")
        store.read("x", 0, 1)
        assert fake.requests[-1].headers["authorization"] == "Bearer token-1"
        policy_token = store._send.__self__._login  # type: ignore[attr-defined] # to age the token
        policy_token._token = policy_token._token._replace(expires_on=int(time.time()) - 1)
        with pytest.raises(StoreUnreachableError, match="can't be renewed"):
            store.read("x", 0, 1)
        login.failing = None
        assert store.read("x", 0, 1) == DATA[:1]


@pytest.mark.usefixtures("trusted", "login")
def test_a_login_without_the_role(tls: ssl.SSLContext) -> None:
    refusal = answering(403, x_ms_error_code="AuthorizationPermissionMismatch")
    with FakeAzure(refusal, tls=tls) as fake, logged_in(fake) as store:
        with pytest.raises(StoreRefusedError, match="Storage Blob Data Contributor"):
            store.read("x")


def test_without_azure_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(UsageError, match=r"AZURE_STORAGE_KEY.*cloudmount\[azure\]"):
        AzureStore(from_web_url("https://account.blob.core.windows.net/container", {}))


def test_logins_are_for_https_only() -> None:
    with pytest.raises(UsageError, match="needs a key or a SAS"):
        AzureStore(from_web_url("http://127.0.0.1:1/account/container", {}))
