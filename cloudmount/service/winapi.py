"""What Windows' service manager, its key store and its access control are asked, by `ctypes`.

Decided here and only here: which calls with which structures (winsvc.h, dpapi.h, sddl.h), and that a failure
is a `CloudMountError` with Windows' own number. `Dlls` is the port: tests put a double there. **Not run on
Windows.** Any thread.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_int, c_uint32, c_void_p, c_wchar_p
from dataclasses import dataclass
from typing import Any

from cloudmount.errors import CloudMountError, NotFoundError, TargetExistsError

OWN_PROCESS, AUTO_START, ERROR_NORMAL = 0x10, 2, 1
DESCRIPTION, FAILURE_ACTIONS, DELAYED_START, FAILURE_FLAG = 1, 2, 3, 4
STOP, SHUTDOWN, INTERROGATE = 1, 5, 4
STOPPED, START_PENDING, STOP_PENDING, RUNNING = 1, 2, 3, 4
ACCEPT_STOP, ACCEPT_SHUTDOWN = 1, 4
SPECIFIC_ERROR = 1066
"""ERROR_SERVICE_SPECIFIC_ERROR: the number that counts is the service's own."""
_ALL_ACCESS, _CONNECT_AND_CREATE = 0xF01FF, 0x3
_RESTART, RESTART_MS, RESET_SECONDS = 1, 30_000, 86_400
_LOCAL_MACHINE, _NO_UI = 0x4, 0x1
_EXISTS, _NO_SERVICE, _MARKED, _NOT_ACTIVE, _ALREADY, _DENIED = 1073, 1060, 1072, 1062, 183, 5
PRIVATE = "O:BAG:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
"""Owned by the administrators; full access for SYSTEM and them, inherited, nothing from above (SDDL)."""
_OWNER, _DACL, _PROTECTED = 0x1, 0x4, 0x80000000


class ServiceStatus(Structure):
    """SERVICE_STATUS."""

    _fields_ = tuple(
        (name, c_uint32)
        for name in (
            "dwServiceType", "dwCurrentState", "dwControlsAccepted", "dwWin32ExitCode",
            "dwServiceSpecificExitCode", "dwCheckPoint", "dwWaitHint",
        )
    )  # fmt: skip


class Description(Structure):
    """SERVICE_DESCRIPTIONW."""

    _fields_ = (("lpDescription", c_wchar_p),)


class Action(Structure):
    """SC_ACTION; the delay is in milliseconds."""

    _fields_ = (("Type", c_int), ("Delay", c_uint32))


class FailureActions(Structure):
    """SERVICE_FAILURE_ACTIONSW; the reset period is in seconds."""

    _fields_ = (
        ("dwResetPeriod", c_uint32),
        ("lpRebootMsg", c_wchar_p),
        ("lpCommand", c_wchar_p),
        ("cActions", c_uint32),
        ("lpsaActions", POINTER(Action)),
    )


class Flag(Structure):
    """SERVICE_FAILURE_ACTIONS_FLAG and SERVICE_DELAYED_AUTO_START_INFO: a BOOL."""

    _fields_ = (("fFlag", c_int),)


class TableEntry(Structure):
    """SERVICE_TABLE_ENTRYW."""

    _fields_ = (("lpServiceName", c_wchar_p), ("lpServiceProc", c_void_p))


class Blob(Structure):
    """DATA_BLOB."""

    _fields_ = (("cbData", c_uint32), ("pbData", c_void_p))


class SecurityAttributes(Structure):
    """SECURITY_ATTRIBUTES."""

    _fields_ = (("nLength", c_uint32), ("lpSecurityDescriptor", c_void_p), ("bInheritHandle", c_int))


@dataclass(frozen=True, slots=True)
class Dlls:
    """Windows' libraries, each with its functions as attributes, and the last error's number."""

    advapi32: Any
    kernel32: Any
    crypt32: Any
    last_error: Any


def windows() -> Dlls:
    """Those of the system."""
    load: Any = getattr(ctypes, "WinDLL")  # noqa: B009  # mypy on Linux knows none
    last: Any = getattr(ctypes, "get_last_error")  # noqa: B009
    advapi32, kernel32, crypt32 = (
        load(name, use_last_error=True) for name in ("advapi32", "kernel32", "crypt32")
    )
    for name in ("OpenSCManagerW", "OpenServiceW", "CreateServiceW", "RegisterServiceCtrlHandlerExW"):
        getattr(advapi32, name).restype = c_void_p  # handles are as wide as pointers
    return Dlls(advapi32, kernel32, crypt32, last)


