"""Windows' libraries as a service sees them: a double that checks what it is given, and is no Windows."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudmount.service import winapi as w
from cloudmount.service.winmain import MAIN

_EXISTS, _NO_SERVICE, _NOT_ACTIVE, _ALREADY, _BAD_DATA = 1073, 1060, 1062, 183, 13


@dataclass
class Kept:
    """A service as the manager keeps it."""

    command: str
    display: str
    description: str = ""
    actions: list[tuple[int, int]] = field(default_factory=list)
    reset: int = 0
    flags: dict[int, int] = field(default_factory=dict)
    state: int = w.STOPPED
    code: int = 0


class Windows:
    """One computer. `fails` names a call that fails with `number`; `starts_as` is what a service does."""

    def __init__(self) -> None:
        self.services: dict[str, Kept] = {}
        self.fails: dict[str, int] = {}
        self.starts_as: tuple[int, int] = (w.RUNNING, 0)
        self.private: dict[str, str] = {}
        self.told: list[tuple[int, ...]] = []
        self.words: list[str] = []
        """Every text that was passed."""
        self.handler: Any = None
        self.connected, self.stopped = threading.Event(), threading.Event()
        self.is_service = True
        self._handles: dict[int, str] = {}
        self._next, self._error = 0x1000, 0
        self._memory: dict[int, Any] = {}

    @property
    def dlls(self) -> w.Dlls:
        """The libraries."""
        return w.Dlls(self, self, self, lambda: self._error)

    def settled(self) -> bool:
        """Whether everything that was opened or lent was given back."""
        return not self._handles and not self._memory

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(type(self), f"_{name}", None)
        if call is None:
            raise AttributeError(name)

        def called(*args: Any) -> Any:
            self.words += [a for a in args if isinstance(a, str)]
            if name in self.fails:
                self._error = self.fails[name]
                return 0
            return call(self, *args)

        return called

    def _no(self, number: int) -> int:
        self._error = number
        return 0

    def _open(self, what: str) -> int:
        self._next += 0x10
        self._handles[self._next] = what
        return self._next

    def _lend(self, data: bytes) -> int:
        held = ctypes.create_string_buffer(data, max(1, len(data)))
        self._memory[ctypes.addressof(held)] = held
        return ctypes.addressof(held)

    def _service(self, handle: ctypes.c_void_p) -> Kept:
        assert isinstance(handle, ctypes.c_void_p)  # an int would be cut to 32 bits
        assert handle.value is not None
        return self.services[self._handles[handle.value]]

    # advapi32

    def _OpenSCManagerW(self, machine: None, database: None, access: ctypes.c_uint32) -> int:
        assert access.value == 0x3
        return self._open("")

    def _OpenServiceW(self, manager: ctypes.c_void_p, name: str, access: ctypes.c_uint32) -> int:
        assert self._handles[manager.value or 0] == "" and access.value == 0xF01FF
        return self._open(name) if name in self.services else self._no(_NO_SERVICE)

    def _CreateServiceW(
        self, manager: ctypes.c_void_p, name: str, display: str, access: ctypes.c_uint32, *rest: Any
    ) -> int:
        kind, start, severity, command, group, tag, needs, account, password = rest
        assert self._handles[manager.value or 0] == "" and access.value == 0xF01FF
        assert (kind.value, start.value, severity.value) == (0x10, 2, 1)  # own process, automatic, normal
        assert group is tag is account is password is None  # LocalSystem
        assert needs[:] == "Tcpip\0\0" and not set("/\\") & set(name) and len(name) <= 256
        if name in self.services:
            return self._no(_EXISTS)
        self.services[name] = Kept(command, display)
        return self._open(name)

    def _ChangeServiceConfig2W(self, handle: ctypes.c_void_p, level: ctypes.c_uint32, value: Any) -> int:
        kept, told = self._service(handle), value._obj
        if level.value == 1:
            assert isinstance(told, w.Description)
            kept.description = told.lpDescription
        elif level.value == 2:
            assert isinstance(told, w.FailureActions)
            assert told.lpRebootMsg is None and told.lpCommand is None
            kept.reset = told.dwResetPeriod
            kept.actions = [
                (told.lpsaActions[n].Type, told.lpsaActions[n].Delay) for n in range(told.cActions)
            ]
        else:
            assert isinstance(told, w.Flag) and level.value in (3, 4)
            kept.flags[level.value] = told.fFlag
        return 1

    def _StartServiceW(self, handle: ctypes.c_void_p, count: ctypes.c_uint32, arguments: None) -> int:
        kept = self._service(handle)
        assert count.value == 0 and kept.actions  # it is configured before it is started
        kept.state, kept.code = self.starts_as
        return 1

    def _ControlService(self, handle: ctypes.c_void_p, control: ctypes.c_uint32, status: Any) -> int:
        kept = self._service(handle)
        assert control.value == 1 and isinstance(status._obj, w.ServiceStatus)
        if kept.state == w.STOPPED:
            return self._no(_NOT_ACTIVE)
        kept.state = w.STOPPED
        return 1

    def _QueryServiceStatus(self, handle: ctypes.c_void_p, status: Any) -> int:
        kept = self._service(handle)
        status._obj.dwCurrentState, status._obj.dwServiceSpecificExitCode = kept.state, kept.code
        return 1

    def _DeleteService(self, handle: ctypes.c_void_p) -> int:
        del self.services[self._handles[handle.value or 0]]
        return 1

    def _CloseServiceHandle(self, handle: ctypes.c_void_p) -> int:
        del self._handles[handle.value or 0]
        return 1

    def _ConvertStringSecurityDescriptorToSecurityDescriptorW(
        self, text: str, revision: ctypes.c_uint32, made: Any, size: None
    ) -> int:
        assert revision.value == 1
        made._obj.value = self._lend(text.encode())
        return 1

    def _SetFileSecurityW(self, path: str, what: ctypes.c_uint32, descriptor: ctypes.c_void_p) -> int:
        assert what.value == 0x80000005  # owner, access list, not inherited
        self.private[path] = self._memory[descriptor.value or 0].value.decode()
        return 1

    # kernel32

    def _CreateDirectoryW(self, path: str, attributes: Any) -> int:
        told = attributes._obj
        assert told.nLength == ctypes.sizeof(told) and not told.bInheritHandle
        if Path(path).exists():
            return self._no(_ALREADY)
        Path(path).mkdir()
        self.private[path] = self._memory[told.lpSecurityDescriptor].value.decode()
        return 1

    def _LocalFree(self, memory: ctypes.c_void_p) -> None:
        held = self._memory.pop(memory.value or 0)
        assert b"CLOUDMOUNT_PASSPHRASE" not in held.raw  # secrets are wiped before

    # crypt32

    def _CryptProtectData(self, given: Any, told: str, entropy: None, *rest: Any) -> int:
        reserved, prompt, flags, made = rest
        assert reserved is prompt is None and flags.value == 0x5  # this computer, no window
        plain = ctypes.string_at(given._obj.pbData, given._obj.cbData)
        sealed = b"DPAPI" + bytes(b ^ 0x5A for b in plain)
        made._obj.cbData, made._obj.pbData = len(sealed), self._lend(sealed)
        return 1

    def _CryptUnprotectData(self, given: Any, told: None, entropy: None, *rest: Any) -> int:
        reserved, prompt, flags, made = rest
        assert reserved is prompt is None and flags.value == 0x1
        sealed = ctypes.string_at(given._obj.pbData, given._obj.cbData)
        if not sealed.startswith(b"DPAPI"):
            return self._no(_BAD_DATA)
        plain = bytes(b ^ 0x5A for b in sealed[5:])
        made._obj.cbData, made._obj.pbData = len(plain), self._lend(plain)
        return 1

    # A service's own process

    def _StartServiceCtrlDispatcherW(self, table: Any) -> int:
        if not self.is_service:
            return self._no(1063)
        entries = table._obj
        assert entries[1].lpServiceName is None and entries[1].lpServiceProc is None
        MAIN(entries[0].lpServiceProc)(0, None)
        assert self.stopped.wait(60), "the service never said that it stopped"
        return 1

    def _RegisterServiceCtrlHandlerExW(self, name: Any, handler: Any, context: None) -> int:
        self.handler = handler
        return 0x77

    def _SetServiceStatus(self, handle: ctypes.c_void_p, status: Any) -> int:
        assert handle.value == 0x77
        told = status._obj
        assert told.dwServiceType == 0x10
        self.told.append(
            (
                told.dwCurrentState,
                told.dwControlsAccepted,
                told.dwWin32ExitCode,
                told.dwServiceSpecificExitCode,
            )
        )
        if told.dwCurrentState == w.STOPPED:
            self.stopped.set()
        return 1
