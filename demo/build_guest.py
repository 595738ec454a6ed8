#!/usr/bin/env python3
"""The demo's guest: a small UEFI machine on one GPT disk, built without root, loop devices or mounts.

    build_guest.py OUT.raw [--data-mib 200]     builds it (a sparse file of 1 GiB)
    build_guest.py OUT.raw --edit               a day's work in it: some bookings in company.QBW

Decided here and only here: what is on that disk and what the guest says on its serial line.

    1 esp   FAT32, 64 MiB   systemd-boot, Debian's cloud kernel, an initramfs
    2 DATA  NTFS, the rest  company.QBW (20 MiB) with its side files, photos and ledgers

The kernel comes from its Debian package, fetched by `apt-get download` (verified by apt, not
installed) and kept in the user's cache, so that a second build needs no network. The initramfs
is busybox, the few modules that a virtio, NVMe or PIIX IDE disk needs, and ntfs-3g: Debian's
cloud kernel has no NTFS of its own. The guest mounts DATA read-only, then says

    GUEST-DATA <sha256 of company.QBW>
    GUEST-READY <seconds since its kernel started>

or `GUEST-FAILED <why>`, and powers off. Building takes about 5 s. Single-threaded.

Needs (scripts/apt-packages.txt): busybox-static dosfstools gdisk mtools ntfs-3g systemd-boot-efi.
"""

import argparse
import dataclasses
import gzip
import hashlib
import io
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

MIB = 1 << 20
DISK_MIB = 1024
ESP_MIB = 64
ESP_START_MIB = 1
DATA_START_MIB = ESP_START_MIB + ESP_MIB
DATA_MIB = DISK_MIB - DATA_START_MIB - 1  # the last MiB has the backup GPT

QBW_NAME = "company.QBW"
QBW_MIB = 20
QBW_PAGE = 4096

KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = ("virtio_pci", "virtio_blk", "ata_piix", "sd_mod", "fuse")  # NVMe is built into this kernel
BOOT_LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")

INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /data /usr/bin
/bin/busybox --install -s /usr/bin
export PATH=/usr/bin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1 </dev/null
finish() { echo "$@"; sync; poweroff -f; }
for module in $(cat /modules/order); do insmod /modules/$module.ko || finish GUEST-FAILED insmod $module; done
tries=0
until data=$(findfs LABEL=DATA 2>/dev/null); do
    tries=$((tries + 1)); [ $tries -le 300 ] || finish GUEST-FAILED no partition DATA
    usleep 100000
done
ntfs-3g -o ro $data /data || finish GUEST-FAILED mount of $data
sum=$(sha256sum /data/company.QBW) || finish GUEST-FAILED reading company.QBW
echo GUEST-DATA ${sum%% *}
umount /data
finish GUEST-READY $(cut -d' ' -f1 /proc/uptime)
"""


class GuestError(Exception):
    """The guest can't be built here; the text says what is missing and what to do."""


@dataclasses.dataclass(frozen=True)
class Guest:
    """A built disk: its raw image and what the guest will print after GUEST-DATA."""

    disk: Path
    qbw_sha256: str


def build(disk: Path, data_mib: int = 200, init: str = INIT, modules: Sequence[str] = MODULES) -> Guest:
    """Build the guest into `disk`, with `data_mib` MiB of photos and ledgers beside company.QBW.

    `init` is what it runs, a script of busybox's shell, and `modules` what that loads; see INIT for what
    there is.

    Replaces `disk` only when complete. Raises GuestError when a tool or the kernel is missing.
    """
    kernel, drivers = _kernel(modules)
    disk.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".guest-", dir=disk.parent) as folder:
        work = Path(folder)
        esp = _esp(work, kernel, _initramfs(drivers, init))
        data, qbw_sha256 = _data(work, data_mib)
        whole = work / "disk.raw"
        _sparse_file(whole, DISK_MIB)
        _run(
            "sgdisk",
            *(f"-n1:{ESP_START_MIB}M:+{ESP_MIB}M", "-t1:ef00", "-c1:esp"),
            *(f"-n2:{DATA_START_MIB}M:+{DATA_MIB}M", "-t2:0700", "-c2:DATA"),
            str(whole),
        )
        _place(esp, whole, ESP_START_MIB * MIB)
        _place(data, whole, DATA_START_MIB * MIB)
        whole.replace(disk)
    return Guest(disk, qbw_sha256)


