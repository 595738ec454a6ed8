"""What differs between operating systems under the parts that are pure Python.

Decided here and only here: flags and calls that one system has and another has not, when a process is still
the one that was meant, where what is kept lies, which names and paths a system can hold, and how a stream
shows what its encoding lacks. Everything else asks here instead of asking `sys.platform`. Written for Windows
from its documentation, and **not run on Windows**. Standard library only.

Threading: any thread; `pread` and `pwrite` of one descriptor wait for each other where a system has no such
calls.
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import locale
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cloudmount.winnames import UNITS, escape

WINDOWS = sys.platform == "win32"

# Files

OPEN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Flags that every `os.open` takes: not for children, and bytes as they are."""
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""A link in the last component is an error; Windows follows it, but `O_EXCL` doesn't."""
TIMES_BY_DESCRIPTOR = os.utime in os.supports_fd
"""Windows sets times by path, and those of a file that was written once more when it is closed."""
TIMES_OF_LINKS = os.utime in os.supports_follow_symlinks
TAKEN_AWAY_OPEN = not WINDOWS
"""Whether an open file can be removed or renamed."""
DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
_SEEKING = tuple(threading.Lock() for _ in range(64))
_LOCKED_BYTE = (1 << 31) - 2
"""Windows' locks keep others from reading what is locked: so a byte that no file of ours reaches."""


def pread(fd: int, length: int, offset: int) -> bytes:
    """At most `length` bytes from `offset`, as `os.pread`. Where there is none the descriptor's position
    moves: nobody may rely on it."""
    if hasattr(os, "pread"):
        return os.pread(fd, length, offset)
    with _SEEKING[fd % len(_SEEKING)]:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)


def pwrite(fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
    """How many bytes of `data` were written at `offset`, as `os.pwrite`."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _SEEKING[fd % len(_SEEKING)]:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def sync_file(fd: int) -> None:
    """Bring an open file's bytes to the disk, also through its own cache (macOS needs asking)."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # not every file system there has it
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def sync_named(path: str | os.PathLike[str]) -> None:
    """Bring the bytes of a file, written before, to the disk; one whose mode forbids opening it is left."""
    try:
        # Windows syncs only what is open for writing.
        fd = os.open(path, (os.O_RDWR if WINDOWS else os.O_RDONLY) | OPEN)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Bring a folder's names to the disk. Windows journals them and has no such call."""
    if WINDOWS:
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | OPEN)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # some network and FUSE file systems sync names at once
            raise
    finally:
        os.close(fd)


def set_times(place: str | os.PathLike[str] | int, mtime_ns: int, *, link: bool = False) -> None:
    """Give a file, by path or (`TIMES_BY_DESCRIPTOR`) descriptor, its time; a `link`'s own is left where it
    can't be set."""
    if not link:
        os.utime(place, ns=(mtime_ns, mtime_ns))
    elif TIMES_OF_LINKS:
        os.utime(place, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def full_status(entry: os.DirEntry[str]) -> os.stat_result:
    """What `entry.stat(follow_symlinks=False)` tells; Windows' knows no inode, device and link count."""
    return os.lstat(opened_path(entry.path)) if WINDOWS else entry.stat(follow_symlinks=False)


def try_lock(fd: int) -> bool:
    """Lock the open file if nobody else has; False when somebody has. Ends when `fd` is closed."""
    try:
        if sys.platform == "win32":
            _lock_byte(fd, "LK_NBLCK")
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def unlock(fd: int) -> None:
    """End a lock."""
    if sys.platform == "win32":
        _lock_byte(fd, "LK_UNLCK")
    else:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_UN)


def _lock_byte(fd: int, how: str) -> None:
    import msvcrt

    calls: Any = msvcrt
    with _SEEKING[fd % len(_SEEKING)]:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        calls.locking(fd, getattr(calls, how), 1)


