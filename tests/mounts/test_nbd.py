"""The NBD server, asked by libnbd's and QEMU's clients, by one that is simple, and by none that is any."""

from __future__ import annotations

import json
import random
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudmount.errors import StoreTimeoutError
from cloudmount.extents import BlockSource, Bytes, Layout, Piece, Zeros
from cloudmount.mounts import nbd_protocol as nbd
from cloudmount.mounts.nbd import Export, NbdServer

pytestmark = pytest.mark.oracle

MIB = 1 << 20
CONTENT = random.Random(1).randbytes(3 * MIB)


class Broken(Bytes):
    """Bytes of which some can't be read."""

    def read_at(self, offset: int, length: int) -> bytes:
        if offset <= MIB < offset + length:
            raise StoreTimeoutError("no answer")
        return super().read_at(offset, length)


def disk() -> BlockSource:
    """Data, 40 MiB of zeros, data of an odd length."""
    data = Bytes(CONTENT)
    return Layout([Piece(2 * MIB, data), Piece(40 * MIB, Zeros(40 * MIB)), Piece(MIB - 512, data, 2 * MIB)])


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[str]:
    """A server of two disks at a Unix socket."""
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = NbdServer(
        listener, {"a/disk": Export(disk(), "srv: a/disk", 4096), "bad": Export(Broken(CONTENT))}
    )
    try:
        yield path
    finally:
        server.close()


