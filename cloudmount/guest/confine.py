"""In the child: what it may do at most.

Decided here and only here: the limits of a parser's process. Everywhere that POSIX has them: memory,
processor time for each call, no new descriptors (so no file and no connection), no core, no file written.
On Linux also a list of system calls (seccomp): those that reading two pipes and managing memory take; every
other fails, so that even bytes that take a parser over can't signal, trace or start anything. On Windows
none of it exists; there a child is only another process, started with nothing in its environment.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

MEMORY = 768 << 20
"""Bytes of address space: Python and a parser take about 150 MiB of it."""
CALL_SECONDS = 20
"""Of processor time; a call that takes more ends the process."""

_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM
_NUMBER, _ARCH, _FIRST_LOW, _FIRST_HIGH = 0, 4, 16, 20  # offsets in struct seccomp_data
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_CALLS: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (0xC000003E, {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
        "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24,
        "mremap": 25, "madvise": 28, "nanosleep": 35, "getpid": 39, "exit": 60, "gettimeofday": 96,
        "getrusage": 98, "sigaltstack": 131, "gettid": 186, "futex": 202, "restart_syscall": 219,
        "clock_gettime": 228, "clock_nanosleep": 230, "exit_group": 231, "getrandom": 318, "rseq": 334,
        "prlimit64": 302,
    }),
    "aarch64": (0xC00000B7, {
        "read": 63, "write": 64, "close": 57, "fstat": 80, "lseek": 62, "mmap": 222, "mprotect": 226,
        "munmap": 215, "brk": 214, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139,
        "sched_yield": 124, "mremap": 216, "madvise": 233, "nanosleep": 101, "getpid": 172, "exit": 93,
        "gettimeofday": 169, "getrusage": 165, "sigaltstack": 132, "gettid": 178, "futex": 98,
        "restart_syscall": 128, "clock_gettime": 113, "clock_nanosleep": 115, "exit_group": 94,
        "getrandom": 278, "rseq": 293, "prlimit64": 261,
    }),
}  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def confine() -> bool:
    """Take away all that is not needed, for good; everything must be imported by now. Whether the system
    calls are limited too."""
    if sys.platform == "win32":
        return False
    import resource

    _at_most(resource.RLIMIT_AS, MEMORY)
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        _at_most(limit, 0)
    if hasattr(resource, "RLIMIT_NPROC"):
        _at_most(resource.RLIMIT_NPROC, 0)
    return sys.platform == "linux" and _limit_calls()


def begin_call() -> None:
    """Grant processor time for one more call."""
    if sys.platform == "win32":
        return
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + CALL_SECONDS
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard != resource.RLIM_INFINITY:
        seconds = min(seconds, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


def _at_most(limit: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _limit_calls() -> bool:
    known = _CALLS.get(platform.machine())
    if known is None:
        return False
    arch, calls = known
    plain = [number for name, number in calls.items() if name != "prlimit64"]
    program = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER),
        *((_EQUAL, len(plain) - i + 6, 0, number) for i, number in enumerate(plain)),
        (_EQUAL, 0, 5, calls["prlimit64"]),  # its own limits only
        (_LOAD, 0, 0, _FIRST_LOW),
        (_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, _FIRST_HIGH),
        (_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    if prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    told = _Program(len(program), ctypes.cast(packed, ctypes.c_void_p))
    return bool(prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(told), 0, 0) == 0)
