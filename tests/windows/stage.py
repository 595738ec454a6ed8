"""A stage that looks like Windows, for the parts that are pure Python: not Windows.

`python -m tests.windows.stage ROOT` reads command lines (JSON, one list of lists) from standard input, and
runs each in this one process in which `os.name`, `sys.platform`, `os.path` and `pathlib` are Windows', what
Windows has not is missing (modules, calls and flags of `os`, signals, sockets of Unix), and what it does
otherwise is done so: `C:\\x` is ROOT/c/x without regard to case, open files can't be removed or renamed,
read-only files can't be opened for writing, only what is open for writing can be synced, directory entries
tell no inode, locks are bytes that others can't read, links need rights, long paths need `\\\\?\\`, a colon
in a name is an error (it would be a stream). Everything that is imported before is still Linux' own.

It prints one JSON list: for each command its exit code, standard output and error as code page 1252.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import importlib
import io
import json
import ntpath
import os
import pathlib
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any

real = types.SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})
LINUX: dict[str, Any] = {"open": io.open, "fcntl": importlib.import_module("fcntl")}
HERE = [os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, pathlib.Path(__file__).parents[2])]


def _words(text: str) -> list[str]:
    return text.split()


MISSING_IN_OS = _words("""
    getuid geteuid getgid getegid pread preadv pwrite pwritev readv writev mkfifo mknod fchmod fchown
    chown lchown posix_fadvise posix_fallocate fdatasync statvfs fstatvfs setsid fork forkpty killpg
    getpgid setpgid uname sysconf sendfile getloadavg memfd_create nice sync getxattr setxattr listxattr
    removexattr wait wait3 wait4 sched_getaffinity sched_setaffinity sched_yield major minor makedev
    pidfd_open copy_file_range splice eventfd getresuid getgroups register_at_fork lockf pathconf
    fpathconf ctermid chroot fchdir setuid setgid ttyname O_DIRECT O_NONBLOCK O_CLOEXEC O_NOFOLLOW
    O_DIRECTORY O_NOCTTY O_TMPFILE O_ACCMODE O_SYNC O_DSYNC O_PATH O_NOATIME O_NDELAY POSIX_FADV_RANDOM
    SEEK_DATA SEEK_HOLE get_blocking set_blocking posix_spawn
""")
MISSING_SIGNALS = _words("""
    SIGKILL SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGPIPE SIGALRM SIGCHLD SIGURG SIGXCPU SIGTSTP SIGSTOP
    SIGCONT SIG_BLOCK SIG_UNBLOCK SIG_SETMASK pthread_sigmask setitimer alarm pthread_kill sigwait
    siginterrupt
""")
MISSING_MODULES = _words("""
    fcntl termios tty pty pwd grp resource posix cloudmount_native refuse
""")
EARLIER = _words("""
    asyncio azure.storage.blob blake3 cachetools click concurrent.futures
    cryptography.hazmat.primitives.ciphers cryptography.hazmat.primitives.kdf.argon2
    cryptography.hazmat.primitives.kdf.hkdf difflib email.utils fnmatch getpass glob http.client
    ipaddress locale logging mnemonic multiprocessing platform queue rich.console rich.progress secrets
    selectors ssl tempfile threading tomllib unicodedata urllib.request uuid xml.etree.ElementTree
    zoneinfo zstandard
