r"""The Windows driver: a `Dir` as a drive letter, through WinFsp and winfspy. Not run on Windows.

Decided here and only here: which WinFsp is needed, how the volume describes itself, who may read it, and
how it begins and ends. The letter is one of the Mount Manager (`\\.\X:`), so that services (Hyper-V's too)
see it; where that is not allowed, one of this logon session only, which is told.

WinFsp - Windows File System Proxy, Copyright (C) Bill Zissimopoulos, https://github.com/winfsp/winfsp,
is used under the exception for free software in its licence.

Threading: WinFsp's own threads call `Operations`; `run` belongs to one thread, the rest to any.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from cloudmount.errors import CloudMountError, TargetExistsError
from cloudmount.mounts import ntstatus
from cloudmount.mounts.bounded import Bounded
from cloudmount.mounts.driver import DriveOptions
from cloudmount.mounts.winfsp import CLUSTER, Operations, filetime
from cloudmount.nodes import Dir
from cloudmount.winnames import UNITS

NOTICE = (
    "WinFsp - Windows File System Proxy, Copyright (C) Bill Zissimopoulos (https://github.com/winfsp/winfsp)"
)
"""To be shown to users: a condition of WinFsp's licence."""
OLDEST = (2, 2)
"""The first with fixes for CVE-2026-3006 and CVE-2026-7162 is 2.2 Beta 2; Beta 1, which has the first one
only, tells the same version."""
THREADS = 64
"""WinFsp's own choice is 4 to 16; so many reads of a dead link would hold up everything."""
SECTOR = 512
IRP_SECONDS = 300
FOLDER_MILLISECONDS = 1000
FOR_EVER = 0xFFFFFFFF
"""As a timeout of file information: only then does the kernel cache content."""
GENERIC_READ_EXECUTE = "FRFX"
PRINCIPALS = ("SY", "BA", "S-1-5-83-0")
"""LocalSystem, administrators, and Hyper-V's virtual machines."""
OWNER_RIGHTS = "OW"
"""Without a word on it, whoever owns the file (administrators) may also change who may."""
UP_SECONDS = 15.0

log = logging.getLogger("cloudmount.mounts")
_stat = os.stat


def descriptor(account: str | None, *, everyone: bool) -> str:
    """The security descriptor of every file (SDDL): reading for the principals, for `account` (the SID of who
    mounts), and for `everyone` who is logged on if asked for; writing for nobody, no inheriting."""
    may = [*PRINCIPALS, OWNER_RIGHTS]
    if account is not None and account not in may:
        may.append(account)
    if everyone:
        may.append("AU")
    return "O:BAG:BAD:P" + "".join(f"(A;;{GENERIC_READ_EXECUTE};;;{who})" for who in may)