# Processes

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
"""What ends a process at once; Windows' `os.kill` does with any signal."""
ENDING = tuple(
    getattr(signal, name)
    for name in (("SIGINT", "SIGTERM", "SIGBREAK") if WINDOWS else ("SIGINT", "SIGTERM"))
    if hasattr(signal, name)
)
"""Signals that ask a command to end: SIGBREAK is Ctrl-Break, and a console window that is closed."""


def is_root() -> bool:
    """Whether this process may give files to others; never on Windows, whose owners are no numbers."""
    return not WINDOWS and os.geteuid() == 0


def process_start(pid: int) -> int:
    """When a process was started, in a unit of its system; 0 when it has ended, also when nobody asked for
    its exit code yet. Linux: clock ticks after boot (proc(5), field 22). Windows: FILETIME."""
    if WINDOWS:
        return _windows_start(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


def kernel32() -> Any:
    """Windows' kernel32.dll, for `ctypes`."""
    return getattr(ctypes, "WinDLL")("kernel32", use_last_error=True)  # noqa: B009  # mypy knows none


def _windows_start(pid: int) -> int:
    k = kernel32()
    k.OpenProcess.restype = ctypes.c_void_p
    handle = k.OpenProcess(0x1000, 0, ctypes.c_uint32(pid))  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return 0
    try:
        code = ctypes.c_uint32()
        times = [ctypes.c_uint64() for _ in range(4)]  # creation, exit, kernel, user
        if not k.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code)) or code.value != 259:
            return 0  # 259: STILL_ACTIVE
        if not k.GetProcessTimes(ctypes.c_void_p(handle), *map(ctypes.byref, times)):
            return 0
        return times[0].value
    finally:
        k.CloseHandle(ctypes.c_void_p(handle))


# Where what is kept lies

_SERVICE_PROFILES = re.compile(r"\\(systemprofile|serviceprofiles)(\\|$)", re.IGNORECASE)


def kept_below(variable: str, default: str, environ: Mapping[str, str]) -> str:
    """The folder in which ours is made: that of the XDG `variable`, else `default` below the home folder; on
    Windows %LOCALAPPDATA%, and %PROGRAMDATA% for services."""
    named = environ.get(variable, "")
    if os.path.isabs(named):  # the XDG specification: a relative one is ignored
        return named
    if not WINDOWS:
        return os.path.join(os.path.expanduser("~"), default)
    own = environ.get("LOCALAPPDATA", "")
    shared = environ.get("PROGRAMDATA", "")
    if shared and (not own or _SERVICE_PROFILES.search(own)):
        return shared
    return own or os.path.join(os.path.expanduser("~"), "AppData", "Local")


# Names and paths

_PRIVATE = re.compile("[\uf000-\uf0ff]")
"""What the drive writes other characters as (`winnames`); in names as they are kept, they are themselves."""
_LONG = 240
"""Characters after which a Windows path is given in its long form: folders may have 247, files 259."""
_A_WINDOWS_PATH = re.compile(r"[A-Za-z]:([\\/]|$)|\\\\")


def name_bytes(name: str) -> bytes:
    """A name as its bytes in a repository (FORMAT.md), whatever this system's own encoding is."""
    return name.encode("utf-8", "surrogateescape")


def stored_name(name: str) -> str:
    """A name as the system lists it, as it is kept: half a surrogate pair, which Windows has in names,
    becomes three bytes that are no UTF-8 (WTF-8)."""
    return name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape") if WINDOWS else name


def windows_refuses(name: str) -> str | None:
    """Why Windows can't hold a file of this name; None when it can. A colon would name a stream of another
    file, a backslash another folder, `NUL` a device. Which those are, `winnames` knows."""
    if not name or name in (".", "..") or "\0" in name or "/" in name:
        return "no name for a file"
    plain = _PRIVATE.sub("_", name)
    if escape(plain) != plain:
        return "Windows can't hold this name, or would take it for another's or a device's"
    if len(name.encode("utf-16-le", "surrogatepass")) > 2 * UNITS:
        return f"Windows can't hold names of more than {UNITS} characters"
    return None