""")


def _there(path: str) -> bool:
    try:
        real.lstat(path)
    except OSError:
        return False
    return True


def _is(kind: Callable[[int], bool], path: str) -> bool:
    try:
        return kind(real.stat(path).st_mode)
    except OSError:
        return False


class Stage:
    """`C:` is the folder ROOT/c; nothing else is there but this Python's own files."""

    def __init__(self, root: str) -> None:
        self.root = real.path.realpath(root) + "/c"
        self.cwd = "C:\\work"
        real.makedirs(self.root + "/work", exist_ok=True)

    def host(self, path: Any) -> Any:
        """Where a path of the stage lies."""
        if isinstance(path, int):
            return path
        text = real.fspath(path)
        assert isinstance(text, str), f"bytes as a path: {text!r}"
        if text.startswith(tuple(HERE)) or text in ("", "/dev/null"):
            return text.replace("\\", "/")
        if text.lower() == "nul":
            return "/dev/null"
        literal = text.startswith("\\\\?\\")
        if literal:
            text = text[4:]
            if "/" in text or ".." in text.split("\\"):
                raise OSError(errno.EINVAL, f"a long path is taken as it is: {text}")
        whole = ntpath.normpath(ntpath.join(self.cwd, text))
        drive, rest = ntpath.splitdrive(whole)
        if drive.upper() != "C:":
            raise FileNotFoundError(errno.ENOENT, "The system cannot find the path specified", text)
        if len(whole) >= 260 and not literal:
            raise FileNotFoundError(errno.ENOENT, "The filename or extension is too long", text)
        place = self.root
        for part in filter(None, rest.split("\\")):
            if any(c in part for c in '<>:"|?*'):
                raise OSError(errno.EINVAL, "The filename syntax is incorrect", text)
            place += "/" + self._spelled(place, part.rstrip(". ") or part)
        return place

    @staticmethod
    def _spelled(folder: str, name: str) -> str:
        """A name as it is there in any case."""
        if not _there(f"{folder}/{name}"):
            with contextlib.suppress(OSError):
                return next((n for n in real.listdir(folder) if n.lower() == name.lower()), name)
        return name


class Entry:
    """`os.DirEntry`, whose status has no inode, device and link count."""

    def __init__(self, entry: os.DirEntry[str], folder: str) -> None:
        self._entry, self.name = entry, entry.name
        self.path = ntpath.join(folder, entry.name)

    def __fspath__(self) -> str:
        return self.path

    def inode(self) -> int:
        return self._entry.inode()

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._entry.is_dir(follow_symlinks=follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._entry.is_file(follow_symlinks=follow_symlinks)

    def is_symlink(self) -> bool:
        return self._entry.is_symlink()

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        told = self._entry.stat(follow_symlinks=follow_symlinks)
        return os.stat_result((told.st_mode, 0, 0, 0, *tuple(told)[4:10]))


def set_up(root: str) -> Stage:
    """From here on everything is Windows, for what is imported later."""
    for name in EARLIER:
        importlib.import_module(name)
    stage = Stage(root)
    _paths(stage)
    _files(stage)
    _locks()
    for name in MISSING_IN_OS:
        if hasattr(os, name):
            delattr(os, name)
    for name in MISSING_SIGNALS:
        if hasattr(signal, name):
            delattr(signal, name)
    signal.SIGBREAK = signal.Signals(21)  # type: ignore[attr-defined]
    for name in MISSING_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    del socket.AF_UNIX
    os.O_BINARY, os.O_NOINHERIT = 0x8000, 0x80  # type: ignore[attr-defined]
    os.supports_fd = {os.stat, os.truncate}
    os.supports_follow_symlinks = {os.stat}
    sys.platform, os.name, os.linesep = "win32", "nt", "\r\n"
    return stage


def _paths(stage: Stage) -> None:
    os.path, os.sep, os.altsep, os.pathsep, os.devnull = ntpath, "\\", "/", ";", "nul"
    os.curdir, os.pardir, os.extsep = ".", "..", "."
    sys.modules["os.path"] = ntpath
    pathlib._windows_flavour.is_supported = True  # type: ignore[attr-defined]

    def absolute(path: Any, *, strict: bool = False) -> str:
        text = real.fspath(path)
        if text.startswith(tuple(HERE)):
            return str(text)
        return ntpath.normpath(text if text.startswith("\\\\") else ntpath.join(stage.cwd, text))

    ntpath.abspath = ntpath.realpath = absolute  # type: ignore[assignment]
    os.getcwd = lambda: stage.cwd
    os.fsencode = lambda name: real.fspath(name).encode("utf-8", "surrogatepass")
    os.fsdecode = lambda name: (
        name.decode("utf-8", "surrogatepass") if isinstance(name, bytes) else real.fspath(name)
    )
    own = "C:\\Users\\me"
    os.environ.update(USERPROFILE=own, LOCALAPPDATA=f"{own}\\AppData\\Local", SYSTEMROOT="C:\\Windows")
    os.environ["PROGRAMDATA"] = "C:\\ProgramData"


def _told(call: Callable[..., Any], stage: Stage, paths: int = 1) -> Callable[..., Any]:
    """`call`, whose first `paths` arguments are paths; errors name those of the stage."""

    def translated(*args: Any, **kwargs: Any) -> Any:
        given = args[:paths]
        kwargs.pop("dir_fd", None)
        try:
            return call(*(stage.host(p) for p in given), *args[paths:], **kwargs)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, *map(str, given[:1])) from None

    return translated


