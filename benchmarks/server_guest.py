#!/usr/bin/env python3
"""The benchmarks' guest: a small business's server on an 8 GiB UEFI disk, built without loop devices.

    server_guest.py            builds it into the user's cache, once, and prints its path
    server_guest.py OUT.vhdx   builds it there

Decided here and only here: what is on that disk and what the guest says on its serial line.

    1 esp   FAT32, 64 MiB   systemd-boot, Debian's cloud kernel and its initrd
    2 root  ext4, 4 GiB     Debian 12, minimal, with systemd; /srv/data: 1466 MiB of photos that do not
                            compress and a ledger of 733 MiB that does, about 2 to 1
    3 DATA  NTFS, 512 MiB   company.QBW (20 MiB, random) with its side files

On reaching multi-user.target it says `GUEST-READY <seconds since its kernel started>` on ttyS0 and
powers off. The file is a dynamic VHDX, as a Hyper-V server has, of about 2.9 GB.

It is kept in the cache under a hash of this file: the recipe. So is the installed Debian, under a
hash of the list of its packages: it is not the same for ever, but for all runs on one machine.
Building takes 3 minutes the first time, one later. debootstrap and the owners of files need root:
when the user is another, the building (only it) runs under sudo. Single-threaded.

Needs (scripts/apt-packages.txt): debootstrap dosfstools e2fsprogs gdisk mtools ntfs-3g qemu-utils
systemd-boot-efi.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from benchmarks.commands import MIB, BenchmarkError, program

SUITE = "bookworm"
PACKAGES = ("systemd-sysv", "linux-image-cloud-amd64", "udev", "iproute2", "dbus")

DISK_MIB, ESP_MIB, ROOT_MIB, DATA_MIB = 8192, 64, 4096, 512
PHOTOS_MIB, LEDGER_MIB, QBW_MIB = 1466, 733, 20
BOOT_LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")

READY_SERVICE = """\
[Unit]
Description=Says on the serial line that the server is up
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo GUEST-READY $(cut -d" " -f1 /proc/uptime) >/dev/ttyS0; sync; systemctl poweroff -f'
[Install]
WantedBy=multi-user.target
"""
LOADER_CONF = "default server\ntimeout 0\n"
LOADER_ENTRY = """\
title server
linux /vmlinuz
initrd /initrd.img
options root=PARTLABEL=root rw console=ttyS0,115200
"""

PACKAGE_OF = {
    "debootstrap": "debootstrap",
    "mkfs.vfat": "dosfstools",
    "mkfs.ext4": "e2fsprogs",
    "sgdisk": "gdisk",
    "mmd": "mtools",
    "mcopy": "mtools",
    "mkntfs": "ntfs-3g",
    "ntfscp": "ntfs-3g",
    "qemu-img": "qemu-utils",
    "tar": "tar",
    "dd": "coreutils",
}


def cached_guest() -> Path:
    """The guest's VHDX in the user's cache, built when it is not there yet."""
    folder = _cache()
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    guest = folder / f"server-{recipe}.vhdx"
    if not guest.exists():
        print(f"guest: building {guest}, once; this takes some minutes", file=sys.stderr)
        if os.geteuid() == 0:
            build(guest)
        else:
            _build_under_sudo(guest)
        for older in folder.glob("server-*.vhdx"):
            if older != guest:
                older.unlink()  # of an older recipe, 2.9 GB each
    return guest


def build(vhdx: Path) -> None:
    """Build the guest into `vhdx`, which appears when it is complete. As root."""
    if not BOOT_LOADER.exists():
        raise BenchmarkError(f"{BOOT_LOADER} is missing: apt-get install systemd-boot-efi")
    for name in PACKAGE_OF:
        _program(name)
    vhdx.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".server-", dir=vhdx.parent) as folder:
        work = Path(folder)
        debian = _debian(work)
        esp, data = _esp(work, debian), _data(work)
        root = _root(work, debian)
        disk = work / "disk.raw"
        _sparse(disk, DISK_MIB)
        layout = [(esp, ESP_MIB, "ef00", "esp"), (root, ROOT_MIB, "8300", "root")]
        layout.append((data, DATA_MIB, "0700", "DATA"))
        options, start = [], 1
        for number, (_, size, kind, label) in enumerate(layout, start=1):
            options += [f"-n{number}:{start}M:+{size}M", f"-t{number}:{kind}", f"-c{number}:{label}"]
            start += size
        _run("sgdisk", *options, str(disk))
        start = 1
        for partition, size, _, _ in layout:
            seek = ("oflag=seek_bytes", f"seek={start * MIB}", "conv=notrunc,sparse")
            _run("dd", f"if={partition}", f"of={disk}", "bs=64K", *seek)
            partition.unlink()
            start += size
        whole = work / "disk.vhdx"
        _run(
            "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic", str(disk), str(whole)
        )
        whole.replace(vhdx)


def _debian(work: Path) -> Path:
    """A folder with Debian installed in it, from the cache or else by debootstrap."""
    packages = hashlib.sha256(repr((SUITE, PACKAGES)).encode()).hexdigest()[:16]
    kept = _cache() / f"debian-{packages}.tar"
    root = work / "root"
    root.mkdir()
    if not kept.exists():
        options = ("--variant=minbase", f"--include={','.join(PACKAGES)}")
        _run("debootstrap", *options, SUITE, str(root), *_mirror())
        for package in (root / "var/cache/apt/archives").glob("*.deb"):
            package.unlink()
        part = kept.with_suffix(".part")
        _run("tar", "-C", str(root), "-cf", str(part), ".")
        part.replace(kept)
    else:
        _run("tar", "-C", str(root), "-xf", str(kept))
    return root


def _mirror() -> list[str]:
    """The Debian mirror that this machine's own apt uses; none: debootstrap's own."""
    lists = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for file in lists:
        text = file.read_text(errors="replace") if file.is_file() else ""
        for url in re.findall(r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(https?://\S+)", text, re.M):
            if url.rstrip("/").endswith("/debian"):
                return [str(url)]
    return []


def _esp(work: Path, debian: Path) -> Path:
    """The boot partition: systemd-boot loading Debian's kernel without asking."""
    esp = work / "esp.img"
    _sparse(esp, ESP_MIB)
    _run("mkfs.vfat", "-F32", "-n", "ESP", str(esp))
    _run("mmd", "-i", str(esp), "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries")
    contents = {
        "EFI/BOOT/BOOTX64.EFI": BOOT_LOADER,
        "vmlinuz": next((debian / "boot").glob("vmlinuz-*")),
        "initrd.img": next((debian / "boot").glob("initrd.img-*")),
        "loader/loader.conf": _text(work / "loader.conf", LOADER_CONF),
        "loader/entries/server.conf": _text(work / "server.conf", LOADER_ENTRY),
    }
    for name, file in contents.items():
        _run("mcopy", "-i", str(esp), str(file), f"::/{name}")
    return esp


