"""libfuse 2 as `refuse` declares it: a session on /dev/fuse whose requests call Python.

Decided here and only here: how libfuse is loaded, mounted and read from. `refuse`
(unmaintained since 2020) brings the library, the structures of each platform and the table
of low-level operations; its two classes are not used, because
- `refuse.high.FUSE` answers whatever is not an `OSError` with EINVAL, decodes names
  strictly, has one timeout for all names, and can't end a request whose caller was killed;
- `refuse.low.FUSELL` has one thread and no mount options, and knows Linux's `stat` only on
  x86 and 32-bit machines; `refuse.high`'s is right on aarch64 too, but both end 24 or 8 bytes
  early, so the timeouts behind it in `fuse_entry_param` arrived as zeros.

Threading: `Session.run` reads requests on Python threads, one more than are busy, so a slow
one never delays the next. libfuse's own loop is as quick (22,000 to 27,000 random 4 KiB reads a
second for one reader, 13,000 to 15,000 for 16, on 2 cores), but it makes and drops a Python
thread state for each request, and with it every `threading.local` of the readers below, it has
no bound, and it is not back before every request is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cloudmount.errors import CloudMountError

MAX_THREADS = 512
"""Requests worked on at once; more wait in the kernel. A thread that waits for the store costs
about 200 KiB."""
_IDLE_THREADS = 4

_PACKAGE = "libfuse2" if sys.platform.startswith("linux") else "macFUSE"


class _Buffer(ctypes.Structure):
    """`struct fuse_buf` of libfuse 2.9."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("mem", ctypes.c_void_p),
        ("fd", ctypes.c_int),
        ("pos", ctypes.c_longlong),
    )


def load() -> Libfuse:
    """libfuse with its calls declared. `CloudMountError` naming the package when it is missing."""
    try:
        from refuse import high, low
    except OSError as e:
        raise CloudMountError(
            f"a drive needs libfuse 2, which is not installed here ({e}): install the package {_PACKAGE}"
        ) from e
    return Libfuse(high, low)


class Libfuse:
    """The calls and structures of libfuse that the driver uses."""

    def __init__(self, high: Any, low: Any) -> None:
        lib = ctypes.CDLL(high.get_fuse_libfile(), use_errno=True)
        request, pointer, text, size = (
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_size_t,
        )

        def declare(name: str, result: Any, *arguments: Any) -> Any:
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
            return function

        self.stat: Any = _whole_stat(high.c_stat)
        self.statvfs: Any = high.c_statvfs
        self.file_info: Any = low.fuse_file_info
        self.operations: Any = low.fuse_lowlevel_ops
        self.arguments: Any = low.fuse_args

        class Entry(ctypes.Structure):
            """`struct fuse_entry_param`, with the `stat` that is right on this machine."""

            _fields_ = (
                ("ino", ctypes.c_ulong),
                ("generation", ctypes.c_ulong),
                ("attr", self.stat),
                ("attr_timeout", ctypes.c_double),
                ("entry_timeout", ctypes.c_double),
            )

        self.entry: Any = Entry
        self.mount = declare("fuse_mount", pointer, text, pointer)
        self.unmount = declare("fuse_unmount", None, text, pointer)
        self.session_new = declare("fuse_lowlevel_new", pointer, pointer, pointer, size, pointer)
        self.session_add_chan = declare("fuse_session_add_chan", None, pointer, pointer)
        self.session_remove_chan = declare("fuse_session_remove_chan", None, pointer)
        self.session_destroy = declare("fuse_session_destroy", None, pointer)
        self.session_exited = declare("fuse_session_exited", ctypes.c_int, pointer)
        self.session_exit = declare("fuse_session_exit", None, pointer)
        self.chan_fd = declare("fuse_chan_fd", ctypes.c_int, pointer)
        self.chan_bufsize = declare("fuse_chan_bufsize", size, pointer)
        self.chan_destroy = declare("fuse_chan_destroy", None, pointer)
        self.receive = declare("fuse_session_receive_buf", ctypes.c_int, pointer, pointer, pointer)
        self.process = declare("fuse_session_process_buf", None, pointer, pointer, pointer)
        self.req_ctx = declare("fuse_req_ctx", ctypes.POINTER(low.fuse_ctx), request)
        self.reply_err = declare("fuse_reply_err", ctypes.c_int, request, ctypes.c_int)
        self.reply_none = declare("fuse_reply_none", None, request)
        self.reply_entry = declare("fuse_reply_entry", ctypes.c_int, request, pointer)
        self.reply_attr = declare("fuse_reply_attr", ctypes.c_int, request, pointer, ctypes.c_double)
        self.reply_readlink = declare("fuse_reply_readlink", ctypes.c_int, request, text)
        self.reply_open = declare("fuse_reply_open", ctypes.c_int, request, pointer)
        self.reply_buf = declare("fuse_reply_buf", ctypes.c_int, request, text, size)
        self.reply_statfs = declare("fuse_reply_statfs", ctypes.c_int, request, pointer)
        self.opt_free_args = declare("fuse_opt_free_args", None, pointer)

    def args(self, options: Iterable[str]) -> Any:
        """`struct fuse_args` of a program with `-o options`."""
        words = [b"cloudmount", b"-o", ",".join(options).encode()]
        return self.arguments(len(words), (ctypes.c_char_p * len(words))(*words), 0)


