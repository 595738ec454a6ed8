"""A WAN link on loopback: a TCP relay with delay, shared rate caps, and outages.

    with WanLink(("127.0.0.1", 10000), rtt=0.04, down_mbit=100, up_mbit=20) as link:
        client(link.address); link.stall(); ...; link.restore(); link.traffic()

    python -m tests.wanlink --target 127.0.0.1:10000 --rtt-ms 40 --down-mbit 100
        prints {"listening": "127.0.0.1:PORT"}; then each line of stdin (cut, stall, restore,
        traffic) is done and answered by the traffic so far, as JSON; SIGTERM or SIGINT ends it

Decided here and only here: how the link that tests and benchmarks speak of behaves.

- Delay: every byte arrives rtt/2 after it left. A new connection costs the client one rtt before
  its first byte leaves, as TCP's handshake does (loopback itself accepts at once).
- Rate: one cap for each direction, shared by all connections first come first served in pieces of
  16 KiB, so that a small reply waits behind at most some 20 ms of another connection's data.
  Receive buffers are small: a sender feels the cap, and not megabytes later.
- `cut`: every connection is reset (a real RST), and new ones too.
- `stall`: nothing is reset and no byte moves, as on a dead DSL line; a new connection opens and
  stays mute; an end that goes away goes unnoticed at the other. `restore` ends either outage, and
  what was held goes on, as TCP's retransmissions would bring it.

Only loopback addresses are accepted. Threading: an asyncio loop in a thread of its own; every
public method may be called from any thread and returns when it has taken effect.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import dataclasses
import enum
import ipaddress
import json
import signal
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Self, cast

Address = tuple[str, int]

PIECE = 16 << 10
CHUNK = 64 << 10  # read from one connection before another has its turn
AHEAD = 0.02  # seconds of line time that one connection may have reserved
HELD = 4 << 20  # bytes of one connection on the way, or held in a stall, before its sender must wait
RECEIVE_BUFFER = 256 << 10
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What arrived so far: bytes from target to clients, from clients to target, and connections opened."""

    down_bytes: int
    up_bytes: int
    connections: int


class WanLink:
    """A link from `address` (loopback, made by this) to `target`. `rtt` in seconds; 0 Mbit/s is no cap."""

    def __init__(
        self,
        target: Address,
        *,
        rtt: float = 0.0,
        down_mbit: float = 0.0,
        up_mbit: float = 0.0,
        listen: Address = ("127.0.0.1", 0),
    ) -> None:
        for host, _ in (target, listen):
            if not ipaddress.ip_address(host).is_loopback:
                raise ValueError(f"{host}: only loopback addresses are allowed")
        self.address = listen
        self._target = target
        self._listen = listen
        self._connections = 0
        self._state = _Link(rtt / 2, _Line(down_mbit), _Line(up_mbit))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wanlink", daemon=True)
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        except BaseException:
            self._end_loop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._end_loop()

    def cut(self) -> None:
        """Reset every connection, and each new one, until `restore`."""
        self._call(self._state.cut)

    def stall(self) -> None:
        """Let no byte move, silently, until `restore`."""
        self._call(self._state.stall)

    def restore(self) -> None:
        """End a cut or a stall."""
        self._call(self._state.restore)

    def traffic(self) -> Traffic:
        """What arrived since the link was opened."""
        return Traffic(self._state.down.arrived, self._state.up.arrived, self._connections)

    async def _open(self) -> None:
        listener = socket.create_server(
            self._listen, family=socket.AF_INET6 if ":" in self._listen[0] else socket.AF_INET
        )
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)  # accepted ones inherit it
        self.address = listener.getsockname()[:2]
        self._server = await self._loop.create_server(self._accepted, sock=listener)

    async def _close(self) -> None:
        if self._server:
            self._server.close()
        self._state.cut()
        others = asyncio.all_tasks() - {cast("asyncio.Task[None]", asyncio.current_task())}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # the aborted transports close their sockets in the loop's next turn

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, action: Callable[[], None]) -> None:
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                action()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._loop.call_soon_threadsafe(run)
        done.result()

    def _accepted(self) -> "_End":
        self._connections += 1
        return _End(self._state, self._connect)

    async def _connect(self, near: "_End") -> None:
        """The far half of a connection that a client opened."""
        await asyncio.sleep(2 * self._state.delay)
        await self._state.flowing.wait()
        if near.transport.is_closing():
            return

        try:
            _, far = await self._loop.create_connection(lambda: _End(self._state, None), *self._target)
        except OSError:
            near.reset()
            return
        if near.transport.is_closing() or far.transport.is_closing():  # cut meanwhile
            near.reset()
            far.reset()
            return
        near.outgoing = far.incoming = _Pipe(self._state, self._state.up, near, far)
        far.outgoing = near.incoming = _Pipe(self._state, self._state.down, far, near)
        near.transport.resume_reading()
        far.transport.resume_reading()


