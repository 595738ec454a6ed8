"""The link that other tests and the benchmarks measure through does what it says."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.wanlink import Address, WanLink

SLACK = 3.0  # seconds a busy two-core machine may add


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A TCP server that runs `serve` in a thread for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=run, args=(connection,), daemon=True).start()

        def run(connection: socket.socket) -> None:
            with connection:
                try:
                    serve(connection)
                except OSError:
                    return  # the link was cut: what the test is about

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def answer(connection: socket.socket) -> None:
    """Send as many bytes as the line that came asks for, then close."""
    with connection.makefile("rb") as lines:
        connection.sendall(bytes(int(lines.readline())))


def receive(connection: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size and (data := connection.recv(65536)):
        got += data
    return bytes(got)


def knock(address: Address) -> bytes:
    """One byte of the answer on a new connection; a refused one may be reset before or after it opens."""
    with socket.create_connection(address, timeout=5) as connection:
        return connection.recv(1)


def ping(connection: socket.socket) -> float:
    start = time.monotonic()
    connection.sendall(b"ping")
    assert receive(connection, 4) == b"ping"
    return time.monotonic() - start


def test_a_round_trip_takes_the_rtt_and_a_new_connection_one_more() -> None:
    with server(echo) as target, WanLink(target, rtt=0.1) as link:
        start = time.monotonic()
        with socket.create_connection(link.address, timeout=5) as connection:
            ping(connection)
            assert 0.2 <= time.monotonic() - start < 0.2 + SLACK
            assert 0.1 <= ping(connection) < 0.1 + SLACK


def test_bytes_arrive_in_order_and_unchanged_and_half_closing_passes() -> None:
    data = bytes(range(256)) * 8192

    with server(echo) as target, WanLink(target, rtt=0.002) as link:
        with socket.create_connection(link.address, timeout=5) as connection:

            def send() -> None:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            assert receive(connection, len(data) + 1) == data
            sender.join()
        traffic = link.traffic()
    assert (traffic.down_bytes, traffic.up_bytes, traffic.connections) == (len(data), len(data), 1)


def test_no_piece_waits_for_an_acknowledgement() -> None:
    """Nagle's algorithm is off at both ends: it brought the last piece of a reply 40 ms late."""
    with server(echo) as target, WanLink(target) as link, socket.create_connection(link.address) as near:
        near.sendall(b"x")
        assert receive(near, 1) == b"x"
        ends = [end.transport.get_extra_info("socket") for end in link._state.ends]
        assert [end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for end in ends] == [1, 1]


def test_connections_share_the_rate() -> None:
    size, mbit = 500_000, 20.0
    with server(answer) as target, WanLink(target, down_mbit=mbit) as link:
        start = time.monotonic()
        connections = [socket.create_connection(link.address, timeout=5) for _ in range(2)]
        for connection in connections:
            connection.sendall(b"%d\n" % size)
        for connection in connections:
            with closing(connection):
                assert len(receive(connection, size)) == size
        expected = 2 * size * 8 / (mbit * 1e6)
        assert expected * 0.98 <= time.monotonic() - start < expected + SLACK


def test_a_small_reply_is_not_kept_waiting_by_another_connections_bulk() -> None:
    with server(answer) as bulk_target, WanLink(bulk_target, down_mbit=20, rtt=0.01) as link:
        with socket.create_connection(link.address, timeout=5) as bulk:
            bulk.sendall(b"10000000\n")
            assert receive(bulk, 1)
            with socket.create_connection(link.address, timeout=5) as small:
                start = time.monotonic()
                small.sendall(b"100\n")
                assert len(receive(small, 100)) == 100
                assert time.monotonic() - start < 0.02 + SLACK


def test_a_sender_feels_the_cap() -> None:
    taken = threading.Event()

    def swallow(connection: socket.socket) -> None:
        receive(connection, 4 << 20)
        taken.set()

    with server(swallow) as target, WanLink(target, up_mbit=100) as link:
        with socket.create_connection(link.address, timeout=5) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
            start = time.monotonic()
            connection.sendall(bytes(4 << 20))
            sent = time.monotonic() - start
            assert taken.wait(20)
    assert sent > 0.25  # of 0.34 s on the line; unbounded buffers would take it in 0.01


def test_cut_resets_old_and_new_connections_until_restored() -> None:
    with server(echo) as target, WanLink(target) as link:
        with socket.create_connection(link.address, timeout=5) as connection:
            ping(connection)
            link.cut()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        with pytest.raises(ConnectionResetError):
            knock(link.address)
        link.restore()
        with socket.create_connection(link.address, timeout=5) as connection:
            ping(connection)


def test_stall_is_silent_and_what_was_held_goes_on() -> None:
    with server(echo) as target, WanLink(target) as link:
        with socket.create_connection(link.address, timeout=5) as old:
            ping(old)
            link.stall()
            old.sendall(b"held")
            with socket.create_connection(link.address, timeout=0.2) as new:
                new.sendall(b"ping")
                with pytest.raises(TimeoutError):
                    new.recv(1)
                old.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    old.recv(1)
                before = link.traffic()
                link.restore()
                old.settimeout(5)
                new.settimeout(5)
                assert receive(old, 4) == b"held"
                assert receive(new, 4) == b"ping"
    assert before.up_bytes == before.down_bytes == 4


def test_an_end_that_leaves_during_a_stall_is_noticed_after_it() -> None:
    left = threading.Event()

    def serve(connection: socket.socket) -> None:
        try:
            echo(connection)
        finally:
            left.set()

    with server(serve) as target, WanLink(target) as link:
        with socket.create_connection(link.address, timeout=5) as connection:
            ping(connection)
            link.stall()
        assert not left.wait(0.1)
        link.restore()
        assert left.wait(20)


def test_a_target_that_refuses_is_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        target = nobody.getsockname()
    with WanLink(target) as link, pytest.raises(ConnectionResetError):
        knock(link.address)


def test_leaving_ends_the_connections_and_the_thread() -> None:
    with server(echo) as target:
        with WanLink(target) as link:
            connection = socket.create_connection(link.address, timeout=5)
            ping(connection)
        with closing(connection), pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert not [thread for thread in threading.enumerate() if thread.name == "wanlink"]


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "192.0.2.7"])
def test_only_loopback_is_accepted(host: str) -> None:
    with pytest.raises(ValueError, match="only loopback"):
        WanLink((host, 80))
    with pytest.raises(ValueError, match="only loopback"):
        WanLink(("127.0.0.1", 80), listen=(host, 0))


def test_the_program_obeys_its_standard_input() -> None:
    with server(echo) as (host, port):
        command = [sys.executable, "-m", "tests.wanlink", "--target", f"{host}:{port}", "--rtt-ms", "1"]
        with subprocess.Popen(
            command,
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as program:
            assert program.stdin
            assert program.stdout
            try:
                host, _, port = json.loads(program.stdout.readline())["listening"].rpartition(":")
                with socket.create_connection((host, int(port)), timeout=5) as connection:
                    ping(connection)
                    program.stdin.write("cut\nnonsense\n")
                    program.stdin.flush()
                    expected = {"down_bytes": 4, "up_bytes": 4, "connections": 1}
                    assert json.loads(program.stdout.readline()) == expected
                    assert "not one of" in json.loads(program.stdout.readline())["error"]
                    with pytest.raises(ConnectionResetError):
                        connection.recv(1)
                program.send_signal(signal.SIGTERM)
                assert json.loads(program.stdout.readline()) == expected
                assert program.wait(20) == 0
            finally:
                program.kill()
