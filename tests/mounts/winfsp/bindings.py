"""A stand-in for what winfspy is compiled against: `_bindings`, the registry, and the search for DLLs.

winfspy's own Python layer, from its Windows wheel, runs over it unchanged. WCHAR is `char16_t`, and
functions of the DLL are Python's; those with a volume behind them are asked of `machine.Machine`. Written
after winfspy's `winfsp.cdef.h` and WinFsp's headers; structures have the sizes that those assert.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cffi

WHEEL = Path(sys.prefix) / "winfspy-windows"
"""Unpacked by scripts/setup.sh."""

_TYPES = """
typedef uint8_t UINT8, BOOLEAN; typedef uint16_t UINT16; typedef uint32_t UINT32, ULONG, NTSTATUS, DWORD;
typedef uint64_t UINT64, SIZE_T; typedef char16_t WCHAR; typedef WCHAR *PWSTR;
typedef void VOID, *PVOID; typedef uint32_t *PULONG, *PUINT32, SECURITY_INFORMATION;
typedef struct { uint8_t bytes[20]; ...; } SECURITY_DESCRIPTOR;
typedef SECURITY_DESCRIPTOR *PSECURITY_DESCRIPTOR; typedef SIZE_T *PSIZE_T;
typedef struct { UINT32 Information; UINT32 Status; } IO_STATUS_BLOCK, *PIO_STATUS_BLOCK;
typedef struct { UINT64 TotalSize, FreeSize; UINT16 VolumeLabelLength; WCHAR VolumeLabel[32]; }
    FSP_FSCTL_VOLUME_INFO;
typedef struct { UINT32 FileAttributes, ReparseTag; UINT64 AllocationSize, FileSize, CreationTime,
    LastAccessTime, LastWriteTime, ChangeTime, IndexNumber; UINT32 HardLinks, EaSize; } FSP_FSCTL_FILE_INFO;
typedef struct { FSP_FSCTL_FILE_INFO FileInfo; PWSTR NormalizedName; UINT16 NormalizedNameSize; }
    FSP_FSCTL_OPEN_FILE_INFO;
typedef struct { UINT16 Size; FSP_FSCTL_FILE_INFO FileInfo; UINT8 Padding[24]; WCHAR FileNameBuf[]; }
    FSP_FSCTL_DIR_INFO;
