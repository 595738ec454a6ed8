"""Parsers' processes: started when needed, bounded in number and in time, ended when idle.

Decided here and only here: when a child is trusted no longer. One that crashed, took too long, said what it
must not, or met a failed read is ended; its call fails, and the next call has a new one. A child is used by
one call at a time, so no parser's handle is ever shared. It is started by exec with nothing in its
environment and only two pipes, and ends when they close: with this process, however that ends.

Threading: any number of threads; one of its own watches while there are children.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from cloudmount.errors import CloudMountError, UnreadableInputError
from cloudmount.extents import BlockSource, Prefetching
from cloudmount.guest import wire
from cloudmount.guest.wedged import Wedged

MOST = 6
EACH = 2
"""Children of one volume at once."""
IDLE_SECONDS = 60.0
THINKING_SECONDS = 40.0
"""How long a child may be silent; processor time is limited by itself (`confine`)."""
WAIT_SECONDS = 120.0
MOST_BYTES = 1 << 30
"""Bytes of the volume that one call may ask for."""
_LEAST_BYTES = 16 << 10
"""What the smallest range counts as."""
_MOST_EXPECTED = 16 * wire.MOST_EXPECTED * wire.RANGE.size
_MOST_AHEAD = 48 << 20
_TIME_USED_UP = 24
"""SIGXCPU, which Windows has not."""
_WATCH = 0.5

_START = (
    "import sys; sys.path[:] = sys.argv[3:]; from cloudmount.guest.worker import main; "
    "main(sys.argv[1], int(sys.argv[2]))"
)


class Parsed(Protocol):
    """A volume as its children see it."""

    source: BlockSource
    parser: str
    where: str
    """What it is called in messages."""


class _Told(Exception):
    """A failure that the child itself told of: it is as good as before."""


class _Child:
    def __init__(self, volume: Parsed) -> None:
        environment = {"TZ": "UTC"}
        if sys.platform == "win32":
            environment["SYSTEMROOT"] = os.environ.get("SYSTEMROOT", "")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-X", "utf8", "-c", _START),
                *(volume.parser, str(volume.source.size), *sys.path),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=os.path.abspath(os.sep),
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        self.pid = self._process.pid
        self.silent_since: float | None = None
        self.idle_since = time.monotonic()
        self.late = False

    def call(
        self, source: BlockSource, call: list[Any], most: int, part: Callable[[Any], None]
    ) -> bytes | Any:
        """What it answers, raw or parsed; `part` gets the parts before. `BrokenFrameError` when it can't be
        used any more, whatever the source's reads raise, `_Told` for a failure that it told."""
        self.silent_since = time.monotonic()
        wire.send_json(self._to, wire.CALL, call)
        asked = expected = 0
        while True:
            self.silent_since = time.monotonic()
            kind, payload = wire.receive(self._from, most)
            if kind == wire.ASK:
                if len(payload) != wire.RANGE.size:
                    raise wire.BrokenFrameError("a range that is none")
                offset, length = wire.RANGE.unpack(payload)
                asked += max(length, _LEAST_BYTES)
                if length > wire.MOST_ASKED or offset + length > source.size or asked > MOST_BYTES:
                    raise wire.BrokenFrameError(f"it asked for {length} bytes at {offset}, {asked} in all")
                self.silent_since = None  # the store's time is not the child's
                data = source.read_at(offset, length)
                self.silent_since = time.monotonic()
                wire.send(self._to, wire.BYTES, data)
            elif kind == wire.EXPECT:
                expected += len(payload)
                if len(payload) % wire.RANGE.size or expected > _MOST_EXPECTED:
                    raise wire.BrokenFrameError("more ranges than it can need")
                self.silent_since = None
                _prefetch(source, payload)
            elif kind == wire.PART:
                part(wire.parsed(payload))
                asked = expected = 0
            elif kind == wire.BYTES:
                return payload
            elif kind == wire.VALUE:
                return wire.parsed(payload)
            else:
                raise _Told(_told(payload))

    def end(self) -> int:
        """End it now; its exit code."""
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code


def _prefetch(source: BlockSource, payload: bytes) -> None:
    """Have what a child expects to read be fetched, as far as that makes sense."""
    if not isinstance(source, Prefetching):
        return
    total = 0
    for offset, length in wire.RANGE.iter_unpack(payload):
        total += length
        if offset + length > source.size or total > _MOST_AHEAD:
            return
        source.prefetch(offset, length)


def _told(payload: bytes) -> str:
    told = wire.parsed(payload)
    if not isinstance(told, list) or len(told) != 2:
        raise wire.BrokenFrameError("a failure that is none")
    kind, why = str(told[0]), "".join(c if c.isprintable() else " " for c in str(told[1]))
    return why if kind == wire.UNREADABLE else f"damaged, or not understood: {' '.join(why.split())}"


def _no_parts(_: Any) -> None:
    raise wire.BrokenFrameError("a part of what has none")


