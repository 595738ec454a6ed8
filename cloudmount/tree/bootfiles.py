"""Which files of its system a machine reads while it boots, and where on the disk they lie.

Decided here and only here: the lists below, in the order in which the files are needed. The one of Linux is
what a recorded boot of a Debian server read: of 457 frames beside its boot partition 352 are brought, and
87 others. The one of Windows follows what is documented of its start (loader, kernel, registry, drivers,
sessions, services); it was not measured. Nothing here need be right: what is missing is skipped, what isn't
read was fetched for nothing.

Folders are read as people's are, by parsers in processes of their own (`inside`), which brings the file
system's own blocks that the machine needs, too. Safe on any thread.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from cloudmount.errors import CloudMountError
from cloudmount.extents import BlockSource
from cloudmount.nodes import Node
from cloudmount.tree.inside import GuestDir, GuestFile

if TYPE_CHECKING:
    from cloudmount.tree.snapshotdir import StoredDisk


class Files(NamedTuple):
    """The files of a folder whose names match; of each `most` bytes. `*` in the folder: the newest there."""

    folder: str
    names: str
    most: int = 8 << 20


_ANY = ".*"
_LIBS = (
    r"(ld-linux.*|lib(acl|apparmor|audit|blkid|bpf|c|cap|cap-ng|crypt|crypto|cryptsetup|dbus-1|devmapper|expat|"
    r"gcrypt|gpg-error|ip4tc|json-c|kmod|lz4|lzma|m|mount|pam|pcre2-8|seccomp|selinux|systemd|tinfo|zstd)"
    r"[-.]so(\..*)?|lib(c|m)-2.*\.so)"
)
_DLLS = r"(ntdll|kernel32|kernelbase|advapi32|sechost|rpcrt4|ucrtbase|msvcrt)\.dll"
_SERVICES = r"(smss|csrss|wininit|winlogon|services|lsass|svchost)\.exe"
_DRIVERS = (
    r"(acpi|cng|classpnp|clfs|disk|fltmgr|fwp.*|ksec.*|mount.*|ndis|netio|ntfs|part.*|pci|stor.*|tcpip|vm.*|vol.*|"
    r"wdf.*)\.sys"
)
_SMALL = 64 << 10
KERNEL = Files("boot", r"(vmlinuz|initrd|initramfs).*", 64 << 20)
LINUX = (
    Files("usr/lib/systemd", r"systemd|libsystemd-.*"),
    *(Files(f"usr/{lib}", _LIBS) for lib in ("lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib64")),
    Files("usr/lib/x86_64-linux-gnu/systemd", _ANY),
    Files("usr/lib/modules/*", r"modules\..*(bin|softdep|builtin|devname|order|symbols|modinfo)"),
    Files(
        "usr/bin", r"bash|dash|dbus-daemon|journalctl|kmod|mount|systemctl|udevadm|systemd-(sysus|tmpf|tty).*"
    ),
    Files("usr/lib/modules/*/kernel/fs/autofs", _ANY),
    Files("usr/lib/modules/*/kernel/arch/x86/crypto", r"(aesni|sha|crc|crct10|ghash).*"),
    Files("usr/lib/systemd/system-generators", _ANY),
    Files("usr/lib/systemd/system", _ANY, _SMALL),
    Files("etc", _ANY, _SMALL),
    Files("etc/systemd", _ANY, _SMALL),
    Files(
        "usr/lib/systemd", r"systemd-(journald|udevd|logind|networkd|modules-load|remount-fs|sysctl|shutdown)"
    ),
    Files("usr/lib/modules/*/kernel/net/netfilter", r"x_tables.*"),
    Files("usr/lib/modules/*/kernel/net/ipv4/netfilter", r"ip_tables.*"),
    Files("usr/lib/modules/*/kernel/drivers/md", r"dm-mod.*"),
    Files("usr/lib/modules/*/kernel/fs/fuse", r"fuse.*"),
    Files("usr/lib/modules/*/kernel/drivers/block", r"loop.*"),
    Files("usr/lib/locale/C.utf8", _ANY),
    Files("usr/lib/sysusers.d", _ANY, _SMALL),
    Files("usr/lib/tmpfiles.d", _ANY, _SMALL),
    Files("usr/lib/udev/rules.d", _ANY, _SMALL),
    Files("usr/lib/udev", _ANY, 16 << 20),
    Files("usr/lib/modules/*/kernel/drivers/cpufreq", _ANY, _SMALL),
    Files("usr/share/dbus-1/system-services", _ANY, _SMALL),
    Files("usr/lib/modules/*/kernel/arch/x86/kvm", _ANY),
)
WINDOWS = (
    Files("Windows/System32", r"winload\.(efi|exe)|(hal|ci|kd.*|bootvid)\.dll|ntoskrnl\.exe", 16 << 20),
    Files("Windows/System32/config", r"SYSTEM", 32 << 20),
    Files("Windows/System32/drivers", _DRIVERS),
    Files("Windows/System32", rf"{_DLLS}|{_SERVICES}|win32k.*\.sys"),
    Files("Windows/System32/config", r"SOFTWARE", 16 << 20),
)


EXT_BYTES = 8 << 20
"""Of the beginning of an ext4 volume with a system: superblock, groups' descriptors and maps, the first
tables of inodes; they compress to a few hundred KB."""
MFT_BYTES = 4 << 20


def system_ranges(disk: StoredDisk, kernel: bool) -> Iterator[tuple[int, int]]:
    """(offset, length) in bytes of the disk of what its system reads while it boots, in order; with its
    newest kernel, if `kernel`. May wait for the store, and for parsers; what fails is left out."""
    with contextlib.suppress(CloudMountError):
        for root in disk.inside.children().values():
            if isinstance(root, GuestDir):
                with contextlib.suppress(CloudMountError):
                    yield from _of_system(root, kernel, disk.quiet())


def _of_system(root: GuestDir, kernel: bool, disk: BlockSource) -> Iterator[tuple[int, int]]:
    """Of the file system in one partition, if a system is in it."""
    if _folder(root, "usr/lib/systemd") is not None:
        lists = [KERNEL, *LINUX] if kernel else list(LINUX)
        yield root.start, min(EXT_BYTES, disk.size - root.start)
    elif _folder(root, "Windows/System32/config") is not None:
        lists = list(WINDOWS)
        at = root.start + mft_offset(disk.read_at(root.start, 64))
        yield min(at, disk.size), min(MFT_BYTES, max(0, disk.size - at))
    elif kernel and _folder(root, "grub") is not None:  # /boot as a file system of its own
        lists = [KERNEL._replace(folder="")]
    else:
        return
    for files in lists:
        with contextlib.suppress(CloudMountError):
            yield from _chosen(root, files)


def mft_offset(boot: bytes) -> int:
    """Where in an NTFS volume that begins with these 64 bytes its table of files begins."""
    sector, per_cluster = int.from_bytes(boot[11:13], "little"), boot[13]
    if per_cluster > 128:  # a power of two, negated: clusters above 64 KiB
        per_cluster = 1 << (256 - per_cluster)
    return int.from_bytes(boot[48:56], "little") * sector * per_cluster


def _chosen(root: GuestDir, files: Files) -> Iterator[tuple[int, int]]:
    folder = _folder(root, files.folder)
    if folder is None:
        return
    found = [
        (node.attr().mtime_ns, node)
        for name, node in folder.list()
        if isinstance(node, GuestFile) and re.fullmatch(files.names, name, re.IGNORECASE)
    ]
    if files.most >= KERNEL.most:
        found = sorted(found, key=lambda f: f[0], reverse=True)[:2]
    for _, node in found:
        left = files.most
        with contextlib.suppress(CloudMountError):
            for offset, length in node.places():
                if left <= 0:
                    break
                yield offset, min(length, left)
                left -= length


def _folder(root: GuestDir, path: str) -> GuestDir | None:
    """The folder at this path, by folders only; `*` is the one changed last."""
    here = root
    for part in path.split("/") if path else []:
        found: Node | None
        if part == "*":
            inner = [n for _, n in here.list() if isinstance(n, GuestDir)]
            found = max(inner, key=lambda n: n.attr().mtime_ns, default=None)
        else:
            found = here.lookup(part)
        if not isinstance(found, GuestDir):
            return None
        here = found
    return here