def run(*command: str) -> str:
    """What a client says; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def test_libnbd(socket_path: str, tmp_path: Path) -> None:
    source = disk()
    whole = source.read_at(0, source.size)
    uri = f"nbd+unix:///a/disk?socket={socket_path}"
    (told,) = json.loads(run("nbdinfo", "--json", uri))["exports"]
    assert told["export-name"] == "a/disk" and told["description"] == "srv: a/disk"
    assert told["export-size"] == len(whole) and told["is_read_only"] and told["can_multi_conn"]
    assert told["can_df"] and told["contexts"] == ["base:allocation"]
    assert (told["block_size_minimum"], told["block_size_preferred"], told["block_size_maximum"]) == (
        1,
        128 << 10,
        32 * MIB,
    )
    listed = json.loads(run("nbdinfo", "--list", "--json", f"nbd+unix://?socket={socket_path}"))["exports"]
    assert [e["export-name"] for e in listed] == ["a/disk", "bad"]
    extents = json.loads(run("nbdinfo", "--map", "--json", uri))
    assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
        (0, 2 * MIB, 0), (2 * MIB, 40 * MIB, 3), (42 * MIB, MIB - 512, 0),
    ]  # fmt: skip
    for options in ((), ("--connections=1", "--requests=1"), ("--synchronous",)):
        run("nbdcopy", *options, uri, str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == whole
    done = subprocess.run(
        ["nbdinfo", f"nbd+unix:///none?socket={socket_path}"], capture_output=True, check=False
    )
    assert done.returncode != 0


def test_qemu(socket_path: str, tmp_path: Path) -> None:
    source = disk()
    (tmp_path / "disk.img").write_bytes(source.read_at(0, source.size))
    options = f"driver=nbd,server.type=unix,server.path={socket_path},export="
    compare = ["qemu-img", "compare", "--image-opts"]
    run(*compare, options + "a/disk", f"driver=raw,file.driver=file,file.filename={tmp_path}/disk.img")
    extents = json.loads(
        run("qemu-img", "map", "--output=json", "--image-opts", options)
    )  # unnamed: the first
    assert [(e["start"], e["zero"]) for e in extents] == [(0, False), (2 * MIB, True), (42 * MIB, False)]
    reads = ["qemu-io", "-r", "-c", "read 1M 4k", "-c", "read 0 64k", "--image-opts", options + "bad"]
    done = subprocess.run(reads, capture_output=True, text=True, timeout=60, check=False)
    assert "Input/output error" in done.stdout + done.stderr  # and it goes on:
    assert "read 65536/65536" in done.stdout
    writes = ["qemu-io", "-c", "write 0 4k", "--image-opts", options]
    assert subprocess.run(writes, capture_output=True, timeout=60, check=False).returncode != 0


class Plain:
    """A client of the oldest kind that is allowed: simple replies."""

    def __init__(self, path: str, export: str = "") -> None:
        self.line = socket.socket(socket.AF_UNIX)
        self.line.settimeout(10)
        self.line.connect(path)
        assert self.take(18) == nbd.GREETING + b"\0\3"
        name = export.encode()
        self.line.sendall(struct.pack(">IQII", 1, nbd.OPTION_MAGIC, nbd.EXPORT_NAME, len(name)) + name)
        self.size, self.flags = struct.unpack(">QH", self.take(134)[:10])

    def take(self, length: int) -> bytes:
        """So many bytes."""
        found = b""
        while len(found) < length:
            more = self.line.recv(length - len(found))
            assert more
            found += more
        return found

    def ask(self, command: int, offset: int, length: int, data: bytes = b"") -> tuple[int, bytes]:
        """(error, data) of a request."""
        self.line.sendall(struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, command, 9, offset, length) + data)
        magic, error, handle = struct.unpack(">IIQ", self.take(16))
        assert (magic, handle) == (nbd.SIMPLE_MAGIC, 9)
        return error, self.take(length) if command == nbd.READ and not error else b""


def test_simple_replies_and_refusals(socket_path: str) -> None:
    plain = Plain(socket_path)
    with plain.line:
        assert plain.size == disk().size
        assert plain.flags == nbd.HAS_FLAGS | nbd.READ_ONLY | nbd.CAN_MULTI_CONN
        assert plain.ask(nbd.READ, 2 * MIB - 3, 7) == (0, CONTENT[2 * MIB - 3 : 2 * MIB] + bytes(4))
        for command, offset, length, error in (
            (nbd.READ, plain.size - 1, 2, nbd.EINVAL),
            (nbd.READ, 0, 0, nbd.EINVAL),
            (nbd.READ, 0, 33 * MIB, nbd.EOVERFLOW),
            (nbd.BLOCK_STATUS, 0, 512, nbd.EINVAL),  # nothing was agreed upon
            (99, 0, 1, nbd.EINVAL),
            (6, 0, 512, nbd.EPERM),
        ):
            assert plain.ask(command, offset, length) == (error, b"")
        assert plain.ask(1, 0, 512, bytes(512)) == (nbd.EPERM, b"")
        assert plain.ask(nbd.READ, 0, 5) == (0, CONTENT[:5])
    bad = Plain(socket_path, "bad")
    with bad.line:
        assert bad.ask(nbd.READ, MIB, 1) == (nbd.EIO, b"") and bad.ask(nbd.READ, 0, 1) == (0, CONTENT[:1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flags=st.sampled_from([0, 1, 3, 3, 3, 0xFFFF]),
    options=st.lists(
        st.tuples(st.integers(0, 12), st.binary(max_size=40), st.sampled_from([0, 0, 0, 1, -1, 1 << 30])),
        max_size=4,
    ),
    noise=st.binary(max_size=60),
)
def test_noise_ends_one_connection_at_most(
    socket_path: str, flags: int, options: list[tuple[int, bytes, int]], noise: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(socket_path)
        message = struct.pack(">I", flags)
        for number, data, wrong in options:
            length = max(0, len(data) + wrong)
            message += struct.pack(">QII", nbd.OPTION_MAGIC, number, length) + data
        line.sendall(message + noise)
        line.shutdown(socket.SHUT_WR)
        line.settimeout(10)
        try:
            while line.recv(65536):  # it hangs up, it does not hang
                pass
        except ConnectionError:
            pass
    plain = Plain(socket_path)
    with plain.line:
        assert plain.ask(nbd.READ, 0, 3) == (0, CONTENT[:3])