typedef struct { UINT16 Version; uint8_t bytes[502]; } FSP_FSCTL_VOLUME_PARAMS;
typedef struct _FSP_FILE_SYSTEM { UINT16 Version; PVOID UserContext; } FSP_FILE_SYSTEM;
typedef struct {
 NTSTATUS (*GetVolumeInfo)(FSP_FILE_SYSTEM *, FSP_FSCTL_VOLUME_INFO *);
 NTSTATUS (*SetVolumeLabel)(FSP_FILE_SYSTEM *, PWSTR, FSP_FSCTL_VOLUME_INFO *);
 NTSTATUS (*GetSecurityByName)(FSP_FILE_SYSTEM *, PWSTR, PUINT32, PSECURITY_DESCRIPTOR, SIZE_T *);
 NTSTATUS (*Create)(FSP_FILE_SYSTEM *, PWSTR, UINT32, UINT32, UINT32, PSECURITY_DESCRIPTOR, UINT64, PVOID *,
    FSP_FSCTL_FILE_INFO *);
 NTSTATUS (*Open)(FSP_FILE_SYSTEM *, PWSTR, UINT32, UINT32, PVOID *, FSP_FSCTL_FILE_INFO *);
 NTSTATUS (*Overwrite)(FSP_FILE_SYSTEM *, PVOID, UINT32, BOOLEAN, UINT64, FSP_FSCTL_FILE_INFO *);
 VOID (*Cleanup)(FSP_FILE_SYSTEM *, PVOID, PWSTR, ULONG);
 VOID (*Close)(FSP_FILE_SYSTEM *, PVOID);
 NTSTATUS (*Read)(FSP_FILE_SYSTEM *, PVOID, PVOID, UINT64, ULONG, PULONG);
 NTSTATUS (*Write)(FSP_FILE_SYSTEM *, PVOID, PVOID, UINT64, ULONG, BOOLEAN, BOOLEAN, PULONG,
    FSP_FSCTL_FILE_INFO *);
 NTSTATUS (*Flush)(FSP_FILE_SYSTEM *, PVOID, FSP_FSCTL_FILE_INFO *);
 NTSTATUS (*GetFileInfo)(FSP_FILE_SYSTEM *, PVOID, FSP_FSCTL_FILE_INFO *);
 NTSTATUS (*SetBasicInfo)(FSP_FILE_SYSTEM *, PVOID, UINT32, UINT64, UINT64, UINT64, UINT64,
    FSP_FSCTL_FILE_INFO *);
 NTSTATUS (*SetFileSize)(FSP_FILE_SYSTEM *, PVOID, UINT64, BOOLEAN, FSP_FSCTL_FILE_INFO *);
 NTSTATUS (*CanDelete)(FSP_FILE_SYSTEM *, PVOID, PWSTR);
 NTSTATUS (*Rename)(FSP_FILE_SYSTEM *, PVOID, PWSTR, PWSTR, BOOLEAN);
 NTSTATUS (*GetSecurity)(FSP_FILE_SYSTEM *, PVOID, PSECURITY_DESCRIPTOR, SIZE_T *);
 NTSTATUS (*SetSecurity)(FSP_FILE_SYSTEM *, PVOID, SECURITY_INFORMATION, PSECURITY_DESCRIPTOR);
 NTSTATUS (*ReadDirectory)(FSP_FILE_SYSTEM *, PVOID, PWSTR, PWSTR, PVOID, ULONG, PULONG);
 NTSTATUS (*ResolveReparsePoints)(FSP_FILE_SYSTEM *, PWSTR, UINT32, BOOLEAN, PIO_STATUS_BLOCK, PVOID,
    PSIZE_T);
 NTSTATUS (*GetReparsePoint)(FSP_FILE_SYSTEM *, PVOID, PWSTR, PVOID, PSIZE_T);
 NTSTATUS (*SetReparsePoint)(FSP_FILE_SYSTEM *, PVOID, PWSTR, PVOID, SIZE_T);
 NTSTATUS (*DeleteReparsePoint)(FSP_FILE_SYSTEM *, PVOID, PWSTR, PVOID, SIZE_T);
 NTSTATUS (*GetStreamInfo)(FSP_FILE_SYSTEM *, PVOID, PVOID, ULONG, PULONG);
 NTSTATUS (*GetDirInfoByName)(FSP_FILE_SYSTEM *, PVOID, PWSTR, FSP_FSCTL_DIR_INFO *);
 NTSTATUS (*Control)(FSP_FILE_SYSTEM *, PVOID, UINT32, PVOID, ULONG, PVOID, ULONG, PULONG);
 NTSTATUS (*SetDelete)(FSP_FILE_SYSTEM *, PVOID, PWSTR, BOOLEAN);
} FSP_FILE_SYSTEM_INTERFACE;
""".replace(" ...; ", " ")

_CREATE_OPTIONS = {
    "DIRECTORY_FILE": 0x1, "WRITE_THROUGH": 0x2, "SEQUENTIAL_ONLY": 0x4, "NO_INTERMEDIATE_BUFFERING": 0x8,
    "SYNCHRONOUS_IO_ALERT": 0x10, "SYNCHRONOUS_IO_NONALERT": 0x20, "NON_DIRECTORY_FILE": 0x40,
    "CREATE_TREE_CONNECTION": 0x80, "COMPLETE_IF_OPLOCKED": 0x100, "NO_EA_KNOWLEDGE": 0x200,
    "RANDOM_ACCESS": 0x800, "DELETE_ON_CLOSE": 0x1000, "OPEN_BY_FILE_ID": 0x2000,
    "OPEN_FOR_BACKUP_INTENT": 0x4000, "OPEN_REQUIRING_OPLOCK": 0x10000, "RESERVE_OPFILTER": 0x100000,
    "OPEN_REPARSE_POINT": 0x200000,
}  # fmt: skip


class _FFI(cffi.FFI):
    """With what only a compiled module has: `def_extern`."""

    lib: Lib

    def def_extern(self) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """The function becomes `lib`'s, as a C function of the interface's type."""

        def declared(function: Callable[..., Any]) -> Callable[..., Any]:
            name = function.__name__
            setattr(self.lib, name, self.callback(self.lib.signatures[name], function))
            return function

        return declared


class Lib:
    """The DLL's functions and winfspy's constants. `machine` is asked for what needs a volume."""

    WFSPY_FSP_FSCTL_DISK_DEVICE_NAME = "WinFsp.Disk"
    WFSPY_FSP_FSCTL_NET_DEVICE_NAME = "WinFsp.Net"
    WFSPY_FILE_ATTRIBUTE_INVALID_FILE_ATTRIBUTES = 0xFFFFFFFF
    WFSPY_STRING_SECURITY_DESCRIPTOR_REVISION = 1

    def __init__(self, ffi: _FFI) -> None:
        self._ffi = ffi
        for name, value in _CREATE_OPTIONS.items():
            setattr(self, f"WFSPY_FILE_{name}", value)
        fields = dict(ffi.typeof("FSP_FILE_SYSTEM_INTERFACE").fields)
        self.signatures = {f"_trampolin_fs_{name}": field.type for name, field in fields.items()}
        self.descriptors: dict[Any, Any] = {}
        self.freed: list[Any] = []
        self.volume_params: dict[Any, dict[str, Any]] = {}
        self.machine: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("Fsp"):
            return getattr(self.machine, name)
        raise AttributeError(name)

    def configure_FSP_FSCTL_VOLUME_PARAMS(self, pointer: Any, *values: Any) -> None:
        """Kept as they are; winfspy's compiled module writes bit fields."""
        factory = sys.modules["winfspy.file_system"]._volume_params_factory
        self.volume_params[pointer] = dict(zip(inspect.signature(factory).parameters, values, strict=True))

    def ConvertStringSecurityDescriptorToSecurityDescriptorW(
        self, text: str, revision: int, handle: Any, size: Any
    ) -> int:
        """A block of memory of a plausible size that ends with the text itself."""
        assert revision == 1
        content = b"\x01\0\x04\x80" + bytes(16) + text.encode("utf-16-le")
        memory = self._ffi.new("uint8_t[]", content)
        handle[0] = self._ffi.cast("SECURITY_DESCRIPTOR*", memory)
        size[0] = len(content)
        self.descriptors[handle[0]] = memory
        return 1

    def LocalFree(self, handle: Any) -> None:
        """Noted: what uses it later would read freed memory."""
        self.freed.append(handle)

    def FspFileSystemGetOpenFileInfo(self, info: Any) -> Any:
        """What a file's information lies at the start of."""
        return self._ffi.cast("FSP_FSCTL_OPEN_FILE_INFO*", info)

    def FspFileSystemAddDirInfo(self, entry: Any, buffer: Any, length: int, transferred: Any) -> int:
        """As the DLL's: entries at multiples of 8, two bytes of zeros at the end; 0 when it doesn't fit."""
        end = entry == self._ffi.NULL
        size = 2 if end else entry.Size
        room = 2 if end else -(-size // 8) * 8
        if transferred[0] + room > length:
            return 0
        at = self._ffi.cast("char*", buffer) + transferred[0]
        self._ffi.memmove(at, b"\0\0" if end else self._ffi.cast("char*", entry), size)
        transferred[0] += room
        return 1


class _Key:
    def __enter__(self) -> _Key:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _registry(folder: Path) -> types.ModuleType:
    """`winreg`, with where WinFsp is installed."""
    module = types.ModuleType("winreg")
    vars(module).update(
        HKEY_LOCAL_MACHINE=0, KEY_READ=1, KEY_WOW64_32KEY=2,
        OpenKey=lambda *_: _Key(), QueryValueEx=lambda *_: (str(folder), 1),
    )  # fmt: skip
    return module


_loaded: dict[str, types.ModuleType] = {}


def _load(folder: Path) -> None:
    """Import winfspy once for this process."""
    assert WHEEL.is_dir(), f"{WHEEL} is missing: 'make setup' brings it"
    (folder / "bin").mkdir(parents=True)
    ffi = _FFI()
    ffi.cdef(_TYPES)
    ffi.lib = lib = Lib(ffi)
    compiled = types.ModuleType("winfspy.plumbing._bindings")
    vars(compiled).update(ffi=ffi, lib=lib)
    before = dict(os.environ), ctypes.util.find_library, list(sys.path)
    sys.modules["winreg"] = _registry(folder)
    sys.modules["winfspy.plumbing._bindings"] = compiled
    os.add_dll_directory = lambda path: None  # type: ignore[attr-defined]  # Windows' own
    ctypes.util.find_library = lambda name: name
    sys.path.insert(0, str(WHEEL))
    try:
        importlib.import_module("winfspy")
        _loaded.update({n: m for n, m in sys.modules.items() if n == "winreg" or n.startswith("winfspy")})
    finally:
        ctypes.util.find_library = before[1]
        del os.add_dll_directory  # type: ignore[attr-defined]
        sys.path[:] = before[2]
        os.environ.clear()
        os.environ.update(before[0])
        for name in [n for n in sys.modules if n == "winreg" or n.startswith("winfspy")]:
            del sys.modules[name]


@contextlib.contextmanager
def winfspy_here(machine: Any, folder: Path) -> Iterator[Any]:
    """winfspy can be imported, over `machine`; `folder` may be used once."""
    if not _loaded:
        _load(folder)
    lib = _loaded["winfspy.plumbing._bindings"].lib
    sys.modules.update(_loaded)
    lib.machine = machine
    machine.ffi, machine.lib = lib._ffi, lib
    try:
        yield _loaded["winfspy"]
    finally:
        for name in _loaded:
            sys.modules.pop(name, None)
        lib.machine = None
        lib.volume_params.clear()
        lib.descriptors.clear()
        lib.freed.clear()