class Children:
    """Those of one drive, or of one command."""

    def __init__(
        self,
        most: int = MOST,
        *,
        each: int = EACH,
        idle: float = IDLE_SECONDS,
        thinking: float = THINKING_SECONDS,
    ) -> None:
        self._most, self._each, self._idle_seconds, self._thinking = most, each, idle, thinking
        self._changed = threading.Condition()
        self._wedged = Wedged()
        self._idle: list[tuple[Parsed, _Child]] = []
        self._busy: list[tuple[Parsed, _Child | None]] = []
        self._closed = threading.Event()
        self._watching = False
        self.started = 0
        """How many there have been."""

    def call(
        self,
        volume: Parsed,
        name: str,
        *arguments: Any,
        most: int = wire.MOST_VALUE,
        part: Callable[[Any], None] | None = None,
    ) -> Any:
        """Have a child of `volume` do something: bytes or a parsed value, of at most `most` bytes. `part`
        gets what comes before it in parts, and says by `BrokenFrameError` when that is too much.

        `UnreadableInputError` (an I/O error on a drive) when that failed, whatever the volume's bytes did to
        the child; a failure to read them is raised as it is.
        """
        about = (volume, name, arguments[:1] if name != "lookup" else arguments[1:])
        why = self._wedged.why(about)
        if why is not None:
            raise UnreadableInputError(f"{volume.where}: {why}")
        child = self._take(volume)
        good = False
        try:
            value = child.call(volume.source, [name, *arguments], most, part or _no_parts)
            good = True
            return value
        except _Told as error:
            good = True
            raise UnreadableInputError(f"{volume.where}: {error}") from None
        except wire.BrokenFrameError as error:
            why, spun = self._ended(child, error)
            if spun:
                self._wedged.remember(about, f"{why}; it is not tried again")
            elif child.late:
                self._wedged.silent(about, f"{why}, twice; it is not tried again")
            raise UnreadableInputError(f"{volume.where}: {why}") from None
        finally:
            self._give_back(volume, child, good)

    def pids(self) -> list[int]:
        """Those running now."""
        with self._changed:
            return [c.pid for _, c in [*self._idle, *self._busy] if c is not None]

    def close(self) -> None:
        """End them all; calls at work fail. May be called twice."""
        with self._changed:
            self._closed.set()
            idle, self._idle = self._idle, []
            for _, child in self._busy:
                if child is not None:
                    child._process.kill()
            self._changed.notify_all()
        for _, child in idle:
            child.end()

    def _ended(self, child: _Child, error: wire.BrokenFrameError) -> tuple[str, bool]:
        """Why a child ended, and whether that was for the processor time it took."""
        code = child.end()
        if self._closed.is_set():
            return "reading has ended", False
        if child.late:
            return f"its parser was ended: it said nothing for {self._thinking:g} s", False
        if code == -_TIME_USED_UP:
            return "its parser was ended: one call took too much processor time", True
        if code < 0:
            return f"its parser crashed (signal {-code})", False
        return f"its parser ended ({error})", False

    def _take(self, volume: Parsed) -> _Child:
        until = time.monotonic() + WAIT_SECONDS
        with self._changed:
            while True:
                if self._closed.is_set():
                    raise CloudMountError("reading has ended: the repository was closed")
                for at, (owner, child) in enumerate(self._idle):
                    if owner is volume:
                        del self._idle[at]
                        self._busy.append((volume, child))
                        return child
                if sum(1 for owner, _ in self._busy if owner is volume) < self._each:
                    if len(self._busy) + len(self._idle) < self._most:
                        self._busy.append((volume, None))
                        break
                    if self._idle:
                        self._idle.pop(0)[1].end()
                        continue
                if not self._changed.wait(max(0.0, until - time.monotonic())) and time.monotonic() >= until:
                    raise UnreadableInputError(
                        f"{volume.where}: all parsers were busy for {WAIT_SECONDS:g} s"
                    )
            self.started += 1
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="cloudmount-parsers", daemon=True).start()
        try:
            child = _Child(volume)
        except OSError as error:
            self._remove(volume, None)
            raise UnreadableInputError(f"{volume.where}: no parser could be started: {error}") from None
        with self._changed:
            self._busy.remove((volume, None))
            self._busy.append((volume, child))
            if self._closed.is_set():
                child._process.kill()
        return child

    def _remove(self, volume: Parsed, child: _Child | None) -> None:
        with self._changed:
            self._busy.remove((volume, child))
            self._changed.notify_all()

    def _give_back(self, volume: Parsed, child: _Child, good: bool) -> None:
        child.silent_since = None
        with self._changed:
            self._busy.remove((volume, child))
            good = good and not self._closed.is_set()
            if good:
                child.idle_since = time.monotonic()
                self._idle.append((volume, child))
            self._changed.notify_all()
        if not good:
            child.end()

    def _watch(self) -> None:
        while True:
            time.sleep(min(_WATCH, self._thinking / 4))
            now = time.monotonic()
            with self._changed:
                for _, child in self._busy:
                    since = child.silent_since if child is not None else None
                    if child is not None and since is not None and now - since > self._thinking:
                        child.late = True
                        child._process.kill()
                old = [pair for pair in self._idle if now - pair[1].idle_since > self._idle_seconds]
                self._idle = [pair for pair in self._idle if pair not in old]
                if not self._idle and not self._busy and not old:
                    self._watching = False
                    return
            for _, child in old:
                child.end()
