"""What a bad line or server does to the Azure store: the right error, in time, and never wrong bytes."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cloudmount.blobs.azure import AzureStore
from cloudmount.blobs.azure_place import from_web_url
from cloudmount.blobs.retrying import StoreBusyError
from cloudmount.blobs.sockets import Patience
from cloudmount.errors import (
    CloudMountError,
    StoreError,
    StoreRefusedError,
    StoreTimeoutError,
    StoreUnreachableError,
)
from tests.blobs.fake_azure import (
    SECRET,
    Connection,
    FakeAzure,
    Handler,
    Request,
    answering,
    head,
    range_head,
    serving,
    within,
)

DATA = random.Random(1).randbytes(300_000)
LISTING = b"<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>"


def silent(_: Request, connection: Connection) -> bool:
    connection.silence()
    return False


def trickled_head(request: Request, connection: Connection) -> bool:
    connection.trickle(range_head(request, len(DATA)), 0.02)
    return False


def endless_head(_: Request, connection: Connection) -> bool:
    connection.send(b"HTTP/1.1 206 Partial\r\n")
    connection.trickle(b"x-a: " + b"a" * 100_000, 0.02)
    return False


def trickled_body(request: Request, connection: Connection) -> bool:
    connection.send(range_head(request, len(DATA)))
    connection.trickle(DATA, 0.02)
    return False


def stalled_body(request: Request, connection: Connection) -> bool:
    connection.send(range_head(request, len(DATA)) + DATA[:1000])
    connection.silence()
    return False


def reset_at_once(_: Request, connection: Connection) -> bool:
    connection.reset()
    return False


def reset_in_body(request: Request, connection: Connection) -> bool:
    connection.send(range_head(request, len(DATA)) + DATA[:500])
    time.sleep(0.05)
    connection.reset()
    return False


def closed_at_once(_: Request, connection: Connection) -> bool:
    return False


def closed_in_body(request: Request, connection: Connection) -> bool:
    connection.send(range_head(request, len(DATA)) + DATA[:500])
    return False


def closed_in_head(_: Request, connection: Connection) -> bool:
    connection.send(b"HTTP/1.1 206 Partial\r\nContent-")
    return False


def no_http(_: Request, connection: Connection) -> bool:
    connection.send(b"220 mail.example.com ESMTP\r\n" * 10)
    return False


def no_length(request: Request, connection: Connection) -> bool:
    connection.send(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-999/300000\r\n\r\n" + DATA[:1000])
    return False


def range_ignored(_: Request, connection: Connection) -> bool:
    connection.send(head(200, len(DATA)) + DATA)
    return True


def range_elsewhere(_: Request, connection: Connection) -> bool:
    connection.send(head(206, 1000, Content_Range="bytes 5-1004/300000") + DATA[:1000])
    return True


def range_shorter(_: Request, connection: Connection) -> bool:
    connection.send(head(206, 999, Content_Range="bytes 0-998/300000") + DATA[:999])
    return True


def range_longer(_: Request, connection: Connection) -> bool:
    connection.send(head(206, 1001, Content_Range="bytes 0-1000/300000") + DATA[:1001])
    return True


def chunks_cut(_: Request, connection: Connection) -> bool:
    start = head(206, None, Content_Range="bytes 0-999/300000", Transfer_Encoding="chunked")
    connection.send(start + b"1f4\r\n" + DATA[:500] + b"\r\n1f4\r\n" + DATA[500:600])
    return False


def chunks_garbled(_: Request, connection: Connection) -> bool:
    start = head(206, None, Content_Range="bytes 0-999/300000", Transfer_Encoding="chunked")
    connection.send(start + b"zzz\r\n" + DATA[:500])
    return False


def chunks_endless(_: Request, connection: Connection) -> bool:
    connection.send(head(206, None, Content_Range="bytes 0-999/300000", Transfer_Encoding="chunked"))
    while not connection.stopped.is_set():
        connection.send(b"1000\r\n" + bytes(4096) + b"\r\n")
    return False


SLOW = [silent, trickled_head, endless_head, trickled_body, stalled_body]
BROKEN = [
    reset_at_once, reset_in_body, closed_at_once, closed_in_body, closed_in_head, no_http, no_length,
    range_ignored, range_elsewhere, range_shorter, range_longer, chunks_cut, chunks_garbled, chunks_endless,
]  # fmt: skip


@pytest.mark.parametrize("handler", SLOW)
def test_a_deadline_ends_any_slowness(handler: Handler) -> None:
    with FakeAzure(handler) as fake, fake.store() as store, within(1.4):
        with pytest.raises(StoreTimeoutError, match="its time was up"):
            store.read("x", 0, 300_000, deadline=time.monotonic() + 0.4)


@pytest.mark.parametrize("handler", SLOW)
def test_without_a_deadline_the_answers_own_limit_does(handler: Handler) -> None:
    with FakeAzure(handler) as fake, fake.store(answer=0.3) as store, within(1.7):
        with pytest.raises(StoreTimeoutError):
            store.read("x", 0, 300_000)  # 0.3 s, and 0.3 s for 300 kB at 1 MB/s


@pytest.mark.parametrize("handler", [silent, stalled_body])
def test_silence_is_noticed_long_before_the_limit(handler: Handler) -> None:
    with FakeAzure(handler) as fake, fake.store(quiet=0.3) as store, within(1.3):
        with pytest.raises(StoreTimeoutError, match="nothing came or went"):
            store.read("x", 0, 300_000)


@pytest.mark.parametrize("handler", BROKEN)
def test_broken_answers_are_worth_another_try(handler: Handler) -> None:
    with FakeAzure(handler) as fake, fake.store() as store, within(4):
        with pytest.raises(StoreUnreachableError) as caught:
            store.read("x", 0, 1000)
        assert not isinstance(caught.value, StoreTimeoutError)


@pytest.mark.parametrize("handler", [silent, trickled_head])
@pytest.mark.parametrize(
    "ask",
    [
        lambda store, deadline: store.create("x", b"1", deadline=deadline),
        lambda store, deadline: store.put("x", b"1", deadline=deadline),
        lambda store, deadline: store.delete("x", deadline=deadline),
        lambda store, deadline: store.prepare(deadline=deadline),
        lambda store, deadline: [*store.list("", deadline=deadline)],
        lambda store, deadline: [*store.list_folders("", deadline=deadline)],
    ],
)
def test_every_operation_keeps_its_deadline(
    handler: Handler, ask: Callable[[AzureStore, float], object]
) -> None:
    def with_range(request: Request, connection: Connection) -> bool:
        return handler(Request(request.method, request.target, {"x-ms-range": "bytes=0-9"}, b""), connection)

    with FakeAzure(with_range) as fake, fake.store() as store, within(1.3), pytest.raises(StoreTimeoutError):
        ask(store, time.monotonic() + 0.3)


def test_an_upload_that_nobody_takes_ends_by_its_deadline() -> None:
    with FakeAzure(silent, read_body=False) as fake, fake.store() as store, within(1.5):
        with pytest.raises(StoreTimeoutError):
            store.create("x", bytes(32 * 1024 * 1024), deadline=time.monotonic() + 0.5)


def test_an_upload_still_draining_from_the_kernel_is_not_silence() -> None:
    """All is handed to the kernel at once, the server takes a second over it: quiet for us, but moving."""
    size = 2_500_000

    def slow_reader(request: Request, connection: Connection) -> bool:
        taken = 0
        while taken < size - 8192:  # that much may be in the buffer that read the head
            time.sleep(0.1)
            got = len(connection.sock.recv(100_000))
            taken += got
            if not got:
                return False
        connection.send(head(201, 0))
        return True

    def small_window(connection: Connection) -> bool:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        return True

    with FakeAzure(slow_reader, read_body=False, on_connect=small_window) as fake:
        with fake.store(quiet=0.8) as store, within(20):
            store.create("x", bytes(size))


def test_a_refusal_before_all_is_sent_is_told() -> None:
    """Azure answers 403 and closes without taking 32 MiB first."""

    def refuse(request: Request, connection: Connection) -> bool:
        connection.send(head(403, 0, x_ms_error_code="AuthorizationPermissionMismatch"))
        connection.sock.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        return False

    with FakeAzure(refuse, read_body=False) as fake, fake.store() as store:
        with pytest.raises(StoreError) as caught:
            store.create("x", bytes(32 * 1024 * 1024))
        # A reset may have overtaken the answer; either way it is no success.
        assert isinstance(caught.value, StoreRefusedError | StoreUnreachableError)


def test_one_request_whatever_the_size() -> None:
    data = random.Random(2).randbytes(48 * 1024 * 1024)
    with FakeAzure(serving(data)) as fake, fake.store() as store:
        assert store.read("x", 1, len(data) - 1) == data[1:]
        assert store.read("x") == data
        store.create("y", data, tier="cold")
        assert [request.method for request in fake.requests] == ["GET", "GET", "PUT"]
        assert fake.connections == 1
        put = fake.requests[2]
        assert put.body == data
        assert put.headers["if-none-match"] == "*"
        assert put.headers["x-ms-access-tier"] == "Cold"
        assert put.headers["x-ms-blob-type"] == "BlockBlob"
        assert len(put.headers["content-md5"]) == 24


def test_reading_nothing_asks_nothing() -> None:
    with FakeAzure(serving(DATA)) as fake, fake.store() as store:
        assert store.read("x", 5, 0) == b""
        assert [*store.list("", limit=0)] == []
        assert not fake.requests


@pytest.mark.parametrize(("limit", "after", "expected"), [(1, "", 1), (1000, "", 1000), (None, "", 5000)])
def test_a_listing_asks_for_as_much_as_is_wanted(limit: int | None, after: str, expected: int) -> None:
    with FakeAzure(answering(200, LISTING)) as fake, fake.store() as store:
        assert [*store.list("packs/", after=after, limit=limit)] == []
        [request] = fake.requests
        assert f"maxresults={expected}&" in request.target
        assert "prefix=packs%2F" in request.target


def test_connections_are_kept() -> None:
    with FakeAzure(serving(DATA)) as fake, fake.store() as store:
        for _ in range(20):
            store.read("x", 10, 10)
        assert fake.connections == 1


def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    def once(request: Request, connection: Connection) -> bool:
        serving(DATA)(request, connection)
        return False  # without a word of it in the answer

    with FakeAzure(once) as fake, fake.store() as store:
        for _ in range(5):
            assert store.read("x", 10, 10) == DATA[10:20]
            time.sleep(0.02)
        assert fake.connections == 5


def test_bytes_beyond_an_answer_never_reach_the_next() -> None:
    def too_much(request: Request, connection: Connection) -> bool:
        connection.send(range_head(request, len(DATA)) + DATA[:10] + b"HTTP/1.1 206 No\r\n\r\n" * 4000)
        return True

    with FakeAzure(too_much) as fake, fake.store() as store:
        for _ in range(3):
            assert store.read("x", 0, 10) == DATA[:10]
            time.sleep(0.02)
        assert fake.connections == 3


def test_busy_servers_say_when_to_come_back() -> None:
    with FakeAzure(answering(503, Retry_After="7", x_ms_error_code="ServerBusy")) as fake:
        with fake.store() as store, pytest.raises(StoreBusyError, match="503 ServerBusy") as caught:
            store.read("x")
        assert caught.value.retry_after == 7


def test_redirects_are_not_followed() -> None:
    with FakeAzure(answering(302, Location="http://127.0.0.1:1/")) as fake, fake.store() as store:
        with pytest.raises(StoreRefusedError, match="302"):
            store.read("x")


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = from_web_url(f"http://127.0.0.1:{port}/a/container?sig={SECRET}", {})
    with (
        AzureStore(place) as store,
        within(1),
        pytest.raises(StoreUnreachableError, match="refused") as caught,
    ):
        store.read("x")
    assert SECRET not in str(caught.value)


def _named() -> AzureStore:
    place = from_web_url(f"https://account.blob.example.invalid/container?sig={SECRET}", {})
    return AzureStore(place, patience=Patience(connect=0.5))


def test_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with _named() as store, pytest.raises(StoreUnreachableError, match="no address is known for account"):
        store.read("x")


def test_a_name_look_up_that_hangs_keeps_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    asked = []

    def look_up(*args: object, **_: object) -> list[object]:
        asked.append(args)
        hang.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        with _named() as store:
            for _ in range(3):
                with within(1), pytest.raises(StoreTimeoutError):
                    store.read("x", deadline=time.monotonic() + 0.2)
            with within(1.5), pytest.raises(StoreTimeoutError):
                store.read("x")
        assert len(asked) == 1  # not one thread more for each try
    finally:
        hang.set()


def test_an_address_that_is_silent_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with broken IPv6: its addresses come first, and nothing answers there."""
    with socket.socket() as deaf, FakeAzure(serving(DATA)) as fake:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fillers = []
        for _ in range(4):  # its backlog is full: further connects hang
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
            fillers.append(filler)
        real = socket.getaddrinfo

        def both(host: str, port: int, **options: int) -> list[object]:
            return [*real("127.0.0.1", deaf.getsockname()[1], **options), *real(host, port, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", both)
        with fake.store(connect=2) as store, within(2.5):
            assert store.read("x", 0, 10) == DATA[:10]
        for filler in fillers:
            filler.close()


def test_closing_ends_a_request_under_way() -> None:
    with FakeAzure(silent) as fake, fake.store(quiet=30, answer=30) as store:
        failed: list[CloudMountError] = []

        def read() -> None:
            try:
                store.read("x")
            except CloudMountError as error:
                failed.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        while not fake.requests:
            time.sleep(0.01)
        with within(1):
            store.close()
            thread.join(5)
        assert isinstance(failed[0], StoreRefusedError)
        with pytest.raises(StoreRefusedError, match="closed"):
            store.read("x")


@pytest.mark.parametrize(
    "handler", [silent, reset_at_once, no_http, range_ignored, answering(403), answering(500)]
)
def test_no_message_has_the_signature(handler: Handler) -> None:
    with FakeAzure(handler) as fake, fake.store(quiet=0.2) as store:
        asks: list[Callable[[], object]] = [
            lambda: store.read("x", 0, 10),
            lambda: store.create("x", b"1"),
            lambda: [*store.list("")],
        ]
        for ask in asks:
            with pytest.raises(CloudMountError) as caught:
                ask()
            error: BaseException | None = caught.value
            while error:
                assert SECRET not in f"{error} {error!r}"
                error = error.__cause__ or error.__context__
        assert SECRET in fake.requests[0].target
        assert SECRET not in store.address


def test_closing_ends_a_connect_and_a_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unmounting must not wait for a dead line's name server, nor for a connect that hangs."""
    hang = threading.Event()
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/account/container?sig={SECRET}"
        connecting = AzureStore(from_web_url(url, {}))
        with _reading(connecting), within(1):
            connecting.close()
        for filler in fillers:
            filler.close()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hang.wait(20) and [])
    try:
        looking = _named()
        with _reading(looking), within(1):
            looking.close()
    finally:
        hang.set()


@contextlib.contextmanager
def _reading(store: AzureStore) -> Iterator[None]:
    """Another thread reads meanwhile; at the end it has failed as closed."""
    failed: list[CloudMountError] = []

    def read() -> None:
        try:
            store.read("x")
        except CloudMountError as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    start = time.monotonic()
    yield
    thread.join(20)
    assert time.monotonic() - start < 15
    assert isinstance(failed[0], StoreRefusedError)