def windows_name(name: str) -> str | None:
    """A name as a copy on Windows has it: as it is where Windows can hold it, else as the drive shows it
    (`winnames`); None for those that are too long even so, and for what is no name."""
    if windows_refuses(name) is None:
        return name
    if not name or name in (".", "..") or "\0" in name or "/" in name:
        return None
    shown = escape(name)
    return shown if windows_refuses(shown) is None else None


def held(below: str) -> str | None:
    """A path of a snapshot, relative, with `/`, as copies on this system have it; None when it can't be."""
    if not WINDOWS:
        return below
    parts = [windows_name(part) for part in below.split("/")]
    return None if None in parts else "/".join(filter(None, parts))


def refused(below: str) -> str | None:
    """Why this system can't hold a path of a snapshot, relative, with `/`, under any name (`held`); None when
    its file system will be asked."""
    if not WINDOWS:
        return None
    return next((windows_refuses(part) for part in below.split("/") if windows_name(part) is None), None)


def long_path(path: str) -> str:
    r"""A path as it can be given to the system whatever its length: on Windows absolute, with `\\?\` before
    it when it is long, or when what is made below it may be. Unchanged elsewhere."""
    if not WINDOWS or path.startswith(("\\\\?\\", "\\\\.\\")):
        return path
    whole = os.path.abspath(path)
    if whole.startswith("\\\\"):
        return "\\\\?\\UNC\\" + whole[2:]
    return "\\\\?\\" + whole


def opened_path(path: str) -> str:
    """`long_path` only where it has to be: for paths below which nothing longer is made."""
    if not WINDOWS or len(os.path.abspath(path)) < _LONG:
        return path
    return long_path(path)


def shown_path(text: str) -> str:
    r"""Text in which paths have been made long, as people write them."""
    if not WINDOWS:
        return text
    return text.replace("\\\\?\\UNC\\", "\\\\").replace("\\\\?\\", "")


def is_separator_end(path: str) -> bool:
    """Whether a path was written with a separator at its end."""
    return path.endswith(tuple(filter(None, (os.sep, os.altsep))))


def typed_path(path: str) -> str:
    r"""A path inside a snapshot as it was typed, with the `/` that all have: Windows' people type `\`."""
    return path.replace("\\", "/") if WINDOWS else path


def means_this_computer(text: str) -> bool:
    r"""Whether what should be `SNAPSHOT:PATH` looks like a path of Windows' (`C:\x`, `\\server\share`)."""
    return _A_WINDOWS_PATH.match(text) is not None


# Streams


def stream_encoding(stream: Any) -> tuple[str, str]:
    """The encoding for a text stream of ours, and what happens to what it lacks: nothing shown ever raises
    UnicodeEncodeError."""
    if WINDOWS:
        # A console takes UTF-8 whatever its code page is; a pipe or file gets that of the system.
        return str(getattr(stream, "encoding", None) or "utf-8"), "backslashreplace"
    encoding = codecs.lookup(locale.getencoding()).name
    if encoding == "ascii":  # the locale C, as in cron: who set no locale, as Python sees it
        encoding = "utf-8"
    return encoding, "surrogateescape" if encoding == "utf-8" else "backslashreplace"


def text_of_file(data: bytes) -> str:
    """The text of a small file: UTF-8, other bytes kept. On Windows also what its editors and PowerShell's
    `>` make of it: marked UTF-8 and UTF-16. Keys of random bytes stay what they are elsewhere."""
    if WINDOWS:
        for mark, codec in ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16")):
            if data.startswith(mark):
                with suppress(UnicodeDecodeError):
                    text = data.decode(codec)
                    if text.removesuffix("\n").removesuffix("\r").isprintable():
                        return text
    return data.decode("utf-8", "surrogateescape")