class _Line:
    """One direction of the link: a rate shared by all connections, and what arrived over it."""

    def __init__(self, mbit: float) -> None:
        self.rate = mbit * 1e6 / 8  # bytes a second; 0: no cap
        self.free_at = 0.0
        self.arrived = 0

    def departure(self, size: int, now: float) -> float:
        """When the last of `size` more bytes has left."""
        if not self.rate:
            return now
        self.free_at = max(now, self.free_at) + size / self.rate
        return self.free_at


class _Link:
    """What all connections share: the two lines, and whether the link is up."""

    def __init__(self, delay: float, down: _Line, up: _Line) -> None:
        self.delay, self.down, self.up = delay, down, up
        self.is_cut = False
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.ends: set[_End] = set()

    def cut(self) -> None:
        self.is_cut = True
        for end in list(self.ends):
            end.reset()

    def stall(self) -> None:
        self.flowing.clear()

    def restore(self) -> None:
        self.is_cut = False
        self.flowing.set()
        for end in list(self.ends):
            for pipe in (end.outgoing, end.incoming):  # an end that left no longer stands in `ends`
                if pipe:
                    pipe.deliver()


class _Closing(enum.Enum):
    """How an end goes away; travels behind the bytes it sent."""

    EOF = enum.auto()
    CLOSE = enum.auto()
    RESET = enum.auto()


class _Pipe:
    """One direction of one connection: what left `source` and has not yet arrived at `sink`."""

    def __init__(self, link: _Link, line: _Line, source: "_End", sink: "_End") -> None:
        self.link, self.line, self.source, self.sink = link, line, source, sink
        self.loop = asyncio.get_running_loop()
        self.queue: deque[tuple[float, bytes | _Closing]] = deque()
        self.held = 0
        self.read_at = 0.0
        self.sink_full = False
        self.timer: asyncio.TimerHandle | None = None

    def send(self, data: bytes) -> None:
        now = leaves = self.loop.time()
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            leaves = self.line.departure(len(piece), now)
            self.queue.append((leaves + self.link.delay, piece))
        self.held += len(data)
        self.read_at = leaves - AHEAD
        if self.read_at > now:
            self.loop.call_at(self.read_at, self.throttle)
        self.deliver()

    def close(self, how: _Closing) -> None:
        last = self.queue[-1][0] if self.queue else 0.0
        self.queue.append((max(last, self.loop.time() + self.link.delay), how))
        self.deliver()

    def deliver(self) -> None:
        """Hand over what is due, and come back when the next is."""
        now = self.loop.time()
        while self.queue and self.queue[0][0] <= now and self.link.flowing.is_set() and not self.sink_full:
            _, item = self.queue.popleft()
            if isinstance(item, bytes):
                self.held -= len(item)
                self.line.arrived += len(item)
            self.sink.arrive(item)
        if self.timer:
            self.timer.cancel()
            self.timer = None
        if self.queue and self.queue[0][0] > now:
            self.timer = self.loop.call_at(self.queue[0][0], self.deliver)
        self.throttle()

    def throttle(self) -> None:
        """Read from the source only what the line takes soon and the sink takes at all."""
        # A timer may be up to one tick of the loop's clock early.
        if self.held > HELD or self.read_at > self.loop.time() + 0.001:
            self.source.transport.pause_reading()
        else:
            self.source.transport.resume_reading()