def _files(stage: Stage) -> None:
    for name in ("stat", "lstat", "mkdir", "rmdir", "listdir", "access", "readlink", "truncate"):
        setattr(os, name, _told(getattr(real, name), stage))

    def in_use(path: str) -> bool:
        """Whether this process has it open: others don't meet here."""
        with contextlib.suppress(OSError):
            wanted = real.lstat(path)
            for fd in real.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    if real.path.samestat(real.fstat(int(fd)), wanted):
                        return True
        return False

    def read_only(path: str) -> bool:
        return _is(stat.S_ISREG, path) and not real.stat(path).st_mode & 0o200

    def take(path: str) -> None:
        if in_use(path):
            raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used")
        if read_only(path):
            raise PermissionError(errno.EACCES, "Access is denied")
        real.unlink(path)

    def rename(old: str, new: str) -> None:
        if _there(new) and old.lower() != new.lower():
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists")
        replace(old, new)

    def replace(old: str, new: str) -> None:
        if in_use(old) or in_use(new) or read_only(new):
            raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used")
        real.replace(old, new)

    def opened(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and read_only(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        if _is(stat.S_ISDIR, path):
            raise PermissionError(errno.EACCES, "Permission denied")
        ours = flags & ~(0x8000 | 0x80) | real.O_CLOEXEC
        return int(real.open(path, ours, 0o666 if mode & 0o200 else 0o444))

    def utime(path: Any, times: Any = None, *, ns: Any = None, follow_symlinks: bool = True) -> None:
        if isinstance(path, int):
            raise TypeError("utime: path should be string, bytes or os.PathLike, not int")
        if not follow_symlinks:
            raise NotImplementedError("utime: follow_symlinks unavailable on this platform")
        if read_only(path):
            raise PermissionError(errno.EACCES, "Access is denied")
        real.utime(path, times, ns=ns) if ns is not None else real.utime(path, times)

    def chmod(path: Any, mode: int) -> None:
        if isinstance(path, int):
            raise TypeError("chmod: path should be string, bytes or os.PathLike, not int")
        if _is(stat.S_ISREG, path):
            real.chmod(path, 0o666 if mode & 0o200 else 0o444)

    def fsync(fd: int) -> None:
        if LINUX["fcntl"].fcntl(fd, LINUX["fcntl"].F_GETFL) & 3 == real.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real.fsync(fd)

    def symlink(target: str, path: str, *_: Any) -> None:
        raise OSError(errno.EINVAL, "A required privilege is not held by the client")

    @contextlib.contextmanager
    def scandir(path: Any = ".") -> Iterator[Iterator[Entry]]:
        given = real.fspath(path)
        with real.scandir(stage.host(given)) as entries:
            yield (Entry(e, given) for e in entries)

    for name, call in {
        "unlink": take, "remove": take, "open": opened, "utime": utime, "chmod": chmod,
    }.items():  # fmt: skip
        setattr(os, name, _told(call, stage))
    for name, call in {"rename": rename, "replace": replace, "link": real.link}.items():
        setattr(os, name, _told(call, stage, 2))
    os.fsync, os.symlink, os.scandir = fsync, symlink, scandir  # type: ignore[assignment]

    def open_file(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        place = stage.host(file)
        if not isinstance(place, int) and set(mode) & set("wax+") and read_only(place):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return LINUX["open"](place, mode, *args, **kwargs)

    io.open = builtins.open = open_file
    connect = sqlite3.connect
    sqlite3.connect = lambda path, **more: connect(  # type: ignore[assignment]
        path if path == ":memory:" else stage.host(path), **more
    )
    start = subprocess.Popen.__init__

    def usage(path: Any) -> Any:
        told = real.statvfs(stage.host(path))
        total, free = told.f_blocks * told.f_frsize, told.f_bavail * told.f_frsize
        return shutil._ntuple_diskusage(total, total - free, free)  # type: ignore[attr-defined]

    shutil.disk_usage = usage

    def temporary(*, dir: Any, **_: Any) -> Any:
        return LINUX["open"](real.open(stage.host(dir), real.O_TMPFILE | real.O_RDWR), "w+b")

    tempfile.TemporaryFile = temporary  # type: ignore[assignment]

    def popen(self: Any, *args: Any, cwd: Any = None, **kwargs: Any) -> None:
        start(self, *args, cwd=stage.host(cwd) if cwd is not None else None, **kwargs)

    subprocess.Popen.__init__ = popen  # type: ignore[method-assign]
    subprocess.Popen.kill = lambda self: real.kill(self.pid, 9)  # type: ignore[method-assign]


def _locks() -> None:
    """`msvcrt`: a lock of one byte; and what kernel32 tells of processes."""

    def locking(fd: int, mode: int, count: int) -> None:
        assert count == 1 and real.lseek(fd, 0, 1) > 1 << 30, "a byte that is read can't be locked"
        if mode == 0:
            LINUX["fcntl"].flock(fd, LINUX["fcntl"].LOCK_UN)
            return
        try:
            LINUX["fcntl"].flock(fd, LINUX["fcntl"].LOCK_EX | LINUX["fcntl"].LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    made: Any = types.ModuleType("msvcrt")
    made.locking, made.LK_UNLCK, made.LK_NBLCK = locking, 0, 2
    sys.modules["msvcrt"] = made

    class Kernel32:
        """Processes by /proc; a handle is the process's id."""

        def __init__(self, name: str, **_: Any) -> None:
            assert name == "kernel32"
            self.OpenProcess = types.SimpleNamespace()
            self.OpenProcess = _Call(lambda access, inherit, pid: pid.value if self._there(pid.value) else 0)

        @staticmethod
        def _there(pid: int) -> bool:
            return _there(f"/proc/{pid}/stat")

        def GetExitCodeProcess(self, handle: Any, code: Any) -> int:
            code._obj.value = 259 if self._there(handle.value) else 0
            return 1

        def GetProcessTimes(self, handle: Any, *times: Any) -> int:
            with LINUX["open"](f"/proc/{handle.value}/stat") as file:
                times[0]._obj.value = int(file.read().rpartition(")")[2].split()[19])
            return 1

        def CloseHandle(self, handle: Any) -> int:
            return 1

    ctypes.WinDLL = Kernel32  # type: ignore[attr-defined]


class _Call:
    """A function of a library, whose result type may be set."""

    def __init__(self, call: Callable[..., int]) -> None:
        self._call, self.restype = call, None

    def __call__(self, *args: Any) -> int:
        return self._call(*args)


def main() -> None:
    """Run the commands."""
    commands = json.load(sys.stdin)
    stage = set_up(sys.argv[1])
    from cloudmount.cli.main import run
    from cloudmount.system import stream_encoding

    told = []
    out, error = sys.stdout, sys.stderr
    for arguments in commands:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="") for _ in range(2)]
        for stream in streams:
            encoding, errors = stream_encoding(stream)
            stream.reconfigure(encoding=encoding, errors=errors)
        sys.stdout, sys.stderr = streams
        try:
            code = run(arguments)
        finally:
            sys.stdout, sys.stderr = out, error
        said = []
        for stream in streams:
            stream.flush()
            said.append(stream.buffer.getvalue().decode("cp1252"))  # type: ignore[attr-defined]
        told.append([code, *said])
    assert stat.S_ISDIR(real.stat(stage.root).st_mode)
    real.write(1, json.dumps(told).encode())
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