def edit(disk: Path) -> Guest:
    """A day's work in the guest: new bookings in 20 pages of company.QBW and a longer log beside it."""
    with tempfile.TemporaryDirectory(prefix=".guest-", dir=disk.parent) as folder:
        work = Path(folder)
        data = work / "data.img"
        _sparse_file(data, DATA_MIB)
        with disk.open("rb") as source, data.open("r+b") as target:
            _copy_data(source.fileno(), DATA_START_MIB * MIB, DATA_MIB * MIB, target.fileno(), 0)
        content = bytearray(_run("ntfscat", "-f", str(data), QBW_NAME))
        for page in random.sample(range(len(content) // QBW_PAGE), 20):
            content[page * QBW_PAGE : (page + 1) * QBW_PAGE] = os.urandom(QBW_PAGE)
        _ntfs_put(work, data, QBW_NAME, bytes(content))
        log = _run("ntfscat", "-f", str(data), f"{QBW_NAME}.TLG") + os.urandom(40_000)
        _ntfs_put(work, data, f"{QBW_NAME}.TLG", log)
        _place(data, disk, DATA_START_MIB * MIB)
    return Guest(disk, hashlib.sha256(content).hexdigest())


# --- The partitions ---------------------------------------------------------------------------------


def _esp(work: Path, kernel: bytes, initramfs: bytes) -> Path:
    """A FAT32 boot partition: systemd-boot, loading this kernel and initramfs without asking."""
    if not BOOT_LOADER.exists():
        raise GuestError(f"{BOOT_LOADER} is missing; install the Debian package systemd-boot-efi")
    esp = work / "esp.img"
    _sparse_file(esp, ESP_MIB)
    _run("mkfs.vfat", "-F32", "-n", "ESP", str(esp))
    _run("mmd", "-i", str(esp), "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries")
    files = {
        "EFI/BOOT/BOOTX64.EFI": BOOT_LOADER.read_bytes(),
        "vmlinuz": kernel,
        "initrd.img": initramfs,
        "loader/loader.conf": b"default guest\ntimeout 0\n",
        "loader/entries/guest.conf": (
            b"title guest\nlinux /vmlinuz\ninitrd /initrd.img\noptions console=ttyS0,115200 quiet panic=-1\n"
        ),
    }
    for name, content in files.items():
        _run("mcopy", "-i", str(esp), "-", f"::/{name}", stdin=content)
    return esp


def _data(work: Path, data_mib: int) -> tuple[Path, str]:
    """The NTFS partition DATA, and the SHA-256 of its company.QBW."""
    if not 0 <= data_mib <= DATA_MIB * 3 // 4:
        raise GuestError(f"--data-mib {data_mib}: between 0 and {DATA_MIB * 3 // 4}")
    data = work / "data.img"
    _sparse_file(data, DATA_MIB)
    _run("mkntfs", "-Q", "-q", "-F", "-L", "DATA", "-p", str(DATA_START_MIB * MIB // 512), str(data))
    qbw = os.urandom(QBW_MIB * MIB)
    _ntfs_put(work, data, QBW_NAME, qbw)
    _ntfs_put(work, data, f"{QBW_NAME}.TLG", os.urandom(256 << 10))
    _ntfs_put(work, data, f"{QBW_NAME}.ND", b"[NetConnect]\r\nServerPort=0\r\n")
    photos = data_mib * 2 // 3
    if photos:
        _ntfs_put(work, data, "photos.bin", os.urandom(photos * MIB))
    if data_mib > photos:
        _ntfs_put(work, data, "ledger.txt", _ledger((data_mib - photos) * MIB))
    return data, hashlib.sha256(qbw).hexdigest()


def _ledger(size: int) -> bytes:
    """Text that compresses as bookkeeping does, about 2.5 to 1."""
    rng = random.Random(1)
    names = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(2000)]
    lines = []
    for _ in range(20_000):
        day, amount = (rng.randint(1, 12), rng.randint(1, 28)), rng.randint(100, 999_999) / 100
        lines.append(b"2026-%02d-%02d;%s;%.2f\r\n" % (*day, b" ".join(rng.choices(names, k=2)), amount))
    text = bytearray()
    while len(text) < size:
        text += b"".join(rng.choices(lines, k=50_000))
    return bytes(text[:size])


def _ntfs_put(work: Path, partition: Path, name: str, content: bytes) -> None:
    file = work / "content"
    file.write_bytes(content)
    _run("ntfscp", "-q", "-f", str(partition), str(file), name)
    file.unlink()


def _sparse_file(path: Path, size_mib: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)


def _place(partition: Path, disk: Path, offset: int) -> None:
    """Write the data ranges of `partition` at `offset` of `disk`; its holes stay as they are there."""
    with partition.open("rb") as source, disk.open("r+b") as target:
        _copy_data(source.fileno(), 0, os.fstat(source.fileno()).st_size, target.fileno(), offset)


def _copy_data(source: int, start: int, length: int, target: int, offset: int) -> None:
    """Copy [start, start + length) of `source` to `offset` of `target`, skipping holes."""
    at, end = start, start + length
    while at < end:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        until = min(end, os.lseek(source, at, os.SEEK_HOLE))
        while at < until:
            piece = os.pread(source, min(4 * MIB, until - at), at)
            os.pwrite(target, piece, offset + at - start)
            at += len(piece)


# --- Kernel and initramfs ---------------------------------------------------------------------------


def _kernel(modules: Sequence[str]) -> tuple[bytes, dict[str, bytes]]:
    """Debian's cloud kernel, and these modules with what they need, in the order to load them."""
    if platform.machine() != "x86_64":
        raise GuestError(f"the demo's guest is for x86_64, this machine is {platform.machine()}")
    everything: dict[str, bytes] = {}
    kernel = b""
    package = _kernel_package()
    listing = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE)
    with tarfile.open(fileobj=io.BytesIO(listing.stdout)) as archive:
        for member in archive:
            name = Path(member.name)
            if name.name.startswith("vmlinuz-") or name.suffix == ".ko":
                file = archive.extractfile(member)
                content = file.read() if file else b""
                if name.suffix == ".ko":
                    everything[name.stem.replace("-", "_")] = content
                else:
                    kernel = content
    if not kernel:
        raise GuestError(f"{package} has no kernel in it; delete it and try again")
    ordered: dict[str, bytes] = {}

    def add(module: str) -> None:
        if module in ordered:
            return
        if module not in everything:
            raise GuestError(f"{package} has no module {module}")
        needs = re.search(rb"(?:^|\0)depends=([^\0]*)", everything[module])
        for other in needs[1].decode().split(",") if needs and needs[1] else ():
            add(other.replace("-", "_"))
        ordered[module] = everything[module]

    for module in modules:
        add(module)
    return kernel, ordered


def _kernel_package() -> Path:
    """The kernel's .deb, from the user's cache or else by apt."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(base) / "cloudmount" / "demo"
    cache.mkdir(parents=True, exist_ok=True)
    if kept := sorted(cache.glob("linux-image-*-cloud-amd64_*.deb")):
        return kept[-1]
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:
        versioned = _versioned_kernel()
        # As root apt would drop to a user who can't write here; it verifies the package all the same.
        command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", versioned]
        fetched = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False)
        files = list(Path(folder).glob("*.deb"))
        if fetched.returncode or not files:
            raise GuestError(
                f"apt-get could not download {versioned}; see above, or run apt-get update first"
            )
        return Path(shutil.move(files[0], cache / files[0].name))


def _versioned_kernel() -> str:
    """The package that the metapackage stands for today; refreshes apt's lists once if they are empty."""
    for attempt in range(2):
        shown = subprocess.run(
            ["apt-cache", "depends", "--important", KERNEL_PACKAGE],
            capture_output=True,
            text=True,
            check=False,
        )
        if found := re.search(r"Depends: (linux-image-\S+)", shown.stdout):
            return found[1]
        if attempt == 0:
            root = [] if os.geteuid() == 0 else ["sudo"]
            print(f"guest: apt does not know {KERNEL_PACKAGE} yet: apt-get update", file=sys.stderr)
            subprocess.run([*root, "apt-get", "-q", "update"], stdout=subprocess.DEVNULL, check=False)
    raise GuestError(f"apt does not know {KERNEL_PACKAGE}; the guest is built on Debian 12 for x86_64")


def _initramfs(modules: dict[str, bytes], init: str) -> bytes:
    """Busybox, ntfs-3g with the libraries it is linked to, the modules, and the guest's /init."""
    files: dict[str, tuple[int, bytes]] = {"init": (0o755, init.encode())}
    files["bin/busybox"] = (0o755, _program("busybox").read_bytes())
    ntfs = _program("ntfs-3g")
    files["bin/ntfs-3g"] = (0o755, ntfs.read_bytes())
    for library in re.findall(r"(/\S+) \(0x", _run("ldd", str(ntfs)).decode()):
        files[library.lstrip("/")] = (0o755, Path(library).read_bytes())
    for name, content in modules.items():
        files[f"modules/{name}.ko"] = (0o644, content)
    files["modules/order"] = (0o644, "\n".join(modules).encode())
    return gzip.compress(b"".join(_newc(files)), compresslevel=6)


def _newc(files: dict[str, tuple[int, bytes]]) -> Iterator[bytes]:
    """A cpio archive in the "newc" form the kernel unpacks (its initramfs/buffer-format)."""
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    entries = [(folder, 0o040755, b"") for folder in sorted(folders)]
    entries += [(name, 0o100000 | mode, content) for name, (mode, content) in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    for number, (name, mode, content) in enumerate(entries, start=1):
        path = name.encode() + b"\0"
        # magic, inode, mode, uid, gid, links, mtime, size, 2 x device, 2 x special device, name's size, check
        numbers = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % value for value in numbers) + path
        yield header + bytes(-len(header) % 4)
        yield content + bytes(-len(content) % 4)


# --- Programs ---------------------------------------------------------------------------------------

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def _program(name: str) -> Path:
    """Where `name` is; Debian keeps disk tools in sbin, which a user's PATH does not name."""
    found = shutil.which(name, path=_PATH)
    if not found:
        raise GuestError(f"{name} is not installed; `scripts/setup.sh demo` installs what the guest needs")
    return Path(found)


def _run(name: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run a tool and return its output; its words are shown only when it fails."""
    done = subprocess.run([_program(name), *arguments], input=stdin, capture_output=True, check=False)
    if done.returncode:
        words = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise GuestError(f"{name} failed with exit code {done.returncode}: {words}")
    return done.stdout


def main() -> int:
    """The program of the module docstring; prints the disk and what the guest will find in it."""
    parser = argparse.ArgumentParser(description="Builds the demo's guest, a small UEFI machine on one disk.")
    parser.add_argument("disk", type=Path, metavar="OUT.raw")
    parser.add_argument("--data-mib", type=int, default=200, help="photos and ledgers on DATA (default 200)")
    parser.add_argument("--edit", action="store_true", help="change company.QBW in OUT.raw instead")
    arguments = parser.parse_args()
    try:
        guest = edit(arguments.disk) if arguments.edit else build(arguments.disk, arguments.data_mib)
    except GuestError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    used = guest.disk.stat().st_blocks * 512 // MIB
    print(f"{guest.disk}: {DISK_MIB} MiB, {used} MiB in use, company.QBW {guest.qbw_sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