class Api:
    """The calls, with Python's values."""

    def __init__(self, dlls: Dlls) -> None:
        self._dlls = dlls

    def _failed(self, what: str) -> CloudMountError:
        number = int(self._dlls.last_error())
        if number == _DENIED:
            return CloudMountError(f"{what}: access is denied: run this as administrator")
        if number == _NO_SERVICE:
            return NotFoundError(f"{what}: there is no such service")
        if number == _EXISTS:
            return TargetExistsError(f"{what}: a service of this name exists; it is not overwritten")
        if number == _MARKED:
            return CloudMountError(f"{what}: it is being removed: close the services' window and try again")
        return CloudMountError(f"{what}: Windows' error {number}")

    # The service manager

    def create_service(self, name: str, shown: str, told: str, command: str) -> None:
        """A service of LocalSystem that starts with the computer, and again 30 s after each failure.

        `TargetExistsError` when there is one of this name. A failure half-way leaves none.
        """
        a = self._dlls.advapi32
        manager = self._manager()
        needs = ctypes.create_unicode_buffer("Tcpip\0")  # a list ends with an empty name
        try:
            service = a.CreateServiceW(
                c_void_p(manager), name, shown, c_uint32(_ALL_ACCESS), c_uint32(OWN_PROCESS),
                c_uint32(AUTO_START), c_uint32(ERROR_NORMAL), command, None, None, needs, None, None,
            )  # fmt: skip
            if not service:
                raise self._failed(f"the service {name}")
            try:
                self._configure(service, name, told)
            except BaseException:
                a.DeleteService(c_void_p(service))
                raise
            finally:
                a.CloseServiceHandle(c_void_p(service))
        finally:
            a.CloseServiceHandle(c_void_p(manager))

    def _configure(self, service: int, name: str, told: str) -> None:
        actions = (Action * 3)(*[Action(_RESTART, RESTART_MS)] * 3)
        failing = FailureActions(RESET_SECONDS, None, None, len(actions), actions)
        for level, value in (
            (DESCRIPTION, Description(told)),
            (FAILURE_ACTIONS, failing),
            (FAILURE_FLAG, Flag(1)),  # also when it ended by itself with an error
            (DELAYED_START, Flag(1)),  # after the network
        ):
            if not self._dlls.advapi32.ChangeServiceConfig2W(
                c_void_p(service), c_uint32(level), byref(value)
            ):
                raise self._failed(f"the service {name}")

    def start_service(self, name: str) -> None:
        """Have it started; it is not up yet when this returns."""
        self._with(name, lambda a, service: a.StartServiceW(service, c_uint32(0), None))

    def stop_service(self, name: str) -> None:
        """Ask it to stop; one that is stopped stays so."""

        def stop(a: Any, service: Any) -> Any:
            return a.ControlService(service, c_uint32(STOP), byref(ServiceStatus())) or (
                self._dlls.last_error() == _NOT_ACTIVE
            )

        self._with(name, stop)

    def delete_service(self, name: str) -> None:
        """Remove it from the service manager."""
        self._with(name, lambda a, service: a.DeleteService(service))

    def query(self, name: str) -> ServiceStatus:
        """How it is; `NotFoundError` when there is none."""
        status = ServiceStatus()
        self._with(name, lambda a, service: a.QueryServiceStatus(service, byref(status)))
        return status

    def _manager(self) -> int:
        manager = self._dlls.advapi32.OpenSCManagerW(None, None, c_uint32(_CONNECT_AND_CREATE))
        if not manager:
            raise self._failed("the service manager")
        return int(manager)

    def _with(self, name: str, call: Any) -> None:
        a = self._dlls.advapi32
        manager = self._manager()
        try:
            service = a.OpenServiceW(c_void_p(manager), name, c_uint32(_ALL_ACCESS))
            if not service:
                raise self._failed(f"the service {name}")
            try:
                if not call(a, c_void_p(service)):
                    raise self._failed(f"the service {name}")
            finally:
                a.CloseServiceHandle(c_void_p(service))
        finally:
            a.CloseServiceHandle(c_void_p(manager))

    # Secrets

    def protect(self, data: bytes) -> bytes:
        """`data` sealed by DPAPI for this computer (not for one user: the service is another than who
        installs it; the file's access rights keep others off)."""
        return self._dpapi("CryptProtectData", data, "CloudMount", _LOCAL_MACHINE | _NO_UI)

    def unprotect(self, data: bytes) -> bytes:
        """What was sealed; `CloudMountError` elsewhere, and when it was changed."""
        return self._dpapi("CryptUnprotectData", data, None, _NO_UI)

    def _dpapi(self, name: str, data: bytes, told: str | None, flags: int) -> bytes:
        held = ctypes.create_string_buffer(data, max(1, len(data)))
        given, made = Blob(len(data), ctypes.cast(held, c_void_p)), Blob()
        call = getattr(self._dlls.crypt32, name)
        if not call(byref(given), told, None, None, None, c_uint32(flags), byref(made)):
            raise self._failed("the credentials (DPAPI)")
        try:
            return ctypes.string_at(made.pbData, made.cbData)
        finally:
            ctypes.memset(made.pbData, 0, made.cbData)
            self._dlls.kernel32.LocalFree(c_void_p(made.pbData))
            ctypes.memset(held, 0, len(held))

    def private_folder(self, path: str) -> None:
        """A folder for SYSTEM and administrators only, and so all in it; one that is there becomes so."""
        descriptor = c_void_p()
        a, k = self._dlls.advapi32, self._dlls.kernel32
        if not a.ConvertStringSecurityDescriptorToSecurityDescriptorW(
            PRIVATE, c_uint32(1), byref(descriptor), None
        ):
            raise self._failed(path)
        try:
            attributes = SecurityAttributes(ctypes.sizeof(SecurityAttributes), descriptor, 0)
            if k.CreateDirectoryW(path, byref(attributes)):
                return
            if self._dlls.last_error() != _ALREADY:
                raise self._failed(path)
            if not a.SetFileSecurityW(path, c_uint32(_OWNER | _DACL | _PROTECTED), descriptor):
                raise self._failed(path)
        finally:
            k.LocalFree(descriptor)