def _whole_stat(declared: Any) -> Any:
    """`struct stat` with the reserved words at its end, which `refuse` leaves out on Linux."""
    if not sys.platform.startswith("linux"):
        return declared
    machine = platform.machine()
    size = {"x86_64": 144, "aarch64": 128}.get(machine, 0)
    if not size:
        raise CloudMountError(f"the refuse driver runs on x86_64 and aarch64, not on {machine}")

    class Stat(declared):  # type: ignore[misc]  # refuse has no types
        _fields_ = (("reserved", ctypes.c_byte * (size - ctypes.sizeof(declared))),)

    return Stat


class Session:
    """One mount: made by the constructor (`CloudMountError` with libfuse's reason), served by `run`.

    `operations` maps names of `struct fuse_lowlevel_ops` to functions that never raise and answer
    each request once.
    """

    def __init__(
        self,
        lib: Libfuse,
        mountpoint: str,
        mount_options: Iterable[str],
        session_options: Iterable[str],
        operations: Mapping[str, Callable[..., None]],
    ) -> None:
        self._lib = lib
        self._ops = lib.operations()
        for name, prototype in lib.operations._fields_:
            if name in operations:
                setattr(self._ops, name, prototype(operations[name]))
        self._lock = threading.Lock()
        self._threads = self._idle = 0
        self._all_left = threading.Event()
        self._path = os.fsencode(mountpoint)

        args = lib.args(mount_options)
        channel, why = _with_stderr(lambda: lib.mount(self._path, ctypes.byref(args)))
        lib.opt_free_args(ctypes.byref(args))
        if not channel:
            raise CloudMountError(f"{mountpoint} can't be mounted: {why or 'libfuse gives no reason'}")
        self._channel = channel
        # A program started from here must not hold the mount when this process is killed.
        import fcntl

        fcntl.fcntl(lib.chan_fd(channel), fcntl.F_SETFD, fcntl.FD_CLOEXEC)

        args = lib.args(session_options)
        self._session, why = _with_stderr(
            lambda: lib.session_new(
                ctypes.byref(args), ctypes.byref(self._ops), ctypes.sizeof(self._ops), None
            )
        )
        lib.opt_free_args(ctypes.byref(args))
        if not self._session:
            lib.unmount(self._path, channel)
            raise CloudMountError(f"{mountpoint} can't be served: {why or 'libfuse gives no reason'}")
        lib.session_add_chan(self._session, channel)

    def run(self) -> None:
        """Serve until unmounted and every request is answered."""
        with self._lock:
            self._start_thread()
        self._all_left.wait()
        # Only here is the session used by nobody, so only here may it go: a request stuck below
        # keeps all of it until it comes back or the process ends.
        self._lib.session_remove_chan(self._channel)
        self._lib.session_destroy(self._session)
        self._lib.chan_destroy(self._channel)

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._work, name="cloudmount-fuse", daemon=True).start()
        except RuntimeError:  # the system's limit: those that are there go on
            if not self._threads:
                raise
            return
        self._threads += 1
        self._idle += 1

    def _work(self) -> None:
        # Signals are the main thread's; one that interrupted a reader below would only slow it.
        signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
        )
        lib, session = self._lib, self._session
        length = lib.chan_bufsize(self._channel)
        memory = ctypes.create_string_buffer(length)
        buffer = _Buffer(mem=ctypes.addressof(memory))
        channel = ctypes.c_void_p(self._channel)
        buffer_p, channel_p = ctypes.byref(buffer), ctypes.byref(channel)
        try:
            while not lib.session_exited(session):
                buffer.size, buffer.flags, channel.value = length, 0, self._channel
                got = lib.receive(session, buffer_p, channel_p)
                if got <= 0:
                    if got not in (0, -errno.EINTR, -errno.EAGAIN):
                        lib.session_exit(session)
                    continue  # unmounted: then the session has exited
                with self._lock:
                    self._idle -= 1
                    if not self._idle and self._threads < MAX_THREADS:
                        self._start_thread()
                lib.process(session, buffer_p, channel)
                with self._lock:
                    if self._idle >= _IDLE_THREADS:
                        return
                    self._idle += 1
        finally:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    self._all_left.set()


def _with_stderr(call: Callable[[], Any]) -> tuple[Any, str]:
    """What `call` returns, and what it (or fusermount, started by it) wrote to stderr meanwhile:
    libfuse tells its reasons nowhere else."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as told:
        os.dup2(told.fileno(), 2)
        try:
            result = call()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        told.seek(0)
        lines = told.read().decode(errors="replace").splitlines()
    return result, "; ".join(line.strip() for line in lines if line.strip())
