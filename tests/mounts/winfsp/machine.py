"""A Windows machine with WinFsp, as far as winfspy and a drive see it: letters, volumes, dispatcher threads.

The DLL's functions, called by `bindings.Lib`; written after WinFsp 2.2's `dll/fs.c` and `dll/mount.c`. The
driver's part, and the DLL's between it and the callbacks, is `volume`. Can't be modelled: Mount Manager
itself, VHDs, real access tokens.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from cloudmount.mounts import ntstatus
from tests.mounts.winfsp.structures import NtError
from tests.mounts.winfsp.volume import Volume

NO_SUCH_DEVICE = 0xC000000E
DISMOUNTED = 0xC000026E
JOIN_SECONDS = 60.0

Work = tuple[Callable[[], Any], AbstractContextManager[Any], Future[Any]]


class Guard:
    """The DLL's lock around operations: many readers or one writer, who holds up readers that come later."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = self._waiting = 0
        self._writing = False

    def shared(self) -> AbstractContextManager[None]:
        """For opens of what exists."""
        return _Held(self, exclusive=False)

    def exclusive(self) -> AbstractContextManager[None]:
        """For what creates."""
        return _Held(self, exclusive=True)

    def enter(self, exclusive: bool) -> None:
        """Wait for it."""
        with self._condition:
            if exclusive:
                self._waiting += 1
                self._condition.wait_for(lambda: not self._writing and not self._readers)
                self._waiting -= 1
                self._writing = True
            else:
                self._condition.wait_for(lambda: not self._writing and not self._waiting)
                self._readers += 1

    def leave(self, exclusive: bool) -> None:
        """Let it go."""
        with self._condition:
            if exclusive:
                self._writing = False
            else:
                self._readers -= 1
            self._condition.notify_all()


class _Held(AbstractContextManager[None]):
    def __init__(self, guard: Guard, *, exclusive: bool) -> None:
        self._guard, self._exclusive = guard, exclusive

    def __enter__(self) -> None:
        self._guard.enter(self._exclusive)

    def __exit__(self, *_: object) -> None:
        self._guard.leave(self._exclusive)


class Dispatcher:
    """The DLL's threads for one volume."""

    def __init__(self, threads: int) -> None:
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopping = False
        self.at_work = 0
        self.most_at_work = 0
        self.threads = [threading.Thread(target=self._run, name=f"dispatcher-{n}") for n in range(threads)]
        for thread in self.threads:
            thread.start()

    def request(self, work: Callable[[], Any], guard: AbstractContextManager[Any] | None = None) -> Any:
        """`work()` on one of the threads; `NtError` as it would reach the program."""
        future: Future[Any] = Future()
        with self._lock:
            if self._stopping:
                raise NtError(DISMOUNTED)
            self._queue.put((work, guard or nullcontext(), future))
        return future.result()

    def _run(self) -> None:
        while (got := self._queue.get()) is not None:
            work, guard, future = got
            with self._lock:
                stopping = self._stopping
                self.at_work += 1
                self.most_at_work = max(self.most_at_work, self.at_work)
            try:
                if stopping:
                    raise NtError(ntstatus.CANCELLED)  # it was queued only: that one expires
                with guard:
                    result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            with self._lock:
                self.at_work -= 1
            del got, work, future

    def stop(self) -> None:
        """Wait for all of them, as the DLL does: what is at work is never taken back."""
        with self._lock:
            self._stopping = True
        for _ in self.threads:
            self._queue.put(None)
        for thread in self.threads:
            thread.join(JOIN_SECONDS)
            assert not thread.is_alive(), "the drive keeps one of WinFsp's threads"
        while not self._queue.empty():
            left = self._queue.get()
            if left is not None:
                left[2].set_exception(NtError(ntstatus.CANCELLED))


class Machine:
    """One machine. `ffi` and `lib` are set by `bindings.winfspy_here`."""

    ffi: Any
    lib: Any

    def __init__(self, *, admin: bool = True, version: tuple[int, int] = (2, 2)) -> None:
        self.admin, self.version = admin, version
        self.volumes: dict[Any, Volume] = {}
        self.letters: dict[str, Volume | None] = {"C:": None}
        """Taken letters; the machine's own drives have no volume of ours."""
        self.session_letters: set[str] = set()
        """Those of a logon session only."""
        self.driver_there = True

    def volume(self, letter: str) -> Volume:
        """What is there."""
        found = self.letters.get(letter.upper())
        if found is None:
            raise NtError(ntstatus.OBJECT_PATH_NOT_FOUND)
        return found

    def stat(self, path: str) -> Any:
        """`os.stat` of a drive's root."""
        try:
            self.volume(path[:2]).info(path[2:])
        except NtError as error:
            raise FileNotFoundError(error.status, str(error)) from None
        return os.stat_result(range(10))

    # The DLL's functions

    def FspVersion(self, version: Any) -> int:
        version[0] = self.version[0] << 16 | self.version[1]
        return 0

    def FspFileSystemCreate(self, device: str, params: Any, interface: Any, made: Any) -> int:
        assert device == "WinFsp.Disk"
        if not self.driver_there:
            return NO_SUCH_DEVICE
        system = self.ffi.new("FSP_FILE_SYSTEM*")
        self.volumes[system] = Volume(self, self.lib.volume_params[params], interface, system)
        made[0] = system
        return 0

    def FspFileSystemSetMountPoint(self, system: Any, at: str) -> int:
        letter = at.removeprefix("\\\\.\\").upper()
        assert len(letter) == 2 and letter[1] == ":", at
        if letter != at.upper() and not self.admin:
            return ntstatus.ACCESS_DENIED
        if letter in self.letters:
            return ntstatus.OBJECT_NAME_COLLISION
        if letter == at.upper():
            self.session_letters.add(letter)
        self.letters[letter] = self.volumes[system]
        return 0

    def FspFileSystemSetOperationGuardF(self, system: Any, enter: Any, leave: Any) -> None:
        assert enter == leave == self.ffi.NULL
        self.volumes[system].guard = None

    def FspFileSystemStartDispatcher(self, system: Any, threads: int) -> int:
        self.volumes[system].dispatcher = Dispatcher(max(2, threads or 16))
        return 0

    def FspFileSystemGetDispatcherResultF(self, system: Any, status: Any) -> None:
        status[0] = self.volumes[system].result

    def FspFileSystemStopDispatcher(self, system: Any) -> None:
        self.volumes[system].stop()

    def FspFileSystemDelete(self, system: Any) -> None:
        volume = self.volumes.pop(system)
        assert volume.dispatcher is None or volume.stopped, "deleted under its own threads"
        for letter in [letter for letter, there in self.letters.items() if there is volume]:
            del self.letters[letter]
            self.session_letters.discard(letter)