def account_sid(run: Callable[..., Any] = subprocess.run) -> str | None:
    """The SID of who runs this, from Windows' own whoami; None when it doesn't tell."""
    program = os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "whoami.exe")
    try:
        done = run([program, "/user", "/fo", "csv", "/nh"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(rb'"(S-1-[0-9]+(?:-[0-9]+)+)"\s*\Z', done.stdout)
    return found[1].decode() if found is not None else None


def volume_params(root: Dir) -> dict[str, Any]:
    """How the volume describes itself (`FSP_FSCTL_VOLUME_PARAMS`)."""
    attr = root.attr()
    return {
        "file_system_name": "NTFS",  # a VHDX on a volume of another name does not attach
        "prefix": "",  # with one it would be a network drive: from those it does not attach either
        "sector_size": SECTOR,
        "sectors_per_allocation_unit": CLUSTER // SECTOR,
        "max_component_length": UNITS,
        "volume_creation_time": filetime(attr.mtime_ns),
        "volume_serial_number": attr.inode & 0xFFFFFFFF,
        "irp_timeout": IRP_SECONDS * 1000,
        "case_sensitive_search": 0,
        "case_preserved_names": 1,
        "unicode_on_disk": 1,
        "persistent_acls": 1,
        "read_only_volume": 1,  # told only; `Operations` refuses
        "um_file_context_is_user_context2": 1,  # a context for each open, not for each path
        "post_cleanup_when_modified_only": 1,
        "file_info_timeout": FOR_EVER,
        "flush_and_purge_on_cleanup": 1,  # a closed file's cache goes, and with it what `latest` was
        "dir_info_timeout_valid": 1,
        "dir_info_timeout": FOLDER_MILLISECONDS,
        "volume_info_timeout_valid": 1,
        "volume_info_timeout": FOLDER_MILLISECONDS,
    }


def require() -> Any:
    """winfspy, on a WinFsp that will do. `CloudMountError` saying what to install."""
    try:
        import winfspy
        import winfspy.plumbing
    except ImportError:
        raise CloudMountError(
            "a drive on Windows needs the Python package winfspy, which there is for Python 3.11 and older;"
            f" this is {sys.version_info[0]}.{sys.version_info[1]}"
        ) from None
    except (RuntimeError, OSError) as error:  # its way to say that WinFsp isn't there
        raise CloudMountError(
            f"a drive needs WinFsp, 2.2 Beta 2 or later (https://winfsp.dev/rel): {error}"
        ) from None
    version = winfspy.plumbing.ffi.new("UINT32*")
    status = winfspy.plumbing.lib.FspVersion(version)
    found = (version[0] >> 16, version[0] & 0xFFFF)
    if status or found < OLDEST:
        raise CloudMountError(
            f"WinFsp here is {found[0]}.{found[1]}, which has known holes (CVE-2026-3006, CVE-2026-7162):"
            " install 2.2 Beta 2 or later (https://winfsp.dev/rel)"
        )
    return winfspy


def _operations(winfspy: Any) -> type[Operations]:
    """`Operations` as winfspy calls them."""
    from winfspy.operations import configure_file_info

    ffi, lib = winfspy.plumbing.ffi, winfspy.plumbing.lib
    base = winfspy.BaseFileSystemOperations

    class Bound(Operations, winfspy.BaseFileSystemOperations):  # type: ignore[misc]  # winfspy has no types
        def __init__(self, *arguments: Any) -> None:
            base.__init__(self)
            Operations.__init__(self, *arguments)

        def ll_open(
            self, file_name: Any, create_options: int, granted_access: int, context: Any, file_info: Any
        ) -> int:
            """With the path as it is; winfspy's own leaves that out."""
            status = base.ll_open(self, file_name, create_options, granted_access, context, file_info)
            path = ffi.from_handle(context[0]).own_path if status == 0 else None
            if path is not None:
                told, name = lib.FspFileSystemGetOpenFileInfo(file_info), path.encode("utf-16-le")
                if len(name) <= told.NormalizedNameSize:
                    ffi.memmove(told.NormalizedName, name, len(name))
                    told.NormalizedNameSize = len(name)
            return int(status)

        def ll_flush(self, file_context: Any, file_info: Any) -> int:
            """That of the whole volume has no file."""
            return 0 if file_context == ffi.NULL else int(base.ll_flush(self, file_context, file_info))

        def ll_get_dir_info_by_name(self, file_context: Any, file_name: Any, dir_info: Any) -> int:
            """winfspy's own tells the name as it was asked for, not as it is."""
            try:
                info = self.get_dir_info_by_name(ffi.from_handle(file_context), ffi.string(file_name))
                name = info["file_name"].encode("utf-16-le")
                configure_file_info(dir_info.FileInfo, **info)
                ffi.memmove(dir_info.FileNameBuf, name, len(name))
                dir_info.Size = ffi.sizeof("FSP_FSCTL_DIR_INFO") + len(name)
            except winfspy.NTStatusError as refused:
                return int(refused.value)
            except BaseException:
                log.exception("look-up")
                return ntstatus.UNEXPECTED_IO_ERROR
            return 0

    return Bound


def _file_system(winfspy: Any) -> Any:
    """winfspy's `FileSystem`, started our way."""
    lib = winfspy.plumbing.lib

    class Volume(winfspy.FileSystem):  # type: ignore[misc]  # winfspy has no types
        def set_mount_point(self, at: str) -> int:
            """The status."""
            return int(lib.FspFileSystemSetMountPoint(self._file_system_ptr[0], at))

        def dispatch(self, threads: int) -> int:
            """Begin to serve; the status. No guard: it would have an open that hangs hold up all others as
            soon as a program asks to create something."""
            pointer = self._file_system_ptr[0]
            null = winfspy.plumbing.ffi.NULL
            lib.FspFileSystemSetOperationGuardF(pointer, null, null)
            status = int(lib.FspFileSystemStartDispatcher(pointer, threads))
            self.started = status == 0
            return status

        def ended_by_itself(self) -> int:
            """Not 0 when WinFsp stopped serving: its driver was unloaded."""
            status = winfspy.plumbing.ffi.new("NTSTATUS*")
            lib.FspFileSystemGetDispatcherResultF(self._file_system_ptr[0], status)
            return int(status[0])

        def delete(self) -> None:
            """When it was never started."""
            lib.FspFileSystemDelete(self._file_system_ptr[0])

    return Volume


class WinFspDrive:
    """A `Dir` at a drive letter (`X:`). A `driver.Drive`; the class is a `driver.Driver`."""

    def __init__(self, root: Dir, mountpoint: str, options: DriveOptions) -> None:
        winfspy = require()
        self.up = threading.Event()
        self._stop = threading.Event()
        self._at = mountpoint
        self._bounded = Bounded()
        # Its handle is valid as long as this is.
        self._descriptor = winfspy.plumbing.SecurityDescriptor.from_string(
            descriptor(account_sid(), everyone=options.allow_other)
        )
        self._operations = _operations(winfspy)(
            root, options.space, tuple(self._descriptor), winfspy.NTStatusError, self._bounded
        )
        try:
            self._volume = _file_system(winfspy)("", self._operations, **volume_params(root))
        except winfspy.WinFSPyError as error:
            raise CloudMountError(f"WinFsp makes no volume: {error}") from None
        try:
            self._mount()
            self._began(self._volume.dispatch(THREADS), "does not begin to serve it")
        except BaseException:
            self._bounded.end()
            self._volume.delete()
            raise

    def _mount(self) -> None:
        status = self._volume.set_mount_point(rf"\\.\{self._at}")
        if status == ntstatus.ACCESS_DENIED:
            log.warning(
                "%s is a drive of this logon session only, which services and Hyper-V don't see:"
                " only an administrator may make one for all",
                self._at,
            )
            status = self._volume.set_mount_point(self._at)
        if status == ntstatus.OBJECT_NAME_COLLISION:
            raise TargetExistsError(f"{self._at} is in use already; choose another letter")
        self._began(status, "can't put it there")

    def _began(self, status: int, what: str) -> None:
        if status:
            raise CloudMountError(f"no drive at {self._at}: WinFsp {what} (NTSTATUS {status:#010x})")

    @property
    def pass_through(self) -> str:
        """Not on Windows."""
        return "no: WinFsp can't"

    def run(self) -> None:
        """Serve until `unmount`, or until WinFsp itself ends it; then close what is open."""
        ended = 0
        try:
            until = time.monotonic() + UP_SECONDS
            while not self._stop.is_set() and not ended:
                if not self.up.is_set() and time.monotonic() < until and self._answers():
                    self.up.set()
                self._stop.wait(0.5 if self.up.is_set() else 0.02)
                ended = self._volume.ended_by_itself()
        finally:
            self._bounded.end()  # WinFsp waits for each of its threads
            self._volume.stop()
            self._operations.end()
        if ended and not self._stop.is_set():
            raise CloudMountError(f"WinFsp ended the drive at {self._at} (NTSTATUS {ended:#010x})")

    def _answers(self) -> bool:
        """Whether the drive can be looked at: requests that come very early are aborted (995, 1005)."""
        try:
            _stat(self._at + "\\")
        except OSError:
            return False
        return True

    def unmount(self) -> None:
        """Have `run` end the drive; what waits for the tree, perhaps `run` itself, waits no more. Safe on
        any thread, and twice."""
        self._stop.set()
        self._bounded.end()

    def waiting(self, seconds: float) -> int:
        """Requests that have waited that long."""
        return self._bounded.waiting(seconds)