def _root(work: Path, debian: Path) -> Path:
    """The root partition: Debian, the service that says it is up, and the office's data."""
    units = debian / "etc/systemd/system"
    _text(units / "guest-ready.service", READY_SERVICE)
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "guest-ready.service").symlink_to("../guest-ready.service")
    _text(debian / "etc/machine-id", "9d5e4f1c2b3a48679807f6e5d4c3b2a1\n")  # else each boot were a first one
    _text(debian / "etc/hostname", "server\n")
    office = debian / "srv/data"
    office.mkdir(parents=True)
    rng = random.Random(1)
    with (office / "photos.bin").open("wb") as file:
        for _ in range(PHOTOS_MIB):
            file.write(rng.randbytes(MIB))
    letters = b"abcdefghijklmnopqrstuvwxyz"
    words = [bytes(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(5000)]
    with (office / "ledger.txt").open("wb") as file:
        while file.tell() < LEDGER_MIB * MIB:
            file.write(b" ".join(rng.choices(words, k=200_000)))
    root = work / "root.img"
    _sparse(root, ROOT_MIB)
    _run("mkfs.ext4", "-q", "-F", "-d", str(debian), str(root))
    return root


def _data(work: Path) -> Path:
    """The NTFS partition with QuickBooks' files."""
    data = work / "data.img"
    _sparse(data, DATA_MIB)
    _run("mkntfs", "-Q", "-q", "-F", "-L", "DATA", "-p", str((1 + ESP_MIB + ROOT_MIB) * 2048), str(data))
    rng = random.Random(2)
    contents = {
        "company.QBW": rng.randbytes(QBW_MIB * MIB),
        "company.QBW.TLG": rng.randbytes(256 << 10),
        "company.QBW.ND": b"[NetConnect]\r\nServerPort=0\r\n",
    }
    file = work / "content"
    for name, content in contents.items():
        file.write_bytes(content)
        _run("ntfscp", "-q", "-f", str(data), str(file), name)
    return data


def _text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def _sparse(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        file.truncate(mib * MIB)


def _program(name: str) -> str:
    return program(name, PACKAGE_OF[name])


def _run(name: str, *arguments: str) -> None:
    """Run a tool; what it says is shown only when it fails."""
    environ = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run([_program(name), *arguments], env=environ, capture_output=True, check=False)
    if done.returncode:
        words = (done.stdout + done.stderr).decode(errors="replace").strip()[-2000:]
        raise BenchmarkError(f"{name} failed with exit code {done.returncode}: {words}")


def _cache() -> Path:
    """The user's cache, also for the part that runs under sudo."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudmount" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _build_under_sudo(guest: Path) -> None:
    sudo = program("sudo", "sudo")
    cache = f"XDG_CACHE_HOME={_cache().parents[1]}"
    subprocess.run([sudo, "env", cache, sys.executable, str(Path(__file__)), str(guest)], check=True)
    owner = f"{os.getuid()}:{os.getgid()}"
    subprocess.run([sudo, "chown", "-R", owner, str(_cache())], check=True)


def main() -> int:
    """The program of the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("disk", type=Path, nargs="?", metavar="OUT.vhdx")
    disk: Path | None = parser.parse_args().disk
    try:
        if disk is None:
            disk = cached_guest()
        else:
            build(disk)
    except (BenchmarkError, subprocess.CalledProcessError) as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    print(disk)
    return 0


if __name__ == "__main__":
    sys.exit(main())
