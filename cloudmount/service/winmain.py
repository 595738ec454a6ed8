"""The main of a Windows service: what the service manager is told while a drive is up.

Decided here and only here: the states of the service, that a stop is answered at once and ends within 5 s
whatever hangs, and which ends are failures that Windows starts it again after: not wrong usage (2) nor a
wrong passphrase (6), which would only be so again. **Not run on Windows.**

Threading: `serve` belongs to the main thread, which does the work, because signals reach only that; the
service manager's dispatcher, and what it starts, have threads of their own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from ctypes import byref, c_uint32, c_void_p, c_wchar_p
from typing import Any

from cloudmount.errors import CloudMountError
from cloudmount.service import winapi as w

STOP_SECONDS = 3.8
"""Before the drive itself ends its process (`lifecycle.END_SECONDS`): what goes without a word Windows starts
again."""
START_HINT_MS, STOP_HINT_MS = 90_000, 5_000
CONNECT_SECONDS = 30.0
NOT_AGAIN = (0, 2, 6, 130)
"""Exit codes after which the service stays stopped."""
_CALL_NOT_IMPLEMENTED = 120
_CALLBACK: Any = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)
MAIN = _CALLBACK(None, c_uint32, c_void_p)
HANDLER = _CALLBACK(c_uint32, c_uint32, c_uint32, c_void_p, c_void_p)


class Service:
    """The service called `name` in this process."""

    def __init__(self, name: str, dlls: w.Dlls) -> None:
        self._name, self._dlls = name, dlls
        self._main, self._handler = MAIN(self._started), HANDLER(self._control)  # kept: Windows calls them
        self._handle = 0
        self._connected, self._ended = threading.Event(), threading.Event()
        self._telling = threading.Lock()
        self._state = w.START_PENDING
        self._failure = ""
        self.code = 0

    def serve(self, work: Callable[[], int], stop: Callable[[], None], die: Callable[[int], Any]) -> int:
        """Do `work`, whose exit code is the service's; `stop` asks it to end, `die` ends the process when it
        does not. `CloudMountError` when no service manager started this process."""
        self._stop, self._die = stop, die
        threading.Thread(target=self._dispatch, name="cloudmount-service", daemon=True).start()
        if not self._connected.wait(CONNECT_SECONDS) or self._failure:
            raise CloudMountError(self._failure or "the service manager does not answer")
        code = 1
        try:
            code = work()
        finally:
            self.code = code
            self._ended.set()
            self._tell(w.STOPPED, code)
        return code

    def ready(self) -> None:
        """The drive is up."""
        self._tell(w.RUNNING)

    # On the service manager's threads

    def _dispatch(self) -> None:
        table = (w.TableEntry * 2)(w.TableEntry(self._name, ctypes.cast(self._main, c_void_p)))
        if not self._dlls.advapi32.StartServiceCtrlDispatcherW(byref(table)):
            number = self._dlls.last_error()
            self._failure = f"this is started by Windows' service manager only (error {number})"
            self._connected.set()

    def _started(self, count: int, arguments: Any) -> None:
        """ServiceMain: it may return at once; the process ends when the work has."""
        handle = self._dlls.advapi32.RegisterServiceCtrlHandlerExW(c_wchar_p(self._name), self._handler, None)
        if not handle:
            self._failure = f"the service manager refuses a handler (error {self._dlls.last_error()})"
        self._handle = int(handle or 0)
        self._tell(w.START_PENDING)
        self._connected.set()

    def _control(self, control: int, event: int, data: Any, context: Any) -> int:
        if control in (w.STOP, w.SHUTDOWN):
            if self._state != w.STOP_PENDING and not self._ended.is_set():
                self._tell(w.STOP_PENDING)
                threading.Thread(target=self._end, name="cloudmount-stop", daemon=True).start()
                self._stop()
            return 0
        if control == w.INTERROGATE:
            self._tell(self._state)
            return 0
        return _CALL_NOT_IMPLEMENTED

    def _end(self) -> None:
        """Whatever hangs: the service is stopped in time."""
        if not self._ended.wait(STOP_SECONDS):
            self._tell(w.STOPPED)
            self._die(0)

    def _tell(self, state: int, code: int = 0) -> None:
        with self._telling:
            if self._state == w.STOPPED or (self._state == w.STOP_PENDING and state == w.RUNNING):
                return
            self._state = state
            failed = state == w.STOPPED and code not in NOT_AGAIN
            hint = {w.START_PENDING: START_HINT_MS, w.STOP_PENDING: STOP_HINT_MS}.get(state, 0)
            status = w.ServiceStatus(
                w.OWN_PROCESS,
                state,
                w.ACCEPT_STOP | w.ACCEPT_SHUTDOWN if state == w.RUNNING else 0,
                w.SPECIFIC_ERROR if failed else 0,
                code if failed else 0,
                1 if hint else 0,
                hint,
            )
            self._dlls.advapi32.SetServiceStatus(c_void_p(self._handle), byref(status))


def ask_main_thread_to_end() -> None:
    """What SIGTERM does, from any thread."""
    import _thread

    _thread.interrupt_main(signal.SIGTERM)


def end_now(code: int) -> None:
    """End the process, whatever hangs."""
    os._exit(code)
