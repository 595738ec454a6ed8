"""Giving a finished file its name, unless the name is taken: atomically, durably.

Decided here and only here: how a folder store gets create-only writes from what a
file system offers. In this order:

1. `link()`: fails when the name exists, everywhere that has hard links.
2. A rename that does not replace (`renameat2`, Linux; Windows' own `rename`): vfat.
3. Under a lock file (`flock`, which ends with its process): look, then rename.
   exFAT, CIFS, most FUSE file systems. On those that keep such locks to one
   computer (sshfs) two computers could pass each other within microseconds,
   with the same name; CloudMount's names are random.

Never `O_EXCL` on the final name: a writer killed before it had written all would
leave half an object there.

Threading: any number of threads and processes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable

from cloudmount.errors import StoreRefusedError, StoreTimeoutError
from cloudmount.system import OPEN, WINDOWS, try_lock

_UNSUPPORTED = {
    errno.EPERM,  # vfat's and exFAT's answer to link()
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EMLINK,
    errno.ENOTTY,
}
_LOCK_POLL = 0.02


def place_new(temporary: str, path: str, lock: str, deadline: float | None) -> None:
    """Name the file `temporary` `path`; `FileExistsError` when there is something of that name.

    `temporary` may be left for the caller to remove; `lock` is the path of a lock file to use
    where nothing better works. `OSError` of the last way when none does.
    """
    ways = [_rename_new] if WINDOWS else [_link, _rename_new]
    for way in ways:
        try:
            way(temporary, path)
            return
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    _rename_locked(temporary, path, lock, deadline)


def _link(temporary: str, path: str) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        # NFS sends again what got no answer, and then meets its own link.
        if not os.path.samestat(os.stat(temporary), os.stat(path)):
            raise


def _rename_new(temporary: str, path: str) -> None:
    if WINDOWS:
        os.rename(temporary, path)  # does not replace on Windows
        return
    rename = _renameat2()
    if rename is None:
        raise OSError(errno.ENOSYS, "no renameat2 here")
    here, no_replace = -100, 1  # AT_FDCWD, RENAME_NOREPLACE
    if rename(here, os.fsencode(temporary), here, os.fsencode(path), no_replace) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def _renameat2() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
        function.restype = ctypes.c_int
    return function


def _rename_locked(temporary: str, path: str, lock: str, deadline: float | None) -> None:
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | OPEN, 0o666)
    try:
        while True:
            try:
                if try_lock(fd):
                    break
            except OSError as error:
                raise StoreRefusedError(
                    f"the file system of {os.path.dirname(lock)} can't link, rename without replacing "
                    f"or lock ({error.strerror}): a repository is not safe there"
                ) from error
            if deadline is not None and time.monotonic() >= deadline:
                raise StoreTimeoutError(f"another writer holds {lock}")
            time.sleep(_LOCK_POLL)
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        os.rename(temporary, path)
    finally:
        os.close(fd)