class _End(asyncio.BufferedProtocol):
    """One socket of a connection: a client's, or the one to the target."""

    transport: asyncio.Transport
    outgoing: _Pipe | None = None  # what this socket sends
    incoming: _Pipe | None = None

    def __init__(self, link: _Link, opened: "Callable[[_End], Coroutine[None, None, None]] | None") -> None:
        self.link, self.opened = link, opened
        self.buffer = bytearray(CHUNK)
        self.sent_eof = self.got_eof = False
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        # asyncio does it for most sockets, but not for those that a server's ready-made one accepts; with
        # Nagle's algorithm the last piece of every reply above 16 KiB came 40 ms late.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.link.ends.add(self)
        if self.link.is_cut:
            self.reset()
            return
        # Nothing is read until there are pipes. Not at once: the loop of Debian 12's Python 3.11.2 starts to
        # read after this call even so, but before it looks for bytes.
        loop = asyncio.get_running_loop()
        loop.call_soon(self.transport.pause_reading)
        if self.opened:
            self.task = loop.create_task(self.opened(self))

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        assert self.outgoing
        self.outgoing.send(bytes(self.buffer[:nbytes]))

    def eof_received(self) -> bool:
        assert self.outgoing
        self.sent_eof = True
        self.outgoing.close(_Closing.EOF)
        self._close_if_done()
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        self.link.ends.discard(self)
        if self.outgoing:
            self.outgoing.close(_Closing.RESET if exc else _Closing.CLOSE)

    def pause_writing(self) -> None:
        if self.incoming:
            self.incoming.sink_full = True

    def resume_writing(self) -> None:
        if self.incoming:
            self.incoming.sink_full = False
            self.incoming.deliver()

    def arrive(self, item: bytes | _Closing) -> None:
        if self.transport.is_closing():
            return
        if isinstance(item, bytes):
            self.transport.write(item)
        elif item is _Closing.EOF:
            self.got_eof = True
            with contextlib.suppress(OSError):  # it went away a moment ago
                self.transport.write_eof()
            self._close_if_done()
        elif item is _Closing.CLOSE:
            self.transport.close()
        else:
            self.reset()

    def reset(self) -> None:
        self.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE
        )
        self.transport.abort()

    def _close_if_done(self) -> None:
        if self.sent_eof and self.got_eof:
            self.transport.close()


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def main() -> None:
    """The program of the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.wanlink", description="A WAN link on loopback.")
    parser.add_argument("--target", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--rtt-ms", type=float, default=40.0)
    parser.add_argument("--down-mbit", type=float, default=100.0)
    parser.add_argument("--up-mbit", type=float, default=20.0)
    given = parser.parse_args()
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)  # in every thread; waited for below
    link = WanLink(
        given.target,
        listen=given.listen,
        rtt=given.rtt_ms / 1000,
        down_mbit=given.down_mbit,
        up_mbit=given.up_mbit,
    )
    with link:
        host, port = link.address
        print(json.dumps({"listening": f"{host}:{port}"}), flush=True)
        threading.Thread(target=_obey, args=(link,), daemon=True).start()
        signal.sigwait(ending)
        print(json.dumps(dataclasses.asdict(link.traffic())), flush=True)


def _obey(link: WanLink) -> None:
    """Do what each line of stdin says; its end is no command."""
    commands: dict[str, Callable[[], object]] = {
        "cut": link.cut,
        "stall": link.stall,
        "restore": link.restore,
        "traffic": link.traffic,
    }
    for line in sys.stdin:
        if command := commands.get(line.strip()):
            command()
            print(json.dumps(dataclasses.asdict(link.traffic())), flush=True)
        else:
            print(json.dumps({"error": f"{line.strip()}: not one of {', '.join(commands)}"}), flush=True)


if __name__ == "__main__":
    main()
