"""A snapshot's disks, served to NBD clients.

Decided here and only here: where may be listened, how an export is called, and its address. `serve_nbd`
belongs to the main thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cloudmount.app.hydrate import meant_disks
from cloudmount.app.mount import opened_drive
from cloudmount.app.select import select
from cloudmount.errors import TargetExistsError, UsageError
from cloudmount.mounts.nbd import Export, NbdServer

DEFAULT = "127.0.0.1:10809"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens: a Unix socket's path, or a loopback address and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def uri(self, name: str) -> str:
        """The address of an export there, as libnbd and QEMU read it."""
        if self.path:
            return f"nbd+unix:///{quote(name)}?socket={quote(self.path)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd://{host}:{self.port}/{quote(name)}"


def parse_place(text: str) -> Place:
    """`unix:PATH` or HOST:PORT; `UsageError` for what is neither, or not on this computer."""
    kind, _, path = text.partition(":")
    if kind == "unix" and path:
        return Place(path=os.path.abspath(path))
    host, _, port = text.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    with contextlib.suppress(ValueError):
        if not ipaddress.ip_address(host).is_loopback:
            raise UsageError(
                f"--listen {text}: NBD has no login, so only this computer may ask; use 127.0.0.1"
            )
        if port.isdecimal() and int(port) < 1 << 16:
            return Place(host=host, port=int(port))
    raise UsageError(f"--listen {text!r}: write unix:PATH or 127.0.0.1:10809")


@contextlib.contextmanager
def listening(place: Place) -> Iterator[tuple[socket.socket, Place]]:
    """A listening socket, and where it is (port 0: any that is free). `TargetExistsError` when it is
    taken."""
    if not place.path:
        family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
        try:
            listener = socket.create_server((place.host, place.port), family=family)
        except OSError as error:
            raise TargetExistsError(
                f"{place.host}:{place.port} can't be listened at: {error.strerror}"
            ) from None
        with listener:
            yield listener, Place(host=place.host, port=int(listener.getsockname()[1]))
        return
    if not hasattr(socket, "AF_UNIX"):
        raise UsageError("--listen unix: needs Linux; give HOST:PORT")
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        _clear(place.path)
        before = os.umask(0o177)
        try:
            listener.bind(place.path)
            listener.listen(64)
        except OSError as error:
            why = error.strerror or str(error)
            raise TargetExistsError(f"{place.path} can't be listened at: {why}") from None
        finally:
            os.umask(before)
        try:
            yield listener, place
        finally:
            with contextlib.suppress(OSError):
                os.unlink(place.path)


def _clear(path: str) -> None:
    """Remove a socket that nobody serves any more."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # nothing there, or nothing of that kind: told when it is bound
        else:
            raise TargetExistsError(f"{path} is served by another program")


@dataclass(frozen=True, slots=True)
class Served:
    """An export: its name, address and size in bytes."""

    name: str
    uri: str
    size: int


def serve_nbd(
    address: str,
    passphrase: str,
    text: str,
    place: Place,
    *,
    cache_dir: Path | None = None,
    cache_bytes: int | None = None,
    io_timeout: float = 60.0,
    bandwidth: tuple[float | None, float | None] = (None, None),
    up: Callable[[list[Served]], None],
    tell: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Serve the disks that `SNAPSHOT[:DISK]` names; `up` is told what there is, and returns when it is to
    end."""
    with opened_drive(
        address,
        passphrase,
        cache_dir=cache_dir,
        cache_bytes=cache_bytes,
        io_timeout=io_timeout,
        bandwidth=bandwidth,
        tell=tell,
        environ=environ,
    ) as opened:
        selected = select(opened.repository, text, environ)
        disks = meant_disks(opened.drive.opened(selected.snapshot), selected.path)
        name = f"{selected.snapshot.machine}/{selected.folder}"
        exports = {
            disk.path: Export(disk.shown_raw(), f"{name}: {disk.path}", int(disk.summary["logical_sector"]))
            for disk in disks
        }
        with listening(place) as (listener, there):
            server = NbdServer(listener, exports)
            try:
                up([Served(name, there.uri(name), e.source.size) for name, e in exports.items()])
            finally:
                server.close()
